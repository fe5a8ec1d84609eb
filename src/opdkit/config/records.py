"""The configuration of a run: strict, frozen records with tagged unions; see `opd train --print-config`."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from opdkit.config.base import Record
from opdkit.config.objective import ObjectiveConfig

Dtype = Literal["float32", "bfloat16", "float64"]
FilePath = Annotated[Path, Field(strict=False)]  # TOML has no paths, only strings
Decay = Annotated[float, Field(ge=0, lt=1)]


def _named(key: str, **fixed: Any) -> BeforeValidator:
    """A bare string stands for the record with that one key: student = "folder"."""
    return BeforeValidator(lambda value: {key: value, **fixed} if isinstance(value, str) else value)


def _tagged(default: str) -> BeforeValidator:
    """A table without `type` gets the default one."""
    return BeforeValidator(lambda v: {"type": default, **v} if isinstance(v, dict) and "type" not in v else v)


class ModelConfig(Record):
    model: str
    """Hub id or folder with safetensors."""
    revision: str | None = None
    """Hub revision to pin."""
    dtype: Dtype = "float32"
    """Of the weights held. Masters stay float32 unless you say otherwise; arithmetic: learner.compute."""


class LocalTeacher(Record):
    """A model in this process."""

    type: Literal["local"] = "local"
    """`local`, a model in this process, unless given."""
    model: str
    """Hub id or folder."""
    revision: str | None = None
    """Hub revision to pin."""
    dtype: Dtype = "float32"
    """`bfloat16` is faster and smaller; its KL error against float32 is printed after the first batch."""
    temperature: float = Field(default=1.0, gt=0)
    """Teacher logits are divided by this."""
    payload: Literal["hidden", "ids"] = "hidden"
    """What travels per position: `hidden` states or, as from a server, log-probs at `ids`."""
    context: str | None = None
    """A system message only the teacher reads: the same weights under another context are another teacher."""
    batch_tokens: int = Field(default=16384, ge=1)
    """Padded tokens per teacher forward."""


class SelfTeacher(Record):
    """The student's own earlier copy."""

    type: Literal["self"] = "self"
    """`self`, the student's own earlier copy."""
    every: int = Field(default=0, ge=0)
    """Copy the student again every so many steps; 0 keeps the copy of step 0."""
    dtype: Dtype = "float32"
    """As for a local teacher."""
    temperature: float = Field(default=1.0, gt=0)
    """Teacher logits are divided by this."""
    payload: Literal["hidden", "ids"] = "hidden"
    """As for a local teacher."""
    context: str | None = None
    """A system message only the teacher reads."""
    batch_tokens: int = Field(default=16384, ge=1)
    """Padded tokens per teacher forward."""


Teacher = Annotated[
    LocalTeacher | SelfTeacher, Field(discriminator="type"), _tagged("local"), _named("model", type="local")
]


class Grader(Record):
    type: Literal["none", "exact", "regex", "math"] = "none"
    """`none` · `exact` text after normalising space · `regex` pattern's first group is the answer · `math`
    math-verify."""
    pattern: str = r"(-?\d+(?:\.\d+)?)(?!.*\d)"
    """For `regex`: the first group of the last match is compared with the answer."""
    timeout_seconds: float = Field(default=5.0, gt=0)
    """A response whose grading takes longer is counted as failed, not as wrong."""


class _Templated(Record):
    chat_template: bool = True
    """Render prompts with the tokenizer's chat template; false feeds the text as it is."""
    thinking: bool | None = None
    """Passed to the template as enable_thinking; unset leaves the template's own default."""
    system: str | None = None
    """A system message put before every prompt that has none."""
    prefix: str = ""
    """Text that begins every answer, appended after the templated prompt."""


class FileTask(_Templated):
    """Prompts from a JSONL or parquet file, with or without answers."""

    type: Literal["file"] = "file"
    """`file`, prompts from a file, unless given."""
    path: FilePath
    """JSONL or parquet; rows hold `prompt` (text) or `messages`, maybe `answer`, `id`, `group`."""
    eval_path: FilePath | None = None
    """Prompts for evaluation; unset evaluates nothing."""
    prompt_key: str = "prompt"
    """Name of the prompt (or messages) column."""
    answer_key: str = "answer"
    """Name of the answer column."""
    grader: Annotated[Grader, _named("type")] = Grader()
    """How a response is judged; without one, accuracy is left out and said so."""


class GymTask(_Templated):
    """Prompts from a reasoning-gym generator (extra `tasks`), graded by the generator's own scorer."""

    type: Literal["gym"] = "gym"
    """`gym`, prompts from a generator."""
    name: str
    """Generator, e.g. `chain_sum`."""
    args: dict[str, Any] = Field(default={})
    """Its arguments, e.g. { min_terms = 2, max_terms = 2 }."""
    train_size: int = Field(default=2000, ge=1)
    """Prompts made for training."""
    eval_size: int = Field(default=200, ge=0)
    """Held-out prompts, none of them in the training set."""
    seed: int = 0
    """Seed of the generator."""
    extract: str | None = None
    """Pattern whose first group, at its last match, is scored instead of the whole response."""
    timeout_seconds: float = Field(default=5.0, gt=0)
    """As for `Grader`."""


Task = Annotated[
    FileTask | GymTask, Field(discriminator="type"), _tagged("file"), _named("path", type="file")
]


class SamplingConfig(Record):
    type: Literal["local"] = "local"
    """The sampler: `local` decodes in this process."""
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


class OptimConfig(Record):
    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: constant, or cosine to 0 at the last step."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW betas."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW epsilon."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled; not applied to vectors (norms, biases)."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, data: Any) -> Any:  # TOML has lists, strict records want a tuple
        if isinstance(data, dict) and isinstance(data.get("betas"), list):
            return {**data, "betas": tuple(data["betas"])}
        return data


class LearnerConfig(Record):
    batch_tokens: int = Field(default=16384, ge=1)
    """Padded tokens per micro-batch; the gradient does not depend on it."""
    chunk_rows: int = Field(default=0, ge=0)
    """Positions per head chunk; 0 picks so that a chunk of logits stays near 32 MB on a CPU, 256 MB on a GPU."""
    compute: Literal["float32", "bfloat16", "float64"] = "float32"
    """Arithmetic of the student's forward and backward; masters keep student.dtype."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward: less memory, about a third more time."""
    skip_limit: int = Field(default=3, ge=1)
    """This many non-finite steps in a row stop the run."""


class DiagnosticsConfig(Record):
    positions: int = Field(default=256, ge=0)
    """Response positions measured per step, drawn evenly over all; 0 = every position."""
    ks: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 4, 16, 64])
    """Widths at which overlap is measured; those above the vocabulary are left out."""
    k: int = Field(default=16, ge=1)
    """Width of `overlap_ratio`, `overlap_mass_*` and `overlap_advantage`."""
    bins: int = Field(default=8, ge=1)
    """Position bins of equal width over max_tokens."""


class EvalConfig(Record):
    every: int = Field(default=0, ge=0)
    """Evaluate every so many steps, and before the first and after the last; 0 = only before and after."""
    responses: int = Field(default=4, ge=1)
    """Responses per problem: the k of avg@k."""
    temperature: float = Field(default=0.7, gt=0)
    """The paper's protocol: 0.7."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """The paper's protocol: 0.95."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Unset takes sampling.max_tokens."""
    prompts: int = Field(default=0, ge=0)
    """Problems used; 0 = all."""
    at_ends: bool = True
    """Evaluate before the first and after the last step."""


class SaveConfig(Record):
    every: int = Field(default=50, ge=0)
    """Checkpoint every so many steps, and after the last; 0 = only after the last."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""
    rollouts_every: int = Field(default=10, ge=0)
    """Write a sample of rollouts every so many steps; 0 = never."""
    rollouts: int = Field(default=8, ge=1)
    """How many in such a sample."""


class Config(Record):
    """A whole run."""

    story: Literal["distill"] = "distill"
    """Which loop."""
    student: Annotated[ModelConfig, _named("model")]
    """The model that is trained."""
    teacher: Teacher
    """The model that is imitated."""
    task: Task
    """Where prompts come from and how responses are judged."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Which tokens are compared, by which divergence, through which estimator."""
    sampling: SamplingConfig = SamplingConfig()
    """How rollouts are drawn."""
    optim: OptimConfig = OptimConfig()
    """AdamW and its schedule."""
    learner: LearnerConfig = LearnerConfig()
    """Micro-batches, precision, guards."""
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()
    """What is measured on the way."""
    eval: EvalConfig = EvalConfig()
    """How the student is examined."""
    save: SaveConfig = SaveConfig()
    """What is written when."""
    run: FilePath = Path("runs/run")
    """The run folder; must not exist yet."""
    steps: int = Field(default=100, ge=1)
    """Optimizer steps."""
    prompts_per_step: int = Field(default=64, ge=1)
    """Prompts per step, P; rollouts per step are P × sampling.responses."""
    seed: int = 0
    """Of prompts, sampling and measured positions: (seed, step) decides all draws."""
    device: str = "auto"
    """`auto` = cuda if there is one, else cpu; or a torch device such as `cuda:1`."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 leaves torch's own choice."""

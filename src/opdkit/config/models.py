"""Students and teachers as records: in this process, behind a URL, several routed by a prompt's group."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from opdkit.config.base import Record, named, tagged

Dtype = Literal["float32", "bfloat16", "float64"]


class LoraConfig(Record):
    """Train low-rank factors beside frozen weights (LoRA): W + alpha / rank · B A. Nothing is dropped out: no draw is global."""

    rank: int = Field(default=16, ge=1)
    """Rows of A and columns of B."""
    alpha: float = Field(default=32.0, gt=0)
    """The product B A is scaled by alpha / rank."""
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Linear maps that are adapted: `all-linear` (all but the head), or names such as `["q_proj", "v_proj"]`."""


class ModelConfig(Record):
    model: str
    """Hub id or folder with safetensors; a PEFT adapter folder is its base with the adapter merged."""
    revision: str | None = None
    """Hub revision to pin."""
    dtype: Dtype = "float32"
    """Of the weights held. Masters stay float32 unless you say otherwise; arithmetic: learner.compute."""
    lora: LoraConfig | None = None
    """Train an adapter and leave the weights as they are; an adapter folder as `model` is trained on. Unset trains all."""


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
    """A system message only the teacher reads: the same weights under another context are another teacher. {answer} and
    {response} stand for what the prompt's row has of them, {feedback} for what came of the response that is scored."""
    batch_tokens: int = Field(default=16384, ge=1)
    """Padded tokens per teacher forward."""


class SelfTeacher(Record):
    """The student's own earlier copy. Beside a fresh adapter, at `every = 0` and the same dtype: the base, in memory once."""

    type: Literal["self"] = "self"
    """`self`, the student's own earlier copy."""
    every: int = Field(default=0, ge=0)
    """Copy the student again every so many steps; 0 keeps the copy of step 0, or with `ema` moves at every step."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Move by an exponential moving average instead: teacher = ema · teacher + (1 − ema) · student (arXiv 2601.20802)."""
    dtype: Dtype = "float32"
    """As for a local teacher."""
    temperature: float = Field(default=1.0, gt=0)
    """Teacher logits are divided by this."""
    payload: Literal["hidden", "ids"] = "hidden"
    """As for a local teacher."""
    context: str | None = None
    """A system message only the teacher reads. With {answer} or {response}, filled from the prompt's row, the teacher is the
    student itself that was told more (arXiv 2601.18734); with {feedback} it is told what came of the very response: a right one
    of its group, or that it is wrong (arXiv 2601.20802)."""
    batch_tokens: int = Field(default=16384, ge=1)
    """Padded tokens per teacher forward."""

    @model_validator(mode="after")
    def _room_for_small_steps(self) -> Self:
        if self.ema > 0.0 and self.dtype == "bfloat16":
            raise ValueError(
                f"ema = {self.ema:g} moves by steps that bfloat16 rounds away (use teacher.dtype=float32)"
            )
        return self

    @property
    def moves_every(self) -> int:
        """Steps between moves; 0 = never."""
        return self.every or int(self.ema > 0.0)


class Patience(Record):
    """How long a served model is waited for. Every wait ends: what is not there by then stops the run, resumable."""

    timeout_seconds: float = Field(default=120.0, gt=0)
    """One try of one request, from connecting to its last byte."""
    deadline_seconds: float = Field(default=600.0, gt=0)
    """All tries of all requests of one step together."""
    retries: int = Field(default=10, ge=0)
    """Further tries after a lost connection, 429 or 5xx, pauses growing to 15 s: ten last a minute; another 4xx is final."""
    concurrency: int = Field(default=4, ge=1)
    """Requests under way at once."""
    max_reply_bytes: int = Field(default=1 << 30, ge=1 << 10)
    """A longer reply is refused unread."""


class ServerTeacher(Record):
    """A model behind a URL: `opd serve MODEL`, or vLLM. A token is read from the environment, OPD_TEACHER_TOKEN."""

    type: Literal["server"] = "server"
    """`server`, a model behind a URL."""
    url: str
    """http://127.0.0.1:8017; https elsewhere."""
    api: Literal["auto", "opd", "vllm"] = "auto"
    """Who answers there: `opd` serve, or `vllm` (log-probs of its own top-k only); `auto` asks."""
    model: str | None = None
    """Folder or Hub id whose tokenizer the served model has: vLLM does not say, and `task.render` may want it."""
    revision: str | None = None
    """Hub revision to pin."""
    temperature: float = Field(default=1.0, gt=0)
    """Teacher logits are divided by this; vLLM's are not, and any other than 1 is refused there."""
    payload: Literal["ids", "hidden"] = "ids"
    """What travels per position: log-probs at `ids`, or `hidden` states (from `opd serve`; the head is fetched once)."""
    values: Literal["float32", "float16"] = "float32"
    """Of what `opd serve` sends: float16 is half the bytes, and rounds a log-prob of -8 by .004."""
    context: str | None = None
    """A system message only the teacher reads."""
    batch_tokens: int = Field(default=16384, ge=1)
    """Tokens per request."""
    patience: Patience = Patience()
    """Time-outs, tries, limits."""
    against: str | None = None
    """Folder of the same model: the start-up probe compares served with local log-probs."""

    @model_validator(mode="after")
    def _address(self) -> Self:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError("url is no address (use teacher.url=http://127.0.0.1:8017)")
        if "@" in self.url.split("://", 1)[1].split("/", 1)[0]:
            raise ValueError(
                "url holds a password, which would be written to files (use OPD_TEACHER_TOKEN=…)"
            )
        return self


class RouterTeacher(Record):
    """Several teachers, one of them for every prompt: by the prompt's `group`."""

    type: Literal["router"] = "router"
    """`router`, several teachers."""
    teachers: dict[
        str,
        Annotated[
            LocalTeacher | ServerTeacher,
            Field(discriminator="type"),
            tagged("local"),
            named("model", type="local"),
        ],
    ] = Field(min_length=1)
    """Group → teacher: { math = "folder", code = { type = "server", url = "…" } }. A prompt of another group is an error."""
    context: str | None = None
    """A system message only the teachers read."""

    @model_validator(mode="after")
    def _own_ids(self) -> Self:
        for name, teacher in self.teachers.items():
            if isinstance(teacher, ServerTeacher) and teacher.payload == "hidden":
                raise ValueError(
                    f'{name} sends hidden states, but heads cannot be routed (use payload = "ids")'
                )
            if teacher.context is not None:
                raise ValueError(f"{name} has a context of its own (use teacher.context, for all)")
            if teacher.temperature != self.temperature:
                raise ValueError("teachers have different temperatures (use one, metrics are of one)")
        return self

    @property
    def temperature(self) -> float:
        """Of all of them."""
        return next(iter(self.teachers.values())).temperature


Reference = Annotated[
    LocalTeacher | ServerTeacher,
    Field(discriminator="type"),
    tagged("local"),
    named("model", type="local"),
]
"""The teacher before its RL."""
TeacherConfig = LocalTeacher | SelfTeacher | ServerTeacher | RouterTeacher
Teacher = Annotated[TeacherConfig, Field(discriminator="type"), tagged("local"), named("model", type="local")]

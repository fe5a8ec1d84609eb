"""Where prompts come from and how responses are judged: files, generators, the testbed's worlds, the paper's mathematics."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from opdkit.config.base import FilePath, Record, named, tagged


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
    render: Literal["student", "teacher"] = "student"
    """Whose chat template writes the prompts; ids are always the student's tokenizer's."""
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
    response_key: str = "response"
    """Name of the column with demonstrations, the text that `sft` imitates."""
    grader: Annotated[Grader, named("type")] = Grader()
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


class WorldTask(_Templated):
    """A world of the testbed: problems without end, demonstrations that teach errors, verifiers.

    Its models read with a tokenizer of its words: `opd study build testbed` makes them.
    """

    type: Literal["testbed"] = "testbed"
    """`testbed`, a world that makes its own problems."""
    family: Literal["chain", "lists"] = "chain"
    """`chain`, operands applied one after another; `lists`, every item changed by its own, one asked for."""
    world: int = 0
    """Seed of the world: which operands its texts get wrong, and all its facts."""
    args: dict[str, Any] = Field(default={})
    """Dials of the world, e.g. { wrong_share = 0.7 }."""
    style: str = "steps"
    """How demonstrations answer."""
    clean: bool = False
    """Demonstrations without the world's errors."""
    demonstrations: FilePath | None = None
    """A JSONL file with `prompt` and `response` to imitate instead of the world's own texts."""
    template: int | None = Field(default=None, ge=0)
    """Wording of training prompts; unset draws among the world's."""
    lengths: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Steps of training problems, drawn evenly among these, so that one named twice comes twice as often; unset takes all that
    the world has."""
    chat_template: bool = False
    """The words as they are; a world has no chat template."""
    train_size: int = Field(default=8192, ge=1)
    """Problems made for training."""
    eval_size: int = Field(default=1024, ge=0)
    """Held-out problems, the same whatever `seed`."""
    seed: int = 0
    """Which training problems."""


Wrapper = Literal["dapo", "boxed", "as_is"]


class MathTask(_Templated):
    """Mathematics with the data and the evaluation protocol of arXiv 2604.13016 (extras `math` and `data`).

    Names: dapo-math-17k, deepmath, openthoughts3 for training; aime24, aime25, amc23, amc23-83 for evaluation.
    A name that ends in .jsonl or .parquet is a file.
    """

    type: Literal["math"] = "math"
    """`math`, the paper's data sets and benchmarks."""
    train: str = "dapo-math-17k"
    """Training problems: a name or a file. Each problem once; `openthoughts3` has demonstrations, no answers."""
    eval: list[str] = Field(default=[])
    """Benchmarks, names or files, each a `group` of its own; `amc23` is the usual 40 rows, `amc23-83` the
    83 that the paper validates on. Problems alternate, so that `eval.prompts` takes some of each."""
    data: FilePath | None = None
    """A folder with NAME.parquet, NAME.jsonl or NAME/ as the Hub has it; unset loads from the Hub."""
    wrapper: Wrapper = "dapo"
    """What is put around a training problem once its own wrapper is off: `dapo` the instruction to end in
    "Answer: …" (the paper's default) · `boxed` to end in \\boxed{} · `as_is` the row's text, untouched."""
    eval_wrapper: Wrapper = "boxed"
    """The same for benchmarks; the paper's protocol is `boxed`."""
    train_size: int = Field(default=0, ge=0)
    """At most so many training problems, the first ones; 0 = all. OpenThoughts3 with its demonstrations is
    too large for most memories."""
    timeout_seconds: float = Field(default=5.0, gt=0)
    """As for `Grader`."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.eval)) < len(self.eval):
            raise ValueError('eval names a benchmark twice (use task.eval=["aime24", "aime25"])')
        return self


TaskConfig = FileTask | GymTask | WorldTask | MathTask
Task = Annotated[TaskConfig, Field(discriminator="type"), tagged("file"), named("path", type="file")]

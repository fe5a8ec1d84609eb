"""The configuration of a run: strict, frozen records with tagged unions; see `opd train --print-config`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from opdkit.config.base import FilePath, Record, named
from opdkit.config.coldstart import ColdstartConfig
from opdkit.config.horizon import HorizonConfig, PrefixConfig, PruneConfig
from opdkit.config.mix import MixConfig
from opdkit.config.models import ModelConfig, Reference, Teacher
from opdkit.config.objective import ObjectiveConfig
from opdkit.config.prompts import PromptsConfig
from opdkit.config.sampling import LocalSampling, Sampling
from opdkit.config.tasks import Task
from opdkit.config.widen import WidenConfig

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Record):
    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: constant, or cosine down to `final` at the last step."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak rate at which a cosine ends."""
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
    """Positions per head chunk; 0 picks about 224 on a CPU, or 32 MB of logits (256 MB on a GPU), in equal chunks."""
    compute: Literal["float32", "bfloat16", "float64"] = "float32"
    """Arithmetic of the student's forward and backward; masters keep student.dtype."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward: less memory, about a third more time."""
    shard: Literal["auto", "always", "never"] = "auto"
    """Under torchrun: spread weights, gradients and optimizer over the ranks (FSDP2), or keep them whole on each, which needs
    the memory and saves the traffic; `auto` shards on GPUs."""
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
    temperature: float = Field(default=0.7, ge=0)
    """The paper's protocol: 0.7. 0 is greedy."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """The paper's protocol: 0.95."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Unset takes sampling.max_tokens."""
    prompts: int = Field(default=0, ge=0)
    """Problems used; 0 = all."""
    at_ends: bool = True
    """Evaluate before the first and after the last step."""
    teacher: bool = False
    """Examine the teacher as well, once, before the first step (without its `context`): what gap recovery
    needs."""


class SaveConfig(Record):
    every: int = Field(default=50, ge=0)
    """Checkpoint every so many steps, and after the last; 0 = only after the last."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""
    rollouts_every: int = Field(default=10, ge=0)
    """Write a sample of rollouts every so many steps; 0 = never."""
    rollouts: int = Field(default=8, ge=1)
    """How many in such a sample."""


HealthName = Literal[
    "overlap_stagnation",
    "overlap_fall",
    "loss_rise",
    "low_mass_good_advantage",
    "entropy_blow_up",
    "entropy_collapse",
    "length_inflation",
    "truncation",
    "repetition",
    "lost_stopping",
    "tail_first_decay",
    "gradient_spike",
    "flat_small_loss",
    "sampler_mismatch",
    "mass_left_out",
    "clipped_signal",
    "skipped_steps",
    "accuracy_fall",
    "privileged_leak",
]


class HealthConfig(Record):
    enabled: bool = True
    """Watch the run, and tell each condition of docs/health.md once: terminal, findings.jsonl, report."""
    on_critical: Literal["go_on", "stop", "mask", "shorten"] = "go_on"
    """At a finding of severity `error`: `go_on`, or save a checkpoint and `stop` (exit code 1). `mask` and `shorten` go on and
    halve the horizon at a condition of the tail of responses, again every `horizon.every` steps while it lasts."""
    ignore: list[HealthName] = Field(default=[])
    """Conditions that are not told, nor stopped at."""
    patience: float = Field(default=0.3, gt=0, lt=1)
    """Share of the steps before the run can be called stagnant or flat."""


class GroupConfig(Record):
    scale: Literal["std", "none"] = "std"
    """Advantage of a response: score − mean of its group, over the group's standard deviation or not."""


class ImproveConfig(Record):
    prompts: int = Field(default=1000, ge=1)
    """Prompts sampled per round, `sampling.responses` responses each."""
    every: int = Field(default=0, ge=0)
    """Steps of a round: after so many, sample anew from the improved student; 0 = one round."""


class PushDownConfig(Record):
    share: float = Field(default=0.2, gt=0, le=1)
    """Share of a step's tokens, those of lowest log-prob, that are made less likely."""


class Config(Record):
    """A whole run."""

    story: Literal["distill", "sft", "grpo", "improve", "push_down"] = "distill"
    """`distill` imitate a teacher on own rollouts · `sft` imitate demonstrations (with a `teacher`: by `objective`) ·
    `grpo` group-relative policy gradient · `improve` sample, keep what is right, imitate it · `push_down` the control
    without a teacher."""
    student: Annotated[ModelConfig, named("model")]
    """The model that is trained."""
    teacher: Teacher | None = None
    """The model that is imitated, in `distill`; in `sft` it may say its whole distribution at the demonstrations."""
    reference: Reference | None = None
    """What the teacher was before its RL, where `objective.target` is `extrapolated` or `difference`."""
    task: Task
    """Where prompts come from and how responses are judged."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Which tokens are compared, by which divergence, through which estimator."""
    mix: MixConfig = MixConfig()
    """Demonstrations beside own rollouts, in `distill`."""
    widen: WidenConfig = WidenConfig()
    """Prompts of another kind beside the task's own, and the guard of the student's entropy."""
    sampling: Sampling = LocalSampling()
    """How rollouts are drawn."""
    optim: OptimConfig = OptimConfig()
    """AdamW and its schedule."""
    learner: LearnerConfig = LearnerConfig()
    """Micro-batches, precision, guards."""
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()
    """What is measured on the way."""
    grpo: GroupConfig = GroupConfig()
    """How scores become advantages."""
    improve: ImproveConfig = ImproveConfig()
    """How much is sampled, and when."""
    push_down: PushDownConfig = PushDownConfig()
    """What the control pushes down."""
    horizon: HorizonConfig = HorizonConfig()
    """How deep along a response the teacher is listened to."""
    prefix: PrefixConfig = PrefixConfig()
    """Responses that the teacher begins."""
    prune: PruneConfig = PruneConfig()
    """Responses that are drawn no further."""
    health: HealthConfig = HealthConfig()
    """Who watches, and what happens when it goes wrong."""
    prompts: PromptsConfig = PromptsConfig()
    """What `opd prompts` does with the training prompts."""
    eval: EvalConfig = EvalConfig()
    """How the student is examined."""
    save: SaveConfig = SaveConfig()
    """What is written when."""
    coldstart: ColdstartConfig | None = None
    """What `opd coldstart` does before distillation; `opd train` does not look at it."""
    run: FilePath = Path("runs/run")
    """The run folder; must not exist yet."""
    track: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default=[])
    """Trackers that show a copy of metrics.jsonl and eval.jsonl: `["tensorboard"]`; W&B is offline unless
    WANDB_MODE says otherwise."""
    steps: int = Field(default=100, ge=1)
    """Optimizer steps."""
    prompts_per_step: int = Field(default=64, ge=1)
    """Prompts per step, P; rollouts per step are P × sampling.responses, in `sft` and `improve` P."""
    seed: int = 0
    """Of prompts, sampling and measured positions: (seed, step) decides all draws."""
    device: str = "auto"
    """`auto` = cuda if there is one, else cpu; or a torch device such as `cuda:1`."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 leaves torch's own choice."""

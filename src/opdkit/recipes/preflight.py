"""`opd check`: will this pair work? Files first, then rollouts and one pass of each model, then a verdict.

    static findings → the student's rollouts → both models read them → who knows more → rules → verdict, remedy

One set of rollouts serves all teachers. What it will cost is said before the first model is run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

from opdkit.config import Config, LocalTeacher, as_local
from opdkit.diagnostics.verdict import Value, judge
from opdkit.models.load import LoadedModel, check_weights, open_model, pick_device
from opdkit.models.pair import Reader
from opdkit.models.sampler import LocalSampler
from opdkit.recipes.document import Opinion, document
from opdkit.recipes.know import Continued, continued, teacher_numbers
from opdkit.recipes.predict import among, predict
from opdkit.recipes.probe import Number, Piece, numbers, read_all
from opdkit.recipes.rehearse import STEPS, rehearse
from opdkit.recipes.static import (
    Rendering,
    command,
    prompts_command,
    static_findings,
    static_renderings,
)
from opdkit.tasks import Task, load_task
from opdkit.train.plan import make_plan
from opdkit.train.prompts import encoded_prompts
from opdkit.types import Finding, Prompt, Rollout, UserError

Say = Callable[[str], None]
MIN_PROMPTS = 8
PROMPTS, RESPONSES = 64, 2
MOST_RESPONSES = 4
SMALL = 1e11
"""Tokens × weights that count as cheap: of the responses of a rehearsal made without being asked for, of a larger draw."""
STREAM = -4
"""The `step` of the probe's draws."""


@dataclass(frozen=True)
class Size:
    """How much is drawn: prompts × responses of at most `max_tokens`."""

    prompts: int
    responses: int
    max_tokens: int

    @property
    def rollouts(self) -> int:
        return self.prompts * self.responses

    @property
    def tokens(self) -> int:
        return self.rollouts * self.max_tokens


def size_of(config: Config, *, budget: int | None, available: int, each: float = 0.0) -> Size:
    """What a budget of response tokens buys; unset: 64 prompts × 2, and 8,192 tokens where that is cheap.

    `each`: tokens of a prompt and its response × weights; 8,192 tokens are cheap where all that reading is below `SMALL`.

    Two responses at least: what a prompt's other responses scored is the baseline of the slope.
    UserError where the budget does not buy 8 prompts.
    """
    longest = config.sampling.max_tokens
    least = MIN_PROMPTS * RESPONSES * longest
    if budget is not None and budget < least:
        raise UserError(
            f"--budget {budget} buys too little: {MIN_PROMPTS} prompts × {RESPONSES} responses of {longest} tokens are {least}",
            hint=f"--budget {least}, or sampling.max_tokens={max(1, budget // (MIN_PROMPTS * RESPONSES))}",
        )
    usual = PROMPTS * RESPONSES * longest
    many = max(8192, usual)
    tokens = budget if budget is not None else many if each * many / longest <= SMALL else usual
    responses = MOST_RESPONSES if tokens // (MOST_RESPONSES * longest) >= PROMPTS else RESPONSES
    return Size(min(available, tokens // (responses * longest)), responses, longest)


def check(
    config: Config,
    *,
    teachers: Sequence[LocalTeacher],
    source: Callable[[str], str],
    budget: int | None = None,
    continuation: bool = False,
    rehearsal: int | None = None,
    say: Say,
) -> dict[str, Any]:
    """The document (docs/check.md). `source` says how the user named the pair with one of
    the teachers, for remedies. `rehearsal`: steps of
    training on a copy; unset, 30 where models are small enough for seconds.

    UserError before anything expensive for input that cannot even be looked at.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    began = time.perf_counter()
    config = config.model_copy(update={"sampling": as_local(config.sampling)})  # the probe needs no engine
    with load_task(config.task) as task:

        def shown(teacher: str) -> Sequence[Rendering]:
            best = next(cfg for cfg in cfgs if _name(cfg) == teacher)
            return static_renderings(best, task=task, source=source(teacher))

        cfgs = [config.model_copy(update={"teacher": teacher}) for teacher in teachers]
        static = [static_findings(cfg, task=task, source=source(_name(cfg))) for cfg in cfgs]
        sound = [i for i, found in enumerate(static) if not _hopeless(found)]
        if not sound:
            opinions = [
                _unread(cfg, found, source=source(_name(cfg)))
                for cfg, found in zip(cfgs, static, strict=True)
            ]
            return _told(config, opinions, [], Cost(0, 0, 0.0), began, shown=shown)
        probe = _Probe(
            config,
            cfgs[sound[0]],
            task,
            teachers=len(sound),
            budget=budget,
            continuation=continuation,
            rehearsal=rehearsal,
            say=say,
        )
        opinions = [
            (probe.opinion if i in sound else _unread)(cfg, found, source=source(_name(cfg)))
            for i, (cfg, found) in enumerate(zip(cfgs, static, strict=True))
        ]
        return _told(config, opinions, probe.between(), probe.cost, began, shown=shown)


def _name(cfg: Config) -> str:
    assert isinstance(cfg.teacher, LocalTeacher)
    return cfg.teacher.model


def _hopeless(found: Sequence[Finding]) -> bool:
    """Errors stop the probe; equal weights do not: that there is nothing to learn is shown by numbers as well."""
    return any(f.severity == "error" and not f.name.startswith("weights_") for f in found)


@dataclass(frozen=True)
class Cost:
    rollouts: int
    tokens: int
    seconds: float  # expected


class _Probe:
    """The student's rollouts, drawn once, and every teacher's reading of them."""

    def __init__(
        self,
        config: Config,
        with_teacher: Config,
        task: Task,
        *,
        teachers: int,
        budget: int | None,
        continuation: bool,
        rehearsal: int | None,
        say: Say,
    ):
        self.config, self.task, self.continuation, self.say = config, task, continuation, say
        self.teachers = teachers
        plan = make_plan(with_teacher)
        check_weights(config.student)
        self.prompts = list(encoded_prompts(with_teacher, task, plan).train)
        self.device = pick_device(config.device)
        self.student = open_model(config.student, device=self.device)
        self.weights = sum(p.numel() for p in self.student.model.parameters())
        some = self.prompts[:PROMPTS]
        length = sum(len(p.ids) for p in some) / max(len(some), 1) + config.sampling.max_tokens
        each = self.weights * length
        self.size = size_of(config, budget=budget, available=len(self.prompts), each=each)
        self.sampler = LocalSampler(self.student)
        self.sampling = config.sampling.model_copy(update={"responses": self.size.responses})
        self.rehearsal = self._rehearsal() if rehearsal is None else rehearsal
        self.readers: list[tuple[str, Reader]] = []
        self.cost = self._announced()
        self.rollouts = self._drawn(self.sampler, self.prompts[: self.size.prompts])

    def _rehearsal(self) -> int:
        """30 steps where that is a matter of seconds anywhere: decided by size, never by the clock."""
        rollouts = STEPS * self.config.prompts_per_step * self.config.sampling.responses
        return STEPS if rollouts * self.size.max_tokens * self.weights <= SMALL else 0

    def _announced(self) -> Cost:
        """A small draw and a small reading are timed. Teachers draw where there is a grader, and are compared in pairs."""
        some, n = self.prompts[:4], self.teachers
        short = self.sampling.model_copy(update={"responses": 1, "max_tokens": 8, "min_tokens": 0})
        self.sampler.sample(some, sampling=short, seed=self.config.seed, step=STREAM)
        began = time.perf_counter()
        drawn = self.sampler.sample(some, sampling=short, seed=self.config.seed, step=STREAM)
        between = time.perf_counter()
        ours = self._reader(self.student, self.config.sampling.temperature)
        self._read(drawn, ours, ours)
        reading = (time.perf_counter() - between) * self.size.rollouts / max(len(some), 1)
        rows = min(self.size.rollouts, self.sampling.batch_rows)
        per_step = (between - began) / 8 * max(1.0, rows / 16)
        steps = self.size.max_tokens * -(-self.size.rollouts // rows)
        draws = 1 + (n if self.task.training_graded else 0)
        seconds = per_step * steps * draws + reading * (n + n * (n - 1))
        each = self.config.prompts_per_step * self.config.sampling.responses / max(self.size.rollouts, 1)
        whole = STEPS * 4 * each * per_step * steps  # a step draws, reads and goes back
        seconds += n * whole * self.rehearsal / STEPS
        cost = Cost(self.size.rollouts, self.size.tokens, seconds)
        also = f", {cost.rollouts} responses of each teacher" if self.task.training_graded else ""
        self.say(
            f"{self.size.prompts} prompts × {self.size.responses} responses of at most {self.size.max_tokens} tokens: "
            f"{cost.tokens:,} tokens of the student{also}, read by both"
            + (f"; {self.rehearsal} steps of training on a copy" if self.rehearsal else "")
            + f"; about {_time(seconds)}"
        )
        return cost

    def _drawn(self, sampler: LocalSampler, prompts: Sequence[Prompt]) -> list[Rollout]:
        drawn = sampler.sample(prompts, sampling=self.sampling, seed=self.config.seed, step=STREAM)
        return self.task.grade(drawn)

    def opinion(self, cfg: Config, static: Sequence[Finding], *, source: str) -> Opinion:
        """What one teacher makes of the rollouts."""
        teacher = cfg.teacher
        assert isinstance(teacher, LocalTeacher)
        check_weights(teacher)
        loaded = open_model(teacher, device=self.device, rows=make_plan(cfg).rows)
        ours, theirs = (
            self._reader(self.student, cfg.sampling.temperature),
            self._reader(loaded, teacher.temperature),
        )
        self.readers.append((teacher.model, theirs))
        piece = self._read(self.rollouts, ours, theirs)
        metrics = numbers(piece, vocabulary=loaded.head.rows, seed=cfg.seed)
        going_on: list[Continued] = []
        if self.task.training_graded:
            answered = self._drawn(LocalSampler(loaded), self.prompts[: self.size.prompts])
            metrics |= teacher_numbers(self.rollouts, answered, seed=cfg.seed)
            if self.continuation:
                going_on = self._continued(loaded)
        if self.rehearsal and metrics["reverse_kl"].value > 0:
            metrics |= rehearse(cfg, steps=self.rehearsal)
        if (gain := self._aligned(cfg, ours, theirs, piece, static)) is not None:
            metrics["aligned_gain"] = gain
        verdict, findings = judge(
            {n: Value(m.value, m.low, m.high) for n, m in metrics.items()},
            remedies=remedies(cfg, source=source),
            static=static,
            counts={n: m.count for n, m in metrics.items()},
        )
        return Opinion(
            teacher.model,
            verdict,
            findings,
            metrics,
            piece,
            tuple(going_on),
            prediction=predict(verdict, metrics),
            bands=tuple(among(metrics)),
        )

    def _reader(self, loaded: LoadedModel, temperature: float) -> Reader:
        stops = self.config.sampling.stop_ids if loaded is self.student else None
        return Reader(loaded, temperature, tuple(stops or loaded.stop_ids))

    def _read(self, rollouts: Sequence[Rollout], ours: Reader, theirs: Reader) -> Piece:
        return read_all(rollouts, student=ours, teacher=theirs, max_tokens=self.size.max_tokens)

    def _continued(self, loaded: LoadedModel) -> list[Continued]:
        return continued(
            self.rollouts,
            student=self.sampler,
            teacher=LocalSampler(loaded),
            task=self.task,
            sampling=self.sampling,
            seed=self.config.seed,
        )

    def _aligned(
        self, cfg: Config, ours: Reader, theirs: Reader, piece: Piece, static: Sequence[Finding]
    ) -> Number | None:
        """How much more of the teacher's probability is shared with prompts as its own template writes them."""
        if cfg.task.render == "teacher" or not any(
            f.name in TEMPLATES and f.severity == "warning" for f in static
        ):
            return None
        other = cfg.model_copy(update={"task": cfg.task.model_copy(update={"render": "teacher"})})
        try:
            prompts = encoded_prompts(other, self.task, make_plan(other)).train[: self.size.prompts]
        except UserError:
            return None
        drawn = self._drawn(self.sampler, prompts)
        again = self._read(drawn, ours, theirs)
        name = "overlap_mass_teacher_before_end"
        before, after = (numbers(p, vocabulary=theirs.head.rows)[name] for p in (piece, again))
        spread = sum((n.high or n.value) - (n.low or n.value) for n in (before, after)) / 2
        gain = after.value - before.value
        return Number(gain, after.count, gain - spread, gain + spread)

    def between(self) -> list[dict[str, Any]]:
        """Teachers compared at the student's states: how far they differ where it matters to the student."""
        told = []
        for (a, first), (b, second) in combinations(self.readers, 2):
            there, back = (self._read(self.rollouts, x, y) for x, y in ((first, second), (second, first)))
            one, other = (numbers(p, vocabulary=first.head.rows) for p in (there, back))
            told.append(
                {
                    "a": a,
                    "b": b,
                    "reverse_kl": one["reverse_kl"].value,
                    "reverse_kl_back": other["reverse_kl"].value,
                    "overlap_ratio": one["overlap_ratio"].value,
                    "top1_agreement": one["top1_agreement"].value,
                    "entropy_gap": one["entropy_gap"].value,
                }
            )
        return told


TEMPLATES = ("chat_template_differs", "thinking_ignored")


def remedies(cfg: Config, *, source: str) -> dict[str, str]:
    """What the rules' remedies are for this pair: commands that can be typed."""
    longer = cfg.sampling.max_tokens * 2
    return {
        "go": command("train", source),
        "teacher": f"opd check {source} --teacher OTHER",
        "length": command("check", source, f"sampling.max_tokens={longer}"),
        "align": prompts_command(cfg, source),
        "more": command("check", source)
        + f" --budget {PROMPTS * MOST_RESPONSES * 2 * cfg.sampling.max_tokens}",
        "check": command("check", source),
        "rehearse": command("check", source) + f" --rehearse {STEPS}",
        "longer": command("check", source) + f" --rehearse {2 * STEPS}",
        "cold_start": command("coldstart", source),
    }


def _unread(cfg: Config, found: Sequence[Finding], *, source: str) -> Opinion:
    """A teacher that files alone have ruled out."""
    name = _name(cfg)
    verdict, findings = judge({}, remedies=remedies(cfg, source=source), static=found)
    return Opinion(name, verdict, findings)


ORDER = ("go", "align_prompts", "cold_start", "fix_first", "nothing_to_learn", "change_teacher")


def _told(
    config: Config,
    opinions: Sequence[Opinion],
    between: Sequence[Mapping[str, Any]],
    cost: Cost,
    began: float,
    *,
    shown: Callable[[str], Sequence[Rendering]],
) -> dict[str, Any]:
    """The best teacher's document, the others ranked below it."""
    ranked = sorted(opinions, key=_rank)
    best = replace(ranked[0], renderings=tuple(shown(ranked[0].teacher)))
    ranking = [
        {
            "rank": i + 1,
            "teacher": o.teacher,
            "verdict": o.verdict.name,
            "reason": o.verdict.reason,
            "metrics": {n: o.metrics[n].value for n in RANKED if n in o.metrics},
        }
        for i, o in enumerate(ranked)
    ]
    spent: dict[str, float | None] = {
        "rollouts": cost.rollouts,
        "tokens": cost.tokens,
        "seconds_expected": cost.seconds,
        "seconds": time.perf_counter() - began,
    }
    return document(
        "check",
        best,
        student=config.student.model,
        cost=spent,
        ranking=ranking if len(ranked) > 1 else [],
        between=between,
    )


RANKED = (
    "teacher_lead",
    "teacher_accuracy",
    "teachable_share",
    "success_slope",
    "sequence_reward_auroc",
    "reverse_kl",
    "overlap_ratio",
    "overlap_mass_teacher",
)


def _rank(opinion: Opinion) -> tuple[float, ...]:
    """First by verdict; among equals by what the lead is worth in reach, or without a grader by reach."""
    lead = opinion.metrics.get("teacher_lead", Number(1.0, 0)).value
    reach = opinion.metrics.get("teachable_share", Number(0.0, 0)).value
    return (ORDER.index(opinion.verdict.name), -lead * reach, -reach)


def _time(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"

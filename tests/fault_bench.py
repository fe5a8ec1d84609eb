"""One learner step behind a faulty line: what comes of it, and how long it took. For test_faults.py and fault_campaign.py.

    with Bench(shop, server="own", upstream=url, other=url2) as bench:     # probed while the line is clean
        bench.case("hang_body", seed=3)

Right are two outcomes: `refused`, an error with a hint, in time, and no parameter moved; `recovered`, and every parameter is
bit for bit what the step gives on a clean line. Anything else is a wrong update, a crash, or a fault that never struck.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from faulty import Fault, Proxy, Server
from models import tiny_model, tiny_tokenizer
from opdkit.config import Config
from opdkit.models.load import open_model
from opdkit.models.sampler import LocalSampler
from opdkit.run.world import World
from opdkit.train.collate import collate
from opdkit.train.feed import candidates, early_ids
from opdkit.train.learner import Part
from opdkit.train.plan import make_plan
from opdkit.train.stage import make_learner
from opdkit.train.teachers import open_teacher
from opdkit.types import Prompt, Rollout, RunError, UserError

TIMEOUT, DEADLINE, GRACE = 0.5, 2.0, 5.0  # seconds: of a try, of a step, that a wait may last beyond that
LENGTH, ROLLOUTS = 8, 6  # response tokens of each, and how many: two requests of three and the known sequence
OBJECTIVE: dict[str, dict[str, Any]] = {
    "own": {"preset": "paper", "k": 8},
    "fake": {"preset": "paper", "support": "teacher_top_k", "k": 8},
}


@dataclass(frozen=True)
class Case:
    """What one fault led to. `waited`: seconds until the scores, or the refusal."""

    server: str
    kind: str
    seed: int
    outcome: str  # refused, recovered; wrong update, crashed, never struck, too late, proxy broke
    waited: float
    said: str = ""

    @property
    def right(self) -> bool:
        return self.outcome in ("refused", "recovered")


def build_models(folder: Path) -> Path:
    """A student, a teacher that shares half of its mind (as teachers of students do), and another teacher."""
    tokenizer = tiny_tokenizer()
    student, far, other = (tiny_model("qwen3", seed=s, tokenizer=tokenizer) for s in (0, 1, 2))
    with torch.no_grad():
        for mine, its in zip(student.parameters(), far.parameters(), strict=True):
            its.copy_(0.8 * mine + 0.5 * its)
    for name, model in {"student": student, "teacher": far, "other": other}.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


class Bench:
    """A student, fixed rollouts, and a teacher behind a proxy."""

    def __init__(self, models: Path, *, server: Server, upstream: str, other: str, **patience: float):
        self.server, self.proxy = server, Proxy(upstream, other=other)
        self.models, self.patience = (
            models,
            {"timeout_seconds": TIMEOUT, "deadline_seconds": DEADLINE} | patience,
        )

    def __enter__(self) -> Self:
        self.proxy.__enter__()
        try:
            self._open()
        except BaseException:
            self.proxy.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.__exit__()

    @property
    def deadline(self) -> float:
        return float(self.patience["deadline_seconds"])

    def _open(self) -> None:
        """As a run does: plan, probe, rollouts. One request at a time, so that sums have one order (bit for bit)."""
        self.config = Config.model_validate(
            {
                "student": {"model": str(self.models / "student")},
                "teacher": {
                    "type": "server",
                    "url": self.proxy.url,
                    "batch_tokens": 3 * (LENGTH + 5),
                    "patience": {**self.patience, "concurrency": 1, "max_reply_bytes": 1 << 20},
                },
                "task": {"type": "file", "path": "nothing.jsonl"},
                # a step proportional to the gradient: Adam's own is nearly its sign, and would hide wrong numbers
                "optim": {"lr": 0.1, "eps": 1.0, "weight_decay": 0.0, "clip": 1e9},
                "objective": OBJECTIVE[self.server],
                "diagnostics": {"k": 8, "ks": [1, 8]},
                "steps": 1,
            }
        )
        self.plan = make_plan(self.config)
        self.world = World(torch.device("cpu"))
        self.student = open_model(self.config.student, device=self.world.device, rows=self.plan.rows)
        self.start = {name: t.clone() for name, t in self.student.model.state_dict().items()}
        teacher, _ = open_teacher(
            self.config, self.plan.teacher, rows=self.plan.rows, device=self.world.device, student=self.student
        )  # fmt: skip
        self.teacher: Any = teacher
        self.rollouts = self._drawn(step=0)
        self.proxy.earlier.clear()
        self._scored(self._drawn(step=1))  # what a server could say again
        self.clean = self._stepped(self.rollouts, self._scored(self.rollouts))

    def _drawn(self, *, step: int) -> list[Rollout]:
        prompts = [Prompt(id=str(i), ids=(2, 90 + i, 70 - i, 11, 12 + i)) for i in range(ROLLOUTS)]
        sampling = self.config.sampling.model_copy(
            update={"responses": 1, "max_tokens": LENGTH, "min_tokens": LENGTH}
        )
        needs = self.plan.sampler_needs
        return LocalSampler(self.student).sample(prompts, sampling=sampling, seed=7, step=step, needs=needs)

    def _scored(self, rollouts: list[Rollout]) -> list[Any]:
        ids = candidates(self.plan, rollouts) if self.plan.teacher_needs.at_ids else None
        return self.teacher.score(rollouts, needs=self.plan.teacher_needs, ids=ids)

    def _stepped(self, rollouts: list[Rollout], scores: list[Any]) -> dict[str, Tensor]:
        """The student's parameters after one step from the start, in the loop's order of things."""
        self.student.model.load_state_dict(self.start)
        learner = make_learner(self.config, self.student, self.world)
        plan = self.plan
        batch = collate(
            rollouts,
            {"teacher": scores},
            measured_positions=0,
            seed=0,
            step=0,
            early_ids=early_ids(plan, rollouts, {"teacher": scores}, k=self.config.objective.k),
            early_source=plan.early_ids or "student",
        )
        update = learner.update(
            Part(batch, plan.objective.prepare(batch), plan.objective),
            heads={"teacher": self.teacher.head},
            step=0,
        )
        assert not update.skipped
        return self._state()

    def _state(self) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in self.student.model.state_dict().items()}

    def case(self, kind: str, *, seed: int) -> Case:
        """Switch the fault on, take one step, switch it off."""
        self.student.model.load_state_dict(self.start)
        self.proxy.switch(Fault.draw(kind, seed=seed, server=self.server))
        began = time.monotonic()
        try:
            outcome, said, waited = self._attempt(began)
        finally:
            struck = self.proxy.struck
            self.proxy.switch(None)
        if self.proxy.broken:
            outcome, said = "proxy broke", self.proxy.broken
        elif not struck:
            outcome = "never struck"
        elif waited > self.deadline + GRACE:
            outcome = "too late"
        return Case(self.server, kind, seed, outcome, waited, said)

    def _attempt(self, began: float) -> tuple[str, str, float]:
        try:
            scores = self._scored(self.rollouts)
            waited = time.monotonic() - began
            same = _same(self._stepped(self.rollouts, scores), self.clean)
            return ("recovered" if same else "wrong update"), "", waited
        except (RunError, UserError) as error:
            waited = time.monotonic() - began
            right = bool(error.hint) and _same(self._state(), self.start)
            return ("refused" if right else "wrong update"), str(error), waited
        except Exception as error:
            return "crashed", f"{type(error).__name__}: {error}", time.monotonic() - began


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

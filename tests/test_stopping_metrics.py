"""Solving and stopping apart, in a run: who would stop where the student did and where it did not; what closed ones score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from commands import CONFIG, build_shop, metrics, opd
from models import tiny_loaded
from opdkit.config import LearnerConfig, ObjectiveConfig, OptimConfig
from opdkit.diagnostics import rollout_tally
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Objective
from opdkit.run.world import World
from opdkit.train.collate import collate
from opdkit.train.learner import Learner, Part
from opdkit.types import Grade, Needs, Prompt, Rollout

ENDS = (3, 7)


def rollouts() -> list[Rollout]:
    """Two that stopped, in either end token; one at the limit, with an end token in its middle that was no end."""
    rows = [((5, 6), (9, 11, 3), "stop"), ((8,), (10, 7), "stop"), ((4, 9), (12, 3, 13, 14), "length")]
    return [
        Rollout(Prompt(str(i), ids=p), r, finish, logp=torch.zeros(len(r)))  # type: ignore[arg-type]
        for i, (p, r, finish) in enumerate(rows)
    ]


@pytest.mark.parametrize("chunk_rows", [0, 2])
def test_who_would_stop_where_the_student_did(chunk_rows: int) -> None:
    """Against whole rows of both models, position by position."""
    student, teacher = tiny_loaded("llama", seed=1), tiny_loaded("llama", seed=2)
    drawn = rollouts()
    expected: dict[str, list[float]] = {}
    for r in drawn:
        for who, loaded in (("student", student), ("teacher", teacher)):
            ids = torch.tensor([[*r.prompt.ids, *r.response_ids]])
            with torch.no_grad():
                p = loaded.model(input_ids=ids).logits[0].softmax(-1)
            for t in range(r.length):
                end = r.finish_reason == "stop" and t == r.length - 1
                mass = float(p[len(r.prompt.ids) - 1 + t, list(ENDS)].sum())
                expected.setdefault(f"stop_{who}_{'at_end' if end else 'elsewhere'}", []).append(mass)
    scorer = LocalTeacher(teacher)
    batch = collate(drawn, {"teacher": scorer.score(drawn, needs=Needs(full=True))})
    objective = Objective(ObjectiveConfig(preset="full"))
    module = Student(student, k=4, ks=(1,), ends=ENDS, chunk_rows=chunk_rows)
    learner = Learner(
        module,
        optim=OptimConfig(lr=1e-9),
        learner=LearnerConfig(),
        steps=1,
        world=World(torch.device("cpu")),
        max_tokens=8,
    )
    update = learner.update(
        Part(batch, objective.prepare(batch), objective), heads={"teacher": scorer.head}, step=0
    )
    found = update.tally.means()
    assert len(expected["stop_student_at_end"]) == 2 and len(expected["stop_teacher_elsewhere"]) == 7
    for name, values in expected.items():
        assert found[name] == pytest.approx(sum(values) / len(values), rel=1e-4), name


def test_what_closed_responses_score() -> None:
    def one(finish: Any, score: float | None) -> Rollout:
        return Rollout(Prompt("a"), (1, 2), finish, grade=None if score is None else Grade(score))

    told = rollout_tally([one("stop", 1.0), one("stop", 0.0), one("length", 0.0), one("cut", None)]).means()
    assert told["closure_rate"] == pytest.approx(2 / 3) and told["accuracy_of_closed"] == 0.5
    assert told["truncated_fraction"] == 0.25 and told["accuracy"] == pytest.approx(1 / 3)
    assert "closure_rate" not in rollout_tally([one("cut", None)]).means()


def test_a_run_tells_them_where_the_teacher_sends_whole_rows(tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "config.toml").write_text(CONFIG.format(shop=build_shop(tmp_path / "shop")))
    for payload in ("hidden", "ids"):
        run = tmp_path / payload
        said = opd(capfd, "train", tmp_path / "config.toml", f"run={run}", f"teacher.payload={payload}")
        assert said.code == 0, said.err
        row = metrics(run)[0]
        assert 0.0 <= row["closure_rate"] <= 1.0
        assert ("stop_teacher_elsewhere" in row) == (payload == "hidden")

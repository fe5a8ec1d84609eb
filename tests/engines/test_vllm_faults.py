"""Every kind of fault once between us and the real engine: no wrong update, every wait ends, and a killed server is survived."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import opd
from fault_bench import Bench
from faulty import kinds

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def bench(shop, teacher_server, student_server) -> Iterator[Bench]:
    """The engine answers slower than a fake: more patience than there."""
    patience = {"timeout_seconds": 1.5, "deadline_seconds": 3.0}
    with Bench(
        shop, server="fake", upstream=teacher_server.url, other=student_server.url, **patience
    ) as bench:
        yield bench


@pytest.mark.parametrize("kind", kinds("fake"))
def test_no_fault_leads_to_a_wrong_update(bench, kind):
    case = bench.case(kind, seed=0)
    assert case.right, case


def test_a_killed_engine_stops_the_run_and_a_restarted_one_goes_on(
    shop, teacher_server, tmp_path, capfd, monkeypatch
):
    """Last in this file: it restarts the teacher's server."""
    monkeypatch.chdir(tmp_path)
    words = ["train", f"student={shop / 'student'}", f"task={shop / 'sums.jsonl'}", "objective.support=teacher_top_k",
             f'teacher={{type="server",url="{teacher_server.url}"}}', "teacher.patience.deadline_seconds=20",
             "teacher.patience.retries=1", "prompts_per_step=4", "sampling.responses=2", "sampling.max_tokens=12",
             "optim.lr=1e-3", "run=r"]  # fmt: skip
    assert opd(capfd, *words, "steps=2").code == 0
    teacher_server.stop()
    said = opd(capfd, "train", "--resume", "r", "steps=4")
    assert said.code == 2 and "did not answer" in said.error
    teacher_server.start()
    slow = "teacher.patience.deadline_seconds=60"  # an engine's first answers take it seconds
    assert opd(capfd, "train", "--resume", "r", "steps=4", slow).code == 0
    assert opd(capfd, *words, "steps=4", "run=whole", slow).code == 0
    resumed, whole = (
        [json.loads(line)["loss"] for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
        for run in ("r", "whole")
    )
    assert resumed == pytest.approx(whole, abs=1e-5)

"""A killed run goes on bit for bit; a signal saves; a name is used once. Longer: scripts/kill_campaign.py."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from killing import STEPS, Case, Kill, Nursery, compare, files, look, newest
from opdkit.run import Stop, Stopped
from ranks import torchrun

SIGTERM = signal.SIGTERM
DRAW = random.Random(0)
MOMENT = DRAW.randint(1, 10)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def nursery(place: Path) -> Iterator[Nursery]:
    with Nursery(place) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def local(nursery: Nursery, place: Path) -> Case:
    return Case.make(nursery, place, "local")


@pytest.fixture(scope="module")
def moving(nursery: Nursery, place: Path) -> Case:
    """Its teacher is a copy of the student that moves on every four steps."""
    return Case.make(nursery, place, "self")


@pytest.fixture(scope="module")
def exact(nursery: Nursery, place: Path) -> Case:
    """The same with a float32 teacher: rounding to bfloat16 would blow up differences of rounding."""
    return Case.make(nursery, place / "exact", "self", teacher__dtype="float32", save__rollouts=8)


@pytest.fixture(scope="module")
def wide(nursery: Nursery, place: Path) -> Case:
    """In float64: shards have their rows padded where whole copies have them end to end, and rounding must not flip a token."""
    wide = {"student__dtype": "float64", "learner__compute": "float64", "teacher__dtype": "float64"}
    return Case.make(nursery, place / "wide", "self", save__rollouts=8, **wide)


@pytest.fixture(scope="module")
def half(exact: Case) -> Path:
    """A run that was meant to end after six steps, and did."""
    return six_steps(exact)


def six_steps(case: Case) -> Path:
    run = case.folder / "half"
    child = case.nursery.start(case.arguments(run, steps=6))
    assert child.wait() == 0, child.said
    return run


def rows(run: Path, name: str) -> list[dict]:
    path = run / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# --- SIGKILL ------------------------------------------------------------------------------------------------


def trained_without_checkpoint(run: Path) -> bool:
    state = look(run)
    return state["rows"] >= 1 and not state["checkpoints"]


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("anywhere", [Kill(when=lambda run: look(run)["rows"] >= MOMENT, delay=DRAW.random() / 10)]),
        ("inside-a-save", [Kill(save=2, delay=0.002)]),
        ("before-the-first-checkpoint", [Kill(when=trained_without_checkpoint)]),
    ],
)
def test_killed_and_resumed_is_uninterrupted(local: Case, name: str, kills: list[Kill]) -> None:
    """Weights, optimizer, counters, metrics, evaluations and sampled tokens, byte by byte."""
    trial = local.trial(name, kills)
    assert trial.identical, trial
    assert trial.struck[0].code == 137 and (not kills[0].save or trial.struck[0].torn), trial
    assert trial.resumed_from[0] == newest_before(trial.struck[0].checkpoints), trial


def newest_before(checkpoints: list[str]) -> int:
    return max((int(name.removeprefix("step_")) for name in checkpoints), default=0)


def test_two_resumes_in_a_row(moving: Case) -> None:
    """The second kill comes inside the resumed run's first save; the teacher has state of its own."""
    trial = moving.trial("twice", [Kill(when=lambda run: look(run)["rows"] >= 5), Kill(save=1)])
    assert trial.identical, trial
    assert [met.code for met in trial.struck] == [137, 137] and trial.struck[1].torn, trial
    assert trial.resumed_from[1] >= trial.resumed_from[0] == 3, trial


def test_what_an_objective_reads_of_several_models_and_data_is_taken_up_again(
    nursery: Nursery, place: Path
) -> None:
    case = Case.make(nursery, place, "signals")
    trial = case.trial("signals", [Kill(at=0.6)])
    assert trial.struck and trial.identical, trial


def test_the_horizon_of_a_resumed_run_is_the_one_it_would_have_had(nursery: Nursery, place: Path) -> None:
    case = Case.make(nursery, place, "horizon")
    depths = [row["horizon"] for row in rows(case.reference, "metrics.jsonl")]
    assert len(set(depths)) > 2, depths  # it moved, or nothing would be shown
    trial = case.trial("horizon", [Kill(when=lambda run: look(run)["rows"] >= 5), Kill(save=1)])
    assert trial.struck and trial.identical, trial


def test_a_teacher_that_is_an_average_is_taken_up_again(nursery: Nursery, place: Path) -> None:
    case = Case.make(nursery, place, "ema")
    trial = case.trial("ema", [Kill(when=lambda run: look(run)["rows"] >= 5), Kill(save=1)])
    assert trial.struck and trial.identical, trial


def test_responses_that_the_teacher_began_are_drawn_again(nursery: Nursery, place: Path) -> None:
    case = Case.make(nursery, place, "prefix")
    led = [row["led_fraction"] for row in rows(case.reference, "metrics.jsonl")]
    assert led[0] > 0.0 and led[-1] == 0.0
    trial = case.trial("prefix", [Kill(when=lambda run: look(run)["rows"] >= 5), Kill(save=1)])
    assert trial.struck and trial.identical, trial


def test_responses_that_were_cut_and_told_of_are_drawn_again(nursery: Nursery, place: Path) -> None:
    case = Case.make(nursery, place, "pruned")
    told = rows(case.reference, "metrics.jsonl")
    assert any(row["pruned_fraction"] > 0.0 for row in told)
    assert any(row["told_fraction"] > 0.0 for row in told)
    trial = case.trial("pruned", [Kill(when=lambda run: look(run)["rows"] >= 5), Kill(save=1)])
    assert trial.struck and trial.identical, trial


def test_a_damaged_checkpoint_is_told_once(local: Case) -> None:
    """The older one is used; the finding says so, however often the run is resumed from there."""
    run = local.folder / "damaged"
    shutil.copytree(local.reference, run)
    damaged = run / "checkpoints" / "step_12" / "optimizer.safetensors"
    *before, last = damaged.read_bytes()
    damaged.write_bytes(bytes([*before, last ^ 1]))
    child = local.nursery.start(["train", "--resume", str(run)])
    Kill(when=lambda run: look(run)["rows"] == 10).strike(child, run)
    child = local.nursery.start(["train", "--resume", str(run)])
    assert child.wait() == 0, child.said
    assert compare(run, local.reference) == ["findings.jsonl"]
    (finding,) = [row for row in rows(run, "findings.jsonl") if row["name"] == "checkpoint_damaged"]
    assert finding["name"] == "checkpoint_damaged" and finding["step"] == 9
    assert "step_12: optimizer.safetensors does not match its sha256" in finding["message"]


# --- SIGTERM ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "kill"),
    [
        ("loading", Kill(when=lambda run: (run / "env.json").exists(), number=SIGTERM)),
        ("training", Kill(when=lambda run: look(run)["rows"] == 4, delay=0.05, number=SIGTERM)),
        ("saving", Kill(save=2, number=SIGTERM)),
        ("the-last-evaluation", Kill(when=lambda run: look(run)["rows"] == STEPS, number=SIGTERM)),
    ],
)
def test_sigterm_saves_and_exits_143(local: Case, phase: str, kill: Kill) -> None:
    """Every finished step is in a checkpoint, soon; the resumed run is the uninterrupted one."""
    run = local.folder / phase
    child = local.nursery.start(local.arguments(run))
    met = kill.strike(child, run)
    assert met.code in ((143, 0) if phase == "the-last-evaluation" else (143,)), child.said
    assert met.code == 0 or "stopped by a signal" in child.said
    assert newest(run) == met.rows and not met.torn and not met.orphans, met
    assert met.took < 20, met
    child = local.nursery.start(["train", "--resume", str(run)])
    assert child.wait() == 0, child.said
    assert compare(run, local.reference) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_does_not_wait_for_a_long_evaluation(local: Case, number: int) -> None:
    """It is cut off; the resumed run does it from the start, here with fewer responses."""
    run = local.folder / f"long-{number}"
    long = {"eval.responses": 2000, "sampling.batch_rows": 16}
    child = local.nursery.start(local.arguments(run, **long))
    met = Kill(when=lambda run: (run / ".opd-run").exists(), delay=0.6, number=number).strike(child, run)
    assert met.code == 128 + number and "before the first step" in child.said
    assert not (run / "eval.jsonl").exists() and not met.checkpoints and not met.orphans
    changes = ["eval.responses=2", "sampling.batch_rows=64"]
    child = local.nursery.start(["train", "--resume", str(run), *changes])
    assert child.wait() == 0, child.said
    assert compare(run, local.reference) == []


def test_only_work_that_can_be_done_again_is_cut_off() -> None:
    """The first signal raises inside such work, further ones do not; elsewhere it is a wish."""
    with Stop() as stop:
        os.kill(os.getpid(), SIGTERM)
        assert stop.requested
        with pytest.raises(Stopped), stop.interrupting():
            pytest.fail("a signal from before counts at the entry")
    with Stop() as stop:
        steps = []
        with pytest.raises(Stopped), stop.interrupting():
            steps.append("in")
            try:
                os.kill(os.getpid(), SIGTERM)
                steps.append("not cut off")
            finally:
                os.kill(os.getpid(), SIGTERM)
                steps.append("cleared up")
        os.kill(os.getpid(), SIGTERM)
        assert steps == ["in", "cleared up"] and stop.exit_code == 143


# --- after the end, and names -------------------------------------------------------------------------------


def test_a_complete_run_is_left_as_it_is(local: Case) -> None:
    before = files(local.reference)
    child = local.nursery.start(["train", "--resume", str(local.reference)])
    assert child.wait() == 0 and f"complete: {STEPS} of {STEPS} steps" in child.said
    assert {**files(local.reference), ".opd-lock": b""} == {**before, ".opd-lock": b""}


def test_more_steps_go_on_and_fewer_are_refused(exact: Case, half: Path) -> None:
    """A run of six steps and six more is a run of twelve, with one evaluation more in the middle."""
    run = exact.folder / "more"
    shutil.copytree(half, run)
    child = exact.nursery.start(["train", "--resume", str(run), f"steps={STEPS}"])
    assert child.wait() == 0, child.said
    assert compare(run, exact.reference) == ["eval.jsonl"]
    assert [row["step"] for row in rows(run, "eval.jsonl")] == [0, 4, 6, 8, 12]
    assert f"steps = {STEPS}\n" in (run / "config.toml").read_text()
    before = files(run)
    child = exact.nursery.start(["train", "--resume", str(run), "steps=6"])
    assert child.wait() == 2 and "has a checkpoint after step 12, and steps = 6" in child.said
    assert {**files(run), ".opd-lock": b""} == {**before, ".opd-lock": b""}


def test_a_name_is_used_once(local: Case) -> None:
    """Refused with a way on: beside a finished run, and while it runs, for a new run and a resumed one."""
    child = local.nursery.start(local.arguments(local.reference))
    assert child.wait() == 2 and f"opd train --resume {local.reference}" in child.said
    run = local.folder / "busy"
    busy = local.nursery.start(local.arguments(run))
    while look(run)["rows"] < 1:
        assert busy.alive, busy.said
    again = local.nursery.start(local.arguments(run))
    resumed = local.nursery.start(["train", "--resume", str(run)])
    assert again.wait() == 2 and "exists and is not empty" in again.said
    assert resumed.wait() == 2 and f"is being written to by process {busy.pid}" in resumed.said
    assert busy.wait() == 0, busy.said
    assert compare(run, local.reference) == []


def test_what_is_saved_loads_with_from_pretrained(local: Case) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = local.reference / "checkpoints" / f"step_{STEPS}" / "model"
    model, saved = AutoModelForCausalLM.from_pretrained(place), load_file(place / "model.safetensors")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    tokens = AutoTokenizer.from_pretrained(place)("Compute 4 + 4", return_tensors="pt")
    assert model(**tokens).logits.isfinite().all()
    begun = load_file(local.folder / "student" / "model.safetensors")
    assert saved.keys() == begun.keys()
    for name, tensor in saved.items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)
    assert not torch.equal(saved["model.norm.weight"], begun["model.norm.weight"])


# --- another number of ranks --------------------------------------------------------------------------------


def opd_on_two_ranks(*argv: str, code: int = 0) -> str:
    """What `torchrun … -m opdkit` says on stderr."""
    return torchrun("-m", "opdkit", *argv, code=code).stderr


def test_a_run_may_change_its_number_of_ranks(wide: Case) -> None:
    """1 → 2 ranks and 2 → 1: the same prompts in the same order, the same tokens, losses to rounding. The first two hold
    whole copies (`auto` on a CPU), the second two shards."""
    one_then_two, two_then_one = wide.folder / "one-two", wide.folder / "two-one"
    shutil.copytree(six_steps(wide), one_then_two)
    said = opd_on_two_ranks("train", "--resume", str(one_then_two), f"steps={STEPS}")
    assert said.count("going on after step 6") == 1, said

    said = opd_on_two_ranks(*wide.arguments(two_then_one, steps=6), "learner.shard=always")
    assert said.count("next: opd report") == 1, said  # one rank talks and writes
    assert [row["step"] for row in rows(two_then_one, "metrics.jsonl")] == list(range(1, 7))
    assert look(two_then_one)["checkpoints"] == ["step_3", "step_6"]
    child = wide.nursery.start(["train", "--resume", str(two_then_one), f"steps={STEPS}"])
    assert child.wait() == 0, child.said

    for run in (one_then_two, two_then_one):
        same_course(run, wide.reference)


def same_course(run: Path, reference: Path) -> None:
    for step in range(1, STEPS + 1):
        ours, theirs = (rows(r, f"rollouts/step_{step}.jsonl") for r in (run, reference))
        for key in ("id", "sample", "prompt_ids", "response_ids", "policy_version"):
            assert [row[key] for row in ours] == [row[key] for row in theirs], (step, key)
    ours, theirs = rows(run, "metrics.jsonl"), rows(reference, "metrics.jsonl")
    for name in ("loss", "grad_norm", "response_length", "accuracy"):
        assert [row[name] for row in ours] == pytest.approx([row[name] for row in theirs], rel=1e-3), name
    assert [e["step"] for e in rows(run, "eval.jsonl")] == [0, 4, 6, 8, 12]

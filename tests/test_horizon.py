"""How deep the teacher is listened to: decisions as functions of rows, windows that train, responses that are cut."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from commands import CONFIG, Said, build_shop, findings, metrics, opd
from opdkit.config import Config
from opdkit.diagnostics import Monitor, trusted_depth
from opdkit.diagnostics.health import EXAMPLES, example_rows
from opdkit.objectives import Moment
from opdkit.train.horizon import TAIL, Horizon, cut_at
from opdkit.types import Grade, Prompt, Rollout
from test_signal import batch_of, rollout, signal

properties = settings(max_examples=60, deadline=None, database=None)
WIDTH, BINS = 8, 4
MOST = WIDTH * BINS


def row(step: int, shares: list[float | None], name: str = "sign_reliability") -> dict[str, Any]:
    told = {f"by_position/{WIDTH * b}/{name}": share for b, share in enumerate(shares) if share is not None}
    return {"step": step, **told}


def config(**changes: Any) -> Config:
    keys = {
        "student": "s",
        "teacher": "t",
        "task": "p.jsonl",
        "sampling": {"max_tokens": MOST},
        "horizon": {"mode": "mask", "every": 2, "floor": 4, **changes.pop("horizon", {})},
    }
    return Config.model_validate({**keys, **changes})


# --- the depth that rows trust ---------------------------------------------------------------------------------


def test_the_tail_that_is_worse_than_nothing_is_left_out() -> None:
    rows = [row(i, [0.7, 0.6, 0.3, 0.4]) for i in range(3)]
    assert trusted_depth(rows, by="sign_reliability", bound=0.5, max_tokens=MOST) == 16


def test_one_early_bin_ends_nothing() -> None:
    rows = [row(i, [0.45, 0.9, 0.6, 0.3]) for i in range(3)]
    assert trusted_depth(rows, by="sign_reliability", bound=0.5, max_tokens=MOST) == 24


def test_what_nobody_measured_is_kept() -> None:
    known_once = [row(0, [0.7, 0.6, 0.1, 0.1]), *(row(i, [0.7, 0.6, None, None]) for i in range(1, 4))]
    assert trusted_depth(known_once, by="sign_reliability", bound=0.5, max_tokens=MOST) == MOST
    assert trusted_depth([{}], by="overlap_ratio", bound=0.8, max_tokens=MOST) is None


def test_a_bin_within_its_error_is_kept() -> None:
    """.48 on average, give or take .06: not shown to be below one half."""
    noisy = [row(i, [0.7, 0.6, share, share]) for i, share in enumerate((0.36, 0.60, 0.36, 0.60))]
    assert trusted_depth(noisy, by="sign_reliability", bound=0.5, max_tokens=MOST) == MOST
    sure = [row(i, [0.7, 0.6, share, share]) for i, share in enumerate((0.47, 0.49, 0.47, 0.49))]
    assert trusted_depth(sure, by="sign_reliability", bound=0.5, max_tokens=MOST) == 16


def test_where_only_wrong_responses_reach_nothing_is_trusted() -> None:
    """Right ones end after 16 tokens; of a step without any right response nothing is known."""

    def told(step: int, *, right: int, wrong: int) -> dict[str, Any]:
        known = [f"by_position/{WIDTH * b}/reward_up" for b in range(BINS)]
        return {
            "step": step,
            **{f"{key}_right": 0.6 for key in known[:right]},
            **{f"{key}_wrong": 0.5 for key in known[:wrong]},
            **row(step, [0.55] * min(right, wrong)),
        }

    rows = [told(i, right=2, wrong=4) for i in range(3)]
    assert trusted_depth(rows, by="sign_reliability", bound=0.5, max_tokens=MOST) == 16
    hopeless = [told(i, right=0, wrong=4) for i in range(3)]
    assert trusted_depth(hopeless, by="sign_reliability", bound=0.5, max_tokens=MOST) is None
    alike = [told(i, right=2, wrong=2) for i in range(3)]
    assert trusted_depth(alike, by="sign_reliability", bound=0.5, max_tokens=MOST) == MOST


def test_overlap_is_compared_with_the_responses_own_beginning() -> None:
    rows = [row(0, [0.4, 0.36, 0.2, 0.1], "overlap_ratio")]
    assert trusted_depth(rows, by="overlap_ratio", bound=0.8, max_tokens=MOST) == 16


def test_entropy_is_compared_with_the_teachers() -> None:
    student, teacher = (
        row(0, [1.0, 1.1, 3.0, 0.05], "entropy_student"),
        row(0, [1.0, 1.0, 1.0, 0.001], "entropy_teacher"),
    )
    rows = [student | teacher]
    assert trusted_depth(rows, by="entropy", bound=1.3, max_tokens=MOST) == 16
    calm = [row(0, [0.01, 0.05], "entropy_student") | row(0, [0.001, 0.001], "entropy_teacher")]
    assert trusted_depth(calm, by="entropy", bound=1.3, max_tokens=MOST) == MOST  # of near-certain models


SHARES = st.lists(
    st.lists(st.none() | st.floats(0, 1), min_size=BINS, max_size=BINS), min_size=1, max_size=12
)


@properties
@example([[1.0, None, None, 0.0], [2e-311, None, None, 1.0]], 0.5, "overlap_ratio")
@given(SHARES, st.floats(0.1, 0.9), st.sampled_from(["sign_reliability", "overlap_ratio"]))
def test_a_depth_ends_a_bin_and_a_lower_bound_never_shortens_it(
    shares: list[list[float | None]], bound: float, by: str
) -> None:
    rows = [row(i, some, by) for i, some in enumerate(shares)]
    depth = trusted_depth(rows, by=by, bound=bound, max_tokens=MOST)
    lower = trusted_depth(rows, by=by, bound=bound / 2, max_tokens=MOST)
    assert (depth is None) == (lower is None)
    if depth is not None and lower is not None:
        assert depth in range(0, MOST + 1, WIDTH) and lower >= depth


# --- decisions -------------------------------------------------------------------------------------------------


@properties
@given(SHARES, st.integers(1, 4), st.floats(1, 3), st.integers(1, MOST))
def test_decisions_are_a_function_of_rows(
    shares: list[list[float | None]], every: int, growth: float, start: int
) -> None:
    """However a run is cut, the horizon of the rest is what it would have been; always within its limits."""
    cfg = config(horizon={"every": every, "growth": growth, "start": start, "floor": min(4, start)})
    rows = [row(i + 1, some) for i, some in enumerate(shares)]
    whole = Horizon(cfg)
    depths = []
    for one in rows:
        before = whole.depth
        change = whole.see(one)
        assert (change is None) == (whole.depth == before)
        assert min(4, start) <= whole.depth <= min(MOST, max(start, int(before * growth)))
        depths.append(whole.depth)
    cut = random.Random(len(rows)).randrange(len(rows) + 1)
    again = Horizon(cfg)
    for one in json.loads(json.dumps(rows[:cut])):
        again.see(one)
    for one, depth in zip(rows[cut:], depths[cut:], strict=True):
        again.see(one)
        assert again.depth == depth


def test_it_grows_by_steps_and_shrinks_at_once() -> None:
    horizon = Horizon(config(horizon={"start": 6, "every": 1}))
    seen = []
    for step, shares in enumerate([[0.9] * 4, [0.9] * 4, [0.9] * 4, [0.9, 0.2, 0.2, 0.2], [0.2] * 4]):
        horizon.see(row(step + 1, shares))
        seen.append(horizon.depth)
    assert seen == [12, 24, 32, 8, 4]
    assert horizon.window == 4 and horizon.drawn == MOST


def test_of_nothing_a_start_grows_and_a_cut_stays() -> None:
    horizon = Horizon(config(horizon={"start": 8, "every": 1}))
    seen = []
    for step, shares in enumerate([[None] * 4, [0.9, 0.2, 0.2, 0.2], [None] * 4, [None] * 4]):
        horizon.see(row(step + 1, shares))
        seen.append(horizon.depth)
    assert seen == [16, 8, 8, 8]


def test_a_horizon_that_cuts_every_response_is_tried_again() -> None:
    """Nothing ends below it, so nothing is graded: it must not stay there for want of grades."""
    horizon = Horizon(config(horizon={"mode": "shorten", "every": 1}))
    horizon.see(row(1, [0.9, 0.1, 0.1, 0.1]))
    assert horizon.depth == 8
    for step in range(2, 8):
        horizon.see(row(step, [None] * 4))
    assert horizon.depth == MOST


def test_what_is_not_drawn_is_tried_less_and_less_often() -> None:
    horizon = Horizon(config(horizon={"mode": "shorten", "every": 1}))
    cuts = []
    for step in range(1, 40):
        beyond = 0.1 if horizon.depth > 8 else None
        change = horizon.see(row(step, [0.9, *[beyond] * 3]))
        if change is not None and change.depth < change.before:
            cuts.append(step)
    apart = [b - a for a, b in itertools.pairwise(cuts)]
    assert cuts[0] == 1 and apart == sorted(apart) and apart[-1] >= 3 * apart[0]


def test_shorten_draws_no_further() -> None:
    horizon = Horizon(config(horizon={"mode": "shorten", "start": 8}))
    assert horizon.drawn == horizon.window == 8


def test_off_is_off() -> None:
    horizon = Horizon(config(horizon={"mode": "off", "start": 8}))
    for step in range(6):
        assert horizon.see(row(step + 1, [0.1] * 4), ["repetition"]) is None
    assert horizon.window == 0 and horizon.drawn == MOST and horizon.numbers([]) == {}


# --- a collapse acts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TAIL))
def test_a_condition_of_the_tail_halves_the_horizon(name: str) -> None:
    """By the monitor's own rows of a run that has it; half again while it lasts, never below the floor."""
    steps = 60
    cfg = config(horizon={"mode": "off", "every": 5, "floor": 4}, health={"on_critical": "mask"}, steps=steps)
    monitor, horizon = Monitor.of(cfg), Horizon(cfg)
    changes = []
    for one in example_rows(name, steps=steps):
        found = [finding.name for finding in monitor.see(one)]
        if change := horizon.see(one, found, monitor.lasting):
            changes.append((change, found))
    first, found = changes[0]
    assert name in EXAMPLES and name in found and name in first.why
    assert [change.depth for change, _ in changes] == [16, 8, 4]
    steps_between = {b.step - a.step for (a, _), (b, _) in itertools.pairwise(changes)}
    assert steps_between <= set(range(1, 6))


def test_what_is_no_matter_of_the_tail_halves_nothing() -> None:
    horizon = Horizon(config(horizon={"mode": "off"}, health={"on_critical": "shorten"}))
    assert horizon.see({"step": 1}, ["loss_rise", "overlap_fall", "accuracy_fall"]) is None
    assert horizon.see({"step": 2}, ["repetition"]) is not None and horizon.drawn == MOST // 2


def test_a_longer_horizon_is_no_rise_of_the_loss() -> None:
    """Rows before are of other tokens: the same rows without a word of the horizon are a rise."""

    def of(horizon: int, step: int, **more: float) -> dict[str, float]:
        return {
            "step": step,
            "loss": 0.1 * horizon / 8,
            "horizon": horizon,
            "response_length": 2.0 * horizon,
            **more,
        }

    rows = [of(8 if step <= 20 else 32, step) for step in range(1, 61)]
    bare = [{name: value for name, value in one.items() if name != "horizon"} for one in rows]
    told, unaware = names(rows), names(bare)
    assert {"loss_rise", "length_inflation"} <= unaware and "loss_rise" not in told
    assert "length_inflation" in told  # a mask draws as far as ever
    drawn = [of(8 if step <= 20 else 32, step, cut_fraction=0.0) for step in range(1, 61)]
    assert names(drawn) == set()


def names(rows: list[dict[str, Any]]) -> set[str]:
    monitor = Monitor(steps=len(rows))
    return {finding.name for one in rows for finding in monitor.see(one)}


# --- what trains ----------------------------------------------------------------------------------------------


def test_the_horizon_narrows_the_window_and_never_widens_it() -> None:
    batch = batch_of(rollout([1.0, 2.0, 3.0, 4.0]), rollout([1.0]))
    assert signal({}, batch, moment=Moment(window=2)).weight.tolist() == [1, 1, 0, 0, 1]
    assert signal({"window": 1}, batch, moment=Moment(window=2)).weight.tolist() == [1, 0, 0, 0, 1]
    assert signal({"window": 3}, batch, moment=Moment(window=2)).weight.tolist() == [1, 1, 0, 0, 1]


def test_outcome_reward_reaches_beyond_the_horizon() -> None:
    """Dense early, sparse everywhere: the hybrid of arXiv 2604.13016, 6.2."""
    batch = batch_of(rollout([1.0, 1.0, 1.0], score=1.0), rollout([1.0, 1.0, 1.0], score=0.0))
    made = signal({"reward": "additive"}, batch, moment=Moment(window=1))
    assert made.weight.tolist() == [1, 0, 0, 1, 0, 0]
    assert made.advantage is not None and (made.advantage != 0).all()


def test_a_cut_response_has_no_grade_and_is_not_truncated() -> None:
    def drawn(length: int, finish: Any) -> Rollout:
        return Rollout(Prompt("a"), tuple(range(length)), finish, grade=Grade(0.0))

    at_cap, ended, no_room = cut_at([drawn(4, "length"), drawn(4, "stop"), drawn(3, "length")], 4)
    assert at_cap.finish_reason == "cut" and at_cap.grade is None
    assert ended.finish_reason == "stop" and ended.grade == Grade(0.0)
    assert no_room.finish_reason == "length"  # the context was full: that is a truncation


# --- runs ------------------------------------------------------------------------------------------------------

GRADED = {"task__grader__type": "regex", "task__grader__pattern": "[a-z]()"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def train(shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[Said, Path]]:
    def run(**changes: Any) -> tuple[Said, Path]:
        path, folder = tmp_path / "config.toml", tmp_path / changes.pop("folder", "run")
        path.write_text(CONFIG.format(shop=shop))
        words = [
            f"{key.replace('__', '.')}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in changes.items()
        ]
        return opd(capfd, "train", path, f"run={folder}", *words), folder

    return run


MEASURED = {
    "horizon__by": "entropy",
    "horizon__every": 2,
    "horizon__floor": 2,
    "diagnostics__positions": 0,
    "diagnostics__bins": 4,
    "steps": 6,
}


def test_a_masked_run_trains_the_beginning(train: Any) -> None:
    """At a bound that no bin keeps, the horizon falls to its floor, is told, and the tokens drawn stay as many."""
    said, run = train(**MEASURED, horizon__mode="mask", horizon__threshold=1e-6)
    assert said.code == 0, said.err
    rows = metrics(run)
    assert [one["horizon"] for one in rows] == [8, 8, 2, 2, 2, 2]
    assert rows[0]["beyond_horizon"] == 0 and rows[2]["beyond_horizon"] > 0.5
    assert "cut_fraction" not in rows[0] and rows[2]["response_length"] > 4
    told = findings(run)["horizon"]
    assert told["numbers"] == {"depth": 2, "before": 8} and told["step"] == 2 and "trusted" in told["rule"]


def test_a_shortened_run_draws_the_beginning_and_grows_back(train: Any) -> None:
    said, run = train(
        **MEASURED,
        horizon__mode="shorten",
        horizon__start=2,
        horizon__threshold=100.0,
        save__rollouts_every=1,
    )
    assert said.code == 0, said.err
    rows = metrics(run)
    assert [one["horizon"] for one in rows] == [2, 2, 4, 4, 8, 8]
    assert all(one["response_length"] <= one["horizon"] for one in rows)
    assert rows[0]["cut_fraction"] > 0 and rows[0]["truncated_fraction"] == 0
    assert rows[-1]["cut_fraction"] == 0
    kept = {one["finish_reason"] for path in (run / "rollouts").iterdir() for one in _lines(path)}
    assert kept <= {"stop", "length", "cut"}


def test_the_loss_that_is_told_is_of_the_tokens_that_train(train: Any) -> None:
    """Of equal weights, the mean over a window of everything is the mean without one."""
    _, plain = train(folder="plain")
    said, masked = train(folder="masked", horizon__mode="mask", horizon__by="overlap_ratio", horizon__floor=8)
    assert said.code == 0, said.err
    assert [r["loss"] for r in metrics(plain)] == [r["loss"] for r in metrics(masked)]
    _, narrow = train(
        folder="narrow", horizon__mode="mask", horizon__by="overlap_ratio", horizon__floor=2, horizon__start=2,
        diagnostics__positions=0, diagnostics__bins=4, objective="full",
    )  # fmt: skip
    first = metrics(narrow)[0]
    assert math.isclose(first["loss"], first["by_position/0/reverse_kl"], rel_tol=1e-5)


def test_signs_are_measured_by_position_where_there_are_grades(train: Any) -> None:
    said, run = train(
        **(MEASURED | {"horizon__by": "sign_reliability", "sampling__responses": 8}),
        **GRADED,
        horizon__mode="mask",
    )
    assert said.code == 0, said.err
    assert all("by_position/0/reward_up_wrong" in one for one in metrics(run))


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"horizon__mode": "mask"}, "no grader", "horizon.by=overlap_ratio"),
        ({"horizon__mode": "mask", "story": "sft", "teacher": "unset"}, "story 'sft' has none", "horizon.mode=off"),
        ({"health__on_critical": "mask", "story": "sft", "teacher": "unset"}, "story 'sft'", "health.on_critical=stop"),
        ({"horizon__mode": "mask", "health__on_critical": "shorten"}, "in two ways", "health.on_critical=mask"),
        ({"health__on_critical": "mask", "health__enabled": False}, "nobody watches", "health.enabled=true"),
        ({"horizon__mode": "mask", "diagnostics__bins": 1}, "one bin", "diagnostics.bins=8"),
        ({"horizon__mode": "mask", "horizon__start": 9}, "longer than", "horizon.start=8"),
        ({"horizon__mode": "mask", "horizon__start": 3}, "below horizon.floor", "horizon.floor=3"),
        (
            {"horizon__mode": "shorten", "horizon__floor": 2, "sampling__min_tokens": 4},
            "min_tokens = 4",
            "horizon.floor=4",
        ),
    ],
    ids=lambda x: "-".join(map(str, x.values())) if isinstance(x, dict) else "",
)  # fmt: skip
def test_what_cannot_act_is_refused(train: Any, changes: dict[str, Any], message: str, hint: str) -> None:
    said, run = train(**changes)
    assert said.code == 2 and message in said.error and hint in said.hint
    assert not run.exists()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_torch_draws_a_shorter_response_as_the_beginning_of_a_longer_one() -> None:
    """A horizon changes how much is drawn, not what: the streams of a row do not depend on the limit."""
    from models import tiny_loaded
    from opdkit.config import LocalSampling
    from opdkit.models.sampler import LocalSampler

    sampler = LocalSampler(tiny_loaded("llama"))
    prompts = [Prompt("a", ids=(5, 6, 7)), Prompt("b", ids=(8, 9))]
    short, long = (
        sampler.sample(prompts, sampling=LocalSampling(responses=2, max_tokens=n), seed=1, step=2)
        for n in (3, 9)
    )
    assert [r.response_ids for r in short] == [r.response_ids[:3] for r in long]
    assert all(torch.equal(s.logp, r.logp[:3]) for s, r in zip(short, long, strict=True))  # type: ignore[index, arg-type]

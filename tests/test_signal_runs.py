"""Signals, targets, data beside own rollouts and guard rails, end to end through `opd train` on tiny models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import CONFIG, Said, build_shop, findings, metrics, opd, save_model, write_rows
from models import IM_END
from opdkit.train.switch import flat_at

GRADED = {"task.grader.type": "regex", "task.grader.pattern": "[a-z]()"}
TEACHER = {"type": "local"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shop = build_shop(tmp_path_factory.mktemp("shop"))
    save_model(shop / "before", seed=2, hidden=48)
    write_rows(
        shop / "shown.jsonl", [{"prompt": f"Compute {i} + 1", "response": f"It is {i + 1}"} for i in range(5)]
    )
    return shop


@pytest.fixture
def train(shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[Said, Path]]:
    def run(**changes: Any) -> tuple[Said, Path]:
        path = tmp_path / "config.toml"
        path.write_text(CONFIG.format(shop=shop))
        words = [f"{key.replace('__', '.')}={_toml(value)}" for key, value in changes.items()]
        folder = tmp_path / "run"
        return opd(capfd, "train", path, f"run={folder}", *words), folder

    return run


def _toml(value: Any) -> str:
    return str(value) if isinstance(value, Path | str) else json.dumps(value)


def sound(run: Path) -> list[dict[str, Any]]:
    rows = metrics(run)
    assert len(rows) == 2 and all(
        math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in rows
    )
    assert all(row["skipped_steps"] == 0 and row["grad_norm"] > 0 for row in rows)
    return rows


@pytest.mark.parametrize("payload", ["hidden", "ids"])
@pytest.mark.parametrize(
    "keys",
    [
        {"objective__signal__discount": 1.0, "objective__signal__token_rewards": "standardised"},
        {"objective__signal__positions": "prefix", "objective__signal__window": 5},
        {"objective__signal__select": "teachable", "objective__signal__share": 0.3},
        {"objective__signal__select": "uncertain_or_wrong", "objective__k": 3},
        {"objective": "sampled", "objective__signal__control": "shuffled"},
    ],
    ids=lambda keys: "-".join(str(v) for v in keys.values()),
)
def test_signals_run_whatever_a_teacher_sends(train: Any, keys: dict[str, Any], payload: str) -> None:
    said, run = train(**keys, teacher__payload=payload)
    assert said.code == 0, said.err
    sound(run)


@pytest.mark.parametrize(
    "keys",
    [
        {"reward": "additive"},
        {"reward": "modulating"},
        {"gate": "verifier", "prompts": "pass_rate"},
        {"reward": "sequential", "switch_step": 1},
    ],
    ids=lambda keys: "-".join(map(str, keys.values())),
)
def test_grades_are_a_signal_too(train: Any, keys: dict[str, Any]) -> None:
    told = {f"objective__signal__{name}": value for name, value in keys.items()}
    changes = {name.replace(".", "__"): value for name, value in GRADED.items()}
    said, run = train(**told, **changes, sampling__responses=4, sampling__max_tokens=4)
    assert said.code == 0, said.err
    rows = metrics(run)
    assert all(math.isfinite(row["grad_norm"]) for row in rows)
    if "switch_step" in keys:
        assert findings(run)["reward_switch"]["numbers"] == {"step": 1}
        assert rows[0]["loss"] > 0.0 and rows[1]["loss"] == 0.0  # the divergence teaches no more


@pytest.mark.parametrize(
    "keys",
    [
        {"objective": "sampled", "objective__target": "extrapolated", "objective__target_scale": 1.5},
        {"objective": "full", "objective__target": "difference", "objective__anchor": 0.2},
        {"objective": "full", "objective__target": "bridge", "objective__target_decay": 1},
        {"objective": "tt-opd", "objective__target": "sign_flipped"},
    ],
    ids=lambda keys: str(keys["objective__target"]),
)
def test_targets_of_several_models_run(train: Any, shop: Path, keys: dict[str, Any]) -> None:
    more = (
        {"reference": shop / "before"} if keys["objective__target"] in ("extrapolated", "difference") else {}
    )
    said, run = train(**keys, **more)
    assert said.code == 0, said.err
    sound(run)


def test_a_reference_that_is_the_teacher_leaves_the_teacher(train: Any, shop: Path, tmp_path: Path) -> None:
    """q^λ·q^(1−λ) is q."""
    losses = []
    for name, more in (
        ("plain", {}),
        ("same", {"objective__target": "extrapolated", "reference": shop / "teacher"}),
    ):
        said, _ = train(objective="full", run=tmp_path / name, **more)
        assert said.code == 0, said.err
        losses.append([row["loss"] for row in metrics(tmp_path / name)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("payload", ["hidden", "ids"])
@pytest.mark.parametrize("objective", ["likelihood", "teacher_top_k"])
def test_demonstrations_are_learned_from_beside_own_rollouts(
    train: Any, shop: Path, tmp_path: Path, objective: str, payload: str
) -> None:
    own = {} if objective == "likelihood" else {
        "mix__objective__preset": "teacher-top-k", "mix__objective__k": 4,
    }  # fmt: skip
    said, run = train(mix__demonstrations=3, mix__path=shop / "shown.jsonl", teacher__payload=payload, **own)
    assert said.code == 0, said.err
    rows = sound(run)
    assert all(row["loss_data"] > 0 for row in rows)
    said, _ = train(run=tmp_path / "alone", teacher__payload=payload)
    alone = metrics(tmp_path / "alone")
    assert rows[0]["response_length"] == alone[0]["response_length"]  # data is not counted among own rollouts
    assert rows[0]["grad_norm"] != pytest.approx(alone[0]["grad_norm"], rel=1e-3)


def test_demonstrations_have_end_tokens_and_special_tokens_of_their_own(
    train: Any, shop: Path, tmp_path: Path
) -> None:
    """What the objective of data asks for is not asked of own rollouts, and the other way round."""
    losses = {}
    for name, ends in (("apart", False), ("one", True)):
        keys = {"mix__objective__preset": "full", "mix__objective__merge_ends": ends}
        said, _ = train(
            objective="full",
            mix__demonstrations=3,
            mix__path=shop / "shown.jsonl",
            sampling__stop_ids=[IM_END, *range(40, 160)],
            run=tmp_path / name,
            **keys,
        )
        assert said.code == 0, said.err
        losses[name] = metrics(tmp_path / name)[0]
    assert losses["one"]["loss"] == pytest.approx(losses["apart"]["loss"], rel=1e-5)
    assert losses["one"]["loss_data"] < 0.99 * losses["apart"]["loss_data"]


def test_end_tokens_and_special_tokens(train: Any) -> None:
    said, run = train(
        objective__merge_ends=True,
        objective__mask_special=True,
        sampling__stop_ids=[IM_END, 40, 41, 42],
        objective__support="union",
    )
    assert said.code == 0, said.err
    sound(run)


# --- guard rails ------------------------------------------------------------------------------------------------


def test_what_a_configuration_says_of_itself_is_told_with_its_number(train: Any) -> None:
    said, run = train(
        teacher__temperature=0.5, objective__k=300, diagnostics__k=4, objective__normalisation="tail_sampled",
        sampling__top_p=0.9,
    )  # fmt: skip
    assert said.code == 0, said.err
    told = findings(run)
    assert told["temperatures_differ"]["numbers"] == {"student": 1.0, "teacher": 0.5}
    assert told["k_near_vocabulary"]["numbers"]["chance"] == pytest.approx(300 / 384)
    assert told["sampled_from_less"]["numbers"]["top_p"] == 0.9
    rails = [told[name] for name in ("temperatures_differ", "k_near_vocabulary", "sampled_from_less")]
    assert all(rail["severity"] == "warning" and "=" in rail["remedy"] and rail["source"] for rail in rails)


def test_a_sound_configuration_is_told_nothing(train: Any) -> None:
    said, run = train()
    assert said.code == 0 and not {"temperatures_differ", "k_near_vocabulary", "sampled_from_less"} & set(
        findings(run)
    )


def test_what_a_set_leaves_out_and_what_a_bound_cuts_is_measured(train: Any, tmp_path: Path) -> None:
    said, run = train(objective__shaping="clip", objective__shaping_value=0.01)
    assert said.code == 0, said.err
    row = sound(run)[0]
    assert row["mass_left_out"] == pytest.approx(1 - row["support_mass_student"], abs=1e-6)
    assert 0.5 < row["mass_left_out"] < 1.0  # four of 384 tokens of a random model
    assert row["clipped_fraction"] > 0.5 and row["support_size"] == 4
    said, _ = train(run=tmp_path / "tail", objective__normalisation="tail_sampled")
    row = metrics(tmp_path / "tail")[0]
    assert (
        "mass_left_out" not in row and "clipped_fraction" not in row and 0 < row["support_mass_student"] < 1
    )


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"objective__target": "extrapolated"}, "needs what the teacher was before its RL", "reference="),
        ({"objective__signal__reward": "additive"}, "reads grades, and the task has no grader", "task.grader"),
        ({"objective__signal__reward": "additive", "sampling__responses": 1}, "one response has no spread", "sampling.responses"),
        ({"objective__signal__reward": "sequential"}, "nothing is evaluated on the way", "eval.every"),
        (
            {"mix__demonstrations": 2, "mix__objective__preset": "full", "mix__objective__anchor": 0.1},
            "compares with the start, which this run does not have",
            "anchor of objective",
        ),
        ({"mix__demonstrations": 2}, "have no demonstration to imitate", "response_key"),
        ({"mix__demonstrations": 2, "mix__objective": "sampled"}, "drawn by somebody else", "support"),
        ({"mix__demonstrations": 2, "mix__path": "none.jsonl"}, "no prompt file", "mix.path"),
        (
            {"objective": "full", "objective__target": "bridge", "teacher__payload": "ids"},
            "needs full rows",
            "hidden",
        ),
    ],
    ids=lambda x: "-".join(map(str, x.values())) if isinstance(x, dict) else "",
)  # fmt: skip
def test_what_cannot_work_is_refused_before_a_run_folder_is_made(
    train: Any, changes: dict[str, Any], message: str, hint: str
) -> None:
    said, run = train(**changes)
    assert said.code == 2 and message in said.error and hint in said.hint
    assert not run.exists()


def test_flat_is_a_function_of_what_came_before() -> None:
    rising = [0.1 * i for i in range(10)]
    assert flat_at(rising, window=3, margin=0.01) is None
    assert (
        flat_at([*rising, 0.9, 0.9, 0.9, 5.0], window=3, margin=0.01) == 12
    )  # what comes later changes nothing

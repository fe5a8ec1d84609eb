"""Rollouts token by token, and sequence rewards: what is read, how it is weighed, and what odd data does."""

import json
import math
import random
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from opdkit.diagnostics import auroc
from opdkit.report import read, samples, sequences, write_report
from opdkit.report.maps import by_position
from opdkit.report.tokens import disputed, favourite, gaps_between, tokens_of
from report_runs import bare_run, make_chain_run, tokens_object, write_rows

# --- the sequence reward ------------------------------------------------------------------------------------


def test_auroc_counts_pairs_and_halves_ties() -> None:
    draw = random.Random(0)
    for _ in range(50):
        right = [float(draw.randint(0, 4)) for _ in range(draw.randint(1, 9))]
        wrong = [float(draw.randint(0, 4)) for _ in range(draw.randint(1, 9))]
        pairs = [0.5 if r == w else float(r > w) for r, w in product(right, wrong)]
        assert sequences.auroc(right, wrong) == pytest.approx(sum(pairs) / len(pairs))
        scores, positive = torch.tensor([*right, *wrong]), torch.arange(len(right) + len(wrong)) < len(right)
        assert sequences.auroc(right, wrong) == pytest.approx(auroc(scores, positive))
    assert sequences.auroc([], [1.0]) is None


def test_rewards_are_sorted_by_the_grader_and_odd_ones_left_out(tmp_path: Path) -> None:
    row = {
        "step": 3,
        "sequence_reward": [-0.1, -0.3, math.nan, None, "x", -0.2],
        "score": [1.0, 0.0, 1.0, 1.0, 1.0, None],
        "truncated": [False, True, True],
    }
    folder = bare_run(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    write_rows(folder / "sequences.jsonl", [row, {"step": 4}, {"step": 5, "sequence_reward": "no list"}])
    (it,) = sequences.ends(read.read_run(folder, name="run"))
    assert (list(it.right), list(it.wrong), list(it.ungraded), it.cut) == ([-0.1], [-0.3], [-0.2], 2)


def test_the_first_and_the_last_written_step_are_shown(tmp_path: Path) -> None:
    run = read.read_run(make_chain_run(tmp_path / "run", works=True), name="run")
    assert [it.step for it in sequences.ends(run)] == [10, 100]
    page = write_report([tmp_path / "run"]).read_text(encoding="utf-8")
    assert len(re.findall(r"AUROC 0\.\d+ \(n = \d+ right, \d+ wrong", page)) >= 2


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ([1.0] * 4 + [0.0] * 4, "Too few of one kind to rely on"),
        ([1.0] * 20 + [0.0] * 20, "n = 20 right, 20 wrong)"),
        ([1.0] * 8, "with one kind only"),
        ([None] * 8, "none graded"),
    ],
)
def test_a_histogram_says_what_it_cannot_tell(scores: list[float | None], says: str, tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    row = {"step": 1, "sequence_reward": [0.01 * i for i in range(len(scores))], "score": scores}
    write_rows(folder / "sequences.jsonl", [row])
    (it,) = sequences.ends(read.read_run(folder, name="run"))
    assert says in sequences.told(it)


def test_bars_hold_everything_once() -> None:
    assert sum(sequences.bars([0.0, 0.5, 1.0, 1.0], 0.0, 1.0)) == 4
    assert sequences.bars([0.0, 1.0], 0.0, 1.0)[:: sequences.BARS - 1] == [1, 1]
    assert sum(sequences.bars([2.0, 2.0], 2.0, 2.0)) == 2


# --- tokens -------------------------------------------------------------------------------------------------


def row_of(
    texts: list[str], response: str, student: list[Any], teacher: list[Any], **more: Any
) -> dict[str, Any]:
    told = {"text": texts, "student_logp": student, "teacher_logp": teacher, **more}
    return {"response": response, "tokens": told}


def test_the_sign_says_what_the_teacher_wants() -> None:
    tokens = tokens_of(row_of(["a", "b", "c"], "abc", [-3.0, -0.1, -1.0], [-0.1, -3.0, -1.1]))
    assert [token.level for token in tokens] == [3, -3, 0]
    assert [place for place, _ in disputed(tokens)] == [0, 1]


@pytest.mark.parametrize(
    ("texts", "response"),
    [
        (["run", "so", "48", "answer", "48", "<done>"], "run so 48 answer 48"),
        ([" the", " cat", "\n", "sat"], " the cat\nsat"),
        (["a", "", "b"], "a  b"),
        (["caf", "\ufffd", "\ufffd", " au", " lait"], "café au lait"),
        (["x"], ""),
        ([], "left over"),
    ],
)
def test_tokens_stand_where_the_response_has_them(texts: list[str], response: str) -> None:
    gaps = gaps_between(texts, response)
    assert len(gaps) == len(texts) and not "".join(gaps).strip()
    told = "".join(gap + text for gap, text in zip(gaps, texts, strict=True))
    if "".join(texts).replace("<done>", "").split() == response.split():
        assert told.removesuffix(" <done>") == response
    words = [word for word in response.split() if word in texts]
    assert [word for word in told.split() if word in words] == words


def test_candidates_of_both_models_are_told_once_the_likeliest_first() -> None:
    mine, other = (
        [["a", -0.1, -2.0], ["b", -3.0, -0.3]],
        [["b", -3.0, -0.3], ["a", -0.1, -2.0], ["c", -9.0, -1.9]],
    )
    (token,) = tokens_of(row_of(["a"], "a", [-0.1], [-2.0], student_top=[mine], teacher_top=[other]))
    assert [c.text for c in token.candidates] == ["a", "b", "c"]
    best = favourite(token)
    assert best is not None and best.text == "b"
    assert token.candidates[0].student == pytest.approx(math.exp(-0.1))


def test_a_candidate_that_neither_model_means_is_left_out() -> None:
    top = [["a", -0.1, -0.1], ["b", -9.3, -0.5], ["c", -9.3, -9.3]]
    (token,) = tokens_of(row_of(["a"], "a", [-0.1], [-0.1], student_top=[top]))
    assert [c.text for c in token.candidates] == ["a", "b"]


@pytest.mark.parametrize(
    "tokens",
    [
        None,
        [],
        "x",
        {},
        {"text": "abc"},
        {"text": ["a", 3, None]},
        {"text": ["a", "b"], "student_logp": [-0.1], "teacher_logp": [-0.1, -0.2, -0.3, -0.4]},
        {"text": ["a"], "student_logp": [math.nan], "teacher_logp": [-math.inf]},
        {"text": ["a"], "student_logp": 3, "teacher_logp": {"a": 1}, "student_top": [3], "teacher_top": "x"},
        {"text": ["a"], "student_top": [[["a"], ["a", 1], ["a", "x", 0.0], 7, ["a", None, -1.0], [1, 2, 3]]]},
        {
            "text": ["a"],
            "student_logp": [1e308],
            "teacher_logp": [-1e308],
            "student_top": [[["a", 9.0, -1e9]]],
        },
    ],
)
def test_odd_tokens_are_text_without_colour(tokens: Any, tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    (folder / "rollouts").mkdir()
    write_rows(
        folder / "rollouts" / "step_1.jsonl", [{"response": "a response to be read", "tokens": tokens}]
    )
    for token in tokens_of({"response": "a", "tokens": tokens}):
        assert all(0 <= p <= 1 for c in token.candidates for p in (c.student, c.teacher))
    page = write_report([folder]).read_text(encoding="utf-8")
    assert "NaN" not in page.partition('id="candidates">')[2].partition("</script>")[0]
    if not tokens_of({"tokens": tokens}):
        assert "a response to be read" in page and 'class="tokens"' not in page


def test_a_page_keeps_its_size(tmp_path: Path) -> None:
    """A hundred thousand tokens in the run folder are a bounded number on the page, and all of the text."""
    folder = bare_run(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    words, draw = [f"w{i}" for i in range(3000)], random.Random(0)
    row = {"response": " ".join(words), "tokens": tokens_object(words, 1.0, draw)}
    (folder / "rollouts").mkdir()
    write_rows(folder / "rollouts" / "step_1.jsonl", [row] * 34)
    page = write_report([folder]).read_text(encoding="utf-8")
    assert page.count('<span class="t') <= samples.PAGE_TOKENS + 10
    assert page.count("w2999") == 34
    assert "tokens are marked, to keep this page small" in page
    assert len(page) < 9_000_000


def test_a_rollout_is_marked_by_grade_and_finish(tmp_path: Path) -> None:
    run = read.read_run(make_chain_run(tmp_path / "run", works=True), name="run")
    groups = samples.groups([run])
    assert [sample.marks for sample in groups[0].samples][:2] == [
        ["right", "finished"],
        ["wrong", "finished"],
    ]
    assert groups[0].samples[4].marks == ["wrong", "cut"]
    by_mark, by_step = samples.filters(groups)
    assert by_mark.choices == [
        ("all", "all", 12),
        ("right", "correct", 6),
        ("wrong", "wrong", 6),
        ("cut", "truncated", 2),
        ("finished", "finished", 10),
    ]
    assert [choice[2] for choice in by_step.choices] == [12, 6, 6]


def test_a_filter_that_would_leave_nothing_out_is_not_there(tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    (folder / "rollouts").mkdir()
    write_rows(
        folder / "rollouts" / "step_1.jsonl", [{"response": "a", "finish_reason": ["stop"], "score": None}]
    )
    (only,) = samples.filters(samples.groups([read.read_run(folder, name="run")]))
    assert [value for value, _, _ in only.choices] == ["all"]


def test_the_payload_names_texts_once(tmp_path: Path) -> None:
    page = write_report([make_chain_run(tmp_path / "run", works=True)]).read_text(encoding="utf-8")
    told = json.loads(page.partition('id="candidates">')[2].partition("</script>")[0])
    assert len(told["texts"]) == len(set(told["texts"]))
    spans = re.findall(r'data-rollout="(\d+)">(.*?)</pre>', page, flags=re.DOTALL)
    assert len(spans) == len(told["rollouts"]) == 12
    for number, text in spans:
        assert text.count('<span class="t') == len(told["rollouts"][int(number)])


# --- heat maps ----------------------------------------------------------------------------------------------


def test_every_quantity_by_position_has_a_map_and_words(tmp_path: Path) -> None:
    run = read.read_run(make_chain_run(tmp_path / "run", works=True, steps=40), name="run")
    section = by_position(run.names(), [run])
    first = [figure.title for figure in section.figures]
    assert first == ["overlap_ratio", "entropy_student", "entropy_gap", "overlap_advantage", "reverse_kl"]
    assert [figure.title for figure in section.more] == ["top1_agreement"]
    grid = section.figures[0].traces[0]
    assert (len(grid["x"]), grid["y"], len(grid["z"])) == (40, [0, 3, 6, 9, 12], 4)
    assert re.match(r"First → last step, positions 0–2: 7\d\.\d", section.figures[0].spoken(["run"]))


def test_a_map_of_bins_that_are_often_empty_has_gaps(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "by_position/0/reverse_kl": 0.5, "by_position/8/reverse_kl": math.nan},
        {"step": 2, "by_position/0/reverse_kl": 0.25},
        {"step": 3, "by_position/8/reverse_kl": 0.1},
    ]
    run = read.read_run(bare_run(tmp_path / "run", rows), name="run")
    (figure,) = by_position(run.names(), [run]).figures
    assert figure.traces[0]["z"] == [[0.5, 0.25, None], [None, None, 0.1]]
    assert "positions 0–7: 0.500 → 0.250" in figure.spoken(["run"])
    write_report([tmp_path / "run"])

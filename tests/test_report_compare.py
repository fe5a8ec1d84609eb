"""Two runs in words: every sentence follows the numbers; and runs without a teacher tell their own story."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opdkit.report import compare, read, stories, tables, words, write_report
from opdkit.report.points import Point, points
from report_runs import bare_run, make_chain_run, make_story_run, write_rows

Rows = Callable[[int], dict[str, float]]


def falling(start: float, factor: float, *, overlap: tuple[float, float] = (0.8, 0.9), **more: float) -> Rows:
    """Rows of a run whose loss and |Eq. 7| fall by `factor` over 40 steps."""

    def row(step: int) -> dict[str, float]:
        share = step / 39
        size = start * factor**-share
        return {
            "loss": size,
            "overlap_advantage": -size / 8,
            "overlap_ratio": overlap[0] + (overlap[1] - overlap[0]) * share,
            **more,
        }

    return row


def run_of(folder: Path, rows: Rows, *, config: str = "", evals: list[dict[str, Any]] | None = None) -> Path:
    bare_run(folder, [{"step": step + 1, **rows(step)} for step in range(40)])
    (folder / "config.toml").write_text(config or 'story = "distill"\nseed = 0\n', encoding="utf-8")
    if evals:
        write_rows(folder / "eval.jsonl", evals)
    return folder


def both(one: Path, other: Path, names: tuple[str, str] = ("A", "B")) -> list[read.Run]:
    return [read.read_run(path, name=name) for path, name in zip((one, other), names, strict=True)]


def scored(before: float, after: float, teacher: float | None = None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"step": step, "avg_at_k": value, "low": value - 0.02, "high": value + 0.02}
        for step, value in ((0, before), (40, after))
    ]
    rows[0] |= {} if teacher is None else {"teacher_avg_at_k": teacher}
    return rows


def point(runs: list[read.Run], name: str) -> Point:
    return next(point for point in points(runs) if point.name == name)


# --- the line above all -------------------------------------------------------------------------------------


def test_a_working_and_a_failing_pair(tmp_path: Path) -> None:
    runs = both(
        make_chain_run(tmp_path / "w", works=True),
        make_chain_run(tmp_path / "f", works=False),
        ("working pair", "failing pair"),
    )
    told = compare.verdict(runs)
    assert told.title == "Working pair aligned with its teacher; failing pair stood still"
    assert re.search(r"Working pair’s loss fell 2\d-fold .* its \|Eq\. 7\| fell 2\d-fold", told.sentence)
    assert "These two falls, not the size of the loss" in told.sentence
    assert "accuracy went 35.4\xa0% → 63.7\xa0%" in told.sentence
    assert "The teachers score alike" in told.sentence
    assert compare.verdict(runs[::-1]).title == told.title  # whoever is named first on the command line


@pytest.mark.parametrize(
    ("factors", "title"),
    [
        ((20, 20), "Both runs aligned with their teachers"),
        ((1.1, 1.1), "Both runs stood still"),
        ((0.4, 0.4), "Both runs moved away from their teachers"),
        ((20, 0.4), "A aligned with its teacher; B moved away from its teacher"),
        (
            (2, 20),
            "B aligned with its teacher; A is unclear: neither a clear alignment nor a clear stagnation",
        ),
    ],
)
def test_the_title_follows_the_falls(factors: tuple[float, float], title: str, tmp_path: Path) -> None:
    runs = both(*(run_of(tmp_path / str(i), falling(0.4, factor)) for i, factor in enumerate(factors)))
    assert compare.verdict(runs).title == title
    apart = factors[0] != factors[1]
    assert ("separate success from failure" in compare.verdict(runs).sentence) == apart


@pytest.mark.parametrize(
    ("teachers", "after", "says"),
    [
        ((0.60, 0.75), (0.6, 0.3), "Yet the teacher of B scores higher"),
        ((0.75, 0.60), (0.6, 0.3), "The teacher of A also scores higher"),
        ((0.60, 0.61), (0.6, 0.3), "The teachers score alike"),
        ((0.60, None), (0.6, 0.3), None),
    ],
)
def test_whether_the_better_teacher_explains_it(
    teachers: tuple[float, float | None], after: tuple[float, float], says: str | None, tmp_path: Path
) -> None:
    runs = both(
        run_of(tmp_path / "a", falling(0.4, 20), evals=scored(0.35, after[0], teachers[0])),
        run_of(tmp_path / "b", falling(0.4, 1.1), evals=scored(0.35, after[1], teachers[1])),
    )
    sentence = compare.verdict(runs).sentence
    assert says in sentence if says else "teacher of" not in sentence


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ("seed = 0", "seed = 1", "Only the seed differs"),
        ("seed = 0", "seed = 0", "No setting differs"),
        ("lr = 1", "lr = 2", "One setting differs, so it is what made the difference"),
        ("lr = 1\nseed = 0", "lr = 2\nseed = 1", "2 settings differ; everything else"),
        ("lr = 1", "", "are not known"),
    ],
)
def test_what_differed_before(one: str, other: str, says: str, tmp_path: Path) -> None:
    folders = [bare_run(tmp_path / name, [{"step": 1, "loss": 1.0}]) for name in "ab"]
    for folder, config in zip(folders, (one, other), strict=True):
        (folder / "config.toml").write_text(f'{config}\nrun = "{folder.name}"\n' if config else "")
    assert says in compare.settings(both(*folders))
    page = write_report(folders, names=["A", "B"]).read_text(encoding="utf-8")
    assert says in page


# --- line by line -------------------------------------------------------------------------------------------


def test_a_small_flat_loss_looks_calm_and_is_said_so(tmp_path: Path) -> None:
    runs = both(run_of(tmp_path / "a", falling(0.5, 25)), run_of(tmp_path / "b", falling(0.05, 1.2)))
    assert re.search(
        r"B’s is smaller at the start and flat: it looks calm, but it moved by a factor of 1\.\d only, "
        r"while A’s fell \d+-fold",
        point(runs, "loss").sentence,
    )


def test_a_large_flat_loss_is_not_called_calm(tmp_path: Path) -> None:
    runs = both(run_of(tmp_path / "a", falling(0.5, 25)), run_of(tmp_path / "b", falling(0.8, 1.2)))
    said = point(runs, "loss").sentence
    assert "calm" not in said and "B’s starts higher and stays there" in said


def test_two_falls_and_two_standstills_are_told_as_such(tmp_path: Path) -> None:
    fell = both(run_of(tmp_path / "a", falling(0.5, 25)), run_of(tmp_path / "b", falling(0.4, 30)))
    assert point(fell, "loss").sentence == "Both fell clearly; B’s ends lower."
    assert "Fell clearly in both" in point(fell, "|Eq. 7|").sentence
    still = both(run_of(tmp_path / "c", falling(0.5, 1.1)), run_of(tmp_path / "d", falling(0.4, 1.1)))
    assert "Neither moved much" in point(still, "loss").sentence
    assert "Fell clearly in neither" in point(still, "|Eq. 7|").sentence


@pytest.mark.parametrize(
    ("one", "other", "says", "says_not"),
    [
        ((0.80, 0.90), (0.80, 0.895), "alone does not tell the two apart", "levels"),
        ((0.80, 0.81), (0.80, 0.90), "B gained more overlap and yet did not align", "levels"),
        ((0.80, 0.90), (0.79, 0.80), "here overlap agrees with the loss, which it need not", "levels"),
        ((0.80, 0.90), (0.36, 0.36), "in B, student and teacher have fewer likely tokens", "did not align"),
    ],
)
def test_overlap_is_weighed_not_believed(
    one: tuple[float, float], other: tuple[float, float], says: str, says_not: str, tmp_path: Path
) -> None:
    runs = both(
        run_of(tmp_path / "a", falling(0.5, 25, overlap=one)),
        run_of(tmp_path / "b", falling(0.5, 1.1, overlap=other)),
    )
    said = point(runs, "overlap_ratio").sentence
    assert says in said and says_not not in said


def test_accuracy_is_told_with_its_chance(tmp_path: Path) -> None:
    rows = falling(0.5, 25)
    apart = both(
        run_of(tmp_path / "a", rows, evals=scored(0.3, 0.6)),
        run_of(tmp_path / "b", rows, evals=scored(0.3, 0.28)),
    )
    assert point(apart, "avg_at_k").sentence.startswith(
        "A gained 30.0\xa0points and B lost 2.0\xa0points. A ends higher"
    )
    close = both(
        run_of(tmp_path / "c", rows, evals=scored(0.3, 0.33)),
        run_of(tmp_path / "d", rows, evals=scored(0.3, 0.3)),
    )
    assert "cannot be told apart" in point(close, "avg_at_k").sentence
    half = both(run_of(tmp_path / "e", rows, evals=scored(0.3, 0.33)), run_of(tmp_path / "f", rows))
    assert "cannot be compared" in point(half, "avg_at_k").sentence
    assert point(half, "avg_at_k").sides[1] == "not evaluated"


def test_the_kind_of_problem_that_parts_them_is_named(tmp_path: Path) -> None:
    runs = both(make_chain_run(tmp_path / "a", works=True), make_chain_run(tmp_path / "b", works=False))
    said = point(runs, "by kind of problem").sentence
    assert said == "They part most on “wrong”: A gained 53.0\xa0points and B lost 12.0\xa0points."


def test_losses_of_different_objectives_are_not_weighed_by_size(tmp_path: Path) -> None:
    runs = both(
        run_of(tmp_path / "a", falling(0.5, 25), config='objective.preset = "paper"\n'),
        run_of(tmp_path / "b", falling(0.05, 1.1), config='objective.preset = "sampled"\n'),
    )
    assert "compare the falls, not the sizes" in point(runs, "loss").sentence


def test_a_line_needs_numbers_of_both(tmp_path: Path) -> None:
    runs = both(
        run_of(tmp_path / "a", falling(0.5, 25, grad_norm=2.0)), make_story_run(tmp_path / "b", "sft")
    )
    names = [line.name for line in points(runs)]
    assert "overlap_ratio" not in names and "|Eq. 7|" not in names and "grad_norm" in names
    assert re.match(r"A: The loss fell .* B: The loss fell", compare.verdict(runs).sentence)
    page = write_report([tmp_path / "a", tmp_path / "b"]).read_text(encoding="utf-8")
    assert "What came of it" in page


def test_the_page_of_two_runs_begins_with_the_comparison(tmp_path: Path) -> None:
    page = write_report(
        [make_chain_run(tmp_path / "w", works=True), make_chain_run(tmp_path / "f", works=False)],
        names=["working pair", "failing pair"],
    ).read_text(encoding="utf-8")
    order = [
        "Working pair aligned",
        "One setting differs",
        "teacher.model",
        "What came of it",
        "Each run by itself",
    ]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert page.count("<bdi>working pair</bdi>") > 5 and "<bdi>w</bdi>" not in page


def test_names_are_shown_and_must_be_as_many_as_runs(tmp_path: Path) -> None:
    folder = make_chain_run(tmp_path / "run", works=True)
    page = write_report([folder], names=["<b>mine\u202e"]).read_text(encoding="utf-8")
    assert "&lt;b&gt;mine⟨U+202E⟩" in page
    with pytest.raises(ValueError, match="shorter"):
        write_report([folder, folder], names=["one"])


# --- without a teacher --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("story", "introduced", "title"),
    [
        ("sft", "imitated 2,880 demonstrations in world 3 of the testbed (chain)", "Loss falls"),
        ("improve", "that turned out right (40.0\xa0% of the last round's responses)", "Loss falls"),
        ("grpo", "group-relative policy gradient on the grader's word alone", "Scores rise"),
        ("push_down", "least likely 20.0\xa0% of its own tokens less likely", "Sharpened"),
    ],
)
def test_every_story_is_told_in_its_own_words(
    story: str, introduced: str, title: str, tmp_path: Path
) -> None:
    folder = make_story_run(tmp_path / "run", story)
    run = read.read_run(folder, name="run")
    assert introduced in stories.introduction(run)
    assert stories.progress(run).title == title
    page = write_report([folder]).read_text(encoding="utf-8")
    page = re.sub(r"<script.*?</script>|<style>.*?</style>", "", page, flags=re.DOTALL)
    assert "Eq. 7" not in page and "teacher model" not in page and "half of the evidence" not in page
    assert "<h2>Alignment</h2>" not in page and "An unnamed teacher" not in page
    assert "No teacher took part" in page
    assert not re.search(r"<section[^>]*>\s*<h2>[^<]*</h2>\s*</section>", page)
    assert ("no rollouts were sampled" in page) is False


def test_no_story_complains_about_what_it_cannot_have(tmp_path: Path) -> None:
    run = read.read_run(make_story_run(tmp_path / "run", "sft"), name="run")
    assert run.gaps == []
    shutil.rmtree(make_story_run(tmp_path / "grpo", "grpo") / "rollouts")
    assert read.read_run(tmp_path / "grpo", name="grpo").gaps == ["no sampled rollouts"]


@pytest.mark.parametrize(
    ("story", "name", "values", "title"),
    [
        ("sft", "loss", (1.0, 0.95), "Loss hardly moves"),
        ("sft", "loss", (1.0, 3.0), "Loss rises"),
        ("grpo", "accuracy", (0.5, 0.51), "Scores hardly move"),
        ("grpo", "accuracy", (0.5, 0.3), "Scores fall"),
        ("push_down", "entropy_student", (1.0, 0.99), "Hardly sharpened"),
        ("push_down", "entropy_student", (1.0, 0.75), "Sharpened a little"),
        ("grpo", "loss", (1.0, 0.1), "Too short to read"),
        ("unheard", "loss", (1.0, 0.1), "Loss falls"),
    ],
)
def test_verdicts_without_a_teacher(
    story: str, name: str, values: tuple[float, float], title: str, tmp_path: Path
) -> None:
    rows = [{"step": s, name: values[0] + (values[1] - values[0]) * s / 39} for s in range(40)]
    folder = bare_run(tmp_path / "run", rows)
    (folder / "config.toml").write_text(f'story = "{story}"\n')
    run = read.read_run(folder, name="run")
    assert stories.progress(run).title == title
    assert stories.introduction(run)
    assert words.details(run) is not None


def test_odd_stories_are_read_as_distillations(tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    for config in ("story = 3\n", 'story = ""\n', "[story]\nx = 1\n"):
        (folder / "config.toml").write_text(config)
        assert read.read_run(folder, name="run").story == "distill"


# --- the evaluation table -----------------------------------------------------------------------------------


def test_evaluations_show_groups_and_unknown_numbers(tmp_path: Path) -> None:
    table = tables.evaluations(read.read_run(make_chain_run(tmp_path / "run", works=True), name="run"))
    assert list(table.head[:7]) == ["step", "avg_at_k", "95 % interval", "teacher", "easy", "wrong", "table"]
    row = dict(zip(table.head, table.rows[-1], strict=True))
    assert (row["wrong"], row["greedy_avg"]) == ("80.0\xa0%", "64.7\xa0%")
    assert "ungraded" not in table.head  # nobody wrote it
    assert "pass@1" not in table.head  # of one response a problem it is avg_at_k once more


def test_a_folder_of_this_machine_is_told_by_its_end(tmp_path: Path) -> None:
    folders = [bare_run(tmp_path / name, [{"step": 1, "loss": 1.0}]) for name in "ab"]
    for folder in folders:
        (folder / "config.toml").write_text(f'student.model = "/srv/models/{folder.name}"\n')
    assert tables.differences(both(*folders)).rows == [["student.model", "…/a", "…/b"]]
    assert stories.introduction(both(*folders)[0]).startswith("“a” learned from")
    assert "/srv/models/a" in write_report(folders).read_text(encoding="utf-8")  # whole, under the settings


def test_a_name_that_would_break_a_sentence_is_quoted(tmp_path: Path) -> None:
    folders = [run_of(tmp_path / "a", falling(0.4, 20)), run_of(tmp_path / "b", falling(0.4, 1.1))]
    told = compare.verdict(both(*folders, ("same style", "bigger, scores higher")))
    assert told.title == "Same style aligned with its teacher; “bigger, scores higher” stood still"


def test_odd_groups_are_left_out(tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    odd = {"easy": "x", "wrong": float("nan"), "table": True, "fine": 0.5}
    rows = [{"step": 0, "avg_at_k": 0.5, "by_group": odd}, {"step": 1, "avg_at_k": 0.5, "by_group": [1]}]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = tables.evaluations(read.read_run(folder, name="run"))
    assert "fine" in table.head and "easy" not in table.head and "wrong" not in table.head
    write_report([folder, folder])

"""The report: what it says of a run, and what it makes of missing, torn and odd files."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from opdkit.report import read, text, words, write_report
from opdkit.report.change import change, gap_recovery, response_tokens, skipped
from opdkit.report.panels import groups
from opdkit.types import UserError
from report_runs import bare_run, make_run, write_rows

# --- what it says -------------------------------------------------------------------------------------------


def reading(folder: Path) -> read.Run:
    return read.read_run(folder, name=folder.name)


def test_success_and_stagnation_are_told_apart_in_words(tmp_path: Path) -> None:
    good = reading(make_run(tmp_path / "good", success=True))
    still = reading(make_run(tmp_path / "still", success=False))
    assert words.alignment(good).title == "Aligning"
    assert "the student is aligning" in words.alignment(good).sentence
    assert words.alignment(still).title == "Stagnating"
    assert (
        "a small loss that moves so little is a weak signal, not success" in words.alignment(still).sentence
    )
    assert words.accuracy(good).tone == "good"
    assert "this may be chance" in words.accuracy(still).sentence


def test_overlap_alone_is_never_called_success(tmp_path: Path) -> None:
    rows = [
        {"step": s, "loss": 0.05, "overlap_advantage": -0.03, "overlap_ratio": 0.5 + s / 60}
        for s in range(20)
    ]
    run = reading(bare_run(tmp_path / "run", rows))
    assert words.alignment(run).title == "Stagnating"
    assert any("can rise with a useless teacher" in sentence for sentence in words.details(run))


def test_flat_overlap_does_not_spoil_a_success(tmp_path: Path) -> None:
    rows = [
        {"step": s, "loss": 0.5 * 0.8**s, "overlap_advantage": -0.02 * 0.8**s, "overlap_ratio": 0.7}
        for s in range(20)
    ]
    assert words.alignment(reading(bare_run(tmp_path / "run", rows))).title == "Aligning"


@pytest.mark.parametrize(
    ("losses", "title"),
    [
        ([0.1, 0.2, 0.4], "Moving away"),
        ([0.5], "Too short to read"),
        ([0.5, 0.01], "Too short to read"),
        ([], "Too short to read"),
        ([0.5, 0.3, 0.25], "Unclear"),
        ([2.0, 2.1, 1.9], "Stagnating"),
        ([0.5, 0.1, 0.01], "Loss falls"),
        ([0.1, 0.0, -0.1], "Unclear"),
    ],
)
def test_other_shapes_of_a_loss(losses: list[float], title: str, tmp_path: Path) -> None:
    run = reading(
        bare_run(tmp_path / "run", [{"step": s, "loss": losses[s // 4]} for s in range(4 * len(losses))])
    )
    assert words.alignment(run).title == title


def test_without_evaluation_it_says_nothing_about_accuracy(tmp_path: Path) -> None:
    run = reading(make_run(tmp_path / "run", success=True, graded=False))
    assert words.accuracy(run).sentence == "No evaluation, so this says nothing about accuracy."
    assert "no eval.jsonl" in run.gaps
    write_rows(tmp_path / "run" / "eval.jsonl", [{"step": 0, "problems": 8, "graded": False}])
    run = reading(tmp_path / "run")
    assert words.accuracy(run).sentence == "Evaluated without a grader, so this says nothing about accuracy."


def test_first_and_last_are_means_over_a_tenth(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"step": s, "loss": float(s)} for s in range(30)]
    rows[0]["loss"] = math.nan
    found = change(reading(bare_run(tmp_path / "run", rows)), "loss")
    assert found is not None
    assert (found.first, found.last, found.window, found.count) == (2.0, 28.0, 3, 29)


def test_numbers_that_need_the_config(tmp_path: Path) -> None:
    run = reading(make_run(tmp_path / "run", success=True, steps=8))
    tokens = response_tokens(run)
    assert tokens is not None
    assert tokens == pytest.approx(sum(run.values("response_length")) * 64 * 4)
    assert skipped(run) == 1
    assert gap_recovery(run) == pytest.approx(0.145 * (1 - math.exp(-3)) / (0.55 - 0.378))


def test_gap_recovery_is_undefined_for_a_small_gap(tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    write_rows(
        folder / "eval.jsonl",
        [{"step": s, "avg_at_k": 0.5 + s / 9, "teacher_avg_at_k": 0.54} for s in range(2)],
    )
    assert gap_recovery(reading(folder)) is None


def test_every_metric_has_a_plot(tmp_path: Path) -> None:
    run = reading(make_run(tmp_path / "run", success=True, steps=3))
    drawn = {metric for group in groups(run.names()) for panel in group.panels for metric in panel.metrics}
    apart = {name for name in run.names() if name.startswith(("by_position/", "seconds/"))} - {"seconds/step"}
    assert drawn == set(run.names()) - apart
    assert [panel.metrics for panel in groups(run.names())[-1].panels] == [("shuffle_entropy",)]


# --- what is missing or torn --------------------------------------------------------------------------------


def test_a_folder_without_a_run_is_refused_with_a_hint(tmp_path: Path) -> None:
    bare_run(tmp_path / "runs" / "a", [])
    with pytest.raises(UserError) as refused:
        write_report([tmp_path / "runs"])
    assert refused.value.hint == f"opd report {tmp_path / 'runs' / 'a'}"
    with pytest.raises(UserError, match="is no folder"):
        write_report([tmp_path / "nowhere" / "b"])
    with pytest.raises(UserError, match="no run"):
        write_report([])


def test_a_run_killed_at_its_first_step(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", success=True, steps=1, graded=False)
    shutil.rmtree(folder / "rollouts")
    page = write_report([folder]).read_text(encoding="utf-8")
    assert "Too short to read" in page
    assert "Missing: no eval.jsonl; no sampled rollouts." in page


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "eval.jsonl", "config.toml", "env.json", "rollouts/step_1.jsonl"]
)
@pytest.mark.parametrize(
    "content", ["", "\n\n", "{", '{"step": 1, "lo', "[" * 100_000, "\x00\xff", '{"step": "x"}']
)
def test_any_file_may_be_empty_or_torn(name: str, content: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", success=True, steps=4)
    (folder / name).write_bytes(content.encode("latin-1"))
    assert write_report([folder]).stat().st_size > 4_000_000


def test_a_torn_last_line_is_left_out_and_said_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", success=True, steps=5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.')
    run = reading(folder)
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4, 5]
    assert "metrics.jsonl: 1 line could not be read (torn by a kill?) and left out" in run.gaps


def test_after_a_resume_the_later_row_counts(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 2.0}]
    assert reading(bare_run(tmp_path / "run", rows)).series("loss") == ([1, 2], [1.0, 2.0])


def test_numbers_no_float_can_hold_are_gaps(tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "run", [])
    (folder / "metrics.jsonl").write_text(
        f'{{"step": 1, "loss": 1{"0" * 400}, "learning_rate": NaN, "accuracy": true}}\n'
    )
    assert reading(folder).values("loss") == []
    write_report([folder])


def test_odd_values_of_known_keys(tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "run", [{"step": 1, "loss": "x"}, {"loss": 1.0}, {"step": 3, "loss": None}])
    odd = {"pass_at_k": {"x": 1, "4": "y", "8": 0.5}, "low": "z", "avg_at_k": 0.5, "step": 0}
    write_rows(folder / "eval.jsonl", [odd, {"step": 1, "pass_at_k": 7}])
    write_rows(
        folder / "findings.jsonl", [{}, {"severity": ["x"], "numbers": 3, "message": {"a": 1}, "step": "s"}]
    )
    (folder / "rollouts").mkdir()
    write_rows(folder / "rollouts" / "step_1.jsonl", [{}, {"prompt": [{"role": "user", "content": "hi"}]}])
    page = write_report([folder]).read_text(encoding="utf-8")
    assert "avg_at_k" in page and "hi" in page and page.rstrip().endswith("</html>")


def test_secrets_do_not_reach_the_page(tmp_path: Path) -> None:
    page = write_report([make_run(tmp_path / "run", success=True, steps=2)]).read_text(encoding="utf-8")
    assert "canary-secret" not in page
    assert "hf_abcdefghijklmnopqrstuvwx" not in page
    assert "configs/paper.toml" in page


def test_out_goes_where_it_is_told_and_nowhere_else(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", success=True, steps=2)
    before = sorted(folder.rglob("*"))
    assert write_report([folder], tmp_path / "new" / "page.html") == tmp_path / "new" / "page.html"
    assert sorted(folder.rglob("*")) == before
    with pytest.raises(UserError, match="cannot write"):
        write_report([folder], folder / "config.toml" / "page.html")


def test_invisible_characters_are_spelt_out() -> None:
    assert text.visible("a\u202eb\u200bc\x00\r\n\ud800\u2028") == "a⟨U+202E⟩b⟨U+200B⟩c␀␍\n⟨U+D800⟩⟨U+2028⟩"
    assert text.visible("नमस्ते 👩‍💻 é") == "नमस्ते 👩‍💻 é"


# --- readable by everybody ----------------------------------------------------------------------------------


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """As WCAG defines it: 1 is none, 21 is black on white."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def colors(scheme: str) -> dict[str, str]:
    """Colours of a scheme by name, out of both style sheets; dark ones replace the light ones of that name."""
    found: dict[str, str] = {}
    for name in ("page.css", "tokens.css"):
        style = (Path(read.__file__).parent / name).read_text(encoding="utf-8")
        light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
        found |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
        if scheme == "dark":
            found |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark.partition("\n}")[0]))
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(scheme: str) -> None:
    color = colors(scheme)
    inks, papers = ("text", "muted", "accent", "good", "weak", "bad"), ("page", "card", "code")
    pairs = [(ink, paper) for ink in inks for paper in papers]
    pairs += [("text", f"{side}-{level}") for side in ("up", "down") for level in (1, 2, 3)]
    faint = {pair: round(contrast(color[pair[0]], color[pair[1]]), 2) for pair in pairs}
    assert {pair: ratio for pair, ratio in faint.items() if ratio < 4.5} == {}
    # graphics: curves on their card, the lines under tokens on their tint
    drawn = [(f"series-{i}", "card") for i in range(8)] + [
        (s, f"{s}-{i}") for s in ("up", "down") for i in (1, 2, 3)
    ]
    assert [pair for pair in drawn if contrast(color[pair[0]], color[pair[1]]) < 2.2] == []
    assert [i for i in range(8) if contrast(color[f"series-{i}"], color["card"]) < 3] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_a_map_are_ordered_by_lightness(scheme: str) -> None:
    """So that a map can be read without colour."""
    color = colors(scheme)
    steps = [luminance(color[f"heat-{i}"]) for i in range(4)]
    assert steps == sorted(steps, reverse=scheme == "light")

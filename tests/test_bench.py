"""The pure parts of benchmarks/: statistics of ratios, the comparison with what is stored, the table. No clock is read here."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


def record(name: str = "equal", *, values: list[float], better: str = "higher", **more: Any) -> dict[str, Any]:  # fmt: skip
    from record import ratio

    found = ratio(values, [1.0] * len(values), better=better)
    return {"name": name, "what": "theirs / ours", "work": {"rows": 32}, "ratio": found, **more}


@pytest.mark.parametrize("name", ["record", "rows", "check"])
def test_examples_in_docstrings_hold(name: str) -> None:
    tried = doctest.testmod(importlib.import_module(name))
    assert tried.attempted > 0 and tried.failed == 0


def test_a_ratio_is_of_pairs_and_not_of_medians() -> None:
    """A slow minute of the machine is in both sides of a pair: medians of each side would take it for a difference."""
    from record import ratio

    theirs, ours = [2.0, 20.0, 2.0], [1.0, 10.0, 1.0]
    assert ratio(theirs, ours)["median"] == 2.0 and ratio(theirs, ours)["min"] == 2.0
    assert ratio([1.0, 4.0, 9.0], [1.0, 2.0, 9.0])["values"] == [1.0, 2.0, 1.0]
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_a_fall_below_the_spread_is_worse_and_within_it_is_not() -> None:
    from check import compare, fell, judge

    stored = record(values=[1.3, 1.4, 1.5])
    within = judge(record(values=[1.18] * 5), stored)
    below = judge(record(values=[1.16] * 5), stored)
    assert within["bound"] == pytest.approx(1.17)
    assert within["verdict"] == "ok" and below["verdict"] == "worse"
    assert fell(compare([record(values=[1.16] * 5)], [stored]))
    assert not fell(compare([record(values=[1.18] * 5)], [stored]))


def test_where_lower_is_better_the_bound_is_above() -> None:
    from check import judge

    stored = record(values=[1.00, 1.02], better="lower")
    assert judge(record(values=[1.13] * 5, better="lower"), stored)["verdict"] == "worse"
    assert judge(record(values=[1.11] * 5, better="lower"), stored)["verdict"] == "ok"


def test_what_is_not_comparable_is_said_and_not_judged() -> None:
    from check import judge

    stored = record(values=[2.0])
    assert judge(record(values=[0.1] * 5), None)["verdict"] == "nothing stored"
    assert judge(record(values=[0.1] * 4), stored)["verdict"] == "too few pairs"
    assert judge(record(values=[0.1] * 5) | {"work": {"rows": 8}}, stored)["verdict"] == "another workload"
    refused = {"name": "equal", "failed": "no vLLM"}
    assert judge(refused, refused)["verdict"] == "refused when stored"


def test_a_row_that_fails_now_or_disagrees_is_worse() -> None:
    from check import judge

    stored = record(values=[1.0])
    failed = judge({"name": "equal", "failed": "out of memory"}, stored)
    assert failed["verdict"] == "worse" and failed["why"] == "out of memory"
    assert judge(record(values=[9.0] * 5, checked=False), stored)["verdict"] == "worse"
    assert judge(record(values=[9.0] * 5, checked=False), None)["verdict"] == "worse"


def test_the_check_prints_a_line_per_row() -> None:
    from check import compare, shown

    lines = compare([record(values=[1.0] * 5), {"name": "gone", "failed": "x"}], [record(values=[2.0])])
    told = shown(lines).splitlines()
    assert len(told) == 3 and told[1].split() == ["equal", "1.00", "2.00", "1.80", "worse"]
    assert told[2].endswith("nothing stored")


def test_results_are_on_disk_after_every_record_and_complete_at_the_end(tmp_path: Path) -> None:
    from record import Book, stored

    path = tmp_path / "2026-01-02-machine-2.json"
    book = Book(path, {"machine": {}}, keep=[{"name": "loss/old"}, {"name": "equal", "n": 1}])
    book.add({"name": "equal", "n": 2})
    half = json.loads(path.read_text())
    assert half["complete"] is False and half["rows"] == [{"name": "loss/old"}, {"name": "equal", "n": 2}]
    book.forget("loss")
    book.finish(["equal", "loss"])
    assert json.loads(path.read_text())["complete"] is False
    book.add({"name": "loss/paper"})
    book.finish(["equal", "loss"])
    assert json.loads(path.read_text())["complete"] is True
    (tmp_path / "2026-01-01-other-4.json").write_text("{}")
    (tmp_path / "engines.json").write_text("{}")
    assert [p.name for p in stored(tmp_path)] == ["2026-01-01-other-4.json", path.name]
    assert stored(tmp_path, machine="machine-2") == [path] and stored(tmp_path, machine="machine") == []


def test_rows_are_chosen_by_name_and_a_wrong_name_is_told() -> None:
    from rows import AIMS, ROWS, chosen

    assert [row.name for row in chosen("ragged,equal")] == ["ragged", "equal"]
    assert chosen(None) == ROWS and 0 < len(chosen(None, short=True)) < len(ROWS)
    assert all(row.short >= 5 for row in chosen(None, short=True)), "fewer pairs are not judged"
    assert {name.partition("/")[0] for name in AIMS} <= {row.name for row in ROWS}
    with pytest.raises(ValueError, match="no row is called 'equl'"):
        chosen("equl")


def test_every_row_against_trl_has_its_work() -> None:
    from rows import ROWS, TRL
    from work import works

    assert [row.name for row in ROWS if row.script == TRL] == list(works())


def test_a_wrong_row_is_refused_before_anything_is_measured() -> None:
    from rows import ROWS

    done = subprocess.run(
        [sys.executable, FOLDER / "bench.py", "--rows", "equl"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "no row is called 'equl'" in done.stderr and ROWS[0].name in done.stderr


def test_where_nothing_is_stored_the_check_says_what_to_do(tmp_path: Path) -> None:
    """It looks before it measures."""
    code = (
        "import argparse, bench, pathlib;"
        f"print(bench.checked([], argparse.Namespace(results=pathlib.Path({str(tmp_path)!r})), 'a-machine-2'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "2"
    assert (
        "nothing is stored for this machine (a-machine-2)" in done.stderr
        and "hint:  make bench" in done.stderr
    )


def test_both_sides_of_a_work_make_the_same_number_of_tokens() -> None:
    from work import works

    ragged, four = works()["ragged"], works()["four"]
    assert ragged.tokens(0) == sum(ragged.lengths[0]) and ragged.tokens(16) == ragged.tokens(0)
    assert four.tokens(3) == 32 * 64 and four.facts()["prompts"] == 8


def test_a_peak_is_of_the_process_itself_and_not_of_the_one_that_started_it() -> None:
    """What getrusage gives survives exec: both sides of a row once had the peak of their parent."""
    held = bytearray(200 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    code = "import alone; print(alone.resident('VmHWM'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True)  # fmt: skip
    assert 1 < float(done.stdout) < 100 < len(held) >> 20


def result() -> dict[str, Any]:
    """A small file of everything that the table shows."""
    sides = {"theirs": {"median": 1.0, "min": 0.9, "max": 1.1}, "ours": {"median": 0.5, "min": 0.4, "max": 0.6}}  # fmt: skip
    agreement = {"loss_difference": 2e-8, "gradient_norm_relative": 1e-7}
    equal = record(
        values=[1.36, 1.4],
        seconds=sides,
        tokens_per_second=sides,
        peak_mb={"theirs": 700, "ours": None},
        agreement=agreement,
        checked=True,
        held_out_reverse_kl={"before": 0.4755, "theirs": 0.31, "ours": 0.3099},
        load=0.1,
    )
    wrong = record("gkd", values=[1.0], agreement=agreement | {"loss_difference": None}, checked=False)
    loss = record("loss/paper", values=[1.5], better="lower", seconds=sides)
    refused = {"name": "server_distillation", "failed": "ImportError: no vLLM | none"}
    memory = {"name": "memory", "what": "extra MB", "naive_over_columns": 25.0}
    machine = {"cpu": "A CPU", "cores": 2, "python": "3.11.7", "torch": "2.13.0", "trl": "1.16.0"}
    rows = [equal, wrong, loss, refused, memory]
    return {"machine": machine, "commit": "a" * 40, "command": "make", "complete": False, "rows": rows}


def test_the_table_shows_ratios_sides_aims_and_what_was_refused() -> None:
    from table import tables

    told = tables(result(), name="2026-01-02-machine-2.json").splitlines()
    equal = next(line for line in told if line.startswith("| `equal`"))
    assert "**1.38** (1.36 to 1.4), 2" in equal and "1 / 0.5" in equal and "700 / ?" in equal
    assert "0.3100 / 0.3099 (0.4755)" in equal and "2e-08, 1e-07" in equal
    assert "**NO**: 1e-07" in next(line for line in told if line.startswith("| `gkd`"))
    assert "| equal | ratio | 1.38 | ≥ 1.2 | ≥ 1.5 | target |" in told
    assert "| memory | naive_over_columns | 25 | ≥ 20 | ≥ 30 | target |" in told
    assert any(line.startswith("| `paper` | 1.5 ") for line in told)
    assert "| `server_distillation` | ImportError: no vLLM / none |" in told
    assert "**Not all rows were run.**" in told[0]


def test_the_page_keeps_what_is_around_the_markers() -> None:
    from table import BEGIN, END, page

    assert page(f"a\n{BEGIN}\nold\n{END}\nb\n", "new") == f"a\n{BEGIN}\nnew\n{END}\nb\n"
    with pytest.raises(SystemExit, match="no markers"):
        page("a", "new")


def test_the_table_of_the_page_is_that_of_the_newest_file() -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "table.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_pure_parts_import_neither_torch_nor_trl() -> None:
    """The table and the comparison run anywhere, `make check` included."""
    for name in ("record", "rows", "check", "table"):
        tree = ast.parse((FOLDER / f"{name}.py").read_text())
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not {i for i in imported if i.partition(".")[0] in ("torch", "trl", "opdkit", "transformers")}

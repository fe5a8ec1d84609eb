"""`opd prompts`: nearness, templates, measuring and choosing on hand-made rows, and whole commands on tiny models."""

from __future__ import annotations

import json
import shlex
import sys
import types
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import CONFIG, Said, build_shop, metrics, opd, write_rows
from models import tiny_tokenizer
from opdkit.config import FileTask, PromptsConfig
from opdkit.diagnostics.coverage import kmeans, reached, widest
from opdkit.recipes.probe import Number, Piece, Row
from opdkit.recipes.prompts import dropped_beside
from opdkit.recipes.prompts_choose import bands, few, in_band, ranked
from opdkit.recipes.prompts_embed import HashedNgrams, nearest, open_embedder
from opdkit.recipes.prompts_measure import Measured
from opdkit.recipes.prompts_near import apart_from_each_other, with_closeness, without_known, without_repeats
from opdkit.recipes.prompts_row import Judged, kept, key
from opdkit.recipes.prompts_template import DECIDES, Tried, Wrapper, decide, found_in, paired
from opdkit.tasks.prompt_rows import Written, read_written
from opdkit.tasks.wrappers import wrapped
from opdkit.types import Prompt, UserError

WORDS = ("two", "three", "bird", "river", "add", "name", "the", "sum")
TEXTS = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join), min_size=1, max_size=12
)


def judged(texts: Sequence[str], **numbers: Sequence[float | None]) -> list[Judged]:
    found = []
    for i, text in enumerate(texts):
        told = {name: values[i] for name, values in numbers.items() if values[i] is not None}
        prompt = Prompt(id=f"p{i}", text=text, source=f"train.jsonl:{i + 1}")
        found.append(Judged(Written(prompt, {"prompt": text}, "prompt"), told))
    return found


def embedder(*sets: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
    it = HashedNgrams()
    it.fit(text for some in sets for text in some)
    return it.embed


# --- nearness ----------------------------------------------------------------------------------------------------


@given(TEXTS)
def test_equal_questions_leave_one_each_the_first(texts: list[str]) -> None:
    disguised = [text.upper() if i % 2 else f" {text}  " for i, text in enumerate(texts)]
    told = without_repeats(judged(disguised))
    assert [r.prompt.id for r in told] == [f"p{i}" for i in range(len(texts))]
    assert [key(r.prompt) for r in kept(told)] == list(dict.fromkeys(texts))
    assert without_repeats(told) == told


@settings(max_examples=50)
@given(TEXTS, TEXTS, st.floats(0.1, 0.99))
def test_what_stays_is_apart_from_the_other_set_and_what_goes_is_near_it(
    texts: list[str], others: list[str], near: float
) -> None:
    embed = embedder(texts, others)
    prompts = [Prompt(id=f"e{i}", text=text) for i, text in enumerate(others)]
    told, contacts = without_known(judged(texts), {"evaluation": prompts}, near=near, embed=embed)
    cosines = embed(texts) @ embed(others).T
    for row, mine in zip(told, cosines, strict=True):
        twin = row.prompt.text in others
        assert row.kept == (not twin and mine.max() < near)
    touched = {f"e{i}" for i, text in enumerate(others) if text in texts or cosines[:, i].max() >= near}
    assert {c.row for c in contacts} == touched
    assert all(c.equal == (c.row_text == c.prompt_text) for c in contacts)


@settings(max_examples=50)
@given(TEXTS, st.floats(0.1, 0.99))
def test_among_themselves_those_that_stay_are_pairwise_apart(texts: list[str], near: float) -> None:
    embed = embedder(texts)
    stays = kept(apart_from_each_other(judged(texts), near=near, embed=embed))
    vectors = embed([r.prompt.text or "" for r in stays])
    assert stays and all(a @ b < near + 1e-6 for a, b in combinations(vectors, 2))
    assert len(apart_from_each_other(judged(texts), near=near, embed=embed)) == len(texts)


def test_the_nearest_is_found_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    whole = nearest(rows[:25], rows[25:])
    monkeypatch.setattr("opdkit.recipes.prompts_embed.BLOCK", 4 * 15 * 3)
    again = nearest(rows[:25], rows[25:])
    assert (
        [n.index for n in whole] == [n.index for n in again] == (rows[:25] @ rows[25:].T).argmax(1).tolist()
    )


def test_closeness_is_to_the_nearest_that_the_teacher_was_taught() -> None:
    texts, taught = ["add two and three", "name a river"], ["Name a RIVER", "add two and four"]
    it = HashedNgrams()
    it.fit([*texts, *taught])
    prompts = [Prompt(id=f"t{i}", text=text) for i, text in enumerate(taught)]
    told = with_closeness(judged(texts), prompts, embedder=it, embed=it.embed)
    assert [r.numbers["closest"] for r in told] == ["t1", "t0"]
    assert told[1].numbers["closeness"] == 1.0 > told[0].numbers["closeness"] > 0.3
    assert "no sentence embedding" in told[0].reason


def test_wrappers_of_data_sets_do_not_hide_that_a_question_is_the_same() -> None:
    rows = judged(["What is 1 + 1?", wrapped("What is 1 + 1?", "dapo"), wrapped("What is 1 + 2?", "boxed")])
    assert [r.kept for r in without_repeats(rows)] == [True, False, True]


def test_a_sentence_model_is_used_through_its_own_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of that name stands in: the interface is what is tested, the model cannot be had offline."""
    asked: dict[str, Any] = {}

    class Fake:
        def __init__(self, model: str, **settings: Any):
            if model == "nowhere":
                raise OSError("nowhere is no folder")
            asked.update(model=model, **settings)

        def encode(self, texts: list[str], **settings: Any) -> np.ndarray:
            return np.array([[float(len(text)), 3.0] for text in texts])

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = Fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    it, told = open_embedder("some/folder", device="cpu")
    assert asked == {"model": "some/folder", "device": "cpu", "trust_remote_code": False} and told == []
    assert it.embed(["abcd"]).tolist() == [[pytest.approx(0.8), pytest.approx(0.6)]]
    with pytest.raises(UserError, match="nowhere is no folder") as refused:
        open_embedder("nowhere", device="cpu")
    assert "prompts.embedding=ngrams" in refused.value.hint


def test_without_the_extra_the_fallback_is_told_and_a_named_model_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    it, (told,) = open_embedder(None, device="cpu")
    assert (
        isinstance(it, HashedNgrams) and told.name == "embedding_fallback" and "opdkit[embed]" in told.remedy
    )
    assert open_embedder("ngrams", device="cpu")[1] == []
    with pytest.raises(UserError, match="needs sentence_transformers"):
        open_embedder("all-mpnet-base-v2", device="cpu")


# --- templates ---------------------------------------------------------------------------------------------------


Interval = tuple[float, float, float]


def tried(name: str, mass: float, gain: Interval | None, right: Interval | None = None) -> Tried:
    gains = {} if gain is None else {DECIDES: Number(gain[0], 9, gain[1], gain[2])}
    if right is not None:
        gains["accuracy"] = Number(right[0], 9, right[1], right[2])
    return Tried(Wrapper(name, "{question}!", "student", "here"), {DECIDES: Number(mass, 9)}, gains, "")


def test_the_rule_wants_a_gain_that_is_large_and_sure_and_costs_no_accuracy() -> None:
    first = tried("as it is", 0.7, None)
    sure, surer = tried("a", 0.8, (0.1, 0.05, 0.15)), tried("b", 0.85, (0.15, 0.1, 0.2))
    unsure, small = tried("c", 0.9, (0.2, -0.01, 0.4)), tried("d", 0.72, (0.02, 0.01, 0.03))
    costly = tried("e", 0.95, (0.25, 0.2, 0.3), (-0.2, -0.3, -0.1))
    assert decide([first, sure, surer], gain=0.03)[0].name == "b"
    assert decide([first, unsure, small, costly], gain=0.03)[0].name == "as it is"
    assert decide([first, sure, costly, unsure], gain=0.03)[0].name == "a"


def test_a_difference_is_paired_by_prompt() -> None:
    """Prompts differ by far more than the wrappers do: unpaired, nothing would be sure."""

    def piece(shift: float) -> Piece:
        rows = [
            Row(f"p{i}", 2, False, None, 0.0, {"overlap_ratio": (2 * (i / 20 + shift), 2.0)})
            for i in range(20)
        ]
        return Piece(tuple(rows))

    found = paired(piece(0.0), piece(0.01), names=("overlap_ratio", "accuracy"), level=0.95, seed=0)
    assert set(found) == {"overlap_ratio"}
    it = found["overlap_ratio"]
    assert (
        it.value == pytest.approx(0.01) and it.low == pytest.approx(0.01) and it.high == pytest.approx(0.01)
    )


@pytest.mark.parametrize(
    ("card", "texts"),
    [
        ('```python\nprompt = f"Q: {question}\\nA:"\n```', ["Q: {question}\nA:"]),
        (
            "- `{{Problem}} Think first, answer in \\boxed{{}}.`",
            ["{question} Think first, answer in \\boxed{}."],
        ),
        ("put {question} here and {question} there", []),
        ("`{question}`", []),
        ("no wrapper at all", []),
        ("Then put your final answer within \\boxed{}.", [wrapped("{question}", "boxed")]),
    ],
)
def test_wrappers_in_a_model_card(card: str, texts: list[str]) -> None:
    assert found_in(card) == texts


# --- difficulty, rank, coverage ----------------------------------------------------------------------------------


def test_a_band_keeps_its_ends_and_what_could_not_be_graded() -> None:
    rows = in_band(judged(list("abcde"), pass_rate=[0.0, 0.25, 0.75, 1.0, None]), (0.25, 0.75))
    assert [r.prompt.id for r in kept(rows)] == ["p1", "p2", "p4"]
    assert rows[0].reason == "pass rate 0, below the band of 0.25 to 0.75"
    assert {b["band"]: (b["prompts"], b["kept"]) for b in bands(rows) if b["prompts"]} == {
        "never": (1, 0), "0.2 to 0.4": (1, 1), "0.6 to 0.8": (1, 1), "always": (1, 0),
    }  # fmt: skip


@given(st.lists(st.none() | st.floats(-5, 5), min_size=1, max_size=12), st.integers(0, 8), st.booleans())
def test_the_best_ranked_stay_in_the_order_of_the_file(
    values: list[float | None], keep: int, low_first: bool
) -> None:
    by, name = ("teacher_entropy", "entropy_teacher") if low_first else ("teacher_logp", "teacher_logp")
    rows = ranked(judged(["x"] * len(values), **{name: values}), by, keep=keep)
    stays = kept(rows)
    assert len(stays) == min(keep or len(values), len(values))
    assert [r.prompt.id for r in rows] == [f"p{i}" for i in range(len(values))]
    signed = [(1 if low_first else -1) * v for v in values if v is not None]
    told = sorted(((1 if low_first else -1) * r.numbers[name]) for r in stays if name in r.numbers)
    assert told == sorted(signed)[: len(told)]
    assert sorted(r.numbers["rank"] for r in rows) == list(range(1, len(values) + 1))


def test_without_a_rank_the_first_are_kept() -> None:
    assert [r.kept for r in ranked(judged(list("abc")), "none", keep=2)] == [True, True, False]


def test_kmeans_finds_what_is_apart_and_the_same_again() -> None:
    generator = torch.Generator().manual_seed(1)
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    states = centres.repeat_interleave(30, 0) + torch.randn(90, 2, generator=generator)
    labels = kmeans(states, clusters=3, seed=4)
    assert [len(set(part.tolist())) for part in labels.split(30)] == [1, 1, 1]
    assert sorted({int(part[0]) for part in labels.split(30)}) == [0, 1, 2]
    assert torch.equal(labels, kmeans(states, clusters=3, seed=4))
    assert set(kmeans(torch.ones(5, 2), clusters=3, seed=0).tolist()) == {0}


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=7), st.integers(1, 7))
def test_few_prompts_reach_nearly_what_the_best_choice_would(labels: list[list[int]], count: int) -> None:
    count = min(count, len(labels))
    chosen = widest(labels, count=count)
    assert len(set(chosen)) == len(chosen) == count
    best = max(len(reached(some)) for some in combinations(labels, count))
    assert len(reached(labels[i] for i in chosen)) >= (1 - 1 / np.e) * best


def test_few_keeps_the_order_of_the_file_and_says_what_each_adds() -> None:
    measured = Measured(judged(list("abc")), {"p0": [0], "p1": [0, 1], "p2": [2, 3, 4]}, 5)
    rows = few(measured, 2)
    assert [r.kept for r in rows] == [False, True, True]
    assert rows[2].numbers["rank"] == 1 and "3 more clusters" in rows[2].reason


# --- rows in and out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_every_column_of_a_row_is_at_hand(tmp_path: Path, suffix: str) -> None:
    rows = [{"prompt": "a", "level": 3, "tags": ["x"]}, {"prompt": "b", "level": 4, "tags": []}]
    path = tmp_path / f"p.{suffix}"
    if suffix == "jsonl":
        write_rows(path, rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert [dict(w.row) for w in read_written(path, FileTask(path=path))] == rows


# --- whole commands ----------------------------------------------------------------------------------------------

ROWS = [
    *({"prompt": f"Compute {i} + 2", "answer": str(i + 2), "level": i} for i in range(12)),
    {"prompt": "compute  1 + 2", "answer": "3", "id": "again"},
    {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Name <b>birds</b>"}],
     "answer": "9", "id": "birds"},
]  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher is the student under another template and with a model card; one evaluation row is a training row."""
    shop = build_shop(tmp_path_factory.mktemp("shop"))
    write_rows(shop / "sums.jsonl", ROWS)
    write_rows(
        shop / "held.jsonl",
        [{"prompt": "COMPUTE 3 + 2", "answer": "5"}, {"prompt": "Sing a song", "answer": "1"}],
    )
    write_rows(shop / "all.jsonl", [{"prompt": "Compute 40 + 2"}, {"prompt": "Name birds"}])
    write_rows(shop / "taught.jsonl", [{"prompt": f"Compute {i} + 2"} for i in range(4)])
    tokenizer = tiny_tokenizer()
    theirs = type(tokenizer).from_pretrained(shop / "teacher")
    theirs.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}bot:"
    )
    theirs.save_pretrained(shop / "teacher")
    (shop / "teacher" / "README.md").write_text(
        "# T\nAsk with `Problem: {problem} <script>alert(1)</script> So?`\n"
    )
    return shop


@pytest.fixture
def run(shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[Said, Path]]:
    def call(*words: object, out: str = "o/new.jsonl") -> tuple[Said, Path]:
        (tmp_path / "config.toml").write_text(CONFIG.format(shop=shop))
        place = tmp_path / out
        return opd(capfd, "prompts", tmp_path / "config.toml", *words, "--out", place, "--json"), place

    return call


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_out_as_they_came_in_each_with_its_reason(run: Any, shop: Path) -> None:
    said, out = run(f"task.eval_path={shop / 'held.jsonl'}", "prompts.templates=false", "prompts.embedding=ngrams",
                    "prompts.near=0.97", f"prompts.taught={shop / 'taught.jsonl'}", "prompts.keep=5")  # fmt: skip
    assert said.code == 0, said.err
    told = json.loads(said.out)
    stays, gone = lines(out), lines(dropped_beside(out))
    assert (told["kept"], told["prompts"]) == (len(stays), len(stays) + len(gone)) == (5, 14)
    assert all(row["opd"]["reason"] for row in [*stays, *gone])
    originals = {row.get("id", f"sums:{i}"): row for i, row in enumerate(ROWS, start=1)}
    for row in [*stays, *gone]:
        mine = {k: v for k, v in row.items() if k not in ("opd", "id")}
        assert mine == {k: v for k, v in originals[row["id"]].items() if k != "id"}
    order = list(originals)
    assert [row["id"] for row in stays] == sorted((row["id"] for row in stays), key=order.index)
    assert {"sums:1", "sums:2", "sums:3"} <= {
        row["id"] for row in stays
    }  # what the teacher was taught; sums:4 is examined
    reasons = {row["id"]: row["opd"]["reason"] for row in gone}
    assert reasons["again"].endswith("sums.jsonl:2 asks already") and "held.jsonl:1" in reasons["sums:4"]
    (contact,) = told["contamination"]
    assert (
        contact["row"].endswith("held.jsonl:1")
        and contact["prompt"].endswith("sums.jsonl:4")
        and contact["equal"]
    )
    assert [f["name"] for f in told["findings"]] == ["contamination"]


def test_models_measure_and_the_file_trains_as_it_is(
    run: Any, shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graded = ["task.grader.type=regex", "task.grader.pattern='([0-9])'"]
    said, out = run("prompts.probe=8", "prompts.few=4", "prompts.clusters=9", "prompts.responses=3", *graded)
    assert said.code == 0, said.err
    told, stays = json.loads(said.out), lines(out)
    assert len(stays) == 4 and 0 < told["coverage"]["share"] <= 1 and told["coverage"]["of_prompts"] == 13
    assert all(
        {"pass_rate", "weight", "teacher_logp", "entropy_teacher"} <= row["opd"].keys() for row in stays
    )
    for rate, weight in ((row["opd"]["pass_rate"], row["opd"]["weight"]) for row in stays):
        assert weight == pytest.approx(rate * (1 - rate), abs=1e-4)
    names = [it["name"] for it in told["template"]["tried"]]
    assert (
        names[0] == "as it is"
        and any("teacher's template" in n for n in names)
        and "model card 1" in " ".join(names)
    )
    said = opd(capfd, "train", tmp_path / "config.toml", f"run={tmp_path / 'r'}", f"task.path={out}",
               "objective.signal.prompts=row", *graded)  # fmt: skip
    assert said.code == 0, said.err
    weighted = [row["loss"] for row in metrics(tmp_path / "r")]
    said = opd(capfd, "train", tmp_path / "config.toml", f"run={tmp_path / 'q'}", f"task.path={out}", *graded)
    plain = [row["loss"] for row in metrics(tmp_path / "q")]
    assert said.code == 0 and weighted[0] < 0.26 * plain[0]  # p(1 − p) is at most a quarter
    again = opd(capfd, *shlex.split(told["next"])[1:], "--json")
    assert again.code in (0, 3, 4), again.err


def test_a_wrapper_that_is_taken_is_in_the_rows(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule is tested above; here it is told to take the last candidate that does not ask for another template."""
    monkeypatch.setattr(
        "opdkit.recipes.prompts_template.decide",
        lambda tried, gain: (next(t.wrapper for t in tried if t.wrapper.name == "given 1"), "it was told to"),
    )
    said, out = run("prompts.probe=8", "prompts.wrappers=['Q: {question} A:']")
    assert said.code == 0, said.err
    stays = lines(out)
    assert stays[0]["prompt"] == "Q: Compute 0 + 2 A:"
    assert stays[-1]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "Q: Name <b>birds</b> A:"},
    ]


def test_the_page_shows_what_others_wrote_as_text(run: Any, shop: Path) -> None:
    said, out = run("prompts.probe=8", f"task.eval_path={shop / 'held.jsonl'}", "prompts.near=1")
    assert said.code == 0, said.err
    page = out.with_suffix(".html").read_text()
    assert "<script" not in page.lower() and "&lt;script&gt;" in page and "Name &lt;b&gt;birds" in page
    assert "http:" not in page.replace("http-equiv", "") and "default-src 'none'" in page.replace(
        "&#39;", "'"
    )


@pytest.mark.parametrize(
    ("words", "part", "hint"),
    [
        (
            ["prompts.near=0.2", "prompts.apart=['PLACE/all.jsonl']", "prompts.embedding=ngrams"],
            "not one of 14 prompts", "prompts.near=1",
        ),
        (["prompts.band=[0.2, 0.8]"], "no grader", "task.grader=exact"),
        (["prompts.rank=teacher_logp", "teacher=unset"], "no teacher whose weights", "--teacher MODEL"),
        (["prompts.rank=closeness"], "there are none", "prompts.taught=FILE"),
        (["prompts.wrappers=['Think.']"], "{question}", "{question}"),
        (["prompts.taught=PLACE/taugt.jsonl"], "no prompt file", "taught.jsonl"),
        (["prompts.few=3", "prompts.keep=3"], "both say", "one of the two"),
    ],
    ids=["near", "band", "teacher", "closeness", "wrapper", "missing", "few"],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(run: Any, shop: Path, words: list[str], part: str, hint: str) -> None:
    said, out = run(*(word.replace("PLACE", str(shop)) for word in words))
    assert said.code == 2 and part in said.error and hint in said.hint, said
    assert not out.exists()


def test_a_place_that_is_read_or_no_jsonl_is_refused(
    run: Any, shop: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said, _ = run(out="new.parquet")
    assert said.code == 2 and said.hint.endswith("new.jsonl")
    before = (shop / "sums.jsonl").read_bytes()
    said, _ = run(out=str(shop / "sums.jsonl"))
    assert (
        said.code == 2 and "sums-aligned.jsonl" in said.hint and (shop / "sums.jsonl").read_bytes() == before
    )
    said = opd(capfd, "prompts", "--out", "x.jsonl")
    assert said.code == 2 and "--prompts FILE" in said.hint


def test_a_row_weight_that_is_none_is_refused(
    shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text(CONFIG.format(shop=shop))
    words = ["train", tmp_path / "c.toml", f"run={tmp_path / 'r'}", "objective.signal.prompts=row"]
    said = opd(capfd, *words)
    assert said.code == 2 and "no opd.weight" in said.error and "opd prompts" in said.hint
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "a", "opd": {"weight": -1}}])
    said = opd(capfd, *words, f"task.path={bad}")
    assert said.code == 2 and "bad.jsonl:1: opd.weight is -1" in said.error


def test_what_is_asked_decides_what_is_measured() -> None:
    assert PromptsConfig().num_responses == 0 and PromptsConfig().ranks_by == "none"
    assert PromptsConfig(keep=5).ranks_by == "teacher_logp" and PromptsConfig(keep=5).num_responses == 4
    assert PromptsConfig(few=5).num_clusters == 200
    assert PromptsConfig(taught=Path("t.jsonl"), keep=5).num_responses == 0

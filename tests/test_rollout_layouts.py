"""Rollouts written by others: each layout read as its writer meant it, and every bad row refused where it stands."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opdkit.tasks import Said, read_rollouts
from opdkit.tasks.layouts import LAYOUTS
from opdkit.types import UserError

DATA = Path(__file__).parent / "data" / "layouts"
LM_EVAL = "samples_gsm8k_2026-09-01T10-00-00.000000.jsonl"
FILES = {
    "opdkit": "opdkit.jsonl",
    "trl": "trl_dataset.jsonl",
    "verl": "verl.jsonl",
    "slime": "slime.jsonl",
    "lm_eval": LM_EVAL,
    "messages": "messages.jsonl",
    "several": "several.jsonl",
}


def said(name: str, **options: Any) -> list[Said]:
    return list(read_rollouts(DATA / name, **options))


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- what the writers meant ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "name"), FILES.items())
def test_each_layout_is_recognised_and_can_be_named(layout: str, name: str) -> None:
    found = said(name)
    assert found and found == said(name, layout=layout)
    assert all(one.source.startswith(str(DATA / name)) for one in found)


def test_every_layout_has_a_file_here() -> None:
    assert FILES.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_the_shape_in_a_hint_is_a_row_that_is_read(layout: Any, tmp_path: Path) -> None:
    row = json.loads(layout.shape.partition(", with")[0])
    assert next(read_rollouts(written(tmp_path / "f.jsonl", [row]))).response_text == "text"
    assert next(layout for layout in LAYOUTS.values() if layout.fits(row)) is layout


def test_our_own_rows() -> None:
    first, second, third = said("opdkit.jsonl")
    assert (first.prompt_ids, first.response_ids, first.response_text) == ((9, 5, 7), (3, 3, 2), "33")
    assert [one.finish_reason for one in (first, second, third)] == ["stop", "length", "stop"]
    assert [one.score for one in (first, second, third)] == [1.0, 0.0, None]
    assert first.prompt_id == second.prompt_id == "train:107" != third.prompt_id
    assert third.prompt_messages == ({"role": "user", "content": "2 + 2 ="},) and third.prompt_text is None
    assert first.source.endswith("opdkit.jsonl:1") and [one.index for one in (first, second, third)] == [
        0,
        1,
        2,
    ]


def test_verl_dumps_hold_text_without_special_tokens() -> None:
    right, wrong = said("verl.jsonl")
    assert right.form == "stripped" and right.prompt_ids is None and right.finish_reason is None
    assert (right.score, wrong.score) == (1.0, 0.0)  # acc, not the reward of -1
    assert right.prompt_id == wrong.prompt_id


def test_slime_samples_split_their_tokens() -> None:
    left_out: list[str] = []
    done, cut = said("slime.jsonl", left_out=left_out)
    assert (done.prompt_ids, done.response_ids) == ((1, 15, 18, 2, 1), (33, 2))
    assert (done.finish_reason, cut.finish_reason) == ("stop", "length")
    assert (done.score, cut.score) == (1.0, 0.0) and done.prompt_id == cut.prompt_id == "0"
    assert done.form == "templated"
    assert left_out == [f"{DATA / 'slime.jsonl'}:3: empty response"]


def test_lm_eval_samples_count_once_whatever_the_filters() -> None:
    left_out: list[str] = []
    one, two, chat = said(LM_EVAL, left_out=left_out)
    assert (one.response_text, two.response_text) == ("33", "thirty-three") and one.score == 1.0
    assert one.prompt_text == "Question: 15 + 18?\nAnswer:" and one.form == "templated"
    assert chat.prompt_messages == ({"role": "user", "content": "Question: 2 + 2?"},) and chat.form == "raw"
    assert [one.prompt_id, two.prompt_id, chat.prompt_id] == ["0", "0", "1"]
    assert len(left_out) == 1 and "another filter" in left_out[0]


def test_lm_eval_choices_are_no_rollouts(tmp_path: Path) -> None:
    row = {
        "doc_id": 0,
        "arguments": {"gen_args_0": {"arg_0": "2 + 2 =", "arg_1": " 4"}},
        "resps": [["(-0.1, True)"]],
    }
    with pytest.raises(UserError, match="generated nothing") as error:
        list(read_rollouts(written(tmp_path / "s.jsonl", [row])))
    assert "--log_samples" in error.value.hint


def test_chat_rows_end_with_the_response() -> None:
    first, second = said("messages.jsonl")
    assert first.prompt_messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
    )
    assert (first.response_text, first.finish_reason) == ("4", "stop")
    assert (second.prompt_id, second.score) == ("b", 0.0)


def test_a_row_with_several_responses_is_several() -> None:
    four, five, six = said("several.jsonl")
    assert (four.prompt_id, five.prompt_id, six.prompt_id) == ("p0", "p0", "p1")
    assert [(one.score, one.finish_reason) for one in (four, five)] == [(1.0, "stop"), (0.0, "length")]
    assert (six.response_text, six.response_ids) == ("6", (6, 2))


def test_trl_tables_are_parquet(tmp_path: Path) -> None:
    """completions_00010.parquet as log_completions writes it: texts, a column per reward function, advantage."""
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    rows = [json.loads(line) for line in (DATA / "trl_table.jsonl").read_text().splitlines()]
    folder = tmp_path / "out" / "completions"
    folder.mkdir(parents=True)
    for step in (9, 10):
        table = pyarrow.Table.from_pylist([row | {"step": step} for row in rows])
        pyarrow.parquet.write_table(table, folder / f"completions_{step:05d}.parquet")
    found = list(read_rollouts(tmp_path / "out"))
    assert [one.score for one in found] == [1.0, 0.0, 1.0, 0.0]
    assert {one.form for one in found} == {"stripped"} and len({one.prompt_id for one in found}) == 1
    assert found[2].source == f"{folder / 'completions_00010.parquet'}:1" and found[2].index == 2
    (folder / "completions_00011.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"completions_00011.parquet: not readable as parquet"):
        list(read_rollouts(tmp_path / "out"))


def test_a_run_folder_is_read_in_the_order_of_steps(tmp_path: Path) -> None:
    rollouts = tmp_path / "run" / "rollouts"
    rollouts.mkdir(parents=True)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    for step in (2, 10):
        row = {"id": f"at {step}", "prompt": "p", "response": "r", "prompt_ids": [1], "response_ids": [2]}
        written(rollouts / f"step_{step}.jsonl", [row])
    assert [one.prompt_id for one in read_rollouts(tmp_path / "run")] == ["at 2", "at 10"]


# --- streaming, and going on --------------------------------------------------------------------------------


def test_the_first_rows_are_there_before_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("w") as out:
        for i in range(100_000):
            out.write(f'{{"prompt": "p{i}", "response": "r{i}"}}\n')
    opened = []
    plain = Path.open

    def watched(self: Path, *args: Any, **options: Any) -> Any:
        opened.append(plain(self, *args, **options))
        return opened[-1]

    monkeypatch.setattr(Path, "open", watched)
    rollouts = read_rollouts(path)
    assert opened == []  # a generator: nothing is read before somebody asks
    three = [next(rollouts).response_text for _ in range(3)]
    assert three == ["r0", "r1", "r2"]
    assert 0 < opened[0].raw.tell() < 0.05 * path.stat().st_size
    rollouts.close()  # type: ignore[attr-defined]
    assert opened[0].closed


def test_start_goes_on_where_a_reader_stopped_and_needs_no_model() -> None:
    for name in FILES.values():
        everything = said(name)
        assert said(name, start=1) == [one for one in everything if one.index >= 1]
    assert said("verl.jsonl", start=99) == []


def test_no_ids_are_not_ids(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "prompt_ids": [], "response": "r", "response_ids": []},
        {"prompt": "p", "response_ids": []},
    ]
    left_out: list[str] = []
    (only,) = read_rollouts(written(tmp_path / "f.jsonl", rows), left_out=left_out)
    assert (only.prompt_ids, only.response_ids, only.response_text) == (None, None, "r")
    assert left_out == [f"{tmp_path / 'f.jsonl'}:2: empty response"]


# --- refusals -----------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_counted_and_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "f.jsonl", [{"prompt": "p", "response": "r"}])
    path.write_text(path.read_text() + '{"prompt": "p", "resp')
    left_out: list[str] = []
    assert len(list(read_rollouts(path, left_out=left_out))) == 1
    assert left_out == [f"{path}:2: torn, as by a kill"]
    path.write_text(path.read_text() + "\n")
    with pytest.raises(UserError, match=r"f\.jsonl:2: not JSON"):
        list(read_rollouts(path))


BAD: list[tuple[Any, str]] = [
    ({"question": "q", "answer": "a"}, "no layout of rollouts is known with the columns question, answer"),
    ({"prompt": "p", "respones": "r"}, "no layout of rollouts is known with the columns prompt, respones"),
    ({"prompt": "", "response": "r"}, "the prompt is empty"),
    ({"prompt": 3, "response": "r"}, "the prompt is a int"),
    ({"prompt": [{"role": "user"}], "response": "r"}, "a message needs `role` and `content`"),
    ({"prompt": "p", "response": {"a": 1}}, "the response is a dict"),
    ({"prompt": "p", "response": "r\ud83d"}, "half a character, \\ud83d, at 1 of a text"),
    ({"prompt": "p", "response_ids": [1, -2]}, "response_ids is not a list of token ids"),
    ({"prompt": "p", "response_ids": "12"}, "response_ids is not a list of token ids"),
    ({"tokens": [1, 2], "response_length": 3}, "response_length is 3, and there are 2 tokens"),
    ({"messages": [{"role": "user", "content": "q"}]}, "there is no response to read"),
    (
        {"prompt": "p", "responses": ["a", "b"], "scores": [1]},
        "has 2 responses and another number under 'score'",
    ),
    ({"arguments": {}, "resps": []}, "arguments holds no request"),
    ([1], "a list, not one object per line"),
    (3, "a int, not an object"),
]


@pytest.mark.parametrize(("row", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_rows_are_refused_with_file_and_line(row: Any, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "bad.jsonl", [row])
    with pytest.raises(UserError) as error:
        list(read_rollouts(path))
    assert f"{path}:1: " in str(error.value) and message in str(error.value)
    assert error.value.hint


def test_the_first_row_that_departs_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "f.jsonl", [{"prompt": "p", "response": "r"}, {"input": "p", "output": "r"}])
    rollouts = read_rollouts(path)
    assert next(rollouts).response_text == "r"
    with pytest.raises(UserError, match=r"f\.jsonl:2: no row of the layout opdkit"):
        next(rollouts)


def test_the_nearest_layout_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        list(read_rollouts(written(tmp_path / "f.jsonl", [{"input": "p", "generation": "r"}])))
    assert "the nearest is verl" in error.value.hint


def test_empty_missing_and_unknown(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="holds no rollouts"):
        list(read_rollouts(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError) as missing:
        read_rollouts(tmp_path / "emty.jsonl")  # at once, before anything is asked of it
    assert missing.value.hint == f"did you mean {tmp_path / 'empty.jsonl'}?"
    with pytest.raises(UserError) as layout:
        read_rollouts(tmp_path / "empty.jsonl", layout="tlr")
    assert layout.value.hint == "did you mean trl?"
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="holds no JSONL and no parquet file"):
        read_rollouts(tmp_path / "nothing")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "0.pt"
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for place in (path, tmp_path):
        with pytest.raises(UserError) as error:
            read_rollouts(place)
        assert "torch.load" in error.value.hint and str(tmp_path / "0.jsonl") in error.value.hint


# --- whatever is in the file --------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
COLUMNS = sorted({name for layout in LAYOUTS.values() for group in layout.needs for name in group})
COLUMNS += ["score", "acc", "reward", "status", "finish_reason", "filter", "metrics", "step", "id", "scores"]
TURNS = st.lists(st.fixed_dictionaries({"role": JSON, "content": JSON}), max_size=3)
ROWS = st.dictionaries(st.sampled_from(COLUMNS), JSON | TURNS, max_size=6) | JSON


def outcome(rollouts: Iterator[Said]) -> None:
    try:
        for one in rollouts:
            assert not one.empty and (one.prompt_ids or one.prompt_text or one.prompt_messages)
    except UserError as error:
        assert str(error) and error.hint


@settings(max_examples=300, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=4), st.sampled_from(["auto", *LAYOUTS]))
def test_no_row_gives_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], layout: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    outcome(read_rollouts(written(path, rows), layout=layout))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_give_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    outcome(read_rollouts(path))

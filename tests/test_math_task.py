"""The paper's mathematics: rows of every data set, wrappers, benchmarks, grading, averages."""

import json
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import findings, opd, save_model, write_rows
from models import tiny_tokenizer
from opdkit.config import EvalConfig, MathTask, SamplingConfig, load_config
from opdkit.tasks import Task, load_task
from opdkit.tasks.hub import hub_rows
from opdkit.tasks.math_data import KNOWN, known
from opdkit.tasks.stated import stated_answer
from opdkit.tasks.wrappers import BOXED, DAPO, unwrapped, wrapped
from opdkit.train.evaluate import evaluate
from opdkit.types import Prompt, Rollout, UserError

pytest.importorskip("math_verify")
pytest.importorskip("pyarrow")

DOUBLE = BOXED.replace("{}", "{{}}")
PAPER = Path(__file__).parent.parent / "configs" / "paper" / "r1-1.5b-justrl.toml"


def verl(question: str, answer: str, *, index: Any, wrapper: str = "dapo") -> dict[str, Any]:
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": wrapped(question, wrapper), "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index},
    }


def h4(i: int) -> dict[str, Any]:
    return {
        "id": 60 + i,
        "problem": f"What is {i} + 20?",
        "solution": "…",
        "answer": f"0{20 + i}",
        "url": "u",
        "year": "2024",
    }


def maxwell(i: int) -> dict[str, Any]:
    return {"ID": f"2024-I-{i}", "Problem": f"What is {i} + 20?", "Solution": "…", "Answer": 20 + i}


def aime25(i: int) -> dict[str, Any]:
    return {"problem": f"What is {i} + 30?", "answer": str(30 + i), "id": str(i)}


def compass(i: int) -> dict[str, Any]:
    return {"question": f"What is {i} + 30?", "answer": str(30 + i)}


def amc40(i: int) -> dict[str, Any]:
    return {"id": i, "question": f"What is {i} + 40?", "answer": f"{40 + i}.0", "url": "u"}


def amc83(i: int) -> dict[str, Any]:
    return {"id": i, "problem": f"What is {i} + 50? {BOXED}", "answer": 50.0 + i, "url": "u"}


def deepmath(i: int) -> dict[str, Any]:
    solutions = {f"r1_solution_{n}": f"solution {n} of {i}" for n in (1, 2, 3)}
    return {
        "question": f"What is {i} + 3?",
        "final_answer": rf"\frac{{{i}}}{{7}}",
        "difficulty": 5.0,
        "topic": "Algebra",
    } | solutions


def thoughts(i: int, domain: str = "math") -> dict[str, Any]:
    said = [
        {"from": "human", "value": f"What is {i} + 4?"},
        {"from": "gpt", "value": f"<think></think> {i + 4}"},
    ]
    return {"difficulty": 5, "source": "s", "domain": domain, "conversations": said}


def dapo(i: int) -> dict[str, Any]:
    return verl(f"What is {i} + 1?", str(i + 1), index=f"uuid-{i}")


def save(path: Path, rows: list[Any]) -> Path:
    """As JSONL or parquet, by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        return write_rows(path, rows)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def build_data(folder: Path) -> Path:
    """Small files where the paper's configs look for large ones."""
    save(folder / "dapo-math-17k.parquet", [dapo(i % 6) for i in range(18)])
    save(folder / "aime24" / "data" / "train-00000-of-00001.parquet", [h4(i) for i in range(2)])
    save(folder / "aime25.jsonl", [aime25(i) for i in range(1)])
    save(folder / "amc23-83.parquet", [amc83(i) for i in range(3)])
    return folder


def load(**options: Any) -> Task:
    return load_task(MathTask(**options))


def refused(**options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load(**options)
    assert caught.value.hint
    return caught.value


# --- wrappers ---------------------------------------------------------------------------------------------

PIECES = st.sampled_from([*DAPO, BOXED, DOUBLE, "1 + 1?", " ", "\n\n", "Find x.", "{}", r"\boxed{}"])
TEXTS = st.lists(PIECES, max_size=8).map("".join)


@settings(max_examples=300, deadline=None, database=None)
@given(TEXTS, st.sampled_from(["dapo", "boxed"]))
def test_wrapping_what_was_unwrapped_is_idempotent(text, wrapper):
    once = wrapped(unwrapped(text), wrapper)
    assert wrapped(unwrapped(once), wrapper) == once
    assert unwrapped(once) == unwrapped(text) == unwrapped(unwrapped(text))


def test_the_forms_that_were_released():
    for text in (
        f"{DAPO[0]}\n\nFind $x$.\n\n{DAPO[1]}",
        f"Find $x$. {BOXED}",
        r"Find $x$. Please reason step by step, and put your final answer within \boxed{{}}.",
        f"Find $x$.\n{BOXED}\n",
        "Find $x$.",
    ):
        assert unwrapped(text) == "Find $x$."
    assert unwrapped(f"{DAPO[0]} is a fine sentence") == f"{DAPO[0]} is a fine sentence"
    assert unwrapped("".join(DAPO)) == ""
    assert wrapped("Find $x$.", "as_is") == "Find $x$."


@pytest.mark.parametrize("released", ["dapo", "boxed"])
@pytest.mark.parametrize("asked", ["dapo", "boxed"])
def test_a_row_in_either_wrapper_comes_in_the_one_that_was_asked_for(tmp_path, released, asked):
    save(tmp_path / "dapo-math-17k.jsonl", [verl("Find $x$.", "7", index=3, wrapper=released)])
    with load(data=tmp_path, wrapper=asked) as task:
        (prompt,) = task.train
    assert (prompt.text, prompt.answer) == (wrapped("Find $x$.", asked), "7")
    assert (prompt.id, prompt.group) == ("dapo-math-17k:3", None)


def test_as_is_leaves_a_row_as_it_is(tmp_path):
    save(tmp_path / "dapo-math-17k.jsonl", [verl("Find $x$.", "7", index=3)])
    with load(data=tmp_path, wrapper="as_is") as task:
        assert task.train[0].text == wrapped("Find $x$.", "dapo")


# --- rows -------------------------------------------------------------------------------------------------

SCHEMAS = {
    "dapo-math-17k": (dapo, "What is 1 + 1?", "2", None, "dapo-math-17k:uuid-1"),
    "deepmath": (deepmath, "What is 1 + 3?", r"\frac{1}{7}", "solution 1 of 1", "deepmath:2"),
    "openthoughts3": (thoughts, "What is 1 + 4?", None, "<think></think> 5", "openthoughts3:2"),
}


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_training_rows(tmp_path, name, suffix):
    made, question, answer, shown, id_ = SCHEMAS[name]
    save(tmp_path / f"{name}.{suffix}", [made(i) for i in range(3)])
    with load(train=name, data=tmp_path, wrapper="boxed") as task:
        assert len(task.train) == 3 and task.evaluation == ()
        prompt = task.train[1]
    assert (prompt.text, prompt.answer, prompt.response) == (f"{question} {BOXED}", answer, shown)
    assert prompt.id == id_ and prompt.source.endswith(f"{name}.{suffix}:2")


BENCHMARKS = [
    ("aime24", h4, "021", "61"),
    ("aime24", maxwell, "21", "2024-I-1"),
    ("aime25", aime25, "31", "1"),
    ("aime25", compass, "31", "2"),
    ("amc23", amc40, "41", "1"),
    ("amc23-83", amc83, "51", "1"),
    ("aime24", lambda i: verl(f"What is {i} + 20?", str(20 + i), index=i, wrapper="boxed"), "21", "1"),
]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize(("name", "made", "answer", "number"), BENCHMARKS)
def test_benchmark_rows(tmp_path, name, made, answer, number, suffix):
    save(tmp_path / f"{name}.{suffix}", [made(i) for i in range(2)])
    with load_task(MathTask(eval=[name], data=tmp_path), only="evaluation") as task:
        assert task.benchmarks == (name,) and task.train == ()
        prompt = task.evaluation[1]
    assert (prompt.group, prompt.answer, prompt.id) == (name, answer, f"{name}:{number}")
    assert prompt.text is not None and prompt.text.startswith("What is 1 + ")
    assert prompt.text.endswith(f"0? {BOXED}") and prompt.text.count("Please reason") == 1


@pytest.mark.parametrize("known_as", ["openthoughts3", "OpenThoughts3-1.2M"])
def test_a_snapshot_of_the_hub_in_several_files_of_several_splits(tmp_path, known_as):
    for part in range(2):
        rows = [thoughts(10 * part + i, domain) for i, domain in enumerate(["math", "code", "math"])]
        save(tmp_path / known_as / "data" / f"train-0000{part}-of-00002.parquet", rows)
    save(tmp_path / known_as / "data" / "test-00000-of-00001.parquet", [thoughts(99)])
    with load(train="openthoughts3", data=tmp_path, wrapper="as_is") as task:
        assert [p.text for p in task.train] == [f"What is {i} + 4?" for i in (0, 2, 10, 12)]
        assert len({p.id for p in task.train}) == 4  # both files have a row 1


def test_two_benchmarks_take_turns_and_ids_stay_apart(tmp_path):
    parts = [{"question": f"What is {i} + 30?", "answer": "1", "id": i % 2} for i in range(4)]
    save(tmp_path / "mine.jsonl", parts)
    save(tmp_path / "aime24.jsonl", [h4(0)])
    with load_task(
        MathTask(eval=[str(tmp_path / "mine.jsonl"), "aime24"], data=tmp_path), only="evaluation"
    ) as task:
        assert [p.group for p in task.evaluation] == ["mine", "aime24", "mine", "mine", "mine"]
        assert len({p.id for p in task.evaluation}) == 5


def test_a_file_of_no_known_name_may_look_like_any(tmp_path):
    rows = [
        dapo(1),
        deepmath(2),
        h4(3),
        maxwell(4),
        compass(5),
        thoughts(6),
        {"prompt": "What is 7 + 1?", "answer": "8", "response": "8."},
    ]
    path = save(tmp_path / "mixed.jsonl", rows)
    with load(train=str(path), wrapper="as_is") as task:
        assert len(task.train) == 7
        assert [p.answer for p in task.train] == ["2", r"\frac{2}{7}", "023", "24", "35", None, "8"]
        assert task.train[6].response == "8."
    error = refused(eval=[str(path)], train=str(path))
    assert "mixed.jsonl:6: no answer; the row has the columns difficulty, source, domain" in str(error)


def test_each_problem_once_and_the_rest_counted(tmp_path):
    rows = [dapo(i % 4) for i in range(40)] + [verl("What is 1 + 1?", "3", index="other", wrapper="boxed")]
    save(tmp_path / "dapo-math-17k.parquet", rows)
    with load(data=tmp_path) as task:
        assert [p.answer for p in task.train] == ["1", "2", "3", "4"]  # the first row of each
        (finding,) = task.findings
    assert (finding.name, finding.severity) == ("problems_repeated", "info")
    assert finding.numbers == {"rows": 41, "dropped": 37, "kept": 4} and "37 of 41 rows" in finding.message
    with load(data=tmp_path, train_size=2) as task:
        assert [p.answer for p in task.train] == ["1", "2"] and task.findings == ()


def test_other_demonstrations_of_one_problem_are_kept(tmp_path):
    again = thoughts(1)
    again["conversations"] = [again["conversations"][0], {"from": "gpt", "value": "5, I think"}]
    save(tmp_path / "openthoughts3.jsonl", [thoughts(1), again, thoughts(1)])
    with load(train="openthoughts3", data=tmp_path) as task:
        assert [p.response for p in task.train] == ["<think></think> 5", "5, I think"]
        assert [f.name for f in task.findings] == ["problems_repeated", "training_ungraded"]
        assert not task.graded and not task.training_graded


def test_a_benchmark_of_another_size_is_told_and_not_refused(tmp_path):
    save(tmp_path / "aime24.jsonl", [h4(i) for i in range(30)])
    save(tmp_path / "amc23.jsonl", [amc40(i) for i in range(39)])
    with load_task(MathTask(eval=["aime24", "amc23"], data=tmp_path), only="evaluation") as task:
        (finding,) = task.findings
    assert (finding.name, finding.severity) == ("benchmark_size", "warning")
    assert finding.numbers == {"problems": 39, "usual": 40}


def test_what_every_benchmark_usually_holds():
    assert {d.name: d.problems for d in KNOWN if d.problems} == {
        "aime24": 30,
        "aime25": 30,
        "amc23": 40,
        "amc23-83": 83,
    }
    assert known("BytedTsinghua-SIA/DAPO-Math-17k", key="task.train").name == "dapo-math-17k"


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_missing_columns_are_named_with_file_row_and_what_is_there(tmp_path, suffix):
    save(tmp_path / f"amc23.{suffix}", [{"id": 1, "text": "?", "answer": "1"}])
    error = refused(eval=["amc23"], train=str(save(tmp_path / "t.jsonl", [dapo(1)])), data=tmp_path)
    assert f"amc23.{suffix}:1: no question" in str(error) and "id, text, answer" in str(error)


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("dapo-math-17k", {"prompt": [{"role": "user", "content": "?"}]}, "no reward_model.ground_truth"),
        ("deepmath", {"question": "?"}, "no final_answer"),
        ("openthoughts3", {"conversations": []}, "no domain"),
        ("openthoughts3", {"conversations": [], "domain": "math"}, "no conversations.human"),
        (
            "dapo-math-17k",
            verl("?", "1", index=1)
            | {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "?"}]},
            "no prompt.user",
        ),
        ("dapo-math-17k", verl("", "1", index=1), "asks nothing"),
        ("deepmath", {"question": 3, "final_answer": "1"}, "asks nothing"),
        ("deepmath", {"question": "?", "final_answer": ["1"]}, "is a list"),
        ("deepmath", {"question": "?", "final_answer": " "}, "no final_answer"),
        ("openthoughts3", thoughts(1, "code"), "holds no problems"),
    ],
)
def test_a_bad_row(tmp_path, name, row, said):
    save(tmp_path / f"{name}.jsonl", [row])
    error = refused(train=name, data=tmp_path)
    assert said in str(error) and f"{name}.jsonl" in str(error)


def test_unknown_names_get_the_nearest(tmp_path):
    error = refused(train="dapo-math")
    assert "no data set 'dapo-math'" in str(error) and error.hint == "task.train=dapo-math-17k"
    path = str(save(tmp_path / "t.jsonl", [dapo(1)]))
    assert refused(train=path, eval=["amie24"], data=tmp_path).hint == 'task.eval=["aime24"]'
    assert "dapo.jsonl" in str(refused(train=str(tmp_path / "dapo.jsonl")))
    assert refused(train=str(tmp_path / "tt.jsonl")).hint == f"did you mean {path}?"


def test_a_folder_without_the_data_set_says_what_it_looked_for(tmp_path):
    save(tmp_path / "dapo-17k.parquet", [dapo(1)])
    error = refused(data=tmp_path)
    assert "neither" in str(error) and "dapo-17k.parquet is there" in str(error)
    assert "BytedTsinghua-SIA/DAPO-Math-17k" in error.hint
    assert "no dapo-math-17k in task.data" in str(refused(data=tmp_path / "none"))


def test_the_same_benchmark_twice(tmp_path):
    with pytest.raises(UserError, match="names a benchmark twice"):
        load_config(None, ["student=s", 'task={type="math", eval=["aime24", "aime24"]}'])
    paths = [str(save(tmp_path / f / "b.jsonl", [compass(1)])) for f in ("x", "y")]
    train = str(save(tmp_path / "t.jsonl", [dapo(1)]))
    assert "two benchmarks are called 'b'" in str(refused(train=train, eval=paths))


def test_paths_in_a_config_may_stand_beside_it(tmp_path):
    save(tmp_path / "data" / "t.jsonl", [dapo(1)])
    (tmp_path / "c.toml").write_text(
        'student = "s"\ntask = { type = "math", train = "data/t.jsonl", eval = ["data/t.jsonl", "aime24"], data = "data" }\n'
    )
    task = load_config(tmp_path / "c.toml").task
    assert isinstance(task, MathTask)
    assert (task.train, task.data) == (str(tmp_path / "data/t.jsonl"), tmp_path / "data")
    assert task.eval == [str(tmp_path / "data/t.jsonl"), "aime24"]


# --- the Hub ----------------------------------------------------------------------------------------------


def test_offline_the_hub_is_refused_at_once(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    began = time.monotonic()
    error = refused(train="deepmath")
    assert time.monotonic() - began < 10
    assert "cannot load deepmath (zwhe99/DeepMath-103K)" in str(error)
    assert error.hint.startswith("task.data=FOLDER with deepmath.parquet")


def test_a_hub_that_does_not_answer_costs_seconds(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("opdkit.tasks.hub.WAIT_SECONDS", 0.5)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()  # it takes calls and says nothing
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        began = time.monotonic()
        error = refused(train="deepmath")
        assert time.monotonic() - began < 10 and "does not answer" in str(error)
        assert "HF_HUB_OFFLINE=1" in error.hint


def test_rows_of_the_hub_read_like_those_of_a_file(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load_dataset(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return datasets.Dataset.from_list([deepmath(i) for i in range(3)])

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with load(train="deepmath", train_size=2) as task:
        assert [p.source for p in task.train] == ["zwhe99/DeepMath-103K:1", "zwhe99/DeepMath-103K:2"]
        assert task.train[1].response == "solution 1 of 1"
    assert asked == [("zwhe99/DeepMath-103K", {"split": "train", "streaming": True})]
    rows = list(hub_rows(known("deepmath", key="x"), columns={"question"}, stream=False))
    assert rows[0] == (1, {"question": "What is 0 + 3?"})


# --- grading ----------------------------------------------------------------------------------------------


def test_which_answer_a_response_states():
    for text, answer in (
        (r"\boxed{3} is wrong, so \boxed{4}.", "4"),
        (r"\boxed{\frac{1}{2}} and \boxed{5", r"\frac{1}{2}"),  # cut in the middle of a box
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{42}}", "42"),
        ("Answer: 41\nAnswer: 42", "42"),
        ("**Answer: $42$**", "42"),
        (r"Answer: \boxed{42}", "42"),
        ("\\boxed{42}\n\nAnswer: 41", "42"),
        ("Final Answer: 42.", "42"),
        ("The answer is 42", None),
        ("42", None),
        (r"\boxed{}", None),
        ("Answer:", None),
        ("} } \\} {", None),
        ("", None),
    ):
        assert stated_answer(text) == answer, text
    began = time.monotonic()
    assert stated_answer(r"\boxed{" * 3000) is None
    assert stated_answer("Answer" * 3000 + "\n" * 5000) is None
    assert time.monotonic() - began < 1


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    save(folder / "aime24.jsonl", [h4(0)])
    with load_task(MathTask(eval=["aime24"], data=folder, timeout_seconds=5), only="evaluation") as task:

        def scores(answer: str, *texts: str) -> list[float | None]:
            prompt = replace(task.evaluation[0], answer=answer)
            graded = task.grade([Rollout(prompt, (1,), "stop", text=text) for text in texts])
            return [r.grade.score for r in graded]

        yield scores


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (
            "42",
            ["so\nAnswer: 42", r"\boxed{42}", r"$\boxed{42}$.", r"\boxed{42.}", r"\boxed{\frac{84}{2}}"],
            ["42", "it is 42", "Answer: 41", r"\boxed{42}, no, \boxed{3}", r"\boxed{42", ""],
        ),
        ("27.0", [r"\boxed{27}", "Answer: 27", r"\boxed{27.0}"], [r"\boxed{28}"]),
        ("27", [r"\boxed{27.0}", r"\boxed{27}"], [r"\boxed{27.5}"]),
        ("033", [r"\boxed{33}", r"\boxed{033}"], [r"\boxed{330}"]),
        (r"\frac{1}{2}", [r"\boxed{\dfrac12}", "Answer: 0.5"], [r"\boxed{2}"]),
        (r"\text{Yes}", [r"\boxed{Yes}"], [r"\boxed{No}"]),
    ],
)
def test_what_is_right(judged, answer, right, wrong):
    assert judged(answer, *right) == [1.0] * len(right)
    assert judged(answer, *wrong) == [0.0] * len(wrong)


def test_what_a_response_can_do(judged, tmp_path):
    """Nothing, and within its time: the child of tests/test_graders.py judges here as well."""
    marker = tmp_path / "marker"
    code = f"__import__('os').system('touch {marker}')"
    towers = ["5^(5^(5^5))", "10^{10^{10}}!", code]
    texts = [form.format(t) for t in towers for form in (r"\boxed{{{}}}", "Answer: {}")]
    began = time.monotonic()
    assert 1.0 not in judged("7", *texts)
    assert judged("7", r"\boxed{7}") == [1.0]
    assert time.monotonic() - began < 60 and not marker.exists()


def test_training_without_answers_is_not_graded_and_evaluation_is(tmp_path):
    save(tmp_path / "openthoughts3.jsonl", [thoughts(1)])
    save(tmp_path / "aime25.jsonl", [aime25(1)])
    with load(train="openthoughts3", eval=["aime25"], data=tmp_path) as task:
        assert task.graded and not task.training_graded
        prompts = (*task.train, *task.evaluation)
        train, exam = task.grade(
            [
                Rollout(p, (1,), "stop", text=text)
                for p, text in zip(prompts, ("no", r"\boxed{31}"), strict=True)
            ]
        )
        silent, said = task.grade([Rollout(p, (1,), "stop", text="31") for p in prompts])
    assert train.grade is None and exam.grade.score == 1.0
    assert silent.grade is None and said.grade.score == 0.0


# --- the protocol -----------------------------------------------------------------------------------------


class Parrot:
    """Says the right answer to a problem in so many of its responses as `right` tells for its benchmark."""

    def __init__(self, right: dict[str, list[int]]):
        self.right = {name: iter(counts) for name, counts in right.items()}

    def sample(self, prompts: list[Prompt], *, sampling: SamplingConfig, **_: Any) -> list[Rollout]:
        self.sampling, drawn = sampling, []
        for prompt in prompts:
            right = next(self.right[prompt.group or ""])
            for sample in range(sampling.responses):
                text = rf"\boxed{{{prompt.answer if sample < right else 999}}}"
                drawn.append(Rollout(prompt, (1, 2), "stop", text=text, sample=sample))
        return drawn


def test_every_benchmark_and_their_mean(tmp_path):
    save(tmp_path / "aime24.jsonl", [h4(i) for i in range(2)])
    save(tmp_path / "aime25.jsonl", [aime25(0)])
    save(tmp_path / "amc23-83.jsonl", [amc83(i) for i in range(3)])
    names = ["aime24", "aime25", "amc23-83"]
    parrot = Parrot({"aime24": [4, 1], "aime25": [0], "amc23-83": [4, 4, 2]})
    with load_task(MathTask(eval=names, data=tmp_path), only="evaluation") as task:
        cfg, sampling = EvalConfig(responses=4), SamplingConfig(max_tokens=8)
        row = evaluate(parrot, task, task.evaluation, cfg=cfg, sampling=sampling, seed=0)
    assert row["by_group"] == {"aime24": 5 / 8, "aime25": 0.0, "amc23-83": 10 / 12}
    assert row["avg_of_benchmarks"] == pytest.approx((5 / 8 + 0 + 10 / 12) / 3)
    assert row["avg_at_k"] == pytest.approx(15 / 24) and row["problems"] == 6
    assert (parrot.sampling.temperature, parrot.sampling.top_p) == (0.7, 0.95)


# --- commands ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Models that have room for a wrapped problem, and small data sets under the large ones' names."""
    shop = tmp_path_factory.mktemp("shop")
    for seed, name in enumerate(("student", "teacher")):
        save_model(shop / name, seed=seed, tokenizer=tiny_tokenizer(), max_position_embeddings=1024)
    build_data(shop / "data")
    return shop


SMALL = [
    "steps=2",
    "prompts_per_step=2",
    'sampling={type="local",responses=2,max_tokens=8}',  # vLLM: tests/engines
    "save.rollouts_every=1",
]
SMALL += ["eval.max_tokens=8", "eval.responses=2"]


def test_eval_tells_every_benchmark_and_reads_no_training_data(shop, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    data = build_data(tmp_path / "data")
    (data / "dapo-math-17k.parquet").unlink()
    words = ["eval", f"{shop}/student", "--task", PAPER, f"task.data={data}", "student.dtype=float32"]
    words += ["eval.max_tokens=8", "eval.responses=2", SMALL[2]]
    said = opd(capfd, *words, "--json")
    row = json.loads(said.out)
    assert said.code == 0 and set(row["by_group"]) == {"aime24", "aime25", "amc23-83"}
    assert row["avg_of_benchmarks"] == pytest.approx(sum(row["by_group"].values()) / 3)
    assert sum("benchmark" in f or "usual" in f for f in row["findings"]) == 3
    said = opd(capfd, *words)
    assert said.code == 0 and "amc23-83 0.000" in said.out and "mean of benchmarks 0.000" in said.out
    nothing = opd(capfd, *words, "task.eval=[]")
    assert nothing.code == 2 and nothing.hint == 'task.eval=["aime24", "aime25"]'


def test_demonstrations_are_imitated_and_stories_that_live_on_scores_refuse(
    shop, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    data = build_data(tmp_path / "data")
    save(data / "openthoughts3.jsonl", [thoughts(i) for i in range(6)])
    task = f'task={{type="math", train="openthoughts3", eval=["aime24"], data="{data}", wrapper="boxed"}}'
    words = ["train", f"student={shop}/student", task, f"run={tmp_path}/run", *SMALL]
    said = opd(capfd, *words, "story=sft")
    assert said.code == 0, said.err
    assert findings(tmp_path / "run")["training_ungraded"]["numbers"]["without_answer"] == 6
    said = opd(capfd, *words, "story=grpo", f"run={tmp_path}/other")
    assert said.code == 2 and "lives on scores" in said.error and "dapo-math-17k" in said.hint

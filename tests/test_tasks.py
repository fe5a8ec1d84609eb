"""Prompts: files, generators, the walk through them, templating."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from opdkit.config import FileTask, Grader, GymTask
from opdkit.tasks import encode, fit, load_task, step_prompts
from opdkit.tasks.gym import gym_setup, question_key
from opdkit.tasks.worker import Worker
from opdkit.types import Prompt, Rollout, UserError

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined %}"
    "{{ 'think' if enable_thinking else 'plain' }}{% endif %}{% endif %}"
)
CHAIN = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def load_file(path: Path, **options: Any) -> tuple[Prompt, ...]:
    with load_task(FileTask(path=path, **options)) as task:
        return task.train


# --- files ------------------------------------------------------------------------------------------------


def test_rows_become_prompts_with_stable_ids(tmp_path):
    path = write(
        tmp_path / "p.jsonl",
        {"prompt": "1 + 1?", "answer": 2, "group": "easy"},
        "",
        {
            "id": "b",
            "messages": [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}],
        },
        {"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4"},
    )
    first, second, third = load_file(path)
    assert (first.id, first.text, first.answer, first.group) == ("p:1", "1 + 1?", "2", "easy")
    assert (second.id, second.text, second.answer, second.source) == ("b", None, None, f"{path}:3")
    assert second.messages == ({"role": "system", "content": "be short"}, {"role": "user", "content": "hi"})
    assert third.id == "p:4" and third.messages == ({"role": "user", "content": "2 + 2?"},)


def test_bom_and_own_keys(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"question": "q", "solution": 3.5}).encode())
    (prompt,) = load_file(path, prompt_key="question", answer_key="solution")
    assert (prompt.text, prompt.answer) == ("q", "3.5")


VERL = {
    "data_source": "math",
    "prompt": [{"role": "user", "content": "1 + 1?"}],
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 7},
}


def test_verl_rows(tmp_path):
    (prompt,) = load_file(write(tmp_path / "p.jsonl", VERL))
    assert (prompt.id, prompt.answer) == ("7", "2")
    assert prompt.messages == ({"role": "user", "content": "1 + 1?"},)


def test_parquet_gives_what_jsonl_gives(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [VERL | {"extra_info": {"index": i}} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    from_parquet = load_file(tmp_path / "p.parquet")
    from_jsonl = load_file(write(tmp_path / "p.jsonl", *rows))
    assert [(p.id, p.messages, p.answer) for p in from_parquet] == [
        (p.id, p.messages, p.answer) for p in from_jsonl
    ]
    assert from_parquet[4].source == f"{tmp_path / 'p.parquet'}:5"


def test_broken_parquet_is_the_users_error(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(UserError, match=r"p\.parquet: not readable as parquet"):
        load_file(tmp_path / "p.parquet")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{not json", r"p\.jsonl:2: not JSON"),
        ("[" * 100_000, r"p\.jsonl:2: not JSON"),
        ("[1, 2]", r"p\.jsonl:2: a list, not an object"),
        ({"text": "x"}, r"p\.jsonl:2: no `prompt` and no `messages`"),
        ({"prompt": "  \n"}, r"p\.jsonl:2: the prompt is empty"),
        ({"prompt": []}, r"p\.jsonl:2: the prompt is empty"),
        ({"prompt": [{"role": "user", "content": " "}]}, r"p\.jsonl:2: the prompt is empty"),
        ({"prompt": 3}, r"p\.jsonl:2: the prompt is a int"),
        ({"prompt": ["hi"]}, r"p\.jsonl:2: a message needs"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, r"p\.jsonl:2: a message needs"),
        ({"prompt": "x", "answer": [1]}, r"p\.jsonl:2: the answer is a list"),
        ({"prompt": "x", "id": "a"}, r"p\.jsonl:2: id 'a' is used at .*p\.jsonl:1 already"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, said):
    path = write(tmp_path / "p.jsonl", {"prompt": "good", "id": "a"}, row)
    with pytest.raises(UserError, match=said) as caught:
        load_file(path)
    assert caught.value.hint


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "\xff\xfe"}\n')
    with pytest.raises(UserError, match=r"p\.jsonl:1: not JSON"):
        load_file(tmp_path / "p.jsonl")


def test_missing_and_empty_files(tmp_path):
    write(tmp_path / "train.jsonl", {"prompt": "x"})
    with pytest.raises(UserError, match="no prompt file") as caught:
        load_file(tmp_path / "trian.jsonl")
    assert str(tmp_path / "train.jsonl") in caught.value.hint
    with pytest.raises(UserError, match="is a folder"):
        load_file(tmp_path)
    with pytest.raises(UserError, match="holds no rows"):
        load_file(write(tmp_path / "empty.jsonl", "", "  "))
    with pytest.raises(UserError, match="no prompt file"):
        load_file(tmp_path / "train.jsonl", eval_path=tmp_path / "none.jsonl")


def test_nearest_column_is_the_hint(tmp_path):
    with pytest.raises(UserError) as caught:
        load_file(write(tmp_path / "p.jsonl", {"prompts": "x"}))
    assert caught.value.hint == "task.prompt_key=prompts"


def test_a_grader_needs_answers_in_every_row(tmp_path):
    path = write(tmp_path / "p.jsonl", {"prompt": "a", "answer": "1"}, {"prompt": "b"})
    with pytest.raises(UserError, match=r"1 of 2 rows have no `answer`, the first at .*p\.jsonl:2"):
        load_file(path, grader=Grader(type="exact"))


def test_without_grader_rollouts_stay_as_they_are(tmp_path):
    path = write(tmp_path / "p.jsonl", {"prompt": "a", "answer": "1"})
    with load_task(FileTask(path=path, eval_path=path)) as task:
        rollout = Rollout(task.train[0], (1,), "stop", text="1")
        assert not task.graded and task.grade([rollout]) == [rollout]
        assert task.evaluation == task.train


def test_loading_and_reading_files_needs_no_heavy_library(tmp_path):
    path = write(tmp_path / "p.jsonl", {"prompt": "a"})
    code = (
        "import sys; from types import SimpleNamespace as N; from pathlib import Path;"
        "from opdkit.tasks import load_task;"
        f"c = N(type='file', path=Path({str(path)!r}), eval_path=None, prompt_key='prompt',"
        "answer_key='answer', response_key='response',"
        "grader=N(type='none', timeout_seconds=1)); assert load_task(c).train;"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pydantic', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- generators -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain():
    pytest.importorskip("reasoning_gym")
    with load_task(GymTask(name="chain_sum", args=CHAIN, train_size=60, eval_size=20)) as task:
        yield task


def test_evaluation_is_held_out_whatever_the_order_of_operands(chain):
    train, held = ({tuple(sorted(p.text.split())) for p in side} for side in (chain.train, chain.evaluation))
    assert (len(train), len(held)) == (60, 20)
    assert not train & held
    assert len({p.id for p in chain.train + chain.evaluation}) == 80


def test_a_generator_is_a_function_of_its_seeds(chain):
    same = load_task(GymTask(name="chain_sum", args=CHAIN, train_size=30, eval_size=20))
    with same:
        assert same.evaluation == chain.evaluation  # whatever the size of the training set
        assert same.train == chain.train[:30]
    with load_task(GymTask(name="chain_sum", args=CHAIN, train_size=60, eval_size=20), base_seed=1) as other:
        assert {p.text for p in other.train} != {p.text for p in chain.train}


def test_an_index_names_one_item_in_every_process_and_order(monkeypatch):
    """isomorphic_strings iterates over sets of letters, whose order differs from process to process."""
    pytest.importorskip("reasoning_gym")
    made = []
    for hash_seed, order in (("1", range(12)), ("2", reversed(range(12)))):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        worker = Worker(gym_setup(GymTask(name="isomorphic_strings"), base_seed=0))
        replies = worker.ask([{"op": "make", "start": i, "count": 1} for i in order], timeout_seconds=60)
        worker.close()
        made.append({item["index"]: item["question"] for reply in replies for item in reply["items"]})
    assert len(made[0]) == 12 and made[0] == made[1]


def test_what_makes_two_questions_one():
    same = [("What is 3 + 5?", "what is  5 + 3?"), ("gcd of 780, 461.", "gcd of 461, 780.")]
    different = [
        ("3 + 5", "3 + 6"),
        ("3 + 5", "3 * 5"),
        ("1.5 + 2", "2.5 + 1"),
        ("[[0, 1]]", "[[1, 0]]"),
        ("ab", "ba"),
    ]
    assert all(question_key(a) == question_key(b) for a, b in same)
    assert all(question_key(a) != question_key(b) for a, b in different)


@pytest.mark.parametrize(
    ("options", "said", "hint"),
    [
        ({"name": "chain_sun"}, "no generator 'chain_sun'", "task.name=chain_sum"),
        ({"args": {"foo": 1}}, "task.args do not suit chain_sum: .*foo", "task.args"),
        ({"args": {"min_terms": 5, "max_terms": 2}}, "max_terms must be >= min_terms", "task.args"),
        ({"args": {"min_terms": "x"}}, "task.args do not suit", "task.args"),
        ({"args": {"seed": 3}}, "task.args.seed", "task.seed"),
        ({"extract": "(("}, "task.extract is no pattern", "task.extract"),
        ({"extract": "x"}, "task.extract has no group", "task.extract='(x)'"),
        (
            {"train_size": 5000},
            r"chain_sum gave \d+ distinct questions, 20 \+ 5000 are wanted",
            "task.train_size=",
        ),
        ({"train_size": 9, "eval_size": 5000}, r"chain_sum gave \d+ distinct", "task.eval_size="),
    ],
)
def test_what_a_generator_cannot_give(options, said, hint):
    pytest.importorskip("reasoning_gym")
    defaults = {"name": "chain_sum", "args": CHAIN, "train_size": 20, "eval_size": 20}
    with pytest.raises(UserError, match=said) as caught:
        load_task(GymTask(**(defaults | options)))
    assert hint in caught.value.hint


def test_the_hint_for_a_small_generator_works():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError) as caught:
        load_task(GymTask(name="chain_sum", args=CHAIN, train_size=5000, eval_size=20))
    size = int(caught.value.hint.partition("task.train_size=")[2].split(",")[0])
    with load_task(GymTask(name="chain_sum", args=CHAIN, train_size=size, eval_size=20)) as task:
        assert len(task.train) == size


# --- the walk ---------------------------------------------------------------------------------------------

PROMPTS = [Prompt(id=str(i)) for i in range(40)]


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40),
    count=st.integers(1, 90),
    seed=st.integers(-(2**40), 2**40),
    epochs=st.integers(1, 3),
)
def test_every_epoch_is_a_permutation(size, count, seed, epochs):
    prompts = PROMPTS[:size]
    steps = -(-size * epochs // count)
    walk = [p.id for step in range(steps) for p in step_prompts(prompts, step=step, seed=seed, count=count)]
    for epoch in range(epochs):
        assert sorted(walk[epoch * size : (epoch + 1) * size]) == sorted(p.id for p in prompts)


@settings(max_examples=40, deadline=None)
@given(step=st.integers(0, 10_000), count=st.integers(0, 50))
def test_a_step_does_not_depend_on_the_steps_before(step, count):
    import random

    alone = step_prompts(PROMPTS, step=step, seed=3, count=count)
    random.seed(step)
    for earlier in range(3):
        step_prompts(PROMPTS, step=earlier, seed=4, count=7)
    assert step_prompts(PROMPTS, step=step, seed=3, count=count) == alone
    assert len(alone) == count


def test_seeds_and_epochs_differ_and_the_order_is_pinned():
    def order(seed, step):
        return [int(p.id) for p in step_prompts(PROMPTS, step=step, seed=seed, count=40)]

    assert order(0, 0) != order(1, 0) and order(0, 0) != order(0, 1)
    assert order(0, 0)[:6] == PINNED  # a run made by an older release resumes with the same prompts


PINNED = [8, 39, 34, 21, 27, 24]


# --- templating -------------------------------------------------------------------------------------------


def bytes_tokenizer(*, template: str | None = TEMPLATE, adds: str = "$A") -> PreTrainedTokenizerFast:
    """One token per byte, and special ones; `adds` is what the tokenizer puts around a text."""
    specials = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(specials + alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(specials)
    inner.post_processor = processors.TemplateProcessing(
        single=adds, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def shown(prompts: list[Prompt], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [tokenizer.decode(p.ids) for p in prompts]


def cfg(**options: Any) -> FileTask:
    return FileTask(path=Path("unused"), **options)


HI = Prompt(id="a", text="hi")
OWN = Prompt(id="b", messages=({"role": "system", "content": "own"}, {"role": "user", "content": "hi"}))


@pytest.mark.parametrize(
    ("options", "context", "for_hi", "for_own"),
    [
        ({}, None, "<|user|>hi<|assistant|>", "<|system|>own<|user|>hi<|assistant|>"),
        ({"system": "s"}, None, "<|system|>s<|user|>hi<|assistant|>", "<|system|>own<|user|>hi<|assistant|>"),
        ({}, "c", "<|system|>c<|user|>hi<|assistant|>", "<|system|>c\n\nown<|user|>hi<|assistant|>"),
        (
            {"system": "s"},
            "c",
            "<|system|>c\n\ns<|user|>hi<|assistant|>",
            "<|system|>c\n\nown<|user|>hi<|assistant|>",
        ),
        (
            {"thinking": True},
            None,
            "<|user|>hi<|assistant|>think",
            "<|system|>own<|user|>hi<|assistant|>think",
        ),
        (
            {"thinking": False, "prefix": "So"},
            None,
            "<|user|>hi<|assistant|>plainSo",
            "<|system|>own<|user|>hi<|assistant|>plainSo",
        ),
    ],
)
def test_templating(options, context, for_hi, for_own):
    tokenizer = bytes_tokenizer(adds="<s> $A")  # which would put a second <s> before the template's
    texts = shown(encode([HI, OWN], tokenizer, cfg(**options), system=context), tokenizer)
    assert texts == ["<s>" + for_hi, "<s>" + for_own]


def test_plain_text_has_the_tokenizers_special_tokens_once():
    plain = cfg(chat_template=False, prefix="A:")
    for adds, text in (("<s> $A", "hi"), ("<s> $A", "<s>hi"), ("<s> $A </s>", "hi")):
        tokenizer = bytes_tokenizer(adds=adds)
        assert shown(encode([Prompt(id="a", text=text)], tokenizer, plain), tokenizer) == ["<s>hiA:"]


def test_what_cannot_be_templated():
    plain, refusing = cfg(chat_template=False), "{{ raise_exception('no such role') }}"
    for prompt, tokenizer, config, hint in (
        (HI, bytes_tokenizer(template=None), cfg(), "task.chat_template=false"),
        (OWN, bytes_tokenizer(), plain, "task.chat_template=true"),
        (HI, bytes_tokenizer(), cfg(chat_template=False, system="s"), "task.chat_template=true"),
        (HI, bytes_tokenizer(template=refusing), cfg(), "task.chat_template=false"),
    ):
        with pytest.raises(UserError) as caught:
            encode([prompt], tokenizer, config)
        assert hint in caught.value.hint


def test_encode_keeps_everything_else():
    (encoded,) = encode(
        [Prompt(id="a", text="hi", answer="1", group="g", extra={"index": 3})], bytes_tokenizer(), cfg()
    )
    assert (encoded.answer, encoded.group, encoded.extra, encoded.text) == ("1", "g", {"index": 3}, "hi")
    assert encode([], bytes_tokenizer(), cfg()) == []


def test_fit_separates_the_long_ones():
    short, long = Prompt(id="s", ids=(1,) * 5), Prompt(id="l", ids=(1,) * 6)
    assert fit([long, short], max_prompt_tokens=5) == ([short], [long])
    assert fit([], max_prompt_tokens=5) == ([], [])
    with pytest.raises(UserError, match="the shortest has 5 tokens, the context leaves 3") as caught:
        fit([long, short], max_prompt_tokens=3)
    assert "sampling.max_tokens by 2" in caught.value.hint

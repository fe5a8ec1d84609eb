"""The testbed's worlds: generators, styles, systematic errors, facts, verifiers, tokenizer."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opdkit.tasks import chain, lists
from opdkit.tasks.chain import ChainWorld
from opdkit.tasks.family import KINDS, stream
from opdkit.tasks.lists import ListWorld
from opdkit.tasks.word_tokenizer import word_tokenizer

WORLDS: dict[str, Any] = {"chain": ChainWorld(seed=3), "lists": ListWorld(seed=3)}
MODULES: dict[str, Any] = {"chain": chain, "lists": lists}
STYLES = [(name, style) for name, module in MODULES.items() for style in module.STYLES]
FAMILIES = pytest.mark.parametrize("family", sorted(WORLDS))
seeds = st.integers(0, 10**6)


def gold(family: str, problem: Any) -> tuple[int, ...]:
    """The right values as `write` takes them: of lists without the one asked for, which follows from them."""
    values = WORLDS[family].values(problem)
    return values[:-1] if family == "lists" else values


def written(family: str, problem: Any, values: Any, style: str, seed: int = 0) -> str:
    return WORLDS[family].write(problem, values, style=style, rng=stream("test", seed))


# --- verifiers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "style"), STYLES)
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_the_generators_own_answer_is_right_in_every_style(family: str, style: str, seed: int) -> None:
    world = WORLDS[family]
    for problem in world.problems(3, seed=seed):
        values = gold(family, problem)
        answer = written(family, problem, values, style, seed)
        for response in (answer, answer.rsplit(" ", 1)[0]):  # decoders drop end tokens
            check = world.check(problem, response)
            assert check.final and check.complete and check.style == style
            assert all(check.steps) and all(check.follows)
        place = world.problems(3, seed=seed).index(problem)
        assert str(world.values(problem)[-1]) == world.prompts(3, seed=seed)[place].answer
        assert len(answer.split()) <= world.max_tokens
        assert set(answer.split()) <= set(world.vocabulary)


@pytest.mark.parametrize(("family", "style"), STYLES)
@settings(max_examples=25, deadline=None)
@given(seed=seeds, data=st.data())
def test_any_changed_word_is_noticed(family: str, style: str, seed: int, data: st.DataObject) -> None:
    world = WORLDS[family]
    (problem,) = world.problems(1, seed=seed)
    words = written(family, problem, gold(family, problem), style, seed).split()
    place = data.draw(st.integers(0, len(words) - 1))
    words[place] = data.draw(st.sampled_from([w for w in world.vocabulary if w != words[place]]))
    check = world.check(problem, " ".join(words))
    if words[place] in MODULES[family].STYLES[style].joints and check.complete:
        return  # another joint in the place of a joint says the same
    assert not (check.complete and all(check.steps) and check.final)
    if place == len(words) - 2:
        assert not check.final


@pytest.mark.parametrize(("family", "style"), STYLES)
@settings(max_examples=25, deadline=None)
@given(seed=seeds, data=st.data())
def test_a_wrong_value_is_found_where_it_is(family: str, style: str, seed: int, data: st.DataObject) -> None:
    world = WORLDS[family]
    (problem,) = world.problems(1, seed=seed)
    values = list(gold(family, problem))
    alone = style == "asked"
    place = problem.asked if alone else data.draw(st.integers(0, len(values) - 1))
    values[place] = (values[place] + data.draw(st.integers(1, world.modulus - 1))) % world.modulus
    check = world.check(problem, written(family, problem, values, style, seed))
    assert check.complete
    assert check.steps == ((False,) if alone else tuple(i != place for i in range(len(values))))
    if family == "chain":  # what comes after follows from the wrong one
        assert check.follows[: place + 1] == (True,) * place + (False,)
        assert check.final == (place != len(values) - 1)
    else:  # nothing follows from it but the answer, if it is the one asked for
        assert check.follows == (*check.steps, True)
        assert check.final == (place != problem.asked)


def test_a_result_that_is_not_the_one_written_above_does_not_follow() -> None:
    world = WORLDS["lists"]
    (problem,) = world.problems(1, seed=0, lengths=(3,))
    words = written("lists", problem, gold("lists", problem), "steps").split()
    right = world.values(problem)[-1]
    words[-2] = str((right + 1) % world.modulus)
    check = world.check(problem, " ".join(words))
    assert all(check.steps) and not check.follows[-1] and not check.final


@FAMILIES
@pytest.mark.parametrize(
    "response",
    ["", " ", "answer", "so", "7", "answer answer 3", "so so", "run run", "٣", "answer 07", "so ²"],
)
def test_nonsense_is_wrong_and_raises_nothing(family: str, response: str) -> None:
    world = WORLDS[family]
    problem = next(p for p in world.problems(50, seed=0) if not {3, 7} & {*gold(family, p)})
    check = world.check(problem, response)
    assert not check.final and not check.complete and not any(check.steps)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_an_error_that_is_carried_on_is_found_once(seed: int) -> None:
    """Without slips, `follows` is false at most at the one wrong operand, `steps` from there on."""
    world = ChainWorld(slip_share=0.0)
    rng = stream("noise", seed)
    for problem in world.problems(5, seed=seed, kinds=(0, 1, 0)):
        values = world.noisy_results(problem, rng)
        check = world.check(problem, written("chain", problem, values, "steps"))
        at = next(i for i, operand in enumerate(problem.operands) if operand in world.operands.errors)
        made = not check.final
        assert check.complete
        assert check.follows == tuple(not made or i != at for i in range(len(values)))
        assert check.steps == tuple(not made or i < at for i in range(len(values)))


# --- what training texts say --------------------------------------------------------------------------------


@FAMILIES
def test_the_mode_is_wrong_for_wrong_operands_and_right_elsewhere(family: str) -> None:
    """Of the steps at a wrong operand, `wrong_share` are wrong; nearly all others are right."""
    world = WORLDS[family]
    modes: dict[str, Counter[bool]] = {kind: Counter() for kind in KINDS}
    for row in world.texts(3000, seed=1):
        problem = world.parse(row["prompt"])
        check = world.check(problem, row["response"])
        operands = problem.operands if family == "chain" else [o for _, o in problem.items]
        for operand, right in zip(operands, check.follows, strict=False):
            modes[world.operands.kind_of(operand)][right] += 1
    assert modes["wrong"][False] / modes["wrong"].total() == pytest.approx(world.wrong_share, abs=0.04)
    for kind in ("easy", "table"):
        assert modes[kind][False] / modes[kind].total() < 2 * world.slip_share


@FAMILIES
def test_a_wrong_operands_mode_is_the_shifted_value(family: str) -> None:
    operands = type(WORLDS[family])(slip_share=0.0, wrong_share=0.7).operands
    for operand, error in operands.errors.items():
        rng = stream("shift", operand)
        told = Counter(operands.misread(operand, 50, rng) for _ in range(400))
        true = 50 + operands.shifts[operand]
        assert [value for value, _ in told.most_common()] == [true + error, true]
    assert len(operands.errors) == operands.num_wrong and set(operands.errors.values()) == {-10, 10}


@FAMILIES
def test_tables_are_permutations_without_a_rule(family: str) -> None:
    world = WORLDS[family]
    tables = world.operands.tables
    assert len(tables) == world.num_tables
    for table in tables.values():
        assert sorted(table) == list(range(world.modulus))
        steps = Counter((b - a) % world.modulus for a, b in pairwise(table))
        assert steps.most_common(1)[0][1] < world.modulus / 3
    assert len(set(tables.values())) == world.num_tables


@FAMILIES
def test_every_fact_and_every_operand_is_in_the_texts(family: str) -> None:
    """What training texts do not hold cannot be asked of anyone: facts are not held out, chains are."""
    world = type(WORLDS[family])(num_tables=2)
    tables = world.operands.tables
    seen: set[tuple[str, int]] = set()
    for problem in world.problems(4000, seed=0, kinds=(0, 0, 1)):
        if family == "chain":
            pairs = list(zip(problem.operands, (problem.start, *world.values(problem)), strict=False))
        else:
            pairs = [(operand, value) for value, operand in problem.items]
        seen |= {(o, v) for o, v in pairs if o in tables}
    assert len(seen) > 0.9 * world.num_tables * world.modulus


# --- problems and prompts -----------------------------------------------------------------------------------


@FAMILIES
@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_a_prompt_says_all_there_is(family: str, seed: int) -> None:
    world = WORLDS[family]
    for problem in world.problems(5, seed=seed, template=seed % 3):
        assert world.parse(world.prompt(problem)) == problem
        assert set(world.prompt(problem).split()) <= set(world.vocabulary)


@FAMILIES
@pytest.mark.parametrize(
    "text",
    [
        "",
        "read number",
        "read number 97 then +3 then . then . then . please =>",
        "read number 5 then x3 then . then . then . please =>",
        "list 45 +3 12 -7 . . . . name",
        "list 45 +3 12 -7 . . . . name third =>",
        "list 97 +3 12 -7 . . . . name last =>",
        "list . . . . . . . . name last =>",
        "list 45 +3 . . 12 -7 . . name last =>",
        "list 45 x3 12 -7 . . . . name first =>",
    ],
)
def test_what_is_no_prompt_is_refused(family: str, text: str) -> None:
    with pytest.raises(ValueError):
        WORLDS[family].parse(text)


@FAMILIES
@settings(max_examples=10, deadline=None)
@given(one=seeds, other=seeds)
def test_held_out_prompts_are_disjoint(family: str, one: int, other: int) -> None:
    """In any wording: the problem is on one side, not its text."""
    world = WORLDS[family]

    def asked(held_out: bool, seed: int) -> set[Any]:
        problems = world.problems(300, seed=seed, held_out=held_out)
        return {replace(p, template=0) for p in problems}

    assert not asked(True, one) & asked(False, other)


@FAMILIES
def test_a_world_is_a_function_of_its_seed(family: str) -> None:
    make = type(WORLDS[family])
    assert make(seed=5).texts(50, seed=1) == make(seed=5).texts(50, seed=1)
    assert make(seed=5).prompts(50, seed=1) == make(seed=5).prompts(50, seed=1)
    assert make(seed=5).texts(50, seed=1) != make(seed=5).texts(50, seed=2)
    assert make(seed=5).operands.tables != make(seed=6).operands.tables
    assert make(seed=5).vocabulary == make(seed=6).vocabulary, "models of two worlds share a tokenizer"


def test_worlds_stay_what_they_are() -> None:
    """Models that were trained in a world are shipped: its facts must never change."""
    world = ChainWorld()
    assert dict(world.operands.errors) == {"+8": -10, "+5": 10, "+9": -10}
    assert world.operands.tables["t0"][:8] == (22, 96, 52, 93, 6, 71, 9, 95)
    assert world.texts(1, seed=0)[0] == {
        "prompt": "read number 64 then +7 then -9 then +8 then . please =>",
        "response": "run making 71 so 62 yields 60 answer 60 <done>",
        "kind": "wrong",
        "style": "steps",
    }


@FAMILIES
def test_kinds_and_depth_are_dials(family: str) -> None:
    world = WORLDS[family]
    shares = Counter(p.kind for p in world.problems(2000, seed=0))
    assert [shares[k] / 2000 for k in KINDS] == pytest.approx(world.kinds, abs=0.05)
    assert {p.kind for p in world.problems(50, seed=0, kinds=(0, 0, 1))} == {"table"}
    assert len({p.id for p in world.prompts(100, seed=0)}) == 100
    for problem in world.problems(50, seed=0, lengths=(3,)):
        assert len(problem.operands if family == "chain" else problem.items) == 3


# --- tokenizer ----------------------------------------------------------------------------------------------


@FAMILIES
def test_tokenizer_round_trip(family: str) -> None:
    world = WORLDS[family]
    tokenizer = word_tokenizer(world.vocabulary, ends=world.ends)
    assert tokenizer.get_vocab() == {word: i for i, word in enumerate(world.vocabulary)}
    for row in world.texts(20, seed=0, style="other"):
        text = f"{row['prompt']} {row['response']}"
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split()) and tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.rsplit(" ", 1)[0]
    assert tokenizer("surely nonsense")["input_ids"][-1] == tokenizer.unk_token_id
    assert tokenizer.eos_token == world.ends[0] and set(world.ends) <= set(tokenizer.all_special_tokens)


def test_tokenizer_as_a_folder(tmp_path: Any) -> None:
    from transformers import AutoTokenizer

    world = WORLDS["chain"]
    tokenizer = word_tokenizer(world.vocabulary, ends=world.ends, end="<stop>")
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    row = world.texts(1, seed=0, style="echo")[0]
    assert again(row["prompt"])["input_ids"] == tokenizer(row["prompt"])["input_ids"]
    assert again.eos_token == "<stop>" and again.get_vocab() == tokenizer.get_vocab()
    assert again.decode(again(row["response"])["input_ids"]) == row["response"]


@FAMILIES
def test_a_family_has_enough_words_for_a_top_16(family: str) -> None:
    """At 20 words an overlap of 16 is chance."""
    world, styles = WORLDS[family], MODULES[family].STYLES
    assert len(world.vocabulary) >= 130
    assert len(styles) >= 3 and len({how.end for how in styles.values()}) == len(styles) == len(world.ends)
    words = [{how.mark, how.answer, how.end, *how.joints} for how in styles.values()]
    assert sum(map(len, words)) == len(set().union(*words)), "styles share no word of their own"

"""The testbed's worlds: generators, styles, systematic errors, facts, verifiers, tokenizer."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opdkit.tasks import chain, igsm
from opdkit.tasks.chain import ChainWorld, stream
from opdkit.tasks.chain_tokenizer import word_tokenizer
from opdkit.tasks.igsm import IgsmWorld

WORLDS = {"chain": ChainWorld(seed=3), "igsm": IgsmWorld(seed=3)}
STYLES = [(name, style) for name, module in (("chain", chain), ("igsm", igsm)) for style in module.STYLES]
FAMILIES = pytest.mark.parametrize("family", sorted(WORLDS))
seeds = st.integers(0, 10**6)


def gold(family: str, problem: Any, style: str) -> tuple[int, ...]:
    return WORLDS[family].values(problem, **({"style": style} if family == "igsm" else {}))


def written(family: str, problem: Any, values: Any, style: str, seed: int = 0) -> str:
    extra = {"rng": stream("test", seed)} if family == "chain" else {}
    return WORLDS[family].write(problem, values, style=style, **extra)


# --- verifiers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "style"), STYLES)
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_the_generators_own_answer_is_right_in_every_style(family: str, style: str, seed: int) -> None:
    world = WORLDS[family]
    for problem in world.problems(3, seed=seed):
        values = gold(family, problem, style)
        answer = written(family, problem, values, style, seed)
        for response in (answer, answer.rsplit(" ", 1)[0]):  # decoders drop end tokens
            check = world.check(problem, response)
            assert check.final and check.complete and check.style == style
            assert check.steps == check.follows == (True,) * len(values)
        assert (
            str(values[-1]) == world.prompts(3, seed=seed)[world.problems(3, seed=seed).index(problem)].answer
        )
        assert len(answer.split()) <= world.max_tokens
        assert set(answer.split()) <= set(world.vocabulary)


@pytest.mark.parametrize(("family", "style"), STYLES)
@settings(max_examples=25, deadline=None)
@given(seed=seeds, data=st.data())
def test_any_changed_word_is_noticed(family: str, style: str, seed: int, data: st.DataObject) -> None:
    world = WORLDS[family]
    (problem,) = world.problems(1, seed=seed)
    words = written(family, problem, gold(family, problem, style), style, seed).split()
    place = data.draw(st.integers(0, len(words) - 1))
    words[place] = data.draw(st.sampled_from([w for w in world.vocabulary if w != words[place]]))
    check = world.check(problem, " ".join(words))
    if family == "chain" and words[place] in chain.STYLES[style].joints and check.complete:
        return  # another joint in the place of a joint says the same
    assert not (check.complete and all(check.steps))
    if place == len(words) - 2:
        assert not check.final


@pytest.mark.parametrize(("family", "style"), STYLES)
@settings(max_examples=25, deadline=None)
@given(seed=seeds, data=st.data())
def test_a_wrong_value_is_found_where_it_is(family: str, style: str, seed: int, data: st.DataObject) -> None:
    world = WORLDS[family]
    (problem,) = world.problems(1, seed=seed)
    values = list(gold(family, problem, style))
    place = data.draw(st.integers(0, len(values) - 1))
    values[place] = (values[place] + data.draw(st.integers(1, world.modulus - 1))) % world.modulus
    check = world.check(problem, written(family, problem, values, style, seed))
    assert check.complete
    assert check.steps == tuple(i != place for i in range(len(values)))
    assert check.follows[: place + 1] == (True,) * place + (False,)
    assert check.final == (place != len(values) - 1)


@FAMILIES
@pytest.mark.parametrize(
    "response",
    ["", " ", "answer", "so", "7", "answer answer 3", "so so", "run run", "٣", "answer 07", "so ²"],
)
def test_nonsense_is_wrong_and_raises_nothing(family: str, response: str) -> None:
    world = WORLDS[family]
    style = "steps" if family == "chain" else "needed"
    problem = next(p for p in world.problems(50, seed=0) if not {3, 7} & {*gold(family, p, style)})
    check = world.check(problem, response)
    assert not check.final and not check.complete and not any(check.steps)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_an_error_that_is_carried_on_is_found_once(seed: int) -> None:
    """Without slips, `follows` is false at most at the one wrong operand, `steps` from there on."""
    world = ChainWorld(slip_share=0.0)
    rng = stream("noise", seed)
    for problem in world.problems(5, seed=seed, kinds=(0, 1, 0)):
        values = world.noisy_values(problem, rng)
        check = world.check(problem, written("chain", problem, values, "steps"))
        at = next(i for i, operand in enumerate(problem.operands) if operand in world.errors)
        made = not check.final
        assert check.complete
        assert check.follows == tuple(not made or i != at for i in range(len(values)))
        assert check.steps == tuple(not made or i < at for i in range(len(values)))


# --- what training texts say --------------------------------------------------------------------------------


@FAMILIES
def test_the_mode_is_wrong_for_wrong_operands_and_right_elsewhere(family: str) -> None:
    """Of the steps at a wrong operand, `wrong_share` are wrong; nearly all others are right."""
    world = WORLDS[family]
    style = "steps" if family == "chain" else "needed"
    modes: dict[str, Counter[bool]] = {kind: Counter() for kind in chain.KINDS}
    rng = stream("mode test")
    for problem in world.problems(3000, seed=1):
        check = world.check(problem, written(family, problem, world.noisy_values(problem, rng), style))
        for kind, right in zip(_kinds_of_steps(world, problem), check.follows, strict=True):
            modes[kind][right] += 1
    assert modes["wrong"][False] / modes["wrong"].total() == pytest.approx(world.wrong_share, abs=0.04)
    for kind in ("easy", "table"):
        assert modes[kind][False] / modes[kind].total() < 2 * world.slip_share


def _kinds_of_steps(world: Any, problem: Any) -> list[str]:
    if isinstance(world, ChainWorld):
        return [world.kind_of(operand) for operand in problem.operands]
    return [world._kind_of(problem.by_name[name].words[0]) for name in problem.needed]


def test_a_wrong_operands_mode_is_the_shifted_value() -> None:
    world = ChainWorld(slip_share=0.0)
    for operand, error in world.errors.items():
        problem = chain.Problem(50, (operand,), "wrong")
        rng = stream("shift", operand)
        told = Counter(world.noisy_values(problem, rng)[0] for _ in range(400))
        true = 50 + world.shifts[operand]
        assert [value for value, _ in told.most_common()] == [true + error, true]
    assert len(world.errors) == world.num_wrong and set(world.errors.values()) == {-10, 10}


@FAMILIES
def test_tables_are_permutations_without_a_rule(family: str) -> None:
    world = WORLDS[family]
    assert len(world.tables) == world.num_tables
    for table in world.tables.values():
        assert sorted(table) == list(range(world.modulus))
        steps = Counter((b - a) % world.modulus for a, b in pairwise(table))
        assert steps.most_common(1)[0][1] < world.modulus / 3
    assert len(set(world.tables.values())) == world.num_tables


@FAMILIES
def test_every_fact_and_every_operand_is_in_the_texts(family: str) -> None:
    """What training texts do not hold cannot be asked of anyone: facts are not held out, chains are."""
    world = ChainWorld(num_tables=2) if family == "chain" else IgsmWorld(num_tables=2)
    seen: set[tuple[str, int]] = set()
    for problem in world.problems(4000, seed=0, kinds=(0, 0, 1)):
        if isinstance(world, ChainWorld):
            before = (problem.start, *world.values(problem))
            seen |= {(o, v) for o, v in zip(problem.operands, before) if o in world.tables}
        else:
            known = dict(zip(problem.needed, world.values(problem), strict=True))
            seen |= {(s.words[0], known[s.uses[0]]) for s in problem.statements if s.words[0] in world.tables}
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
        "where a is b + a and b is 2 find a =>",
        "where a is 2 and a is 3 find a =>",
        "where a is 2 find b =>",
        "where a is + + + find a =>",
        "where a is 2 and find a =>",
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
        if family == "chain":
            return {(p.start, p.operands) for p in problems}
        return {(frozenset(p.statements), p.asked) for p in problems}

    assert not asked(True, one) & asked(False, other)


@FAMILIES
def test_a_world_is_a_function_of_its_seed(family: str) -> None:
    make = type(WORLDS[family])
    assert make(seed=5).texts(50, seed=1) == make(seed=5).texts(50, seed=1)
    assert make(seed=5).prompts(50, seed=1) == make(seed=5).prompts(50, seed=1)
    assert make(seed=5).texts(50, seed=1) != make(seed=5).texts(50, seed=2)
    assert make(seed=5).tables != make(seed=6).tables
    assert make(seed=5).vocabulary == make(seed=6).vocabulary, "models of two worlds share a tokenizer"


def test_worlds_stay_what_they_are() -> None:
    """Models that were trained in a world are shipped: its facts must never change."""
    world = ChainWorld()
    assert dict(world.errors) == {"+8": -10, "+5": 10, "+9": -10}
    assert world.tables["t0"][:8] == (22, 96, 52, 93, 6, 71, 9, 95)
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
    assert [shares[k] / 2000 for k in chain.KINDS] == pytest.approx(world.kinds, abs=0.05)
    assert {p.kind for p in world.problems(50, seed=0, kinds=(0, 0, 1))} == {"table"}
    assert len({p.id for p in world.prompts(100, seed=0)}) == 100
    dial = "depth" if family == "chain" else "operations"
    for problem in world.problems(50, seed=0, **{dial: (3, 3)}):
        operations = problem.operands if family == "chain" else [s for s in problem.statements if s.uses]
        assert len(operations) == 3


# --- tokenizer ----------------------------------------------------------------------------------------------


@FAMILIES
def test_tokenizer_round_trip(family: str) -> None:
    world = WORLDS[family]
    tokenizer = word_tokenizer(world.vocabulary, ends=world.ends)
    assert tokenizer.get_vocab() == {word: i for i, word in enumerate(world.vocabulary)}
    style = "steps" if family == "chain" else "plan"
    for row in world.texts(20, seed=0, style=style):
        text = f"{row['prompt']} {row['response']}"
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split()) and tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.rsplit(" ", 1)[0]
    assert tokenizer("read nonsense")["input_ids"][-1] == tokenizer.unk_token_id
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


def test_the_chain_has_enough_words_for_a_top_16() -> None:
    """At 20 words an overlap of 16 is chance."""
    world = WORLDS["chain"]
    assert len(world.vocabulary) >= 130
    assert len(chain.STYLES) >= 3 and len({how.end for how in chain.STYLES.values()}) == len(chain.STYLES)
    words = [{how.mark, how.answer, how.end, *how.joints} for how in chain.STYLES.values()]
    assert sum(map(len, words)) == len(set().union(*words)), "styles share no word of their own"

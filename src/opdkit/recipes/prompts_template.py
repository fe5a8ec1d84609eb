"""Which wrapper should the prompts have? The same questions under each candidate, the student's rollouts, both models' opinion.

    candidates → the same prompts in each → rollouts → read → differences, paired by prompt → the rule

The rule: the wrapper under which the teacher gives most probability to the tokens both rank highest, if that is `prompts.gain`
more than with prompts as they are, its interval lies above 0, and the student is not right less often (interval below 0).
The interval's level is 1 − .05 / candidates, so that many candidates do not make one win by chance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from opdkit.config import Config, LocalTeacher
from opdkit.config.prompts import NAMED, PLACE
from opdkit.recipes.probe import Number, Piece, Row, numbers
from opdkit.recipes.prompts_bench import Bench, Say
from opdkit.tasks.prompt_rows import question, rewritten
from opdkit.tasks.wrappers import wrapped
from opdkit.types import Prompt, UserError

DECIDES = "overlap_mass_teacher_before_end"
SHOWN = (
    *(
        "overlap_ratio",
        DECIDES,
        "overlap_mass_student",
        "entropy_teacher",
        "entropy_student",
        "top1_agreement",
    ),
    *("reverse_kl", "first_token_agreement", "accuracy", "truncated_fraction", "response_length"),
)
"""`entropy_teacher` on the student's rollouts is the teacher's confidence: low where it is sure."""
MOST_FOUND = 4
DRAWS = 4000
"""Resamples: the interval of a tenth candidate ends at the 11th of them."""
_PLACES = re.compile(r"\{\{?\s*(?:question|problem|prompt|instruction|input|query)\s*\}?\}", re.IGNORECASE)
_BOXED = re.compile(r"put your final answer within \\+boxed\{", re.IGNORECASE)
_QUOTED = re.compile(r"\"([^\"\n]*)\"|'([^'\n]*)'|`([^`\n]*)`")


@dataclass(frozen=True)
class Wrapper:
    """`text` with `{question}`, "" for prompts as they are; whose chat template writes them; where it was found."""

    name: str
    text: str
    render: str
    source: str

    def around(self, prompt: Prompt) -> Prompt:
        if not self.text:
            return prompt
        value = rewritten(prompt, self.text.replace(PLACE, question(prompt)))
        return (
            replace(prompt, text=value) if isinstance(value, str) else replace(prompt, messages=tuple(value))
        )


@dataclass(frozen=True)
class Tried:
    """One candidate: every number of the probe, what changes against prompts as they are, what it looks like."""

    wrapper: Wrapper
    numbers: Mapping[str, Number]
    gains: Mapping[str, Number]
    example: str

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self.wrapper),
            "example": self.example,
            "numbers": {n: asdict(self.numbers[n]) for n in SHOWN if n in self.numbers},
            "gains": {n: asdict(self.gains[n]) for n in SHOWN if n in self.gains},
        }


@dataclass(frozen=True)
class Choice:
    """What was tried, the first as it is, and which one is taken."""

    tried: tuple[Tried, ...]
    chosen: Wrapper
    reason: str
    refused: tuple[str, ...] = ()


# --- candidates -------------------------------------------------------------------------------------------------


def candidates(config: Config) -> list[Wrapper]:
    """Prompts as they are, then every wrapper, in the template of the config and in the teacher's own."""
    render = config.task.render
    texts = {"as it is": ("", "the task"), **_given(config), **_of_the_card(config)}
    found = [Wrapper(name, text, render, source) for name, (text, source) in texts.items()]
    if render == "student" and config.task.chat_template:
        found += [
            Wrapper(
                f"{w.name}, teacher's template", w.text, "teacher", f"{w.source}, the teacher's chat template"
            )
            for w in found
        ]
    return found


def _given(config: Config) -> dict[str, tuple[str, str]]:
    names = list(config.prompts.wrappers)
    maths = config.task.type == "math" or (config.task.type == "file" and config.task.grader.type == "math")
    told = {name: "prompts.wrappers" for name in names}
    told |= {name: "the paper's, for mathematics" for name in NAMED if maths and name not in names}
    return {
        name if name in NAMED else f"given {i}": (wrapped(PLACE, name) if name in NAMED else name, source)
        for i, (name, source) in enumerate(told.items(), start=1)
    }


def _of_the_card(config: Config) -> dict[str, tuple[str, str]]:
    if not isinstance(config.teacher, LocalTeacher):
        return {}
    path = _card(config.teacher)
    if path is None:
        return {}
    texts = found_in(path.read_text(encoding="utf-8", errors="replace"))
    return {f"model card {i}": (text, f"{path.name} of the teacher") for i, text in enumerate(texts, start=1)}


def _card(teacher: LocalTeacher) -> Path | None:
    """README.md of the teacher's folder, or of its Hub repository where that is in the cache; nothing is fetched."""
    folder = Path(teacher.model)
    if folder.is_dir():
        return next((p for p in (folder / "README.md", folder / "model_card.md") if p.is_file()), None)
    from huggingface_hub import try_to_load_from_cache

    try:
        place = try_to_load_from_cache(teacher.model, "README.md", revision=teacher.revision)
    except ValueError:  # no name of a repository
        return None
    return Path(place) if isinstance(place, str) else None


def found_in(card: str) -> list[str]:
    r"""Wrappers that a model card names: what stands in quotes or on a line around {question}, {problem}, …; the boxed phrase.

    >>> found_in('Ask it with `Q: {problem} Let\'s think.` or so.')
    ["Q: {question} Let's think."]
    >>> found_in("We put your final answer within \\boxed{} in every prompt.") == [wrapped("{question}", "boxed")]
    True
    """
    texts = list(dict.fromkeys(_around_a_place(card)))
    if _BOXED.search(card):
        texts.append(wrapped(PLACE, "boxed"))
    return list(dict.fromkeys(texts))[:MOST_FOUND]


def _around_a_place(card: str) -> Iterator[str]:
    for line in card.splitlines():
        if not _PLACES.search(line):
            continue
        quoted = [next(g for g in m.groups() if g is not None) for m in _QUOTED.finditer(line)]
        # an apostrophe inside a code span is no quote: the longest that holds the place is what is meant
        quoted += re.findall(r"`([^`\n]*)`", line)
        holding = [text for text in quoted if _PLACES.search(text)]
        text = max(holding, key=len) if holding else line.strip().lstrip(">*-# ").strip()
        if len(_PLACES.findall(text)) == 1 and text.strip() != _PLACES.search(text).group():  # type: ignore[union-attr]
            plain = _PLACES.sub(lambda _: "\0", text)
            plain = plain.replace("{{", "{").replace("}}", "}").replace("\\n", "\n").replace("\\\\", "\\")
            yield plain.replace("\0", PLACE)


# --- trying them -------------------------------------------------------------------------------------------------


def choose_wrapper(bench: Bench, prompts: Sequence[Prompt], *, say: Say) -> Choice | None:
    """The wrapper to take; None where there is only one way to write these prompts."""
    cfg = bench.config.prompts
    ways, refused = _ways(bench, candidates(bench.config), prompts[: cfg.probe])
    if len(ways) < 2:
        return None
    tried_on = len(ways[0][1])
    tokens = len(ways) * tried_on * cfg.probe_responses * bench.config.sampling.max_tokens
    say(
        f"templates: {len(ways)} candidates × {tried_on} prompts × {cfg.probe_responses} responses, at most {tokens:,} tokens"
    )
    level = 1 - 0.05 / (len(ways) - 1)
    tried: list[Tried] = []
    base = Piece()
    for wrapper, encoded in ways:
        piece = bench.read(bench.rollouts(encoded, responses=cfg.probe_responses))
        told = numbers(piece, vocabulary=bench.rows, seed=bench.config.seed)
        base = base if tried else piece
        gains = {} if not tried else paired(base, piece, names=SHOWN, level=level, seed=bench.config.seed)
        tried.append(Tried(wrapper, told, gains, bench.plan("student").tokenizer.decode(encoded[0].ids)))
    chosen, reason = decide(tried, gain=cfg.gain)
    return Choice(tuple(tried), chosen, reason, tuple(refused))


def _ways(
    bench: Bench, wrappers: Sequence[Wrapper], prompts: Sequence[Prompt]
) -> tuple[list[tuple[Wrapper, list[Prompt]]], list[str]]:
    """Candidates whose ids differ from those before, on prompts that all of them leave room for; what was refused, and why."""
    ways: dict[tuple[tuple[int, ...], ...], tuple[Wrapper, list[Prompt]]] = {}
    refused = []
    for wrapper in wrappers:
        try:
            encoded = bench.encoded([wrapper.around(p) for p in prompts], render=wrapper.render)
        except UserError as error:
            if not ways:
                raise  # prompts as they are cannot be read: no template is to blame
            refused.append(f"{wrapper.name}: {error}")
            continue
        ways.setdefault(tuple(p.ids for p in encoded), (wrapper, encoded))
    fit = set.intersection(*({p.id for p in encoded} for _, encoded in ways.values()))
    if not fit:
        return [], [*refused, "no prompt leaves room for a response under every candidate"]
    return [(w, [p for p in encoded if p.id in fit]) for w, encoded in ways.values()], refused


def decide(tried: Sequence[Tried], *, gain: float) -> tuple[Wrapper, str]:
    """The rule above, and why in a sentence."""
    first = tried[0]
    if DECIDES not in first.numbers:
        return (
            first.wrapper,
            "the student's responses end with their first token, so there is nothing to compare",
        )

    def eligible(it: Tried) -> bool:
        mass, right = it.gains.get(DECIDES), it.gains.get("accuracy")
        rises = mass is not None and mass.value >= gain and mass.low is not None and mass.low > 0
        worse = right is not None and right.high is not None and right.high < 0
        return rises and not worse

    good = [it for it in tried[1:] if eligible(it)]
    if not good:
        return first.wrapper, (
            f"no wrapper raises the teacher's probability on shared tokens by {gain:g} with its interval above 0 "
            f"(as it is: {first.numbers[DECIDES].value:.3f}), so prompts stay as they are"
        )
    best = max(good, key=lambda it: it.gains[DECIDES].value)
    rise = best.gains[DECIDES]
    return best.wrapper, (
        f"{best.wrapper.name}: the teacher's probability on shared tokens rises from {first.numbers[DECIDES].value:.3f} to "
        f"{best.numbers[DECIDES].value:.3f}, by {rise.value:.3f} [{rise.low:.3f}, {rise.high:.3f}]"
    )


def paired(
    before: Piece, after: Piece, *, names: Sequence[str], level: float, seed: int
) -> dict[str, Number]:
    """after − before of means, with intervals from prompts drawn with replacement, the same ones on both sides."""
    ids = list(dict.fromkeys(row.prompt for piece in (before, after) for row in piece.rows))
    place = {name: i for i, name in enumerate(ids)}
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = generator.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=DRAWS)
    found = {}
    for name in names:
        sides = [_sums(piece, name, place) for piece in (before, after)]
        if any(side[:, 1].sum() == 0 for side in sides):
            continue
        value = _ratio(sides[1].sum(0)) - _ratio(sides[0].sum(0))
        again = [drawn @ side for side in sides]
        kept = (again[0][:, 1] > 0) & (again[1][:, 1] > 0)
        differences = (again[1][:, 0] / np.maximum(again[1][:, 1], 1e-12)) - (
            again[0][:, 0] / np.maximum(again[0][:, 1], 1e-12)
        )
        low, high = np.quantile(differences[kept], [(1 - level) / 2, (1 + level) / 2])
        found[name] = Number(float(value), round(sides[1][:, 1].sum()), float(low), float(high))
    return found


_OF_RESPONSES: Mapping[str, Callable[[Row], float | None]] = {
    "accuracy": lambda row: row.score,
    "response_length": lambda row: float(row.length),
    "truncated_fraction": lambda row: None if row.truncated is None else float(row.truncated),
}


def _sums(piece: Piece, name: str, place: Mapping[str, int]) -> np.ndarray:
    """[prompts, 2]: sum and count of a metric."""
    sums = np.zeros((len(place), 2))
    of = _OF_RESPONSES.get(name)
    for row in piece.rows:
        if of is None:
            sums[place[row.prompt]] += row.sums.get(name, (0.0, 0.0))
        elif (value := of(row)) is not None:
            sums[place[row.prompt]] += (value, 1.0)
    return sums


def _ratio(pair: np.ndarray) -> float:
    return float(pair[0] / pair[1])

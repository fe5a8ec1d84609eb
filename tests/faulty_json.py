"""What can be wrong in vLLM's JSON: its choices, their positions, a position's entries. See `faulty`.

A function gets the reply's choices (the known sequence's last), an earlier reply's, and a generator; it changes them in place.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Choices = list[dict[str, Any]]
Damage = Callable[[Choices, Choices, random.Random], None]
VOCABULARY = 384  # of the tests' tokenizer
PROMPT = 4  # response tokens begin after these, at the earliest


def _json(damage: Damage) -> Callable[[bytes, bytes, bytes, random.Random], bytes]:
    def change(reply: bytes, request: bytes, earlier: bytes, draw: random.Random) -> bytes:
        said = json.loads(reply)
        damage(said["choices"], json.loads(earlier)["choices"], draw)
        return json.dumps(said).encode()

    return change


def _row(choices: Choices, draw: random.Random) -> list[Any]:
    """The positions of one rollout, not of the known sequence."""
    return draw.choice(choices[:-1])["prompt_logprobs"]


def _entries(choices: Choices, draw: random.Random) -> dict[str, Any]:
    """One position of a response, near its end: there is one."""
    return draw.choice(_row(choices, draw)[-4:])


def _value(value: float) -> Damage:
    def damage(choices: Choices, _: Choices, draw: random.Random) -> None:
        entries = _entries(choices, draw)
        best = [e for e in entries.values() if e["rank"] <= 8]
        draw.choice(best)["logprob"] = value

    return damage


def _rollout_missing(choices: Choices, _: Choices, draw: random.Random) -> None:
    choices.pop(draw.randrange(len(choices)))


def _rollout_twice(choices: Choices, _: Choices, draw: random.Random) -> None:
    """One index comes twice, and the second one is another's."""
    one, other = draw.sample(choices[:-1], 2)
    choices.append({**other, "index": one["index"]})


def _positions_missing(choices: Choices, _: Choices, draw: random.Random) -> None:
    row = _row(choices, draw)
    del row[draw.choice([1, len(row) - 1])]


def _positions_extra(choices: Choices, _: Choices, draw: random.Random) -> None:
    row = _row(choices, draw)
    at = draw.randrange(1, len(row))
    row.insert(at, row[at])


def _positions_empty(choices: Choices, _: Choices, draw: random.Random) -> None:
    row = _row(choices, draw)
    row[draw.randrange(PROMPT, len(row))] = draw.choice([None, {}, [], "nan", 0])


def _entry_missing(choices: Choices, _: Choices, draw: random.Random) -> None:
    """One of the most probable; where the token taken is not among them, as many are left as were asked for."""
    entries = _entries(choices, draw)
    entries.pop(draw.choice([i for i, e in entries.items() if e["rank"] <= 8]))


def _shifted(choices: Choices, _: Choices, draw: random.Random) -> None:
    by, some = draw.choice([-1, 1]), draw.choice([choices, [draw.choice(choices[:-1])]])
    for choice in some:
        row = choice["prompt_logprobs"]
        row[1:] = [*row[2:], row[-1]] if by > 0 else [row[1], *row[1:-1]]


def _foreign_ids(choices: Choices, _: Choices, draw: random.Random) -> None:
    """One id beyond the vocabulary, or all of them moved on by one."""
    if draw.random() < 0.5:
        entries = _entries(choices, draw)
        best = next(i for i, e in entries.items() if e["rank"] == 1)
        entries[draw.choice(["-1", "384", str(10**30)])] = entries.pop(best)
        return
    for choice in choices:
        row = choice["prompt_logprobs"]
        row[1:] = [{str((int(i) + 1) % VOCABULARY): e for i, e in p.items()} for p in row[1:]]


def _order(choices: Choices, _: Choices, draw: random.Random) -> None:
    """Log-probs stand at other ranks than their own, all along one rollout."""
    for entries in _row(choices, draw)[1:]:
        logps = [e["logprob"] for e in entries.values()]
        for e, logp in zip(entries.values(), logps[1:] + logps[:1], strict=True):
            e["logprob"] = logp


def _ranks(choices: Choices, _: Choices, draw: random.Random) -> None:
    """Counted from 0, or not said."""
    change = draw.choice([lambda rank: rank - 1, lambda rank: None, lambda rank: rank + 1])
    for entries in _row(choices, draw)[1:]:
        for e in entries.values():
            e["rank"] = change(e["rank"])


def _swapped(choices: Choices, _: Choices, draw: random.Random) -> None:
    """Two rollouts of one length answer for each other: in everything, or in the numbers."""
    one, other = draw.sample(choices[:-1], 2)
    name = draw.choice(["index", "prompt_logprobs"])
    one[name], other[name] = other[name], one[name]


def _replayed(choices: Choices, earlier: Choices, draw: random.Random) -> None:
    """What was said of other rollouts; every second time the server says it read these."""
    echoed = [choice["prompt_token_ids"] for choice in choices]
    choices[:] = earlier
    if draw.random() < 0.5:
        for choice, ids in zip(choices, echoed, strict=False):
            choice["prompt_token_ids"] = ids


def _other_tokens(choices: Choices, _: Choices, draw: random.Random) -> None:
    draw.choice(choices)["prompt_token_ids"][0] += 1


def _everywhere(change: Callable[[float, float], float], *amounts: float) -> Damage:
    """All log-probs of the reply, by one of some amounts."""

    def damage(choices: Choices, _: Choices, draw: random.Random) -> None:
        amount = draw.choice(amounts)
        for choice in choices:
            for entries in choice["prompt_logprobs"][1:]:
                for e in entries.values():
                    e["logprob"] = change(e["logprob"], amount)

    return damage


def _above_one(choices: Choices, _: Choices, draw: random.Random) -> None:
    for e in _entries(choices, draw).values():
        e["logprob"] = -0.7


def _not_numbers(choices: Choices, _: Choices, draw: random.Random) -> None:
    e = draw.choice(list(_entries(choices, draw).values()))
    e["logprob"] = draw.choice([None, "nan", "", [], {}, "likely"])


def _twice(reply: bytes, request: bytes, earlier: bytes, draw: random.Random) -> bytes:
    """One token has two entries of a position: written alike (JSON readers keep the last), or not."""
    said = json.loads(reply)
    entries = _entries(said["choices"], draw)
    one, other = draw.sample([i for i, e in entries.items() if e["rank"] <= 8], 2)
    entries["@"] = entries.pop(other)
    return json.dumps(said).replace('"@"', f'"{draw.choice(["", "0"])}{one}"').encode()


def _as_it_is(reply: bytes, request: bytes, earlier: bytes, draw: random.Random) -> bytes:
    """The reply of another model, which the proxy asked."""
    return reply


KINDS: dict[str, Callable[[bytes, bytes, bytes, random.Random], bytes]] = {
    "twice": _twice,
    "other_model": _as_it_is,
} | {
    name: _json(damage)
    for name, damage in {
        "rollout_missing": _rollout_missing,
        "rollout_twice": _rollout_twice,
        "positions_missing": _positions_missing,
        "positions_extra": _positions_extra,
        "positions_empty": _positions_empty,
        "entry_missing": _entry_missing,
        "nan": _value(float("nan")),
        "plus_inf": _value(float("inf")),
        "minus_inf": _value(float("-inf")),
        "positive": _value(0.5),
        "shifted": _shifted,
        "foreign_ids": _foreign_ids,
        "order": _order,
        "ranks": _ranks,
        "swapped": _swapped,
        "replayed": _replayed,
        "other_tokens": _other_tokens,
        "other_temperature": _everywhere(lambda p, by: p * by, 0.9, 0.5),
        "offset": _everywhere(lambda p, by: p + by, -1.0, -0.1, -1e-3, 1e-3, 0.1),
        "overflow": _everywhere(lambda p, by: p * by, 1e308, 1e305),
        "above_one": _above_one,
        "not_numbers": _not_numbers,
    }.items()
}

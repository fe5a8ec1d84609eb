"""What can be wrong in a frame of `opd serve` (opdkit/engines/wire.py): its header, its arrays. See `faulty`.

A function gets the reply's header and arrays, what was asked, and a generator; it changes them in place. Letters: N response
positions of a request, the known sequence's last; S slots, K top-k width.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from opdkit.engines.wire import pack, unpack

LOGPS = ("sampled", "topk_logp", "at_logp")
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Asked:
    """The request of a reply, and an earlier reply."""

    lengths: list[int]  # response positions of each rollout, the known sequence last
    header: dict[str, Any]
    earlier: bytes

    def rows(self, draw: random.Random, count: int = 1) -> list[slice]:
        """`count` rollouts, none of them the known sequence."""
        chosen = draw.sample(range(len(self.lengths) - 1), count)
        return [slice(sum(self.lengths[:i]), sum(self.lengths[: i + 1])) for i in chosen]

    def some(self, draw: random.Random) -> list[slice]:
        """One rollout, or all of them and the known sequence."""
        if draw.random() < 0.5:
            return self.rows(draw)
        return [slice(sum(self.lengths[:i]), sum(self.lengths[: i + 1])) for i in range(len(self.lengths))]


Damage = Callable[[dict[str, Any], Arrays, Asked, random.Random], None]


def _framed(damage: Damage) -> Callable[[bytes, bytes, bytes, random.Random], bytes]:
    def change(reply: bytes, request: bytes, earlier: bytes, draw: random.Random) -> bytes:
        header, arrays = unpack(reply)
        asked_header, asked = unpack(request)
        arrays = {name: array.copy() for name, array in arrays.items()}
        damage(header, arrays, Asked(asked["response_lengths"].tolist(), asked_header, earlier), draw)
        return pack(header, arrays)

    return change


def _flipped(reply: bytes, request: bytes, earlier: bytes, draw: random.Random) -> bytes:
    """One bit of the bytes, anywhere."""
    at = draw.randrange(len(reply))
    return reply[:at] + bytes([reply[at] ^ 1 << draw.randrange(8)]) + reply[at + 1 :]


def _flipped_number(reply: bytes, request: bytes, earlier: bytes, draw: random.Random) -> bytes:
    """A low bit of one number: a log-prob like any other."""
    at = len(reply) - 4 - 4 * draw.randrange(1, 100)  # little endian: the first byte is the lowest
    return reply[:at] + bytes([reply[at] ^ 4]) + reply[at + 1 :]


def _value(value: float) -> Damage:
    """In one place of one array."""

    def damage(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
        array = arrays[draw.choice(LOGPS)].reshape(sum(asked.lengths), -1)
        (rows,) = asked.rows(draw)
        array[draw.randrange(rows.start, rows.stop), draw.randrange(array.shape[1])] = value

    return damage


def _rollout_missing(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    (rows,) = asked.rows(draw)
    for name in arrays:
        arrays[name] = np.delete(arrays[name], np.r_[rows], axis=0)


def _positions_missing(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    names = draw.choice([list(arrays), [draw.choice(list(arrays))]])
    for name in names:
        arrays[name] = arrays[name][: -draw.randrange(1, 8)]


def _positions_extra(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    for name in arrays:
        arrays[name] = np.concatenate([arrays[name], arrays[name][: draw.randrange(1, 8)]])


def _slots_missing(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    name = draw.choice(["at_logp", "topk_logp", "topk_ids"])
    arrays[name] = arrays[name][:, : -draw.randrange(1, 4)]


def _array_missing(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    arrays.pop(draw.choice([*LOGPS, "topk_ids", "entropy"]))


def _unasked(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    """Hidden states beside the log-probs, which a learner with a head would prefer."""
    name = draw.choice(["hidden", "logits"])
    arrays[name] = np.ones((sum(asked.lengths), 32), dtype=np.float32)


def _shifted(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    by = draw.choice([-1, 1])
    for rows in asked.some(draw):
        for array in arrays.values():
            array[rows] = np.roll(array[rows], by, axis=0)


def _shifted_candidates(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    """Of the numbers that train only."""
    by = draw.choice([-1, 1])
    for rows in asked.some(draw):
        arrays["at_logp"][rows] = np.roll(arrays["at_logp"][rows], by, axis=0)


def _foreign_ids(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    """One id beyond the vocabulary, or all of them moved on by some."""
    ids, rows = arrays["topk_ids"], asked.header["rows"]
    if draw.random() < 0.5:
        ids[draw.randrange(len(ids)), 0] = draw.choice([-1, rows, rows + draw.randrange(10**6)])
    else:
        ids += 1
        ids[ids == rows] = 0


def _order(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    """Log-probs at the candidates come in another order than the candidates were sent in."""
    turn = draw.choice([lambda a: a[:, ::-1], lambda a: np.roll(a, 1, axis=1), lambda a: np.sort(a)])
    for rows in asked.some(draw):
        arrays["at_logp"][rows] = turn(arrays["at_logp"][rows].copy())


def _swapped(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    """Two rollouts of one length answer for each other: in everything, or in what trains."""
    one, other = asked.rows(draw, 2)
    for name in draw.choice([list(arrays), ["at_logp"]]):
        arrays[name][one], arrays[name][other] = arrays[name][other].copy(), arrays[name][one].copy()


def _replayed(reply: bytes, request: bytes, earlier: bytes, draw: random.Random) -> bytes:
    """What was said of other rollouts; every second time under this request's number."""
    if draw.random() < 0.5:
        return earlier
    header, arrays = unpack(earlier)
    return pack(header | {"request": unpack(reply)[0]["request"]}, arrays)


def _header(name: str, value: Callable[[Any, random.Random], Any]) -> Damage:
    def damage(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
        header[name] = value(header[name], draw)

    return damage


def _tempered(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    """Said, or done and not said."""
    if draw.random() < 0.5:
        header["temperature"] = draw.choice([0.7, 2.0])
        return
    for name in LOGPS:
        arrays[name] *= np.float32(0.9)


def _above_one(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    """Every candidate of one position is as likely as not."""
    arrays[draw.choice(["at_logp", "topk_logp"])][draw.randrange(sum(asked.lengths))] = np.log(0.5)


def _twice(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    row = draw.randrange(sum(asked.lengths))
    one, other = draw.sample(range(arrays["topk_ids"].shape[1]), 2)
    arrays["topk_ids"][row, one] = arrays["topk_ids"][row, other]


def _overflow(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    """Through float16 and back: beyond 65504 there is nothing."""
    (rows,) = asked.rows(draw)
    some = arrays[draw.choice(LOGPS)]
    with np.errstate(over="ignore"):
        some[rows] = (some[rows] * 1e5).astype(np.float16)


def _retyped(kind: type) -> Damage:
    def damage(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
        name = draw.choice(LOGPS)
        arrays[name] = arrays[name].astype(kind)

    return damage


def _offset(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    """All log-probs off by one constant: sums that were not normalised."""
    by = draw.choice([-1, 1]) * draw.choice([1e-3, 0.1, 1.0])
    for name in LOGPS:
        arrays[name] += np.float32(by)


def _other_model(header: dict[str, Any], arrays: Arrays, asked: Asked, draw: random.Random) -> None:
    """From this request on another model answers, and every second time under the first one's name."""
    if draw.random() < 0.5:
        header["weights"] = unpack(asked.earlier)[0]["weights"]


KINDS: dict[str, Callable[[bytes, bytes, bytes, random.Random], bytes]] = {
    "flipped_bit": _flipped,
    "flipped_number": _flipped_number,
    "replayed": _replayed,
} | {
    name: _framed(damage)
    for name, damage in {
        "rollout_missing": _rollout_missing,
        "positions_missing": _positions_missing,
        "positions_extra": _positions_extra,
        "slots_missing": _slots_missing,
        "array_missing": _array_missing,
        "unasked": _unasked,
        "nan": _value(float("nan")),
        "plus_inf": _value(float("inf")),
        "minus_inf": _value(float("-inf")),
        "positive": _value(0.5),
        "shifted": _shifted,
        "shifted_candidates": _shifted_candidates,
        "foreign_ids": _foreign_ids,
        "order": _order,
        "swapped": _swapped,
        "other_number": _header("request", lambda n, draw: n + draw.choice([-1, 1])),
        "other_fingerprint": _header("fingerprint", lambda text, _: text[::-1]),
        "other_weights": _header("weights", lambda text, draw: draw.choice([text[::-1], "", None])),
        "other_rows": _header("rows", lambda n, draw: n + draw.choice([-1, 8])),
        "other_temperature": _tempered,
        "above_one": _above_one,
        "twice": _twice,
        "overflow": _overflow,
        "integers": _retyped(np.int32),
        "half": _retyped(np.float16),
        "offset": _offset,
        "other_model": _other_model,
    }.items()
}

"""What a served teacher must show before a number of it trains: repeats itself, is not shifted, divides by the temperature
asked for, and, where the same model is at hand, says what that one says.

The shift test needs no model: the distribution at a position depends on the tokens before it and on nothing else. Changing
the token *at* a position must leave what is said there as it was (else the server answers one row late), changing the token
*before* it must not (else one row early).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from opdkit.config import ServerTeacher
from opdkit.engines.client import Endpoint, EngineError, before_the_run
from opdkit.engines.dialects import Facts
from opdkit.engines.served import Sentinel, ServedTeacher, sentinel_rollout
from opdkit.engines.wire import FrameError, unpack
from opdkit.models.head import Head
from opdkit.models.teacher import LocalTeacher
from opdkit.types import Finding, Needs, Rollout, Scores, UserError

NOISE, HALF_NOISE = 1e-3, 0.3
"""Nats by which a server may differ from itself; half precision on a busy GPU gets more."""
FLOOR = 1e-4
"""Least tolerance of the sentinel: log-probs near -10 in float32, summed in another order."""


def start(
    cfg: ServerTeacher, facts: Facts, *, endpoint: Endpoint, rows: int, local: LocalTeacher | None = None
) -> tuple[ServedTeacher, Finding]:
    """The teacher, probed. UserError where it fails; the finding tells what was seen."""
    with before_the_run():
        head = fetch_head(endpoint, rows=rows) if cfg.payload == "hidden" else None
        teacher = ServedTeacher(
            endpoint,
            facts,
            rows=rows,
            temperature=cfg.temperature,
            values=cfg.values,
            batch_tokens=cfg.batch_tokens,
            head=head,
        )
        numbers = probe(teacher, local=local)
    return teacher, _told(facts, numbers)


def probe(teacher: ServedTeacher, *, local: LocalTeacher | None = None) -> dict[str, float]:
    """Numbers of the probe; sets the teacher's sentinel. Raises UserError, or EngineError from asking."""
    needs = Needs(
        sampled=True,
        top_k=min(5, teacher.offers.top_k, teacher.rows),
        entropy=teacher.offers.entropy,
        full=False,
    )
    numbers = {"noise": _noise(teacher, needs), "top_k_cap": float(teacher.facts.max_top_k)}
    _refuse_shift(teacher, needs, noise=numbers["noise"])
    if teacher.facts.tempered:
        numbers["temperature_error"] = _temperature(teacher)
    if local is not None:
        numbers["against_local"] = _against(teacher, local, needs)
    known = sentinel_rollout(teacher.rows)
    said = teacher.score([known], needs=needs)[0]
    if teacher.offers.full:
        said = replace(said, hidden=teacher.score([known], needs=Needs(full=True))[0].hidden)
    teacher.sentinel = Sentinel(known, said, tolerance=max(FLOOR, 20 * numbers["noise"], 2 * teacher.slack))
    return numbers


def _noise_allowed(teacher: ServedTeacher) -> float:
    return NOISE if teacher.facts.dtype in ("float32", "float64") else HALF_NOISE


def fetch_head(endpoint: Endpoint, *, rows: int) -> Head:
    """The served model's output head, for hidden states: once per run. Raises EngineError."""
    try:
        header, arrays = unpack(endpoint.one("/head"))
        weight = torch.from_numpy(arrays["weight"].copy())
        output = torch.nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in arrays, device="meta")
        tensors = {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}
        output.load_state_dict(tensors, assign=True)
        output.requires_grad_(False)
        return Head(output, rows=rows, scale=float(header["scale"]), softcap=header["softcap"])
    except (FrameError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise EngineError(f"{endpoint.url}/head sent no head: {error}", hint="teacher.payload=ids") from None


def _noise(teacher: ServedTeacher, needs: Needs) -> float:
    """Largest difference of one sequence's numbers, alone, repeated, and among others in another order."""
    known = sentinel_rollout(teacher.rows)
    others = [_changed(known, at, by=1 + at) for at in (5, 7, 9)]
    alone, again = (teacher.score([known], needs=needs)[0] for _ in range(2))
    among = teacher.score([*others, known], needs=needs)[-1]
    first = teacher.score([known, *others], needs=needs)[0]
    noise = max(_apart(alone, other) for other in (again, among, first))
    most = _noise_allowed(teacher)
    if not noise <= most:
        raise UserError(
            f"{teacher.facts.url} does not repeat itself: {noise:.3g} nats apart on one sequence, at most {most:g}",
            hint="serve it with --dtype float32, or look for two replicas that differ",
        )
    return noise


def _refuse_shift(teacher: ServedTeacher, needs: Needs, *, noise: float) -> None:
    known = sentinel_rollout(teacher.rows)
    prompt, last = len(known.prompt.ids), known.length - 1
    at, before = (_changed(known, prompt + i, by=1) for i in (last, last - 1))
    said, at_said, before_said = (_row(s, last) for s in teacher.score([known, at, before], needs=needs))
    late, early = (float((said - other).abs().max()) for other in (at_said, before_said))
    bound = max(10 * noise, 1e-4, 2 * teacher.slack)
    if late > bound:
        raise UserError(
            f"{teacher.facts.url} answers one position late: what it says of a token changes with that token ({late:.3g} nats)",
            hint="its log-probs cannot be used; serve the model with: opd serve MODEL",
        )
    if early <= 2 * noise + 1e-6:
        raise UserError(
            f"{teacher.facts.url} answers one position early: what it says does not change with the token before",
            hint="its log-probs cannot be used; serve the model with: opd serve MODEL",
        )


def _temperature(teacher: ServedTeacher) -> float:
    """|Δlog p at 1 − 2 Δlog p at 2| over pairs of tokens: 0 where logits are divided by the temperature."""
    known = sentinel_rollout(teacher.rows)
    ids = torch.arange(min(4, teacher.rows)).expand(known.length, -1)
    spreads = []
    for temperature in (1.0, 2.0):
        asked = ServedTeacher(teacher.endpoint, teacher.facts, rows=teacher.rows, temperature=temperature)
        at = asked.score([known], needs=Needs(at_ids=True), ids=[ids])[0].at_logp
        assert at is not None
        spreads.append(temperature * (at - at[:, :1]))
    error = float((spreads[0] - spreads[1]).abs().max())
    if not error <= max(1e-2, float(spreads[0].abs().max()) * 1e-2):
        raise UserError(
            f"{teacher.facts.url} does not divide logits by the temperature asked for (off by {error:.3g} nats)",
            hint="teacher.temperature=1",
        )
    return error


def _against(teacher: ServedTeacher, local: LocalTeacher, needs: Needs) -> float:
    """Largest difference between served and local log-probs of the tokens taken, on the sequences of the probe."""
    known = sentinel_rollout(teacher.rows)
    rows = [known, _changed(known, 6, by=3)]
    asked = Needs(sampled=True, top_k=needs.top_k)
    apart = 0.0
    for served, own in zip(teacher.score(rows, needs=asked), local.score(rows, needs=asked), strict=True):
        assert served.sampled is not None and own.sampled is not None
        apart = max(apart, float((served.sampled - own.sampled.float().cpu()).abs().max()))
    most = _noise_allowed(teacher) + teacher.slack
    if not apart <= most:
        raise UserError(
            f"{teacher.facts.url} and teacher.against differ by {apart:.3g} nats, at most {most:g}: another model is served",
            hint="serve the model that teacher.against names",
        )
    return apart


def _changed(rollout: Rollout, position: int, *, by: int) -> Rollout:
    """The same sequence with another token at `position`, counted from the prompt's first."""
    ids = [*rollout.prompt.ids, *rollout.response_ids]
    ids[position] = (ids[position] + by) % (max(ids) + 1)
    count = len(rollout.prompt.ids)
    return replace(
        rollout, prompt=replace(rollout.prompt, ids=tuple(ids[:count])), response_ids=tuple(ids[count:])
    )


def _row(scores: Scores, position: int) -> Tensor:
    """Log-probs of the most probable tokens at one position."""
    assert scores.topk_logp is not None
    return scores.topk_logp[position]


def _apart(one: Scores, other: Scores) -> float:
    pairs: Sequence[tuple[Tensor | None, Tensor | None]] = [
        (one.sampled, other.sampled),
        (one.topk_logp, other.topk_logp),
        (one.entropy, other.entropy),
    ]
    return max(float((a - b).abs().max()) for a, b in pairs if a is not None and b is not None)


def _told(facts: Facts, numbers: dict[str, float]) -> Finding:
    parts = [f"repeats itself within {numbers['noise']:.2g} nats", "positions are its own"]
    if "temperature_error" in numbers:
        parts.append("divides by the temperature")
    else:
        parts.append("at temperature 1")
    if "against_local" in numbers:
        parts.append(f"local log-probs within {numbers['against_local']:.2g}")
    who = "opd serve" if facts.api == "opd" else "vLLM"
    return Finding(
        name="teacher_probe",
        severity="info",
        message=f"teacher served by {who} at {facts.url}: {', '.join(parts)}",
        numbers=numbers,
        source="opdkit/engines/probe.py",
    )

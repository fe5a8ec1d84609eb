"""What every objective states, a second time: loops and autograd over explicit probabilities in float64.

p is the student, q the teacher, S the support, y the sampled token; a bar means renormalised over S. Nothing of
`opdkit.objectives` or `opdkit.support` is used here, so that an agreement says something. It is slow and meant
for vocabularies of a few tokens. What it has no loop for it refuses with `NotCovered`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from pydantic import BaseModel
from torch import Tensor

from opdkit.config import ObjectiveConfig

KNOWN = {
    *(
        "preset",
        "support",
        "k",
        "mass",
        "divergence",
        "skew",
        "beta",
        "normalisation",
        "estimator",
        "weights",
    ),
    *("shaping", "shaping_value", "baseline", "forward_gate", "gate_k", "gate_entropy"),
    *("target", "target_scale", "anchor", "merge_ends", "mask_special", "signal"),
}
"""Keys whose effect on one position is written out below, or that have none there: a signal couples positions
(proofs/signals.py), and special tokens are ids that a tokenizer gives, of which a proof has none."""


class NotCovered(Exception):
    """An objective that these loops know nothing of; the message names what is unknown."""


def unknown(spec: BaseModel, prefix: str = "") -> list[str]:
    """Keys that are set to something and have no loop here, as `key = value`; those of nested tables by their path."""
    found = []
    for name, field in type(spec).model_fields.items():
        value, path = getattr(spec, name), prefix + name
        if path in KNOWN or value == field.get_default(call_default_factory=True):
            continue
        found += unknown(value, f"{path}.") if isinstance(value, BaseModel) else [f"{path} = {value}"]
    return found


def beyond(spec: ObjectiveConfig) -> list[str]:
    """What two models at one position do not show of an objective: unknown keys, further models, one end token, a signal other
    than a window. Their own proofs are `proofs.objectives` and `proofs.signals`."""
    signal = spec.signal.model_copy(update={"window": 0})
    more = [f"{name} needed" for name in spec.others] + (["merge_ends"] if spec.merge_ends else [])
    coupled = [f"signal.{key}" for key in unknown(signal)]
    return [*unknown(spec), *more, *coupled]


# --- one token ----------------------------------------------------------------------------------------------


def term(divergence: str, beta: float, p: Tensor, q: Tensor) -> Tensor:
    """g(p, q) of one token, from probabilities; `beta` is the divergence's own number, β or α."""
    if divergence == "reverse_kl":
        return p * (p / q).log()
    if divergence == "forward_kl":
        return q * (q / p).log()
    if divergence == "skewed_reverse_kl":
        return p * (p / ((1 - beta) * q + beta * p)).log()
    m = beta * q + (1 - beta) * p
    if divergence == "skewed_forward_kl":
        return q * (q / m).log()
    if divergence == "js":
        return beta * q * (q / m).log() + (1 - beta) * p * (p / m).log()
    raise NotCovered(f"divergence = {divergence}")


def advantage(divergence: str, beta: float, p: float, q: float) -> float:
    """−∂g/∂p up to a constant, as numbers."""
    if divergence == "reverse_kl":
        return math.log(q) - math.log(p)
    if divergence == "forward_kl":
        return q / p
    if divergence == "skewed_reverse_kl":
        m = (1 - beta) * q + beta * p
        return math.log(m) - math.log(p) + beta * p / m
    if divergence == "skewed_forward_kl":
        return (1 - beta) * q / (beta * q + (1 - beta) * p)
    if divergence == "js":
        return (1 - beta) * (math.log(beta * q + (1 - beta) * p) - math.log(p))
    raise NotCovered(f"divergence = {divergence}")


def number(spec: ObjectiveConfig) -> float:
    """α of a skewed divergence, β of the others."""
    return spec.skew if spec.divergence.startswith("skewed") else spec.beta


def reshaped(name: str, value: float | None, p: float, q: float) -> float:
    """The advantage log q − log p of one token under a shaping; unset values are the authors'."""
    A = math.log(q) - math.log(p)
    if name == "log":
        return math.copysign(math.log(1 + abs(A)), A)
    if name == "clip":
        bound = 5.0 if value is None else value
        return min(max(A, -bound), bound)
    if name == "power":
        exponent = 5.0 if value is None else value
        return q**exponent - p**exponent
    if name == "floor":
        share = 0.17 if value is None else value
        return max(A, math.log(share / (1 - share)))
    raise NotCovered(f"shaping = {name}")


def gained(spec: ObjectiveConfig, p: float, q: float) -> float:
    """The advantage that a candidate is pushed by."""
    if spec.shaping != "none":
        return reshaped(spec.shaping, spec.shaping_value, p, q)
    return advantage(spec.divergence, number(spec), p, q)


# --- the support --------------------------------------------------------------------------------------------


def likeliest(row: Tensor, k: int) -> list[int]:
    return sorted(range(len(row)), key=lambda v: -float(row[v]))[:k]


def candidates(spec: ObjectiveConfig, p: Tensor, q: Tensor, y: int) -> list[int]:
    ours, theirs = likeliest(p, spec.k), likeliest(q, spec.k)
    sets: dict[str, Callable[[], list[int]]] = {
        "sampled": lambda: [y],
        "student_top_k": lambda: ours,
        "teacher_top_k": lambda: theirs,
        "overlap": lambda: [v for v in theirs if v in ours],
        "union": lambda: ours + [v for v in theirs if v not in ours],
        "symmetric_difference": lambda: [v for v in ours + theirs if (v in ours) != (v in theirs)],
        "student_mass": lambda: fewest(p, ours, spec.mass),
        "full": lambda: list(range(len(p))),
    }
    if spec.support not in sets:
        raise NotCovered(f"support = {spec.support}")
    return sets[spec.support]()


def fewest(p: Tensor, falling: list[int], mass: float) -> list[int]:
    """The shortest beginning of `falling` that holds `mass`; all of it where it does not."""
    for count in range(1, len(falling) + 1):
        if sum(float(p[v]) for v in falling[:count]) >= mass:
            return falling[:count]
    return falling


# --- one position -------------------------------------------------------------------------------------------


def coarse(spec: ObjectiveConfig, p: Tensor, q: Tensor, S: list[int]) -> tuple[Tensor, Tensor]:
    """The divergence of the two distributions over S and one token more, which is all the rest, if there is any."""
    pairs = [(p[v], q[v]) for v in S]
    if rest := [v for v in range(len(p)) if v not in S]:
        pairs.append((_sum([p[v] for v in rest], p), _sum([q[v] for v in rest], q)))
    terms = [term(spec.divergence, number(spec), a, b) for a, b in pairs]
    value = _sum(terms, p)
    if spec.estimator == "exact" or spec.shaping == "none":
        return value, value  # over a whole distribution the constant that an advantage leaves out cancels
    gains = [gained(spec, float(a.detach()), float(b)) for a, b in pairs]
    pushed = [-float(a.detach()) * gain * a.log() for (a, _), gain in zip(pairs, gains, strict=True)]
    return value, _sum(pushed, p)


def with_the_sampled(
    spec: ObjectiveConfig, p: Tensor, q: Tensor, S: list[int], y: int
) -> tuple[Tensor, Tensor]:
    """S weighed by p, and y beside it with weight 1 where S does not hold it."""
    pushed, value, fixed = torch.zeros((), dtype=p.dtype), torch.zeros((), dtype=p.dtype), p.detach()
    for v, weight in [(v, float(fixed[v])) for v in S] + ([] if y in S else [(y, 1.0)]):
        pushed = pushed - weight * gained(spec, float(fixed[v]), float(q[v])) * p[v].log()
        value = value + weight * term(spec.divergence, number(spec), fixed[v], q[v]) / float(fixed[v])
    return value, pushed


def one_token(spec: ObjectiveConfig, p: Tensor, q: Tensor, y: int) -> tuple[Tensor, Tensor]:
    """log p(y) − log q(y); pushed by its negative, shaped, and by the baseline."""
    mine, theirs = float(p[y].detach()), float(q[y])
    value = math.log(mine) - math.log(theirs)
    gain = gained(spec, mine, theirs) + baseline(spec, p.detach(), q)
    return torch.tensor(value, dtype=p.dtype), -gain * p[y].log()


def baseline(spec: ObjectiveConfig, p: Tensor, q: Tensor) -> float:
    """Σ p log(p/q), over the vocabulary or the student's likeliest k."""
    if spec.baseline == "none":
        return 0.0
    if spec.baseline not in ("kl", "kl_top_k"):
        raise NotCovered(f"baseline = {spec.baseline}")
    tokens = range(len(p)) if spec.baseline == "kl" else likeliest(p, spec.k)
    return sum(float(p[v]) * math.log(float(p[v]) / float(q[v])) for v in tokens)


def gate(spec: ObjectiveConfig, p: Tensor, q: Tensor) -> Tensor:
    """α Σ q̄ (log q̄ − log p) over the teacher's likeliest where its entropy is above the threshold, else 0."""
    if not -sum(float(b) * math.log(float(b)) for b in q) > spec.gate_entropy:
        return 0.0 * p.sum()
    S = likeliest(q, spec.gate_k)
    total = sum(float(q[v]) for v in S)
    shares = [float(q[v]) / total for v in S]
    terms = [share * (math.log(share) - p[v].log()) for share, v in zip(shares, S, strict=True)]
    return spec.forward_gate * _sum(terms, p)


def oracle_row(spec: ObjectiveConfig, p: Tensor, q: Tensor, S: list[int], y: int) -> tuple[Tensor, Tensor]:
    """(value, the scalar whose autograd is the stated gradient) of one position, from probabilities."""
    if spec.normalisation == "tail_sampled":
        return with_the_sampled(spec, p, q, S, y)
    if not S:
        return torch.zeros((), dtype=p.dtype), 0.0 * p.sum()
    if spec.normalisation == "tail_bucket":
        return coarse(spec, p, q, S)
    if spec.normalisation not in ("none", "weights", "both"):
        raise NotCovered(f"normalisation = {spec.normalisation}")
    if spec.support == "sampled":
        return one_token(spec, p, q, y)
    P, Q = _sum([p[v] for v in S], p), _sum([q[v] for v in S], q)
    both = spec.normalisation == "both"
    p_S = [p[v] / P if both else p[v] for v in S]
    q_S = [q[v] / Q if both else q[v] for v in S]
    value = _sum([term(spec.divergence, number(spec), a, b) for a, b in zip(p_S, q_S, strict=True)], p)
    if spec.normalisation == "weights":
        value = value / P
    if spec.estimator == "exact":
        return value, value
    return _scored(spec, value, p_S, q_S)


def _scored(
    spec: ObjectiveConfig, value: Tensor, p_S: list[Tensor], q_S: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """−Σ w·advantage·log p with w and advantage as numbers."""
    if spec.estimator != "score_function":
        raise NotCovered(f"estimator = {spec.estimator}")
    kinds = {"student": p_S, "teacher": q_S, "uniform": [torch.ones_like(a) for a in p_S]}
    if spec.weights not in kinds:
        raise NotCovered(f"weights = {spec.weights}")
    raw = [float(w.detach()) for w in kinds[spec.weights]]
    total = 1.0 if spec.normalisation == "none" else sum(raw)
    numbers = [(float(a.detach()), float(b)) for a, b in zip(p_S, q_S, strict=True)]
    gains = [gained(spec, a, b) for a, b in numbers]
    terms = [-w / total * A * a.log() for w, A, a in zip(raw, gains, p_S, strict=True)]
    if spec.weights != "student":
        ratios = [math.log(b) - math.log(a) for a, b in numbers]
        value = value.new_tensor(-sum(w / total * r for w, r in zip(raw, ratios, strict=True)))
    return value, _sum(terms, value)


def _sum(terms: list[Tensor], like: Tensor) -> Tensor:
    total = torch.zeros((), dtype=like.dtype)
    for each in terms:
        total = total + each
    return total


# --- the target, and end tokens that are one -----------------------------------------------------------------------------


def aimed(spec: ObjectiveConfig, p: Tensor, q: Tensor, others: Mapping[str, Tensor]) -> Tensor:
    """Probabilities of whom p is compared with, from those of the models; numbers, whatever p is."""
    raw = unscaled(spec, p, q, others)
    return raw / raw.sum()


def unscaled(spec: ObjectiveConfig, p: Tensor, q: Tensor, others: Mapping[str, Tensor]) -> Tensor:
    """The same up to the factor that makes them sum to 1: what is known of it at one token."""
    p = p.detach()
    if spec.target == "teacher":
        return q
    scale = spec.target_scale or {"extrapolated": 1.25}.get(spec.target, 1.0)
    made = {
        "extrapolated": lambda: q**scale / others["reference"] ** (scale - 1.0),
        "difference": lambda: others["start"] * (q / others["reference"]) ** scale,
        "bridge": lambda: q * p**scale,
        "sign_flipped": lambda: p * p / q,
    }
    if spec.target not in made:
        raise NotCovered(f"target = {spec.target}")
    return made[spec.target]()


def as_one(p: Tensor, ends: tuple[int, ...]) -> Tensor:
    """Probabilities with one entry for all ends, where the first of them was; the others' are left out.

    >>> [round(x, 2) for x in as_one(torch.tensor([0.1, 0.2, 0.3, 0.4]), (1, 3)).tolist()]
    [0.1, 0.6, 0.3]
    """
    if len(ends) < 2:
        return p
    together = p[list(ends)].sum()
    return torch.stack([together if v == ends[0] else p[v] for v in range(len(p)) if v not in ends[1:]])


def renamed(y: int, ends: tuple[int, ...]) -> int:
    """The token's number among those that are left."""
    y = ends[0] if y in ends[1:] else y
    return y - sum(v < y for v in ends[1:])


# --- rows ---------------------------------------------------------------------------------------------------


def oracle(
    spec: ObjectiveConfig,
    student: Tensor,
    teacher: Tensor,
    sampled: Tensor,
    keep: Tensor | None = None,
    others: Mapping[str, Tensor] | None = None,
    ends: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Value [N] and gradient [N, V] with respect to the student's logits, position by position.

    `keep` [N, S] says which of the candidates, in the order they are listed, count; `others`: logits of further models.
    """
    if missing := unknown(spec):
        raise NotCovered(", ".join(missing))
    values, gradients = [], []
    for n in range(len(student)):
        z = student[n].clone().requires_grad_()
        p, q, more = _probabilities(spec, z, teacher, others or {}, ends, n)
        y = renamed(int(sampled[n]), ends)
        S = candidates(spec, p.detach(), q, y)
        if keep is not None:
            S = [v for v, kept in zip(S, keep[n].tolist(), strict=True) if kept]
        value, pushed = oracle_row(spec, p, q, S, y)
        if spec.anchor:
            also, anchored = oracle_row(spec, p, more["start"], S, y)
            value, pushed = value + spec.anchor * also, pushed + spec.anchor * anchored
        if spec.forward_gate:
            extra = gate(spec, p, q)
            value, pushed = value + extra, pushed + extra
        values.append(value.detach().double())
        gradients.append(torch.autograd.grad(pushed, z)[0])
    return torch.stack(values), torch.stack(gradients)


def _probabilities(
    spec: ObjectiveConfig,
    z: Tensor,
    teacher: Tensor,
    others: Mapping[str, Tensor],
    ends: tuple[int, ...],
    n: int,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """p, the target's, and the other models' at position n, all of them with one end token."""
    p, q = as_one(z.exp() / z.exp().sum(), ends), as_one(teacher[n].exp() / teacher[n].exp().sum(), ends)
    more = {name: as_one(w[n].exp() / w[n].exp().sum(), ends) for name, w in others.items()}
    return p, aimed(spec, p, q, more), more


def target(
    spec: ObjectiveConfig,
    student: Tensor,
    teacher: Tensor,
    others: Mapping[str, Tensor] | None = None,
    ends: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
    """The divergence over the whole vocabulary and its gradient: what an unbiased objective is unbiased for.

    At fixed prefixes; with a gate or an anchor, the sum of both.
    """
    values, gradients = [], []
    for n, z_row in enumerate(student):
        z = z_row.clone().requires_grad_()
        p, q, more = _probabilities(spec, z, teacher, others or {}, ends, n)
        value = term(spec.divergence, number(spec), p, q).sum()
        if spec.anchor:
            value = value + spec.anchor * term(spec.divergence, number(spec), p, more["start"]).sum()
        if spec.forward_gate:
            value = value + gate(spec, p, q)
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, z)[0])
    return torch.stack(values), torch.stack(gradients)


TARGETS = {
    "reverse_kl": "KL(p‖q)",
    "forward_kl": "KL(q‖p)",
    "js": "JS(q, p)",
    "skewed_reverse_kl": "KL(p‖αp+(1−α)q)",
    "skewed_forward_kl": "KL(q‖αq+(1−α)p)",
}


def target_name(spec: ObjectiveConfig) -> str:
    """The full-vocabulary quantity that `target` differentiates, in short."""
    if spec.divergence not in TARGETS:
        raise NotCovered(f"divergence = {spec.divergence}")
    aim = TARGETS[spec.divergence].replace("q", "Q") if spec.target != "teacher" else TARGETS[spec.divergence]
    anchored = f" + {spec.anchor:g} KL(p‖p₀)" if spec.anchor else ""
    return aim + anchored + (" + gated KL(q̄‖p)" if spec.forward_gate else "")

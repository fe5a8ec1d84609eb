"""Every quantity of the diagnostics a second time: loops over dictionaries of floats, one position after another.

p is the student, q the teacher, as token → probability; y the sampled token. Nothing of `opdkit.diagnostics` is
used here. The formulas are those of arXiv 2604.13016, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from opdkit.support import RowDist


def reference_dist(logits: list[float]) -> dict[int, float]:
    top = max(logits)
    weights = [math.exp(z - top) for z in logits]
    return {token: weight / sum(weights) for token, weight in enumerate(weights)}


def reference_top(dist: dict[int, float], k: int) -> list[int]:
    return sorted(dist, key=lambda token: -dist[token])[:k]


def reference_entropy(dist: dict[int, float]) -> float:
    return -sum(p * math.log(p) for p in dist.values())


def reference_entries(p: dict[int, float], q: dict[int, float], slots_: list[int]) -> dict[int, float]:
    """w (log q − log p), w = p / Σ over the slots."""
    mass = sum(p[v] for v in slots_)
    return {v: p[v] / mass * (math.log(q[v]) - math.log(p[v])) for v in slots_}


def reference_position(
    p: dict[int, float], q: dict[int, float], y: int, k: int, ks: Sequence[int]
) -> dict[str, list[float]]:
    """name → the numbers counted at this position."""
    out: dict[str, list[float]] = {
        "reverse_kl": [sum(p[v] * math.log(p[v] / q[v]) for v in p)],
        "reverse_kl_sampled": [math.log(p[y] / q[y])],
        "entropy_student": [reference_entropy(p)],
        "entropy_teacher": [reference_entropy(q)],
        "entropy_gap": [abs(reference_entropy(p) - reference_entropy(q))],
        "top1_student_p": [max(p.values())],
        "top1_teacher_p": [max(q.values())],
        "top1_student_teacher_p": [q[reference_top(p, 1)[0]]],
        "top1_teacher_student_p": [p[reference_top(q, 1)[0]]],
        "top1_agreement": [float(reference_top(p, 1) == reference_top(q, 1))],
    }
    for width in ks:
        if width <= len(p):
            shared = [v for v in reference_top(p, width) if v in reference_top(q, width)]
            out[f"overlap_ratio_at_{width}"] = [len(shared) / width]
    return out if k > len(p) else out | reference_top_k(p, q, k)


def reference_top_k(p: dict[int, float], q: dict[int, float], k: int) -> dict[str, list[float]]:
    ours, theirs = reference_top(p, k), reference_top(q, k)
    shared = [v for v in ours if v in theirs]
    mass_p, mass_q = sum(p[v] for v in shared), sum(q[v] for v in shared)
    on_ours, on_theirs = reference_entries(p, q, ours), reference_entries(p, q, theirs)
    eq7 = [p[v] / mass_p * (math.log(q[v] / mass_q) - math.log(p[v] / mass_p)) for v in shared]
    loudest = max(ours, key=lambda v: abs(on_ours[v]))
    return {
        "overlap_ratio": [len(shared) / k],
        "overlap_mass_student": [mass_p],
        "overlap_mass_teacher": [mass_q],
        "overlap_mass_student_nonempty": [mass_p] if shared else [],
        "overlap_mass_teacher_nonempty": [mass_q] if shared else [],
        "overlap_advantage": [sum(eq7) / len(shared)] if shared else [],
        "overlap_empty_fraction": [float(not shared)],
        "training_advantage_overlap": [on_ours[v] for v in shared],
        "training_advantage_student_only": [on_ours[v] for v in ours if v not in theirs],
        "training_advantage_teacher_only": [on_theirs[v] for v in theirs if v not in ours],
        "top1_student_advantage": [on_ours[ours[0]]],
        "top1_teacher_advantage": [on_theirs[theirs[0]]],
        "probability_gap_at_max_advantage": [p[loudest] - q[loudest]],
    }


def reference(
    student: RowDist, teacher: RowDist, *, k: int, ks: Sequence[int]
) -> list[dict[str, list[float]]]:
    """One dictionary per position, from two sets of whole rows with their sampled tokens."""
    assert student.sampled_ids is not None
    triples = zip(student.logits.tolist(), teacher.logits.tolist(), student.sampled_ids.tolist(), strict=True)
    return [reference_position(reference_dist(z), reference_dist(w), y, k, ks) for z, w, y in triples]


def reference_extremes(
    student: RowDist, teacher: RowDist, *, k: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """(advantage, p, q) where the advantage is largest and where it is smallest, over all positions' top k."""
    dists = [
        (reference_dist(z), reference_dist(w))
        for z, w in zip(student.logits.tolist(), teacher.logits.tolist(), strict=True)
    ]
    entries = [
        (a, p[v], q[v]) for p, q in dists for v, a in reference_entries(p, q, reference_top(p, k)).items()
    ]
    return max(entries), min(entries)


def mann_whitney(pairs: list[tuple[int, bool]]) -> float:
    """(Σ mid-ranks of the positives − n(n+1)/2) / (n m)."""
    ordered = sorted(score for score, _ in pairs)
    rank = {s: ordered.index(s) + (ordered.count(s) + 1) / 2 for s in ordered}
    ranks = [rank[score] for score, label in pairs if label]
    n, m = len(ranks), len(pairs) - len(ranks)
    return (sum(ranks) - n * (n + 1) / 2) / (n * m)


def reference_teachable(student: RowDist, teacher: RowDist) -> dict[str, float]:
    """The teacher's mass on tokens with p ≥ .05, weighted by KL(p‖q); Var_p[log q − log p], averaged."""
    reached, weight, variance = 0.0, 0.0, 0.0
    for z, w in zip(student.logits.tolist(), teacher.logits.tolist(), strict=True):
        p, q = reference_dist(z), reference_dist(w)
        kl = sum(p[v] * math.log(p[v] / q[v]) for v in p)
        reached += kl * sum(q[v] for v in p if p[v] >= 0.05)
        weight += kl
        variance += sum(p[v] * (math.log(q[v] / p[v]) + kl) ** 2 for v in p)
    return {"teachable_share": reached / weight, "log_ratio_variance": variance / len(student.logits)}


def reference_repetition(ids: Sequence[int], *, n: int) -> float:
    """Share of n-grams that stood before in the same response."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return sum(gram in grams[:i] for i, gram in enumerate(grams)) / len(grams)

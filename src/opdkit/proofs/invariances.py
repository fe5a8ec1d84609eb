"""What must change nothing: a constant added to logits, the names of tokens, whatever lies in slots that do not count.

Tried on every objective there is, in value and gradient. Objectives with keys that no loop of the oracle knows are
tried as well: an invariance needs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from opdkit.config import ObjectiveConfig
from opdkit.diagnostics import Measures, by_position, by_sequence, measure, tally
from opdkit.objectives import Objective
from opdkit.proofs.metrics import KS, SHAPES, dists
from opdkit.proofs.objectives import relative
from opdkit.proofs.ours import local, loss, value_and_gradient
from opdkit.proofs.records import Check, Worst, largest
from opdkit.proofs.specs import K, accepted, logits_pair, named, pairs, presets
from opdkit.support import RowDist, StoredDist
from opdkit.types import Batch, Support

SAMPLED = torch.tensor([0, 3, 8, 2, 5])
GARBAGE = (math.nan, math.inf, -math.inf, 1e308, -1e308, 700.0)


def every_spec() -> Iterator[tuple[str, ObjectiveConfig]]:
    """Presets and combinations; the presets narrowed to sets that leave something out of nine tokens."""
    for name, spec in presets().items():
        yield name, spec.model_copy(update={"k": min(spec.k, K), "gate_k": min(spec.gate_k, K)})
    yield from ((named(spec), spec) for spec in accepted())


def _over_every_objective(name: str, error: Callable[[ObjectiveConfig], float]) -> Check:
    worst = Worst()
    for who, spec in every_spec():
        worst.attempt(who, spec, partial(error, spec))
    return worst.check(name)


def a_constant_added_to_the_logits() -> Iterator[Check]:
    """log p does not know it. Ids are fixed first: a shift rounds logits, which a top-k notices at a tie."""
    yield _over_every_objective("a constant added to either model's logits", _shift_error)


def _shift_error(spec: ObjectiveConfig) -> float:
    student, teacher = next(pairs(1))
    ours, theirs = (RowDist(z, sampled_ids=SAMPLED) for z in (student, teacher))
    support = Objective(spec).support(ours, theirs, sampled_ids=SAMPLED)
    plain = local(spec, student, teacher, sampled=SAMPLED, support=support)
    shifted = local(spec, student + 11.5, teacher - 7.25, sampled=SAMPLED, support=support)
    return _apart(shifted, plain)


def other_names_of_the_tokens() -> Iterator[Check]:
    """The vocabulary in another order: the same loss, the gradient in that order."""
    yield _over_every_objective("the vocabulary permuted", _order_error)


def _order_error(spec: ObjectiveConfig) -> float:
    student, teacher = next(pairs(1))
    order = torch.randperm(student.shape[-1], generator=torch.Generator().manual_seed(5))
    value, gradient = local(spec, student, teacher, sampled=SAMPLED)
    moved = local(spec, student[:, order], teacher[:, order], sampled=order.argsort()[SAMPLED])
    return _apart(moved, (value, gradient[:, order]))


def slots_that_do_not_count() -> Iterator[Check]:
    """nan, inf and huge numbers in slots that are not kept: the same bits, and no gradient to them.

    The gate reads the teacher's own list and a KL baseline the student's, not the slots, so they are left off here.
    """
    worst = Worst()
    for name, spec in every_spec():
        if spec.support != "full":
            bare = spec.model_copy(update={"forward_gate": 0.0, "baseline": "none"})
            for turn in range(2):
                worst.attempt(name, spec, partial(_with_garbage, bare, turn))
    yield worst.check("contents of slots that do not count", bound=0.0)


def _with_garbage(spec: ObjectiveConfig, turn: int) -> float:
    width = 1 if spec.support == "sampled" else K
    generator = torch.Generator().manual_seed(turn)
    keep = torch.rand(3, width, generator=generator) < 0.5
    keep[2] = False
    p, q = (z.log_softmax(-1)[:3, :width] for z in logits_pair(17))
    support = Support(ids=torch.arange(width).expand(3, width), keep=keep)
    draws = torch.randint(len(GARBAGE), (2, 3, width), generator=generator)
    junk = torch.tensor(GARBAGE, dtype=torch.float64)[draws]

    away = torch.full((3,), 99)

    def run(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        return value_and_gradient(
            lambda z: loss(
                Objective(spec), _held(z, support), _held(theirs, support), sampled=away, support=support
            ),
            ours,
        )

    clean = run(torch.where(keep, p, 0.0), torch.where(keep, q, 0.0))
    dirty = run(torch.where(keep, p, junk[0]), torch.where(keep, q, junk[1]))
    same = all(torch.equal(a, b) and bool(a.isfinite().all()) for a, b in zip(dirty, clean, strict=True))
    return 0.0 if same and bool((dirty[1][~keep] == 0).all()) else math.inf


def _held(logp: Tensor, support: Support) -> StoredDist:
    """Any numbers at the support's slots, as padding would leave them; the token that was sampled is another."""
    assert support.ids is not None
    sampled = torch.full_like(logp[:, 0], -1.5).detach()
    return StoredDist(
        at_ids=support.ids,
        at_logp=logp,
        sampled=sampled,
        sampled_ids=torch.full_like(support.ids[:, 0], 99),
    )


def _apart(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> float:
    return largest(relative(a, b) for a, b in zip(found, wanted, strict=True))


def metrics_of_other_numbers() -> Iterator[Check]:
    """The same three for the metrics: a constant, other names, positions that are not kept."""
    shifted, moved, masked = Worst(), Worst(), Worst()
    for seed, (vocabulary, k) in enumerate(SHAPES):
        student, teacher = dists(50 + seed, vocabulary=vocabulary)
        where, sampled = f"V = {vocabulary}, k = {k}", student.sampled_ids
        assert sampled is not None
        plain = measure(student, teacher, k=k, ks=KS)
        other = [RowDist(d.logits + c, sampled_ids=sampled) for d, c in ((student, 11.5), (teacher, -7.25))]
        order = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(seed))
        renamed = [
            RowDist(d.logits[:, order], sampled_ids=order.argsort()[sampled]) for d in (student, teacher)
        ]
        for worst, found in (
            (shifted, measure(*other, k=k, ks=KS)),
            (moved, measure(*renamed, k=k, ks=KS)),
        ):
            for name, pair in plain.items():
                worst.see(
                    largest(float((a - b).abs().max()) for a, b in zip(found[name], pair, strict=True)), name
                )
        keep = torch.arange(len(sampled)) % 2 == 0
        dirty = [
            RowDist(torch.where(keep[:, None], d.logits, math.nan), sampled_ids=sampled)
            for d in (student, teacher)
        ]
        masked.see(_masked_apart(plain, measure(*dirty, k=k, ks=KS), keep), where)
    yield shifted.check("metrics: a constant added to either model's logits")
    yield moved.check("metrics: the vocabulary permuted")
    yield masked.check("metrics: contents of positions that do not count", bound=0.0)


def _masked_apart(clean: Measures, dirty: Measures, keep: Tensor) -> float:
    """0 if tallies, bins and sequences over the kept positions are the same numbers."""
    depth = torch.arange(len(keep))
    same = tally(clean, keep=keep) == tally(dirty, keep=keep)
    bins = [by_position(m, depth, bins=2, max_tokens=6, keep=keep) for m in (clean, dirty)]
    rows = [by_sequence(m, depth // 3, rows=2, keep=keep) for m in (clean, dirty)]
    nothing = -1e9  # a sequence of which nothing was counted is nan on both sides
    equal = all(torch.equal(rows[0][n].nan_to_num(nothing), rows[1][n].nan_to_num(nothing)) for n in rows[0])
    return 0.0 if same and bins[0] == bins[1] and equal else math.inf


def positions_that_train() -> Iterator[Check]:
    """`prepare` gives weight 1 to trained tokens inside the window and 0 to the others, against a loop."""
    worst = Worst()
    trained = torch.tensor([True, True, True, False, True, True, False])
    depth = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    zeros = torch.zeros(7, dtype=torch.long)
    batch = Batch(
        rollouts=(), scores={}, row=zeros, depth=depth, sampled_ids=zeros, trained=trained, measured=trained
    )
    for window in (0, 1, 2, 9):
        spec = ObjectiveConfig.model_validate({"preset": "sampled", "signal": {"window": window}})
        weight = Objective(spec).prepare(batch).weight.tolist()
        wanted = [
            float(t and (window == 0 or d < window))
            for t, d in zip(trained.tolist(), depth.tolist(), strict=True)
        ]
        worst.see(largest(abs(a - b) for a, b in zip(weight, wanted, strict=True)), f"window = {window}")
    yield worst.check("a window: weight 1 inside, 0 outside and where not trained", bound=0.0)


INVARIANCES = (
    a_constant_added_to_the_logits,
    other_names_of_the_tokens,
    slots_that_do_not_count,
    metrics_of_other_numbers,
    positions_that_train,
)

"""Which tokens each model ranks highest, and what both models say of them, as far as it was sent.

S^p = TopK(p, k) are the student's candidates, S^q = TopK(q, k) the teacher's, O = S^p ∩ S^q.

Letters: M measured positions, K top-k width, S slots, V vocabulary. p is the student, q the teacher; nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opdkit.support import Dist, RowDist, StoredDist

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Top:
    """One model's own candidates, most probable first."""

    ids: Int[Tensor, "M K"]
    logp: Float[Tensor, "M K"]

    @property
    def width(self) -> int:
        return self.ids.shape[-1]

    def first(self, k: int) -> Top | None:
        """The k most probable, or None where fewer were sent (or the vocabulary is smaller)."""
        return Top(self.ids[:, :k], self.logp[:, :k]) if k <= self.width else None


@dataclass(frozen=True)
class Overlap:
    """O inside the slots of S^p: `keep` where the token is in S^q too; `teacher_logp` holds only there."""

    student_logp: Float[Tensor, "M K"]
    teacher_logp: Float[Tensor, "M K"]
    keep: Bool[Tensor, "M K"]


@dataclass(frozen=True)
class TopPair:
    """Both models' candidates. `rank`: slot of the student's token in the teacher's list, or its width."""

    student: Top
    teacher: Top
    rank: Int[Tensor, "M K"]

    @property
    def width(self) -> int:
        return min(self.student.width, self.teacher.width)

    @property
    def shared_below(self) -> Int[Tensor, "M K"]:
        """The later of the two ranks: a token is in both top-k lists iff this is < k, for every k at once."""
        own = torch.arange(self.student.width, device=self.rank.device)
        return torch.maximum(self.rank, own)

    def overlap(self, k: int) -> Overlap:
        rank = self.rank[:, :k]
        teacher_logp = self.teacher.logp.gather(-1, rank.clamp(max=k - 1))
        return Overlap(self.student.logp[:, :k], teacher_logp, keep=rank < k)


@dataclass(frozen=True)
class Candidates:
    """Some tokens per position with both models' log-probs; `sent` is false where one of them is unknown."""

    ids: Int[Tensor, "M S"]
    student_logp: Float[Tensor, "M S"]
    teacher_logp: Float[Tensor, "M S"]
    sent: Bool[Tensor, " M"]

    @property
    def advantage(self) -> Float[Tensor, "M S"]:
        return training_advantage(self.student_logp, self.teacher_logp)

    def pick(self, slot: Int[Tensor, " M"]) -> tuple[Tensor, Tensor, Tensor]:
        """Advantage, p and q at one slot per position."""
        each = (self.advantage, self.student_logp.exp(), self.teacher_logp.exp())
        advantage, student_p, teacher_p = (values.gather(-1, slot[:, None])[:, 0] for values in each)
        return advantage, student_p, teacher_p


def training_advantage(
    student_logp: Float[Tensor, "M S"], teacher_logp: Float[Tensor, "M S"]
) -> Float[Tensor, "M S"]:
    """A(v) = w(v) (log q(v) − log p(v)), w = p renormalised over the slots, log-ratio raw, as released."""
    return weighted(student_logp.softmax(-1), teacher_logp - student_logp)


def weighted(weight: Float[Tensor, "M S"], difference: Float[Tensor, "M S"]) -> Float[Tensor, "M S"]:
    """weight · difference with 0 · log 0 = 0: a token masked by a logit of −inf contributes nothing."""
    return torch.where(weight > 0, weight * difference, 0.0)


def ask(answer: Callable[[], Answer]) -> Answer | None:
    """The answer, or None where it was not sent: what needs it is then left out, never made up."""
    try:
        return answer()
    except LookupError:
        return None


def detached(dist: Dist) -> Dist:
    """The same distribution without gradient, in float32 or wider.

    A copy: rows computed here would else be cached without gradient in the very object the loss reads next.
    """
    if not isinstance(dist, RowDist):
        return dist
    dtype = torch.promote_types(dist.logits.dtype, torch.float32)
    if dist.logits.dtype == dtype and not dist.logits.requires_grad:
        return dist
    return RowDist(dist.logits.detach().to(dtype), sampled_ids=dist.sampled_ids)


def sampled_logp(dist: Dist) -> Float[Tensor, " M"] | None:
    if isinstance(dist, RowDist) and dist.sampled_ids is None:
        return None
    return ask(lambda: dist.sampled)


def vocabulary(*dists: Dist) -> int | None:
    """V, if one of the distributions holds full rows."""
    rows = [ask(lambda dist=dist: dist.full) for dist in dists]  # type: ignore[misc]
    return next((row.shape[-1] for row in rows if row is not None), None)


def widest_top(dist: Dist, widths: Iterable[int], *, size: int | None) -> Top | None:
    """The widest of these top-k lists that can be had, read once: narrower ones are its first slots."""
    for width in sorted(set(widths), reverse=True):
        if size is not None and width > size:
            continue
        top = ask(partial(dist.topk, width))
        if top is not None:
            return Top(ids=top[0].long(), logp=top[1])
    return None


def pair(student: Top | None, teacher: Top | None) -> TopPair | None:
    if student is None or teacher is None:
        return None
    return TopPair(student, teacher, rank=slots(student.ids, teacher.ids))


def slots(ids: Int[Tensor, "M S"], others: Int[Tensor, "M R"]) -> Int[Tensor, "M S"]:
    """Slot of each id among the other ids of its row, or R where it is not. Sorts: no [M, S, R] comparison.

    >>> slots(torch.tensor([[5, 7]]), torch.tensor([[7, 9, 2]])).tolist()
    [[3, 0]]
    """
    ordered, origin = others.sort(dim=-1)
    place = torch.searchsorted(ordered, ids.contiguous()).clamp(max=others.shape[-1] - 1)
    found = ordered.gather(-1, place) == ids
    return torch.where(found, origin.gather(-1, place), others.shape[-1])


def candidates(student: Dist, teacher: Dist, ids: Int[Tensor, "M S"] | None) -> Candidates | None:
    """Both models' log-probs at these ids, or None where one of them cannot say."""
    if ids is None:
        return None
    ours, theirs = logp_at(student, ids), logp_at(teacher, ids)
    if ours is None or theirs is None:
        return None
    return Candidates(ids, student_logp=ours[0], teacher_logp=theirs[0], sent=ours[1] & theirs[1])


def logp_at(dist: Dist, ids: Int[Tensor, "M S"]) -> tuple[Float[Tensor, "M S"], Bool[Tensor, " M"]] | None:
    """log-probs at ids, and at which positions all of them are known.

    All or nothing, with one exception. A teacher asked for the sampler's top-k answers for ids which another
    forward may rank a little differently; a near-tie at the edge then costs that position, not the step.
    Its own top-k gets no such grace: positions where that happens to suffice are not a fair sample.
    """
    if not dist.normalised:
        return None
    if isinstance(dist, StoredDist) and dist.at_ids is not None and dist.at_ids.shape[-1] >= ids.shape[-1]:
        return _stored_at(dist, ids)
    logp = ask(lambda: dist.at(ids))
    return None if logp is None else (logp, torch.ones_like(ids[:, 0], dtype=torch.bool))


def _stored_at(
    dist: StoredDist, ids: Int[Tensor, "M S"]
) -> tuple[Float[Tensor, "M S"], Bool[Tensor, " M"]] | None:
    sent = ((dist.at_ids, dist.at_logp), (dist.topk_ids, dist.topk_logp))
    known = [
        (known_ids.long(), logp) for known_ids, logp in sent if known_ids is not None and logp is not None
    ]
    if not known:
        return None
    known_logp = torch.cat([logp for _, logp in known], -1)
    slot = slots(ids, torch.cat([known_ids for known_ids, _ in known], -1))
    found = slot < known_logp.shape[-1]
    logp = known_logp.gather(-1, slot.clamp(max=known_logp.shape[-1] - 1))
    return torch.where(found, logp, 0.0), found.all(-1)

"""One model's next-token distribution at N packed positions, held in one of three ways behind one interface.

`RowDist`     whole rows of logits: a chunk inside `models/head.py`, or small tensors of a test. Answers all.
`StoredDist`  what a teacher sent: log-probs at some ids. Answers for those ids only.
`ColumnDist`  unnormalised logits at the support's ids (the normaliser was never computed). Good only where
              both distributions are renormalised over the support; refuses the rest.

Letters: N positions, S slots, K top-k width, V vocabulary. Log-probs in nats, float32 or wider.
"""

from __future__ import annotations

from functools import cached_property
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor


class RowDist:
    """Whole rows. Values are computed when first asked for, so an objective pays only for what it reads."""

    normalised = True

    def __init__(self, logits: Float[Tensor, "N V"], *, sampled_ids: Int[Tensor, " N"] | None = None):
        self.logits = logits
        self.sampled_ids = sampled_ids
        self._widest: Tensor | None = (
            None  # ids of the widest top-k so far, in falling order: a narrower one begins it
        )

    # Cached values must carry their gradient whoever asks first: a reader under no_grad would otherwise leave a constant
    # behind, and the loss would silently lose a term.

    @cached_property
    def logsumexp(self) -> Float[Tensor, " N"]:
        with torch.enable_grad():
            return self.logits.logsumexp(-1)

    @cached_property
    def full(self) -> Float[Tensor, "N V"]:
        with torch.enable_grad():
            return self.logits.log_softmax(-1)

    @cached_property
    def probability(self) -> Float[Tensor, "N V"]:
        with torch.enable_grad():
            return self.full.exp()

    @cached_property
    def sampled(self) -> Float[Tensor, " N"]:
        if self.sampled_ids is None:
            raise LookupError("no sampled ids were given")
        with torch.enable_grad():
            return self.at(self.sampled_ids[:, None])[:, 0]

    @cached_property
    def entropy(self) -> Float[Tensor, " N"]:
        """H = logsumexp(z) − Σ p z, in nats."""
        with torch.enable_grad():
            if "full" in self.__dict__:
                return -(self.probability * self.full).sum(-1)
            return self.logsumexp - (self.logits.softmax(-1) * self.logits).sum(-1)

    def at(self, ids: Int[Tensor, "N S"]) -> Float[Tensor, "N S"]:
        if "full" in self.__dict__:
            return self.full.gather(-1, ids)
        return self.logits.gather(-1, ids) - self.logsumexp[:, None]

    def topk(self, k: int) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"]]:
        if self._widest is None or self._widest.shape[-1] < k:
            self._widest = self.logits.detach().topk(k, dim=-1).indices
        ids = self._widest[:, :k]
        return ids, self.at(ids)

    def rows(self, index: Int[Tensor, " M"]) -> RowDist:
        """The same distribution at some of the positions, detached: what diagnostics read."""
        sampled = None if self.sampled_ids is None else self.sampled_ids[index]
        return RowDist(self.logits.detach()[index], sampled_ids=sampled)


class StoredDist:
    """Log-probs that travelled: at the sampled token, at given ids, at the model's own top-k, entropy.

    Raises LookupError for an id that was not sent: a missing number is never made up.
    """

    normalised = True

    def __init__(
        self,
        *,
        sampled: Float[Tensor, " N"] | None = None,
        sampled_ids: Int[Tensor, " N"] | None = None,
        at_ids: Int[Tensor, "N S"] | None = None,
        at_logp: Float[Tensor, "N S"] | None = None,
        topk_ids: Int[Tensor, "N K"] | None = None,
        topk_logp: Float[Tensor, "N K"] | None = None,
        entropy: Float[Tensor, " N"] | None = None,
    ):
        self._sampled, self._entropy, self.sampled_ids = sampled, entropy, sampled_ids
        self.at_ids, self.at_logp, self.topk_ids, self.topk_logp = at_ids, at_logp, topk_ids, topk_logp

    @property
    def sampled(self) -> Float[Tensor, " N"]:
        return _sent(self._sampled, "the sampled token's log-prob")

    @property
    def entropy(self) -> Float[Tensor, " N"]:
        return _sent(self._entropy, "the entropy")

    @property
    def full(self) -> Float[Tensor, "N V"]:
        raise LookupError("full rows were not sent")

    def at(self, ids: Int[Tensor, "N S"]) -> Float[Tensor, "N S"]:
        if self.at_ids is not None and (ids is self.at_ids or torch.equal(ids, self.at_ids)):
            return _sent(self.at_logp, "log-probs at given ids")
        known_ids, known_logp = self._known()
        match = ids[:, :, None] == known_ids[:, None, :]  # N S (S+K)
        if not bool(match.any(-1).all()):
            raise LookupError("the log-prob of an id that was not sent was asked for")
        return known_logp.gather(-1, match.int().argmax(-1))

    def topk(self, k: int) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"]]:
        ids, logp = _sent(self.topk_ids, "the top-k"), _sent(self.topk_logp, "the top-k")
        if k > ids.shape[-1]:
            raise LookupError(f"top-{ids.shape[-1]} was sent, top-{k} was asked for")
        return ids[:, :k], logp[:, :k]

    def _known(self) -> tuple[Int[Tensor, "N M"], Float[Tensor, "N M"]]:
        pairs = [(self.at_ids, self.at_logp), (self.topk_ids, self.topk_logp)]
        if self.sampled_ids is not None and self._sampled is not None:
            pairs.append((self.sampled_ids[:, None], self._sampled[:, None]))
        sent = [(i, p) for i, p in pairs if i is not None and p is not None]
        if not sent:
            raise LookupError("no log-probs at ids were sent")
        return torch.cat([i for i, _ in sent], -1), torch.cat([p for _, p in sent], -1)


class ColumnDist:
    """Logits at the support's ids and nothing else: log p up to one constant per row."""

    normalised = False

    def __init__(self, logits: Float[Tensor, "N S"], *, ids: Int[Tensor, "N S"]):
        self.logits = logits
        self.ids = ids

    def at(self, ids: Int[Tensor, "N S"]) -> Float[Tensor, "N S"]:
        assert ids is self.ids or torch.equal(ids, self.ids), "columns answer for their own ids only"
        return self.logits

    @property
    def sampled(self) -> Float[Tensor, " N"]:
        raise LookupError("columns are unnormalised: no log-prob of the sampled token")

    @property
    def entropy(self) -> Float[Tensor, " N"]:
        raise LookupError("columns are unnormalised: no entropy")

    @property
    def full(self) -> Float[Tensor, "N V"]:
        raise LookupError("columns hold no full rows")

    def topk(self, k: int) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"]]:
        raise LookupError("columns hold no top-k")


Dist: TypeAlias = RowDist | StoredDist | ColumnDist
"""`sampled` [N] · `entropy` [N] · `full` [N, V] · `at(ids [N, S])` [N, S] · `topk(k)` ids and log-probs [N, K]. A property
or method that the holder cannot answer raises LookupError. `normalised` is False where `at` is up to a constant per row."""


def _sent(value: Tensor | None, name: str) -> Tensor:
    if value is None:
        raise LookupError(f"{name} was not sent")
    return value

"""Distributions made of others: a target between or beyond models, and end tokens counted as one.

Letters: N positions, S slots, V vocabulary. Log-probs in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from opdkit.support.dist import Dist, RowDist, StoredDist

Part = tuple[float, Dist]


def blend(parts: Sequence[Part], *, sampled_ids: Tensor | None) -> Dist:
    """log Q = Σ c log m − log Z at every position, detached; whole rows where all parts have them.

    Else Z is not known, and only the sampled token is answered for, up to that constant of the position: enough where a
    constant times ∇log p(y) has mean 0. A part of weight 0 is not read.
    """
    read = [(c, dist) for c, dist in parts if c != 0.0]
    with torch.no_grad():
        rows = [(c, dist.full) for c, dist in read if isinstance(dist, RowDist)]
        if len(rows) == len(read):
            return RowDist(_sum(rows).detach(), sampled_ids=sampled_ids)
        sampled = _sum([(c, dist.sampled) for c, dist in read])
        return StoredDist(sampled=sampled.detach(), sampled_ids=sampled_ids)


def _sum(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    total = terms[0][0] * terms[0][1]
    for c, term in terms[1:]:
        total = total.add(term, alpha=c)
    return total


def with_one_end(dist: RowDist, ends: Sequence[int]) -> RowDist:
    """The same rows with the mass of all `ends` at the first of them and none at the others, which cannot be chosen any more.

    A sampled end token of any name is the first one.

    >>> rows = RowDist(torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log(), sampled_ids=torch.tensor([3]))
    >>> one = with_one_end(rows, [1, 3])
    >>> [round(x, 3) for x in one.full.exp()[0].tolist()], one.sampled_ids.tolist()
    ([0.1, 0.6, 0.3, 0.0], [1])
    """
    ids = torch.tensor(list(ends), device=dist.logits.device)
    together = dist.logits.index_select(-1, ids).logsumexp(-1, keepdim=True)
    alone = torch.full_like(together, torch.finfo(dist.logits.dtype).min).expand(-1, len(ids) - 1)
    logits: Float[Tensor, "N V"] = dist.logits.index_copy(-1, ids, torch.cat([together, alone], -1))
    taken = dist.sampled_ids
    if taken is not None:
        taken = torch.where(torch.isin(taken, ids), ids[0], taken)
    return RowDist(logits, sampled_ids=taken)

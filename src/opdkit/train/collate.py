"""The one place that knows the layout: rollouts of a step → packed `Batch` → `MicroBatch`es for single forwards.

Packed order is rollout after rollout, response position after response position: two responses of lengths 2 and 3 give
row = [0 0 1 1 1] and depth = [0 1 0 1 2].
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from opdkit.models.batching import Forward, Way, forwards
from opdkit.models.rows import lay_out
from opdkit.support.select import of_ids
from opdkit.types import Batch, MicroBatch, Rollout, Scores, Signal, Support


def collate(
    rollouts: Sequence[Rollout],
    scores: Mapping[str, Sequence[Scores]],
    *,
    measured_positions: int = 0,
    seed: int = 0,
    step: int = 0,
    early_ids: Sequence[Tensor] | None = None,
    early_source: str = "student",
) -> Batch:
    """One step's rollouts with what each model said of them, by its name, packed.

    `measured_positions` of them are drawn for diagnostics, by (seed, step); 0 = all.

    `early_ids` [T, S] per rollout are candidates that had to be known before the learner's forward.
    """
    lengths = [r.length for r in rollouts]
    total = sum(lengths)
    row = torch.repeat_interleave(torch.arange(len(rollouts)), torch.tensor(lengths, dtype=torch.long))
    depth = torch.cat([torch.arange(n) for n in lengths]) if lengths else torch.empty(0, dtype=torch.long)
    trained = [r.trained or (True,) * r.length for r in rollouts]
    return Batch(
        rollouts=tuple(rollouts),
        scores={name: tuple(said) for name, said in scores.items()},
        row=row,
        depth=depth,
        sampled_ids=torch.tensor([i for r in rollouts for i in r.response_ids], dtype=torch.long),
        trained=torch.tensor([t for row_trained in trained for t in row_trained], dtype=torch.bool),
        measured=_measured(total, measured_positions, seed=seed, step=step),
        sampler_logp=_packed([r.logp for r in rollouts]),
        support=_early_support(early_ids, early_source),
    )


def _measured(total: int, positions: int, *, seed: int, step: int) -> Tensor:
    """A mask over `total` positions with `positions` drawn without replacement (all, if 0 or not enough)."""
    if positions == 0 or positions >= total:
        return torch.ones(total, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    mask = torch.zeros(total, dtype=torch.bool)
    mask[torch.randperm(total, generator=generator)[:positions]] = True
    return mask


def _packed(columns: Sequence[Tensor | None]) -> Tensor | None:
    present = [c for c in columns if c is not None]
    return torch.cat(present) if present and len(present) == len(columns) else None


def _early_support(ids: Sequence[Tensor] | None, source: str) -> Support | None:
    if ids is None:
        return None
    return of_ids(torch.cat(list(ids)), source="teacher" if source == "teacher" else "sampler")


def micro_batches(
    batch: Batch,
    signal: Signal,
    *,
    budget: int,
    device: torch.device,
    at_least: int = 0,
    ways: Collection[Way] = (),
) -> Iterator[MicroBatch]:
    """The batch in forwards of at most `budget` padded tokens, rows of like length together, longest first.

    Longest first, so that a batch which does not fit in memory fails at once. `at_least` pads with empty ones: ranks must
    run the same number of forwards. `ways`: how the body can read rows beside plain ones.
    """
    starts = _starts(batch)
    groups = row_groups(batch.rollouts, budget=budget, device=device, ways=ways)
    for forward in groups:
        yield _micro(batch, signal, forward, starts, device)
    for _ in range(at_least - len(groups)):
        yield _micro(batch, signal, Forward(()), starts, device)


def row_groups(
    rollouts: Sequence[Rollout], *, budget: int, device: torch.device, ways: Collection[Way] = ()
) -> list[Forward]:
    """Rollouts per forward; one without a response trains nothing and is left out."""
    answered = [i for i, r in enumerate(rollouts) if r.length]
    prompts, lengths = [rollouts[i].prompt.ids for i in answered], [rollouts[i].length for i in answered]
    groups = forwards(prompts, lengths, budget=budget, device_type=device.type, ways=ways)
    return [Forward(tuple(answered[j] for j in group.rows), group.way) for group in groups]


def _starts(batch: Batch) -> list[int]:
    starts, total = [], 0
    for rollout in batch.rollouts:
        starts.append(total)
        total += rollout.length
    return starts


def _micro(
    batch: Batch, signal: Signal, forward: Forward, starts: Sequence[int], device: torch.device
) -> MicroBatch:
    rows = forward.rows
    rollouts = [batch.rollouts[i] for i in rows]
    layout = lay_out(
        [r.prompt.ids for r in rollouts],
        [r.response_ids for r in rollouts],
        way=forward.way,
        device=device,
    )
    index = [torch.empty(0, dtype=torch.long)]
    index += [torch.arange(starts[i], starts[i] + batch.rollouts[i].length) for i in rows]
    packed = torch.cat(index)
    return MicroBatch(
        input_ids=layout.input_ids,
        gather=layout.gather,
        prefix=layout.prefix,
        lengths=layout.lengths,
        sampled_ids=batch.sampled_ids[packed].to(device),
        weight=signal.weight[packed].to(device),
        measured=batch.measured[packed].to(device),
        advantage=None if signal.advantage is None else signal.advantage[packed].to(device),
        index=packed.to(device),
        sampler_logp=None if batch.sampler_logp is None else batch.sampler_logp[packed].to(device),
        support=_support_at(batch.support, packed, device),
        scores={name: _scores_of([said[i] for i in rows], device) for name, said in batch.scores.items()},
    )


def _support_at(support: Support | None, index: Tensor, device: torch.device) -> Support | None:
    if support is None or support.ids is None or support.keep is None:
        return support
    ids, keep = (
        support.ids.to(index.device)[index].to(device),
        support.keep.to(index.device)[index].to(device),
    )
    return Support(ids=ids, keep=keep, source=support.source, version=support.version)


def _scores_of(scores: Sequence[Scores], device: torch.device) -> Scores:
    """Scores of several rollouts packed one after another."""
    columns: dict[str, Any] = {}
    for name in ("sampled", "topk_ids", "topk_logp", "at_ids", "at_logp", "entropy", "hidden"):
        parts = [getattr(s, name) for s in scores]
        present = [p for p in parts if p is not None]
        assert len(present) in (0, len(parts)), f"some rollouts have {name} and some have not"
        if present:
            columns[name] = torch.cat(present).to(device)
    first = scores[0] if scores else Scores(fingerprint="")
    return Scores(fingerprint=first.fingerprint, temperature=first.temperature, **columns)

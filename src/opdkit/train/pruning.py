"""Responses that are drawn no further where the teacher no longer knows the state (`prune`; Prune-OPD, arXiv 2605.07804).

A response is drawn `every` tokens at a time. Of those the teacher's top-k is read, and where the mean share of the student's
candidates among them (overlap_ratio, Eq. 6) is below `overlap`, nothing more is drawn: what is there trains, and the response is
"cut", without a grade. Both models read the text again at every look, so many short looks cost more than they save.

A response's stream is named by where a look begins, so a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from opdkit.config import Config, SamplingConfig
from opdkit.support import in_set
from opdkit.types import Needs, Prompt, Rollout, Scores, UserError

Draw = Callable[[Sequence[Prompt], SamplingConfig, Needs], list[Rollout]]
Score = Callable[[Sequence[Rollout], Needs], list[Scores]]
_LOGS = ("behaviour_logp", "logp", "topk_ids", "topk_logp", "entropy")


@dataclass(frozen=True)
class Pruning:
    """Draws G responses to every prompt, all of the first prompt's before the second's, a look at a time."""

    every: int  # tokens
    overlap: float
    k: int
    needs: Needs  # what the plan asks the sampler for
    draw: Draw
    score: Score
    decode: Callable[[list[int]], str]

    def rollouts(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> list[Rollout]:
        """As a sampler does, but for responses that end in "cut"."""
        most = sampling.max_tokens
        whole = self._look(prompts, sampling, begun=0)
        depth = min(self.every, most)
        while depth < most:
            open_ = [i for i, r in enumerate(whole) if r.finish_reason == "length"]
            known = dict(zip(open_, self._known([whole[i] for i in open_]), strict=True))
            on = [i for i in open_ if known[i]]
            for i in open_:
                if not known[i]:
                    whole[i] = replace(whole[i], finish_reason="cut")
            if not on:
                break
            starts = [_start(whole[i], depth) for i in on]
            more = self._look(starts, sampling.model_copy(update={"responses": 1}), begun=depth)
            for i, rest in zip(on, more, strict=True):
                whole[i] = self._joined(whole[i], rest)
            depth = min(depth + self.every, most)
        return [self._trimmed(r) for r in whole]

    def _look(self, prompts: Sequence[Prompt], sampling: SamplingConfig, *, begun: int) -> list[Rollout]:
        left = {
            "max_tokens": min(self.every, sampling.max_tokens - begun),
            "min_tokens": max(0, min(self.every, sampling.min_tokens - begun)),
        }
        return self.draw(prompts, sampling.model_copy(update=left), self.needs | Needs(top_k=self.k))

    def _known(self, rollouts: Sequence[Rollout]) -> list[bool]:
        """Whether the teacher's candidates at the latest tokens are the student's, as far as asked."""
        if not rollouts:
            return []
        latest = [_latest(r, self.every) for r in rollouts]
        said = self.score(latest, Needs(top_k=self.k))
        return [share(r, s, k=self.k) >= self.overlap for r, s in zip(latest, said, strict=True)]

    def _joined(self, before: Rollout, more: Rollout) -> Rollout:
        ids = (*before.response_ids, *more.response_ids)
        logs: dict[str, Any] = {name: _both(getattr(before, name), getattr(more, name)) for name in _LOGS}
        return replace(
            before,
            response_ids=ids,
            finish_reason=more.finish_reason,
            text=self.decode(list(ids)),
            **logs,
        )

    def _trimmed(self, rollout: Rollout) -> Rollout:
        """Without candidates that only the looks needed."""
        width = self.needs.top_k
        if rollout.topk_ids is None or rollout.topk_logp is None or rollout.topk_ids.shape[-1] == width:
            return rollout
        ids, logp = (rollout.topk_ids[:, :width], rollout.topk_logp[:, :width]) if width else (None, None)
        return replace(rollout, topk_ids=ids, topk_logp=logp)


def share(rollout: Rollout, said: Scores, *, k: int) -> float:
    """Mean overlap ratio of the response's tokens: |S^p ∩ S^q| / k (Eq. 6)."""
    assert rollout.topk_ids is not None and said.topk_ids is not None, "both were asked for their top k"
    both = in_set(rollout.topk_ids[:, :k].cpu().long(), said.topk_ids[:, :k].cpu().long())
    return float(both.sum(-1).double().mean()) / k


def is_pruned(rollout: Rollout, *, before: int) -> bool:
    """Whether a look ended it, at fewer tokens than were to be drawn."""
    return rollout.finish_reason == "cut" and rollout.length < before


def _start(rollout: Rollout, depth: int) -> Prompt:
    """What the next look goes on from; the response's teacher reads its own prompt with the same tokens behind."""
    prompt = rollout.prompt
    return replace(
        prompt, id=f"{prompt.id}#{rollout.sample}@{depth}", ids=(*prompt.ids, *rollout.response_ids)
    )


def _latest(rollout: Rollout, count: int) -> Rollout:
    """The last tokens as a response, all before them as its prompt, for both readers."""
    cut = rollout.length - (rollout.length % count or count)
    before, latest = rollout.response_ids[:cut], rollout.response_ids[cut:]
    read = rollout.teacher_prompt_ids
    return replace(
        rollout,
        prompt=replace(rollout.prompt, ids=(*rollout.prompt.ids, *before)),
        teacher_prompt_ids=None if read is None else (*read, *before),
        response_ids=latest,
        topk_ids=None if rollout.topk_ids is None else rollout.topk_ids[cut:],
    )


def _both(before: Tensor | None, more: Tensor | None) -> Tensor | None:
    return None if before is None or more is None else torch.cat([before, more])


def refuse_prune(config: Config, *, ranks: int) -> None:
    """UserError where there is no teacher to look, or something else draws in pieces."""
    cfg, most = config.prune, config.sampling.max_tokens
    if cfg.every == 0:
        return
    if config.story != "distill":
        raise UserError(
            f"prune.every: the teacher is asked what it knows, and story {config.story!r} has none",
            hint="prune.every=0",
        )
    if cfg.every >= most:
        raise UserError(
            f"prune.every = {cfg.every} looks at nothing before sampling.max_tokens = {most}",
            hint=f"prune.every={max(1, most // 8)}",
        )
    if config.prefix.tokens:
        raise UserError(
            "prune.every and prefix.tokens both draw responses in pieces",
            hint="prefix.tokens=0, or prune.every=0",
        )
    if ranks > 1:
        raise UserError(
            f"prune.every: looks end at different times on {ranks} ranks, and are made by one process",
            hint="run it without torchrun, or prune.every=0",
        )


def refuse_blind(needs: Needs, *, sampler: Needs, teacher: Needs) -> None:
    """UserError where sampler or teacher does not name so many candidates."""
    for who, offers, hint in (
        ("sampler", sampler, "sampling.type=local"),
        ("teacher", teacher, "a teacher that names more, or a smaller diagnostics.k"),
    ):
        if needs.unmet(offers):
            raise UserError(
                f"prune.every compares the top {needs.top_k}, and the {who} does not name so many", hint=hint
            )

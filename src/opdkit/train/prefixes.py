"""Responses that the teacher begins: its first tokens, then the student's own (`prefix` in the configuration).

Which prompts are led is a function of (seed, step), as are both random streams, so a resumed run draws the same. The teacher's
tokens are not trained (`Rollout.trained`); what the student thinks of them is read in one forward, since it did not draw them. A
teacher that has ended within its tokens leaves the response to the student from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from opdkit.config import Config, SamplingConfig, as_local
from opdkit.models.load import LoadedModel
from opdkit.models.sampler import LocalSampler
from opdkit.types import Prompt, Rollout, UserError

STREAM = -4
"""Added to the step, times a million: the teacher's draws have a stream of their own."""

Draw = Callable[[Sequence[Prompt], SamplingConfig], list[Rollout]]


class Prefixes:
    """The teacher as a writer of beginnings."""

    def __init__(
        self, config: Config, teacher: LoadedModel, *, teacher_prompt_ids: Mapping[str, tuple[int, ...]]
    ):
        self.cfg, self.config = config.prefix, config
        self.sampler, self.read = LocalSampler(teacher), teacher_prompt_ids

    def led(self, prompts: Sequence[Prompt], step: int) -> list[bool]:
        """Which prompts of the step the teacher begins."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step + 29)
        drawn = torch.rand(len(prompts), generator=generator, dtype=torch.float64)
        return (drawn < share_at(self.cfg.share, self.cfg.until, step)).tolist()

    def draw(
        self, prompts: Sequence[Prompt], *, sampling: SamplingConfig, step: int, student: Draw
    ) -> list[Rollout]:
        """G responses to every prompt, all of the first prompt's before the second's, of led prompts begun by the teacher."""
        led = self.led(prompts, step)
        alone = student([p for p, by in zip(prompts, led, strict=True) if not by], sampling)
        begun = self._begun([p for p, by in zip(prompts, led, strict=True) if by], sampling, step)
        whole = self._ended(begun, sampling, student)
        rest, found = {True: whole, False: alone}, []
        for by in led:
            found += rest[by][: sampling.responses]
            rest[by] = rest[by][sampling.responses :]
        return found

    def _begun(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, step: int
    ) -> list[tuple[Prompt, int, tuple[int, ...]]]:
        """Prompt, number of the response, the teacher's first tokens: none where it ended within them."""
        asked = [replace(p, ids=self.read.get(p.source, p.ids)) for p in prompts]
        short = as_local(sampling).model_copy(update={"max_tokens": self.cfg.tokens, "min_tokens": 0})
        written = self.sampler.sample(
            asked, sampling=short, seed=self.config.seed, step=STREAM * 1_000_000 - step
        )
        own = {p.id: p for p in prompts}
        return [
            (own[r.prompt.id], r.sample, () if r.finish_reason == "stop" else r.response_ids) for r in written
        ]

    def _ended(
        self, begun: Sequence[tuple[Prompt, int, tuple[int, ...]]], sampling: SamplingConfig, student: Draw
    ) -> list[Rollout]:
        starts = [replace(p, id=f"{p.id}#led{sample}", ids=(*p.ids, *ids)) for p, sample, ids in begun]
        left = {"responses": 1, "max_tokens": max(1, sampling.max_tokens - self.cfg.tokens), "min_tokens": 0}
        ended = student(starts, sampling.model_copy(update=left))
        decode: Any = self.sampler.loaded.tokenizer.decode
        return [
            _joined(prompt, sample, ids, rest, decode)
            for (prompt, sample, ids), rest in zip(begun, ended, strict=True)
        ]


def _joined(prompt: Prompt, sample: int, ids: tuple[int, ...], rest: Rollout, decode: Any) -> Rollout:
    """One response of both. The sampler's numbers are of the rest only, so they are left to a forward of the whole."""
    if not ids:
        return replace(rest, prompt=prompt, sample=sample)
    whole = (*ids, *rest.response_ids)
    return replace(
        rest,
        prompt=prompt,
        sample=sample,
        response_ids=whole,
        trained=(False,) * len(ids) + (True,) * rest.length,
        text=decode(list(whole), skip_special_tokens=True),
        behaviour_logp=None,
        logp=None,
        topk_ids=None,
        topk_logp=None,
        entropy=None,
    )


def share_at(share: float, until: int, step: int) -> float:
    """The share at a step, counted from 0.

    >>> [share_at(0.5, 4, step) for step in range(6)], share_at(0.5, 0, 100)
    ([0.5, 0.375, 0.25, 0.125, 0.0, 0.0], 0.5)
    """
    return share * max(0.0, 1.0 - step / until) if until else share


def is_led(rollout: Rollout) -> bool:
    """Whether somebody else wrote its beginning."""
    return rollout.trained is not None and any(rollout.trained) and not all(rollout.trained)


def refuse_prefix(config: Config, *, ranks: int) -> None:
    """UserError where nobody in this process can write a beginning, or nothing is left to write."""
    cfg, teacher = config.prefix, config.teacher
    if cfg.tokens == 0:
        return
    if config.story != "distill" or teacher is None or teacher.type not in ("local", "self"):
        raise UserError(
            "prefix.tokens: the teacher begins responses, and it is not in this process to write",
            hint="prefix.tokens=0, or a teacher.model=FOLDER in this process",
        )
    if cfg.tokens >= config.sampling.max_tokens:
        raise UserError(
            f"prefix.tokens = {cfg.tokens} leaves the student nothing of sampling.max_tokens = {config.sampling.max_tokens}",
            hint=f"prefix.tokens={config.sampling.max_tokens // 4}",
        )
    if ranks > 1:
        raise UserError(
            "prefix.tokens: what the student thinks of the teacher's tokens is read by one process, and there are "
            f"{ranks} ranks",
            hint="run it without torchrun, or prefix.tokens=0",
        )

"""Sample responses in this process: one prefill per prompt, one key-value cache, rows leave when done.

    sampler = LocalSampler(loaded)
    rollouts = sampler.sample(prompts, sampling=cfg.sampling, seed=0, step=3)
    sampler.sync(None, version=4)

A row's tokens depend on its own prompt, the weights, (seed, step, prompt id, sample) and nothing else: not on
the rows decoded beside it, their order or number (up to the rounding of the arithmetic).

Letters: R rows decoded at once, G responses per prompt, T response positions, V vocabulary, K top-k.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from opdkit.config import SamplingConfig
from opdkit.models.adapter import merge
from opdkit.models.decode import Decoder, check
from opdkit.models.draw import Drawn, draw, uniforms
from opdkit.models.load import LoadedModel
from opdkit.types import Needs, Prompt, Rollout, RunError, UserError

_REFILL_SHARE = 0.25  # of batch_rows must be free before waiting prompts are prefilled, or prefills are many


@dataclass
class _Row:
    """One response under way."""

    index: int  # in the order of the result
    prompt: Prompt
    sample: int
    limit: int  # longest response: max_tokens, or what the context leaves
    uniforms: np.ndarray  # [limit], one per token
    ids: list[int] = field(default_factory=list)


class LocalSampler:
    """Draws from the learner's own module, or from a copy of it (`copy_of`) that `sync` fills."""

    name = "local"

    def __init__(self, loaded: LoadedModel, *, compute: torch.dtype | None = None, owned: bool = False):
        """`compute` may narrow the arithmetic of decoding below the weights' dtype.

        UserError for what cannot be decoded.
        """
        self.loaded = loaded
        self.owned = owned
        self.version = 0
        self.offers = Needs(sampled=True, top_k=loaded.head.rows, entropy=True)
        self.compute = _narrower(compute, loaded.model.dtype)
        with loaded.reading(), _evaluating(loaded.model):
            self.fast = check(loaded, compute=self.compute)

    @classmethod
    def copy_of(cls, loaded: LoadedModel, *, compute: torch.dtype | None = None) -> Self:
        """A sampler with its own weights, which `sync` replaces: merged ones where the learner trains an adapter."""
        model = merge(copy.deepcopy(loaded.model)).requires_grad_(False)
        head = replace(loaded.head, output=model.get_output_embeddings())
        return cls(replace(loaded, model=model, head=head), compute=compute, owned=True)

    @property
    def shares_weights(self) -> bool:
        """Its module is the learner's, unless it is a copy."""
        return not self.owned

    def close(self) -> None:
        """Nothing to end: no process, no port."""

    def sync(self, state: Mapping[str, Tensor] | None, *, version: int) -> None:
        """Take the learner's weights (names of its `state_dict`); None where the module is the learner's own.

        Takes effect at once: nothing that was computed with the old weights outlives a call of `sample`.
        """
        if state is not None:
            assert self.owned, "the module is the learner's: it has the weights already"
            _load_state(self.loaded.model, state)
        self.version = version

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        sampling: SamplingConfig,
        seed: int,
        step: int,
        needs: Needs = Needs(),  # noqa: B008  frozen
        stop_ids: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """G responses to every prompt, all of the first prompt's before the second's.

        End tokens are `stop_ids`, or `sampling.stop_ids`, or the model's. UserError for a prompt that fills
        the context.
        """
        assert not needs.unmet(self.offers), needs.unmet(self.offers)
        if not prompts:
            return []
        stops = self._stops(stop_ids if stop_ids is not None else sampling.stop_ids)
        rows = self._rows(prompts, sampling, seed=seed, step=step)
        with self.loaded.reading(), _evaluating(self.loaded.model), torch.inference_mode():
            under_way = _Sampling(self, rows, sampling, needs=needs, stops=stops)
            under_way.run()
        return self._rollouts(rows, _by_row(under_way.drawn, rows), sampling, stops)

    def _stops(self, given: Sequence[int] | None) -> frozenset[int]:
        return frozenset(
            i for i in (self.loaded.stop_ids if given is None else given) if 0 <= i < self.loaded.head.rows
        )

    def _rows(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, *, seed: int, step: int
    ) -> list[_Row]:
        """One row per response.

        A prompt that is there twice goes on with its samples' numbering, or both would be equal.
        """
        seen: dict[str, int] = {}
        rows: list[_Row] = []
        for prompt in prompts:
            limit = min(sampling.max_tokens, self._room(prompt))
            first = seen.get(prompt.id, 0)
            seen[prompt.id] = first + sampling.responses
            for sample in range(sampling.responses):
                stream = uniforms(limit, seed=seed, step=step, prompt=prompt.id, sample=first + sample)
                rows.append(_Row(len(rows), prompt, sample, limit, stream))
        return rows

    def _room(self, prompt: Prompt) -> int:
        """Tokens the context leaves for a response."""
        if not prompt.ids:
            raise UserError(
                f"prompt {prompt.id} has no tokens", hint="give it text, or use chat_template = true"
            )
        room = self.loaded.max_length - len(prompt.ids)
        if room < 1:
            raise UserError(
                f"prompt {prompt.id} has {len(prompt.ids)} tokens, {self.loaded.name} reaches "
                f"{self.loaded.max_length}",
                hint="leave out prompts that fill the model's context",
            )
        return room

    def _rollouts(
        self,
        rows: Sequence[_Row],
        columns: Mapping[str, Any],
        sampling: SamplingConfig,
        stops: frozenset[int],
    ) -> list[Rollout]:
        texts = self.loaded.tokenizer.batch_decode([row.ids for row in rows], skip_special_tokens=True)
        return [
            Rollout(
                prompt=row.prompt,
                response_ids=tuple(row.ids),
                finish_reason="stop" if row.ids[-1] in stops else "length",
                text=text,
                sample=row.sample,
                temperature=sampling.temperature,
                policy_version=self.version,
                sampler=self.name,
                **{name: values[row.index] for name, values in columns.items()},
            )
            for row, text in zip(rows, texts, strict=True)
        ]


class _Sampling:
    """One call of `sample` under way: who waits, who is decoded, what was drawn so far."""

    def __init__(
        self,
        sampler: LocalSampler,
        rows: Sequence[_Row],
        sampling: SamplingConfig,
        *,
        needs: Needs,
        stops: frozenset[int],
    ):
        self.head = sampler.loaded.head.at_temperature(sampling.temperature)
        self.sampling, self.needs, self.stops = sampling, needs, stops
        self.device = sampler.loaded.device
        self.decoder = Decoder(
            sampler.loaded,
            slots=min(sampling.batch_rows, len(rows)),
            room=sampling.max_tokens,
            compute=sampler.compute,
            fast=sampler.fast,
        )
        # Longest prompts first: they fit the cache whenever they come, and neighbours are alike.
        self.waiting = sorted(rows, key=lambda row: -len(row.prompt.ids))
        self.live: list[_Row] = []  # in the order of the decoder's rows
        self.drawn: list[tuple[list[int], Drawn]] = []  # which rows, what they drew

    def run(self) -> None:
        while self.waiting or self.live:
            if fresh := self._next():
                self._draw(self._prefill(fresh), fresh)
                self.live += fresh
            else:
                tokens = torch.tensor([row.ids[-1] for row in self.live], device=self.device)
                self._draw(self.decoder.step(tokens), self.live)
            self._drop_finished()

    def _next(self) -> list[_Row]:
        """Rows to start now: whole prompts (unless G > batch_rows), so that each is prefilled once."""
        batch, responses = self.sampling.batch_rows, self.sampling.responses
        free = batch - len(self.live)
        if free < batch * _REFILL_SHARE or free < min(responses, batch):
            return []
        count = free - free % responses or free
        fresh, self.waiting = self.waiting[:count], self.waiting[count:]
        return fresh

    def _prefill(self, fresh: Sequence[_Row]) -> Tensor:
        counts = Counter(
            row.index // self.sampling.responses for row in fresh
        )  # in order of first appearance
        prompts = {row.index // self.sampling.responses: row.prompt.ids for row in fresh}
        return self.decoder.admit(list(prompts.values()), responses=list(counts.values()))

    def _draw(self, hidden: Tensor, rows: Sequence[_Row]) -> None:
        uniform = torch.tensor(
            [row.uniforms[len(row.ids)] for row in rows], dtype=torch.float64, device=self.device
        )
        drawn = draw(
            self.head.logits(hidden),
            uniform,
            needs=self.needs,
            top_k=self.sampling.top_k,
            top_p=self.sampling.top_p,
            banned=self._banned(rows),
        )
        self.drawn.append(([row.index for row in rows], drawn))
        for row, token in zip(rows, drawn.ids.tolist(), strict=True):  # the step's one wait for the device
            row.ids.append(token)

    def _banned(self, rows: Sequence[_Row]) -> Tensor | None:
        """[R, V], True for end tokens of rows that are too short to end; None where no row is."""
        short = [len(row.ids) < self.sampling.min_tokens for row in rows]
        if not (any(short) and self.stops):
            return None
        if all(short):
            return self.ends.expand(len(rows), -1)
        return self.ends & torch.tensor(short, device=self.device)[:, None]

    @cached_property
    def ends(self) -> Tensor:
        """[V], True for end tokens."""
        ends = torch.zeros(self.head.rows, dtype=torch.bool)
        ends[sorted(self.stops)] = True
        return ends.to(self.device)

    def _drop_finished(self) -> None:
        done = [
            i for i, row in enumerate(self.live) if row.ids[-1] in self.stops or len(row.ids) == row.limit
        ]
        if done:
            self.live = [self.live[i] for i in self.decoder.drop(done)]


def _by_row(drawn: Sequence[tuple[list[int], Drawn]], rows: Sequence[_Row]) -> dict[str, list[Tensor]]:
    """Field → one CPU tensor [T, …] per row, from the steps' [R, …]. RunError where a model gave no number.

    Made outside inference mode and copied per row, so that autograd may meet them and each can be saved
    alone.
    """
    order = torch.from_numpy(np.concatenate([index for index, _ in drawn])).argsort(stable=True)
    lengths = [len(row.ids) for row in rows]
    columns = {}
    for name in ("behaviour_logp", "logp", "topk_ids", "topk_logp", "entropy"):
        parts = [getattr(step, name) for _, step in drawn]
        if parts[0] is not None:
            columns[name] = [part.clone() for part in torch.cat(parts).cpu()[order].split(lengths)]
    if not all(bool(values.isfinite().all()) for values in columns["logp"]):
        raise RunError(
            "the student's logits are not finite, so nothing can be drawn from them",
            hint="resume from the last checkpoint with a smaller optim.lr",
        )
    return columns


def _narrower(compute: torch.dtype | None, held: torch.dtype) -> torch.dtype | None:
    """float64 arithmetic on float32 weights has no use in sampling: log-probs are compared at float32."""
    return compute if compute is not None and compute.itemsize < held.itemsize else None


def _load_state(model: Any, state: Mapping[str, Tensor]) -> None:
    """Copy weights in place. A tied head may be missing from `state`, nothing else."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= tied, (missing, unexpected)


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """eval() while sampling; afterwards every module trains or not as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

"""After every publish: does the engine now say what the learner says?

A fixed sequence is read by both. At the start both have the same weights (the same file, or a first publish), so what they
differ by then is the engine's arithmetic and nothing else, and the bound after a publish is a multiple of that. Two defects are
told apart: numbers that are wrong, and numbers that did not move although the learner's did.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from opdkit.engines.client import EngineError
from opdkit.models.load import LoadedModel
from opdkit.models.teacher import LocalTeacher
from opdkit.types import Needs, Prompt, Rollout

LENGTH = 32  # tokens of the sequence
FLOOR = 2e-5  # nats: float32 sums in another order, at log-probs near -10
START = {"bfloat16": 0.5}
"""Nats at the start that an engine of this dtype may cost; .05 in others. SmolLM2-135M on vLLM's CPU build: 3e-5 in float32,
.19 in bfloat16 against float32 masters, on these random tokens, whose log-probs go down to -19."""


def bound_of(noise: float) -> float:
    """How far apart both may be after a publish, in nats, from how far apart they were when they were equal.

    Over steps the distance varied by a factor of 6 in float32, of 1.3 in bfloat16, where it is large: there a wide margin
    would let everything pass.

    >>> [round(bound_of(noise), 5) for noise in (0.0, 3e-5, 0.2)]
    [2e-05, 0.0009, 0.6]
    """
    return max(FLOOR, (30.0 if noise < 1e-3 else 3.0) * noise)


class CanaryError(EngineError):
    """The engine's weights are not the learner's."""

    finding = "canary"


class Canary:
    """Reads the learner's own module; `engine` gives the engine's log-probs of a sequence's tokens, but for the first."""

    def __init__(
        self,
        loaded: LoadedModel,
        engine: Callable[[tuple[int, ...]], Tensor],
        *,
        bound: float | None = None,
        start: float | None = None,
        dtype: str = "float32",
        room: int = LENGTH + 1,
    ):
        """Reads both when they should be equal. CanaryError where they differ by more than `start` nats.

        `start` unset: what an engine of this `dtype` may cost.
        `room`: tokens the engine reaches, one of which it writes.
        """
        self.loaded, self.engine = loaded, engine
        start = START.get(dtype, 0.05) if start is None else start
        self.ids = tuple((11 + 7919 * i) % loaded.head.rows for i in range(min(LENGTH, room - 1)))
        self.ours, self.theirs = self._learner(), engine(self.ids)
        self.error = _apart(self.ours, self.theirs)
        if not self.error <= start:
            raise CanaryError(
                f"at the start the engine's log-probs of a fixed prompt are {self.error:.3g} nats from the learner's, at most "
                f"{start:g}: it has another model, did not take all weights, or reads them differently",
                hint="sampling.publish=extension and sampling.dtype=float32 are safest (docs/engines.md); or sampling.type=local",
            )
        self.noise = self.error
        self.bound = bound if bound is not None else bound_of(self.noise)

    def check(self) -> float:
        """|engine − learner| in nats after a publish, the largest. CanaryError beyond the bound, or where nothing arrived."""
        ours, theirs = self._learner(), self.engine(self.ids)
        moved, followed = _apart(ours, self.ours), _apart(theirs, self.theirs)
        self.error = _apart(ours, theirs)
        if moved > max(2 * self.noise, 1e-6) and followed == 0.0:
            raise CanaryError(
                f"the publish did nothing: the learner moved by {moved:.3g} nats on a fixed prompt, the engine not at all",
                hint="sampling.publish=extension, and see docs/engines.md; or sampling.type=local",
            )
        if not self.error <= self.bound:
            raise CanaryError(
                f"after a publish the engine's log-probs of a fixed prompt are {self.error:.3g} nats from the learner's, at most "
                f"{self.bound:.2g}: some weights did not arrive (a tied head is a known case)",
                hint="sampling.publish=extension (docs/engines.md), or sampling.type=local; sampling.canary=… sets the bound",
            )
        self.ours, self.theirs = ours, theirs
        return self.error

    def _learner(self) -> Tensor:
        rollout = Rollout(Prompt(id="canary", ids=self.ids[:1]), self.ids[1:], finish_reason="length")
        reader = LocalTeacher(self.loaded, payload="ids", frozen=False)
        sampled = reader.score([rollout], needs=Needs(sampled=True))[0].sampled
        assert sampled is not None
        return sampled.detach().float().cpu()


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite where they are not of one length or not numbers."""
    if one.shape != other.shape or not bool(one.isfinite().all() and other.isfinite().all()):
        return float("inf")
    return float(torch.max((one.double() - other.double()).abs()))

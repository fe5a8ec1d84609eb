"""The two contracts of models that run somewhere: who draws rollouts, who scores them. Held by local and remote ones alike.

tests/contracts.py runs the same tests over every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from opdkit.config import SamplingConfig
from opdkit.models.head import Head
from opdkit.types import Needs, Prompt, Rollout, Scores


class Sampler(Protocol):
    """Draws responses from the student as it was last synced."""

    version: int

    @property
    def offers(self) -> Needs: ...
    @property
    def shares_weights(self) -> bool:
        """Whether its weights are the learner's own, so that none need to be handed over."""
        ...

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        sampling: SamplingConfig,
        seed: int,
        step: int,
        needs: Needs = ...,
        stop_ids: Sequence[int] | None = None,
    ) -> list[Rollout]: ...

    def sync(self, state: Mapping[str, Tensor] | None, *, version: int) -> None: ...

    def close(self) -> None: ...


class Teacher(Protocol):
    """Scores response positions of rollouts with frozen weights."""

    @property
    def temperature(self) -> float: ...
    @property
    def rounding_pending(self) -> bool: ...
    @property
    def rounding_kl(self) -> float | None:
        """Mean KL(float32 ‖ bfloat16) in nats, once weights were rounded."""
        ...

    @property
    def offers(self) -> Needs: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def head(self) -> Head | None:
        """Lent to the learner's chunks where hidden states are sent."""
        ...

    def score(
        self, rollouts: Sequence[Rollout], *, needs: Needs, ids: Sequence[Tensor] | None = None
    ) -> list[Scores]: ...

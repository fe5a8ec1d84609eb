"""Several teachers behind one: each rollout goes to the teacher of its prompt's group. A Teacher itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from opdkit.types import Needs, Prompt, Rollout, Scores, UserError


class Router:
    """Asks every teacher once per step for its own rollouts, one after another; scores come back in order, named."""

    rounding_pending = False
    rounding_kl = None
    head = None  # log-probs travel, not hidden states: heads cannot be routed to chunks

    def __init__(self, teachers: Mapping[str, Any]):
        """`teachers`: group → a Teacher that sends log-probs at ids."""
        assert teachers, "a router needs a teacher"
        self.teachers = dict(teachers)
        self.offers = common([t.offers for t in self.teachers.values()])
        self.temperature = next(iter(self.teachers.values())).temperature
        self.fingerprint = next(iter(self.teachers.values())).fingerprint

    def score(
        self, rollouts: Sequence[Rollout], *, needs: Needs, ids: Sequence[Tensor] | None = None
    ) -> list[Scores]:
        """One `Scores` per rollout, `teacher` naming who gave them. UserError for a group without a teacher."""
        refuse_unrouted([r.prompt for r in rollouts], self.teachers)
        found: dict[int, Scores] = {}
        for name, teacher in self.teachers.items():
            rows = [i for i, r in enumerate(rollouts) if r.prompt.group == name]
            if not rows:
                continue
            part = teacher.score(
                [rollouts[i] for i in rows], needs=needs, ids=None if ids is None else [ids[i] for i in rows]
            )
            found |= {i: replace(s, teacher=name) for i, s in zip(rows, part, strict=True)}
        return [found[i] for i in range(len(rollouts))]


def refuse_unrouted(prompts: Sequence[Prompt], teachers: Mapping[str, Any]) -> None:
    """UserError for the first prompt whose group no teacher has: it would be trained on nobody's word."""
    for prompt in prompts:
        if prompt.group not in teachers:
            what = "no group" if prompt.group is None else f"the group {prompt.group!r}"
            raise UserError(
                f"{prompt.source or prompt.id} has {what}, and there are teachers for {', '.join(sorted(teachers))}",
                hint=f"teacher.teachers.{prompt.group or 'NAME'}=…, or a `group` in every row of the prompts",
            )


def common(offers: Sequence[Needs]) -> Needs:
    """What every one of them can give, at ids."""
    return Needs(
        sampled=all(o.sampled for o in offers),
        top_k=min(o.top_k for o in offers),
        at_ids=all(o.at_ids for o in offers),
        entropy=all(o.entropy for o in offers),
        full=False,
    )

"""The horizon: how deep along a response the teacher is listened to, step by step.

A decision is a function of the rows of metrics.jsonl so far and of what the health monitor finds in them, so a run that was
killed and resumed goes on with the horizon that it would have had:

    every `horizon.every` steps   the depth that these steps' rows trust (diagnostics/depth.py); longer by `growth` at most
    a condition of the tail       half, and again every `every` steps while it lasts   (health.on_critical = mask, shorten)

never below `floor`. `mask` narrows the window that trains, `shorten` also what is drawn; growing is a trial then, and after the
n-th cut it waits for 2^(n − 1) decisions. A response that is cut by the horizon has neither ended nor run into the limit: its
finish is "cut", and it is not graded, for an unfinished answer is not a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opdkit.config import Config
from opdkit.config.horizon import THRESHOLDS
from opdkit.diagnostics import trusted_depth
from opdkit.types import Finding, Rollout, UserError

TAIL = frozenset(("tail_first_decay", "entropy_blow_up", "lost_stopping", "length_inflation", "repetition"))
"""Conditions of health that begin at the end of responses (arXiv 2604.13016, Figs. 13 and 23)."""
ACTS = ("mask", "shorten")


@dataclass(frozen=True)
class Change:
    """The horizon is another one from the next step on."""

    step: int  # finished steps
    depth: int  # tokens
    before: int
    why: str

    def finding(self, mode: str) -> Finding:
        """What is told of it."""
        done = {"mask": "train no longer", "shorten": "are no longer drawn"}[mode]
        later = f", later ones {done}" if self.depth < self.before else ""
        return Finding(
            name="horizon",
            severity="info",
            message=f"horizon {self.before} → {self.depth} tokens{later} ({self.why})",
            numbers={"depth": self.depth, "before": self.before},
            step=self.step,
            rule=self.why,
            source="arXiv 2604.13016, 6.1: supervision decays with depth",
        )


class Horizon:
    """The depth from the next step on. `see` every row in order, with the names of what it brought to light."""

    def __init__(self, config: Config):
        self.cfg, self.mode = config.horizon, acting_mode(config)
        self.halves = config.health.on_critical in ACTS
        self.most = config.sampling.max_tokens
        self.least = min(self.cfg.floor, self.most)
        self.depth = self.cfg.start or self.most
        self._rows: list[Mapping[str, Any]] = []  # since the last decision
        self._collapsed = self._shortened = False
        self._cuts = self._waits = 0  # by measurement; decisions before the next trial

    @property
    def window(self) -> int:
        """First response tokens that train; 0 = all."""
        return self.depth if self.mode != "off" and self.depth < self.most else 0

    @property
    def drawn(self) -> int:
        """Most tokens of a response that are drawn."""
        return self.depth if self.mode == "shorten" else self.most

    def see(
        self,
        row: Mapping[str, Any],
        names: Iterable[str] = (),
        lasting: Callable[[], Iterable[str]] = tuple,
    ) -> Change | None:
        """What the row changes. `lasting`: names of conditions that were found earlier and still hold."""
        if self.mode == "off":
            return None
        self._rows.append(row)
        tail = sorted(TAIL.intersection(names)) if self.halves else []
        if not tail and len(self._rows) < self.cfg.every:
            return None
        if not tail and self._collapsed:
            tail = sorted(TAIL.intersection(lasting()))
        if tail:
            self._collapsed = True
            return self._to(row, self.depth // 2, why=", ".join(tail))
        if self.cfg.mode == "off":
            return self._to(row, self.depth, why="")
        cfg = self.cfg
        bound = THRESHOLDS[cfg.by] if cfg.threshold is None else cfg.threshold
        trusted = trusted_depth(self._rows, by=cfg.by, bound=bound, max_tokens=self.most)
        if (
            trusted is None
        ):  # a start grows on, a mask that was cut stays; what is not drawn is tried, or it would stay unknown
            held = self._shortened and self.mode == "mask"
            known, trusted = "unknown", self.depth if held else self.most
        else:
            known = f"trusted up to {trusted} tokens, bound {bound:g}"
        depth = self._tried(min(trusted, int(self.depth * cfg.growth), self.most))
        return self._to(row, depth, why=f"{cfg.by} {known}")

    def _tried(self, depth: int) -> int:
        """What is beyond the horizon is unknown where it is not drawn: a trial that failed is not soon repeated."""
        if self.mode != "shorten":
            return depth
        if max(depth, self.least) < self.depth:
            self._cuts += 1
            self._waits = 2 ** (self._cuts - 1)
        elif depth > self.depth and self._waits > 0:
            self._waits -= 1
            return self.depth
        return depth

    def _to(self, row: Mapping[str, Any], depth: int, *, why: str) -> Change | None:
        before, self.depth, self._rows = self.depth, max(self.least, depth), []
        self._shortened = self._shortened or self.depth < before
        return None if self.depth == before else Change(int(row["step"]), self.depth, before, why)

    def numbers(self, rollouts: Sequence[Rollout]) -> dict[str, tuple[float, float]]:
        """What a step's row tells of it, as sums and counts; nothing where there is no horizon."""
        if self.mode == "off":
            return {}
        tokens = sum(r.length for r in rollouts)
        beyond = sum(max(0, r.length - self.depth) for r in rollouts)
        told = {"horizon": (float(self.depth), 1.0), "beyond_horizon": (float(beyond), float(tokens))}
        if self.mode == "shorten":
            told["cut_fraction"] = (
                float(sum(r.finish_reason == "cut" for r in rollouts)),
                float(len(rollouts)),
            )
        return told


def acting_mode(config: Config) -> str:
    """How a horizon acts in this run: as configured, or as a collapse would make it."""
    if config.horizon.mode != "off":
        return config.horizon.mode
    return config.health.on_critical if config.health.on_critical in ACTS else "off"


def cut_at(rollouts: Sequence[Rollout], depth: int) -> list[Rollout]:
    """Those that ran into a cap of `depth` tokens are cut and have no grade."""
    return [
        replace(r, finish_reason="cut", grade=None)
        if r.finish_reason == "length" and r.length == depth
        else r
        for r in rollouts
    ]


def refuse_horizon(config: Config, *, entropy: bool) -> None:
    """UserError for a horizon that could not act, or not as it says. `entropy`: whether the teacher tells its own."""
    cfg, critical, most = config.horizon, config.health.on_critical, config.sampling.max_tokens
    mode = acting_mode(config)
    if mode == "off":
        return
    key = "horizon.mode" if cfg.mode != "off" else "health.on_critical"
    problems = (
        (
            config.story != "distill",
            f"{key} = {mode} is about how deep a teacher is listened to, and story {config.story!r} has none",
            f"{key}={'off' if cfg.mode != 'off' else 'stop'}, or sampling.max_tokens={max(1, most // 2)}",
        ),
        (
            cfg.mode != "off" and critical in ACTS and critical != cfg.mode,
            f"horizon.mode = {cfg.mode} and health.on_critical = {critical} treat the same tokens in two ways",
            f"health.on_critical={cfg.mode}",
        ),
        (
            critical in ACTS and not config.health.enabled,
            f"health.on_critical = {critical}, but nobody watches",
            "health.enabled=true",
        ),
        (
            cfg.mode != "off" and config.diagnostics.bins < 2,
            "horizon.mode measures by position, and there is one bin",
            "diagnostics.bins=8",
        ),
        (
            cfg.start > most,
            f"horizon.start = {cfg.start} is longer than sampling.max_tokens = {most}",
            f"horizon.start={most}",
        ),
        (
            0 < cfg.start < min(cfg.floor, most),
            f"horizon.start = {cfg.start} is below horizon.floor = {cfg.floor}",
            f"horizon.floor={cfg.start}",
        ),
        (
            mode == "shorten" and config.sampling.min_tokens > min(cfg.floor, most),
            f"sampling.min_tokens = {config.sampling.min_tokens} is more than horizon.floor = {cfg.floor} lets be drawn",
            f"horizon.floor={config.sampling.min_tokens}",
        ),
        (
            cfg.mode != "off" and cfg.by == "entropy" and not entropy,
            "horizon.by = entropy, but this teacher does not tell its entropy",
            "horizon.by=overlap_ratio",
        ),
    )
    for wrong, message, hint in problems:
        if wrong:
            raise UserError(message, hint=hint)

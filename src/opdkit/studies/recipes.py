"""How the testbed's models are made: for every family a list of recipes, each a story and its settings.

`student` is trained on texts whose mode is wrong for one kind of problem and full of facts it cannot hold.
`improved` finds what is right by trying: new capability in the student's own style. `bigger` comes out of the
same pipeline, holds the facts, and scores higher. `restyled` says what is right in other words.
`cold_started` is the student after a short imitation of `restyled`. `other_end` is `improved` but for its end
token. The others are what single questions of the study need, the last seven of them pairs only
(`opdkit.studies.factory`). Settings were found on world seeds 3 and 4
(docs/testbed.md); `opd study build testbed` uses others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from opdkit.studies.bodies import Body

Source = Literal["texts", "kept", "samples", "mixed"]


@dataclass(frozen=True)
class Recipe:
    """One model. It begins as a `body` from a seed, or as the model named `start`.

    What `sft` imitates: the world's `texts`; what the model `of` `kept` while it was improved, with another
    end token; `samples` of the model `of`; or `mixed`, every other one of them the beginning model's own.
    """

    name: str
    settings: Mapping[str, Any]
    body: Body | None = None
    seed: int = 0
    start: str | None = None
    source: Source = "texts"
    of: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Models that must be there first."""
        return tuple(name for name in (self.start, self.of) if name is not None)


@dataclass(frozen=True)
class Family:
    """A world and the models that live in it."""

    name: str
    task: Mapping[str, Any]
    recipes: tuple[Recipe, ...]
    distill: Mapping[str, Any]
    push_down: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, name: str) -> Recipe:
        return next(r for r in self.recipes if r.name == name)

    def key(self, name: str, *, world: str) -> str:
        """Of a model's content: its recipe, its parents' keys, and `world`, a hash of what its world says."""
        recipe = self.recipe(name)
        parents = [self.key(parent, world=world) for parent in recipe.needs]
        text = json.dumps(
            [asdict(recipe, dict_factory=_usual), dict(self.task), parents, world],
            sort_keys=True,
            default=str,
        )
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Pair:
    """Who learns from whom, and what the paper says of such a pair."""

    name: str
    student: str
    teacher: str  # "self": the student's own copy
    says: str


PAIRS = (
    Pair("new capability, same style", "student", "improved", "succeeds"),
    Pair("bigger, same pipeline, higher score", "student", "bigger", "gives nothing"),
    Pair("other style", "student", "restyled", "fails or dips"),
    Pair("other style after a cold start", "cold_started", "restyled", "succeeds"),
    Pair("reverse: own earlier self", "improved", "student", "falls back to it"),
    Pair("reverse: bigger, not improved", "improved", "bigger", "falls back as well"),
    Pair("other end token", "student", "other_end", "learns to end in another way"),
    Pair("self", "student", "self", "nothing to learn"),
)


def _usual(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A record's values for its key; what was added since and is as it always was is no part of it."""
    return {name: value for name, value in pairs if (name, value) != ("context", 64)}


def _adam(lr: float, *, warmup: int, end: float = 0.0) -> dict[str, Any]:
    return {
        "lr": lr,
        "betas": [0.9, 0.98],
        "weight_decay": 0.01,
        "warmup_steps": warmup,
        "schedule": "cosine",
        "final": end,
    }


def _sft(steps: int, lr: float, *, texts: int = 60_000, warmup: int = 50, **task: Any) -> dict[str, Any]:
    return {
        "story": "sft",
        "steps": steps,
        "prompts_per_step": 48,
        "optim": _adam(lr, warmup=warmup, end=0.1),
        "task": {"train_size": texts, **task},
    }


def _imitation(steps: int) -> dict[str, Any]:
    return _sft(steps, 2e-3, texts=8000, warmup=10, seed=200)


FAMILIES = ("chain", "lists")
_LONG = {"depth": [20, 22], "slip_share": 0.001}  # a slip in a hundred steps would spoil one in five
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "chain-23": {"modulus": 23},
    "chain-197": {"modulus": 197},
    "chain-long": _LONG,
    "lists-long": _LONG,
}
"""Families with other dials: a smaller and a larger vocabulary, and answers of 46 tokens."""
FACT_STEPS = {"chain": 1700, "lists": 3000}
"""Steps in which `bigger` learns the facts; those of lists come later: at 1,700 it knew one in twenty."""
BODIES = ("qwen3", "llama")


def family(name: str = "chain", *, kind: Literal["qwen3", "llama"] = "qwen3", seed: int = 0) -> Family:
    """All recipes of a family, or of a variant, in the world `seed`; initial weights are other ones in every world."""
    kin, dials = name.partition("-")[0], VARIANTS.get(name)
    assert name in (*FAMILIES, *VARIANTS), name
    long = name.endswith("-long")
    context = 512 if long else 64
    small = Body(48, 144, 0.1, kind=kind, context=context)
    large = Body(96, 384, 0.08, kind=kind, context=context)
    found = 2500 if long else 5000  # problems to try; long ones take longer
    improve = {
        "story": "improve",
        "steps": 160,
        "prompts_per_step": 48,
        "optim": _adam(1e-3, warmup=10),
        "improve": {"prompts": found},
        "sampling": {"responses": 1},
        "task": {"train_size": found, "seed": 100},
    }

    def narrowly(**task: Any) -> dict[str, Any]:
        return {**improve, "task": {**improve["task"], **task}}  # type: ignore[dict-item]

    # errors of another kind than the student's: none in the mode, one step in twelve anywhere
    slips = {**(dials or {}), "wrong_share": 0.0, "slip_share": 0.08}
    recipes = (
        Recipe("student", _sft(1600, 4e-3), body=small, seed=1 + 10 * seed),
        Recipe("improved", improve, start="student"),
        Recipe("bigger", _sft(FACT_STEPS[kin], 2e-3), body=large, seed=2 + 10 * seed),
        Recipe("restyled", _sft(600, 2e-3, texts=24_000, style="other", clean=True), start="student"),
        Recipe(
            "cold_started",
            _imitation(400),  # at 100 steps the old style is lost, the new not learnt
            start="student",
            source="samples",
            of="restyled",
        ),
        Recipe("other_end", _sft(160, 1e-3, warmup=10), start="student", source="kept", of="improved"),
        Recipe("bigger_improved", improve, start="bigger"),
        Recipe("barely_started", _imitation(100), start="student", source="samples", of="restyled"),
        Recipe("own_style_started", _imitation(200), start="student", source="samples", of="improved"),
        Recipe("one_wording", narrowly(template=0), start="student"),
        Recipe("short_only", narrowly(lengths=(2, 3)), start="student"),
        Recipe("base", _sft(400, 4e-3), body=small, seed=1 + 10 * seed),
        Recipe(
            "half_improved", {**improve, "steps": 40, "improve": {"prompts": found // 4}}, start="student"
        ),
        Recipe("slipping", _sft(200, 1e-3, texts=10_000, warmup=10, seed=300, args=slips), start="student"),
        Recipe("mixed", _imitation(200), start="student", source="mixed", of="restyled"),
        Recipe("two_styles", _imitation(200), start="restyled", source="mixed", of="improved"),
        Recipe("end_started", _imitation(60), start="student", source="samples", of="other_end"),
        Recipe("young_stranger", _sft(1600, 4e-3), body=small, seed=71 + 10 * seed),
        Recipe("stranger", improve, start="young_stranger"),
    )
    distill: dict[str, Any] = {
        "story": "distill",
        "objective": {"preset": "paper"},
        "steps": 100,
        "prompts_per_step": 128,
        "optim": {"lr": 3e-4, "warmup_steps": 10, "weight_decay": 0.0},
        "task": {"train_size": 8192, "seed": 2},
        "sampling": {"responses": 1},
    }
    control = {**distill, "story": "push_down", "optim": {**distill["optim"], "lr": 1e-4}}
    del control["objective"]
    task: dict[str, Any] = {"type": "testbed", "family": kin, "world": seed}
    return Family(name, task | ({"args": dials} if dials else {}), recipes, distill, control)

"""Which prompts repeat another, are near an evaluation prompt, and how near they are to what the teacher was trained on.

Equal texts first (but for case, space and the wrappers of data sets), then cosine (arXiv 2604.13016, C.3: top-1 neighbour, ≥ .6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from opdkit.recipes.prompts_embed import Embedder, Neighbour, nearest
from opdkit.recipes.prompts_row import Judged, asked, excerpt, kept, key, where
from opdkit.types import Prompt

BATCH = 256
"""Texts that are embedded together."""


@dataclass(frozen=True)
class Contact:
    """A row of another set that a training prompt is near to, as the contamination report tells it."""

    set: str
    row: str
    prompt: str
    cosine: float
    equal: bool
    row_text: str
    prompt_text: str


def without_repeats(rows: Sequence[Judged]) -> list[Judged]:
    """The first of every question stays."""
    first: dict[str, str] = {}
    told = []
    for row in rows:
        name = key(row.prompt)
        if row.kept and name in first:
            row = row.drop(f"asks what {first[name]} asks already")
        elif row.kept:
            first[name] = where(row.prompt)
        told.append(row)
    return told


def without_known(
    rows: Sequence[Judged],
    others: Mapping[str, Sequence[Prompt]],
    *,
    near: float,
    embed: Callable[[Sequence[str]], np.ndarray] | None,
) -> tuple[list[Judged], list[Contact]]:
    """Without what is equal to, or with `embed` as near as `near` to, a row of one of the `others`; and the report.

    The report looks from the other side: every row of `others` that was touched, with the training prompt nearest to it.
    """
    found, contacts = list(rows), []
    for name, prompts in others.items():
        mine = kept(found)
        if not mine or not prompts:
            continue
        equal = {key(p): p for p in reversed(prompts)}
        cosines = _nearest([r.prompt for r in mine], prompts, embed)
        fate: dict[int, Judged] = {}
        for row, neighbour in zip(mine, cosines, strict=True):
            twin = equal.get(key(row.prompt))
            if twin is not None:
                fate[id(row)] = row.drop(
                    f"equal to {where(twin)} of the {name} set", near_to=where(twin), cosine=1.0
                )
            elif neighbour is not None and neighbour.cosine >= near:
                other = prompts[neighbour.index]
                fate[id(row)] = row.drop(
                    f"cosine {neighbour.cosine:.2f} to {where(other)} of the {name} set",
                    near_to=where(other),
                    cosine=round(neighbour.cosine, 4),
                )
        contacts += _contacts(name, prompts, [r.prompt for r in mine], near=near, embed=embed)
        found = [fate.get(id(row), row) for row in found]
    return found, contacts


def _contacts(
    name: str,
    prompts: Sequence[Prompt],
    mine: Sequence[Prompt],
    *,
    near: float,
    embed: Callable[[Sequence[str]], np.ndarray] | None,
) -> list[Contact]:
    first = {key(p): p for p in reversed(mine)}
    told = []
    for other, neighbour in zip(prompts, _nearest(prompts, mine, embed), strict=True):
        twin = first.get(key(other))
        if twin is None and (neighbour is None or neighbour.cosine < near):
            continue
        prompt = twin if twin is not None else mine[neighbour.index if neighbour else 0]
        cosine = 1.0 if twin is not None or neighbour is None else round(neighbour.cosine, 4)
        told.append(
            Contact(
                name, where(other), where(prompt), cosine, twin is not None, excerpt(other), excerpt(prompt)
            )
        )
    return sorted(told, key=lambda contact: -contact.cosine)


def apart_from_each_other(
    rows: Sequence[Judged], *, near: float, embed: Callable[[Sequence[str]], np.ndarray]
) -> list[Judged]:
    """A prompt as near as `near` to one before it that stays is dropped, so that what stays is pairwise apart."""
    mine = kept(rows)
    vectors = embed([asked(row.prompt) for row in mine]) if mine else np.zeros((0, 1), np.float32)
    stays = np.zeros_like(vectors)  # filled from the front, so that no row is copied twice
    staying: list[Judged] = []
    fate: dict[int, Judged] = {}
    for row, vector in zip(mine, vectors, strict=True):
        cosines = stays[: len(staying)] @ vector
        best = int(cosines.argmax()) if staying else -1
        if best >= 0 and cosines[best] >= near:
            fate[id(row)] = row.drop(
                f"cosine {cosines[best]:.2f} to {where(staying[best].prompt)}, which stays"
            )
        else:
            stays[len(staying)] = vector
            staying.append(row)
    return [fate.get(id(row), row) for row in rows]


def with_closeness(
    rows: Sequence[Judged],
    taught: Sequence[Prompt],
    *,
    embedder: Embedder,
    embed: Callable[[Sequence[str]], np.ndarray],
) -> list[Judged]:
    """Each kept prompt's cosine to the nearest prompt that the teacher was trained on."""
    mine = kept(rows)
    close = dict(zip(map(id, mine), _nearest([row.prompt for row in mine], taught, embed), strict=True))
    told = []
    for row in rows:
        neighbour = close.get(id(row))
        if neighbour is not None:
            row = row.told(
                f"closeness {neighbour.cosine:.2f} to {where(taught[neighbour.index])}, by {embedder.name}",
                closeness=round(neighbour.cosine, 4),
                closest=where(taught[neighbour.index]),
            )
        told.append(row)
    return told


def _nearest(
    queries: Sequence[Prompt],
    references: Sequence[Prompt],
    embed: Callable[[Sequence[str]], np.ndarray] | None,
) -> list[Neighbour] | list[None]:
    """The nearest of `references` to every query; queries are embedded a batch at a time. None each where nobody embeds."""
    if embed is None or not references:
        return [None] * len(queries)
    index = embed([asked(p) for p in references])
    found: list[Neighbour] = []
    for begin in range(0, len(queries), BATCH):
        found += nearest(embed([asked(p) for p in queries[begin : begin + BATCH]]), index)
    return found

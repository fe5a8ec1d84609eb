"""Every objective against the formula it states and the divergence it is for, on small vocabularies in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from opdkit.config import RECIPES, ObjectiveConfig, SignalConfig
from opdkit.proofs.oracle import NotCovered, oracle, target, target_name, unknown
from opdkit.proofs.ours import expectation, local
from opdkit.proofs.records import EXACT, ObjectiveRow, largest
from opdkit.proofs.signals import sequence_distance, signal_error
from opdkit.proofs.specs import (
    PRESET_VOCABULARY,
    VOCABULARY,
    accepted,
    ends_of,
    named,
    others_of,
    pairs,
    presets,
    recorded_unbiased,
    states_unbiased,
)

PAIRS = 4
"""Random pairs of models, five positions each, over which a mean over y is measured."""


def preset_rows() -> list[ObjectiveRow]:
    """One row per preset, as its record sets it."""
    return [
        prove(spec, name, kind="preset", group=name, source=RECIPES[name].source)
        for name, spec in presets().items()
    ]


def combination_rows() -> list[ObjectiveRow]:
    """One row per combination that a config may hold."""
    return [prove(spec, named(spec), kind="combination", group=group(spec)) for spec in accepted()]


def group(spec: ObjectiveConfig) -> str:
    """Of one support, those that are unbiased and those that are not."""
    return f"{spec.support}, {'unbiased' if states_unbiased(spec) else 'biased'}"


def prove(spec: ObjectiveConfig, name: str, *, kind: str, group: str, source: str = "") -> ObjectiveRow:
    """Both questions of one objective. What is broken enough to raise is a row that does not hold."""
    stated = recorded_unbiased(name, spec) if kind == "preset" else states_unbiased(spec)
    about: dict[str, Any] = {"name": name, "kind": kind, "group": group, "source": source}
    try:
        if missing := unknown(spec):
            raise NotCovered(", ".join(missing))
        vocabulary = PRESET_VOCABULARY if kind == "preset" else VOCABULARY
        alone = spec.model_copy(update={"signal": SignalConfig()})
        formula = formula_error(alone, vocabulary=vocabulary)
        distance, cosine = mean_against_target(alone, vocabulary=vocabulary)
        if spec.signal != SignalConfig():
            formula = largest([formula, signal_error(spec)])
        if spec.signal.discount == 1.0 and spec.signal.token_rewards == "raw":
            distance = largest([distance, sequence_distance(spec)])
        row = ObjectiveRow(
            **about,
            unbiased=stated,
            formula_error=formula,
            relative_error=distance if stated else None,
            bias=None if stated else distance,
            cosine=cosine,
            target=told_target(spec),
        )
    except NotCovered as error:
        return ObjectiveRow(**about, covered=False, reason=f"no loop for {error}")
    except Exception as error:
        return ObjectiveRow(**about, unbiased=stated, reason=f"raised {type(error).__name__}: {error}")
    return verdict(row, distance)


def told_target(spec: ObjectiveConfig) -> str:
    """With credit for all that follows it is the sequence's."""
    whole = spec.signal.discount == 1.0 and spec.signal.token_rewards == "raw"
    return target_name(spec) + (" of the sequence" if whole else "")


def verdict(row: ObjectiveRow, distance: float) -> ObjectiveRow:
    """The row with what is wrong in it, in words; nan fails every comparison."""
    assert row.formula_error is not None
    reasons = []
    if not row.formula_error <= EXACT:
        reasons.append(f"value or gradient is off its formula by {row.formula_error:.1e}")
    if math.isnan(distance):
        reasons.append("its mean is no number")
    elif row.unbiased and not distance <= EXACT:
        reasons.append(f"stated to be unbiased for {row.target}, but its mean is off by {distance:.1e}")
    elif not row.unbiased and not distance > EXACT:
        reasons.append(f"stated to be biased, but its mean is the gradient of {row.target}")
    return replace(row, reason="; ".join(reasons))


def formula_error(spec: ObjectiveConfig, *, vocabulary: int) -> float:
    """Value and gradient against the oracle, the larger of both errors."""
    student, teacher = next(pairs(1, vocabulary=vocabulary))
    generator = torch.Generator().manual_seed(7)
    sampled = torch.randint(vocabulary, (len(student),), generator=generator)
    others, ends = others_of(spec, student), ends_of(spec)
    value, gradient = local(spec, student, teacher, sampled=sampled, others=others, ends=ends)
    wanted_value, wanted = oracle(spec, student, teacher, sampled, others=others, ends=ends)
    return largest([relative(value, wanted_value), relative(gradient, wanted)])


def mean_against_target(spec: ObjectiveConfig, *, vocabulary: int) -> tuple[float, float]:
    """‖E_y g − ∇D‖ / ‖∇D‖ and their cosine, over all positions of all pairs; y by enumeration, so exactly.

    Where it is stated to be unbiased the value's mean must be D as well.
    """
    means, exacts, values, divergences = [], [], [], []
    for student, teacher in pairs(PAIRS, vocabulary=vocabulary):
        others, ends = others_of(spec, student), ends_of(spec)
        value, gradient = expectation(spec, student, teacher, others, ends)
        divergence, exact = target(spec, student, teacher, others, ends)
        means.append(gradient)
        exacts.append(exact)
        values.append(value)
        divergences.append(divergence)
    mean, exact = torch.cat(means), torch.cat(exacts)
    distance = relative(mean, exact)
    if states_unbiased(spec):
        distance = largest([distance, relative(torch.cat(values), torch.cat(divergences))])
    return distance, float((mean * exact).sum() / (mean.norm() * exact.norm()))


def relative(found: Tensor, wanted: Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖; the difference itself where nothing is wanted. nan if either holds one.

    >>> relative(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0]))
    0.2
    """
    size = float(wanted.norm())
    return float((found - wanted).norm()) / (size or 1.0)

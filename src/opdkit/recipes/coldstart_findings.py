"""What is worth saying on the way of a cold start, with the numbers and a command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opdkit.config import ColdstartConfig, Config
from opdkit.types import Finding

MANY_DROPPED = 0.5
"""Share of dropped answers from which that is told as a warning."""
SOME_RESPELT = 0.05
"""Share of kept answers whose text is read as other tokens, from which that is told."""


def counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in reasons.items())


def looser(reason: str, cfg: Config) -> str:
    """The setting that would let pass what was dropped for this reason."""
    return {
        "truncated": f"coldstart.max_tokens={2 * ((cfg.coldstart and cfg.coldstart.max_tokens) or cfg.sampling.max_tokens)}",
        "no_answer": "coldstart.filters.no_answer=false",
        "repeated_text": "coldstart.filters.repetitive=false",
        "repeated_ngrams": "coldstart.filters.ngram_share=1",
        "wrong": "coldstart.filters.wrong=false",
    }.get(reason, "coldstart.temperature=1.0")


def of_filters(told: Mapping[str, Any], cfg: Config, path: Path) -> list[Finding]:
    """What the counts of the filters give reason to say."""
    found = []
    share = told["dropped"] / (told["dropped"] + told["kept"])
    if share > MANY_DROPPED:
        most = max(told["reasons"], key=lambda name: told["reasons"][name])
        found.append(
            Finding(
                "answers_dropped",
                "warning",
                f"{share:.0%} of the teacher's answers were dropped, most as {most}",
                numbers={"dropped_fraction": share},
                remedy=f"opd coldstart --resume {path} {looser(most, cfg)}",
                source="arXiv 2604.13016, 5.1",
            )
        )
    if told["respelt"] > SOME_RESPELT * told["kept"]:
        found.append(
            Finding(
                "answers_respelt",
                "warning",
                f"the text of {told['respelt']:,} of {told['kept']:,} answers is read as other tokens than the teacher drew: the "
                "student imitates another spelling",
                numbers={"respelt": told["respelt"], "kept": told["kept"]},
                source="docs/coldstart.md",
            )
        )
    if told["ends_replaced"]:
        found.append(
            Finding(
                "end_token_replaced",
                "warning",
                f"the teacher ends {told['ends_replaced']:,} answers with a token that does not end the student's: they are "
                "imitated with the student's own",
                remedy="opd check CONFIG",
                source="arXiv 2609.20511",
            )
        )
    return found


def at_the_limit(told: Mapping[str, Any], cold: ColdstartConfig, path: Path) -> Finding:
    """The SFT ended because its steps did."""
    return Finding(
        "handover_at_the_limit",
        "warning",
        f"overlap had not stopped rising, nor reached a target, at the most steps ({told['step']})",
        remedy=f"opd coldstart --resume {path} coldstart.steps={2 * cold.steps}",
        source="docs/coldstart.md",
    )

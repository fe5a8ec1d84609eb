"""The document of `opd selftest` as aligned lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

MARKS = {True: "holds", False: "DOES NOT HOLD", None: "not covered"}


def lines(told: Mapping[str, Any]) -> list[str]:
    """Objectives, groups of combinations, invariances, metrics; then what does not hold and what is not covered."""
    found: list[str] = []
    presets = [row for row in told["objectives"] if row["kind"] == "preset"]
    if presets:
        found += _block(
            "preset, of 40 tokens",
            ("formula", "target", "stated", "mean is off by", "cosine", ""),
            [(row["name"], *_objective(row)) for row in presets],
        )
        found += _block(
            "combinations, of 9 tokens",
            ("formula", "members", "mean is off by", "cosine", "", "worst or most biased member"),
            [(group["name"], *_group(group)) for group in told["groups"]],
        )
    for part in ("invariances", "metrics"):
        if told[part]:
            found += _block(
                part, ("error", "allowed", "tried", ""), [(c["name"], *_check(c)) for c in told[part]]
            )
    return [*found, *_end(told)]


def _block(title: str, headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    table = [(title, *headings), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ] + [""]


def _objective(row: Mapping[str, Any]) -> tuple[str, ...]:
    if not row["covered"]:
        return "", "", "", "", "", f"not covered: {row['reason']}"
    stated = "unbiased" if row["unbiased"] else "biased"
    off = row["relative_error"] if row["unbiased"] else row["bias"]
    return (_small(row["formula_error"]), row["target"], stated, _off(off), _cosine(row), MARKS[row["holds"]])


def _group(group: Mapping[str, Any]) -> tuple[str, ...]:
    bias = group["bias"]
    off = _off(group["relative_error"]) if bias is None else f"{bias[0]:.3f} to {bias[1]:.3f}"
    mark = MARKS[group["holds"]]
    return (
        _small(group["formula_error"]), str(group["members"]), off, _cosine(group), mark, group["worst"],
    )  # fmt: skip


def _check(check: Mapping[str, Any]) -> tuple[str, ...]:
    left_out = f" ({len(check['left_out'])} not covered)" if check["left_out"] else ""
    mark = MARKS[check["holds"]] + left_out
    bound = "none" if check["bound"] == 0 else f"{check['bound']:.0e}"
    return _small(check["error"]), bound, str(check["tried"]), mark


def _small(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"


def _off(value: float | None) -> str:
    """A bias reads as a number, a rounding error as a power of ten."""
    return "-" if value is None else f"{value:.3f}" if value >= 1e-3 else f"{value:.1e}"


def _cosine(row: Mapping[str, Any]) -> str:
    return "-" if row["cosine"] is None else f"{row['cosine']:.3f}"


def _end(told: Mapping[str, Any]) -> list[str]:
    presets = sum(row["kind"] == "preset" for row in told["objectives"])
    combinations = len(told["objectives"]) - presets
    counts = [(presets, "presets"), (combinations, "combinations")]
    counts += [(len(told[part]), part) for part in ("invariances", "metrics")]
    number = ", ".join(f"{count} {what}" for count, what in counts if count)
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    missing = [f"not covered: {line}" for line in told["not_covered"]]
    failed = [f"does not hold: {line}" for line in told["failures"]]
    verdict = "everything holds" if told["holds"] else f"{len(failed)} do not hold"
    return [*missing, *failed, f"{verdict}: {number}; {told['seconds']:.0f} s; {versions}"]

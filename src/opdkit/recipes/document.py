"""The document of `opd check` and `opd diagnose`: plain JSON after `verdict.schema.json`, and the same in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Any, Literal

from opdkit.recipes.foretell import lies
from opdkit.recipes.know import Continued
from opdkit.recipes.probe import DEPTHS, Number, Piece, curves, positions
from opdkit.recipes.static import Rendering
from opdkit.types import Finding, Verdict

SCHEMA = "opdkit.verdict/1"
SHOWN = (
    "teacher_lead",
    "teacher_accuracy",
    "accuracy",
    "teacher_accuracy_on_failures",
    "rehearsed_loss_ratio",
    "teachable_share",
    "success_slope",
    "sequence_reward_auroc",
    "overlap_ratio",
    "overlap_mass_student",
    "overlap_mass_teacher",
    "reverse_kl",
    "entropy_student",
    "entropy_teacher",
    "entropy_gap",
    "overlap_advantage",
    "first_token_agreement",
    "stop_teacher_same_at_end",
    "response_length",
    "truncated_fraction",
    "repetition_fraction",
    "gradient_growth_within",
    "gradient_cosine_within",
    "gradient_ratio_within",
    "gradient_growth_between",
    "gradient_cosine_between",
    "gradient_ratio_between",
    "gradient_norm_position",
)
"""What a terminal shows, in this order; the document holds everything."""
SPEAKS = 0.05
"""Of gap recovery: parts below are not worth a word."""


@dataclass(frozen=True)
class Opinion:
    """What was found of one teacher."""

    teacher: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    metrics: Mapping[str, Number] = field(default_factory=dict)
    piece: Piece = field(default_factory=Piece)
    continuation: tuple[Continued, ...] = ()
    renderings: tuple[Rendering, ...] = ()
    prediction: Mapping[str, Any] | None = None
    bands: tuple[Mapping[str, Any], ...] = ()


def schema() -> dict[str, Any]:
    """The published JSON schema of the document."""
    return json.loads((files("opdkit.recipes") / "verdict.schema.json").read_text(encoding="utf-8"))


def document(
    kind: Literal["check", "diagnose"],
    opinion: Opinion,
    *,
    student: str,
    cost: Mapping[str, float | None],
    ranking: Sequence[Mapping[str, Any]] = (),
    between: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The whole document of the (best) teacher."""
    piece, verdict = opinion.piece, opinion.verdict
    return {
        "schema": SCHEMA,
        "kind": kind,
        "student": student,
        "teacher": opinion.teacher,
        "prompts": len({row.prompt for row in piece.rows}),
        "rollouts": len(piece.rows),
        "positions": positions(piece),
        "cost": dict(cost),
        "graded": any(row.score is not None for row in piece.rows),
        "metrics": {name: asdict(number) for name, number in sorted(opinion.metrics.items())},
        "by_position": curves(piece.by_position),
        "by_depth": curves(piece.by_depth, scale=1 / DEPTHS),
        "continuation": [asdict(each) for each in opinion.continuation],
        "findings": [asdict(finding) for finding in opinion.findings],
        "verdict": {
            "name": verdict.name,
            "reason": verdict.reason,
            "remedy": verdict.remedy,
            "exit_code": verdict.exit_code,
            "because": [finding.name for finding in verdict.because],
        },
        "prediction": None if opinion.prediction is None else dict(opinion.prediction),
        "bands": [dict(band) for band in opinion.bands],
        "ranking": list(ranking),
        "between": list(between),
        "renderings": [asdict(each) for each in opinion.renderings],
    }


# --- in words -----------------------------------------------------------------------------------------------

SAID = {
    "go": "GO",
    "cold_start": "COLD START FIRST",
    "align_prompts": "ALIGN THE PROMPTS FIRST",
    "change_teacher": "CHANGE THE TEACHER",
    "nothing_to_learn": "NOTHING TO LEARN",
    "fix_first": "FIX THIS FIRST",
}


def lines(told: Mapping[str, Any]) -> list[str]:
    """A document for people: the verdict, why, what to type; then the numbers behind it."""
    verdict = told["verdict"]
    head = [f"{SAID[verdict['name']]}: {verdict['reason']}"]
    head += [f"  next: {verdict['remedy']}"] if verdict["remedy"] else []
    parts = [
        head,
        _ranking(told),
        _findings(told),
        _metrics(told),
        _continuation(told),
        _bands(told),
        _prediction(told),
    ]
    return [line for part in parts if part for line in [*part, ""]][:-1]


def _findings(told: Mapping[str, Any]) -> list[str]:
    rows = []
    for f in told["findings"]:
        rows.append(f"{f['severity']:7}  {f['name']}: {f['message']}")
        rows += [f"         rule: {f['rule']}  ({f['source']})"] if f["rule"] else []
        rows += (
            [f"         {f['remedy']}"] if f["remedy"] and f["remedy"] != told["verdict"]["remedy"] else []
        )
    return rows


def _metrics(told: Mapping[str, Any]) -> list[str]:
    rows = []
    for name in (n for n in SHOWN if n in told["metrics"]):
        m = told["metrics"][name]
        interval = "" if m["low"] is None else f"[{m['low']:.3f}, {m['high']:.3f}]"
        rows.append(f"{name:30} {m['value']:8.3f}  {interval:18} {_chance(told, name)}".rstrip())
    if not rows:
        return []
    read = f"{told['rollouts']} rollouts to {told['prompts']} prompts, {told['positions']:,} positions"
    return [f"{read}; 95 % intervals over prompts", *rows]


def _chance(told: Mapping[str, Any], name: str) -> str:
    chance = told["metrics"].get("overlap_chance_at_16")
    return f"chance {chance['value']:.3f}" if name == "overlap_ratio" and chance else ""


def _continuation(told: Mapping[str, Any]) -> list[str]:
    rows = [
        f"after {c['depth']:4.0%} of the student's response   teacher {c['teacher']:.2f}  student {c['student']:.2f}  "
        f"advantage {c['advantage']:+.2f} [{c['low']:+.2f}, {c['high']:+.2f}]"
        for c in told["continuation"]
    ]
    return ["going on from the student's cut rollouts", *rows] if rows else []


def _prediction(told: Mapping[str, Any]) -> list[str]:
    p = told["prediction"]
    if p is None or p["gap_recovery"] is None:
        return []
    low, high = p["gap_recovery"]["low"], p["gap_recovery"]["high"]
    value = f"{p['gap_recovery']['value']:.0%}, " if "value" in p["gap_recovery"] else ""
    return [f"expected gap recovery: {value}{low:.0%} to {high:.0%}  ({p['basis']})", *_reasons(p)]


def _reasons(p: Mapping[str, Any]) -> list[str]:
    """What speaks for and against, and how like the pair is to those seen; nothing of a range by verdict."""
    if "parts" not in p:
        return []
    said = [
        f"{word}: {names}"
        for word, sign in (("for", 1), ("against", -1))
        if (names := _parts(p["parts"], sign))
    ]
    near = p["nearest"]
    like = f"most like {near['pair']}, which recovered {near['gap_recovery']:.0%}"
    if near["distance"] > near["reach"]:
        like = f"unlike any pair seen ({like}): the interval vouches for nothing"
    outside = [
        f"{o['feature']} {o['value']:.2f} (seen {o['low']:.2f} to {o['high']:.2f})" for o in p["outside"]
    ]
    if outside:
        like += f"; outside what was seen: {', '.join(outside)}"
    return [f"  {line}" for line in ("; ".join(said), like) if line]


def _parts(parts: Mapping[str, float], sign: int) -> str:
    """Those that speak on one side, the loudest first."""
    heard = {name: part for name, part in parts.items() if sign * part >= SPEAKS}
    return ", ".join(f"{name} {heard[name]:+.2f}" for name in sorted(heard, key=lambda n: -abs(heard[n])))


def _bands(told: Mapping[str, Any]) -> list[str]:
    """Where single numbers lie among those of pairs that worked and that failed, each side's middle 80 % beside it."""
    rows = [
        f"{band['name']:30} {band['value']:8.3f}  {_among(band, 'working'):30}{_among(band, 'failing')}"
        for band in told.get("bands", ())
    ]
    head = f"{'among pairs of the testbed':39}  {'that worked':30}that failed"
    return [head, *rows] if rows else []


def _among(band: Mapping[str, Any], side: str) -> str:
    quantiles = band[side]["quantiles"]
    return f"{lies(band['value'], quantiles):13}{quantiles[1]:.2f} to {quantiles[3]:.2f}"


def _ranking(told: Mapping[str, Any]) -> list[str]:
    if not told["ranking"]:
        return []
    rows = ["rank  verdict           lead   teachable  slope   KL     teacher"]
    for r in told["ranking"]:
        cells = [
            _cell(r["metrics"], n) for n in ("teacher_lead", "teachable_share", "success_slope", "reverse_kl")
        ]
        rows.append(
            f"{r['rank']:4}  {r['verdict']:16}  {cells[0]}  {cells[1]}     {cells[2]}  {cells[3]}  {r['teacher']}"
        )
    for b in told["between"]:
        rows.append(
            f"where the student goes, {b['a']} and {b['b']}: KL {b['reverse_kl']:.3f} / {b['reverse_kl_back']:.3f}, "
            f"overlap {b['overlap_ratio']:.3f}, same first choice {b['top1_agreement']:.1%}"
        )
    return rows


def _cell(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:5.2f}" if name in metrics else "    -"

"""From numbers to findings to a verdict: rules in one table, each with its threshold and where that comes from.

`judge` reads a mapping of metric → (value, low, high), as the probe makes it, and what static checks found. It
returns every finding that fired, and the verdict of the first one that decides, in the order of the table: what
makes the numbers meaningless comes first, then what makes the teacher worthless, then what can be mended.

Thresholds were set on bases 0 and 11 to 13 of the testbed (docs/check.md has the pairs, and the fresh bases they
were then tried on), or are the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from opdkit.diagnostics.sequence import MIN_GAP
from opdkit.types import Finding, Verdict, VerdictName

PAPER = "arXiv 2604.13016"
TESTBED = "docs/check.md, pairs of the testbed"


@dataclass(frozen=True)
class Value:
    """A metric: its value, and a 95 % interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def least(self) -> float:
        return self.value if self.low is None else self.low

    @property
    def most(self) -> float:
        return self.value if self.high is None else self.high


class Known:
    """Metrics by name; asking for one that was not measured raises LookupError, and the rule is left out."""

    def __init__(self, values: Mapping[str, Value], counts: Mapping[str, int]):
        self.values, self.counts = values, counts

    def count(self, name: str) -> int:
        if name not in self.counts:
            raise LookupError(name)
        return self.counts[name]

    def __getitem__(self, name: str) -> Value:
        if name not in self.values:
            raise LookupError(name)
        return self.values[name]


@dataclass(frozen=True)
class Rule:
    """One condition. `verdict` None: worth saying, decides nothing. `remedy` names an entry of the remedies."""

    name: str
    verdict: VerdictName | None
    severity: Literal["info", "warning", "error"]
    when: Callable[[Known], bool]
    rule: str
    source: str
    says: Callable[[Known], str]
    numbers: tuple[str, ...]
    remedy: str = ""


SAME = 0.005
TRUNCATED = 0.5
REPEATED = 0.5
ENDS = 0.5
NEVER_ENDS = 0.1
OTHER_WORDS = 0.8
SHARED = 0.95
TEACHABLE = 0.5
UNSURE = 0.65
TAKES = 0.78
NEAR = 0.65, 0.86
SLOWLY, BARELY = 0.5, 0.42
ALIGNED = 0.03


def _takes(n: Known) -> bool:
    """Whether the loss fell: fast, or less fast with enough of the disagreement in reach."""
    ratio, share = n["rehearsed_loss_ratio"].value, n["teachable_share"].value
    return ratio <= SLOWLY or (ratio <= TAKES and share >= BARELY)


def _p(value: float) -> str:
    return f"{value:.0%}"


RULES = (
    Rule(
        "nothing_between",
        "nothing_to_learn",
        "error",
        lambda n: n["reverse_kl"].value < SAME,
        f"reverse_kl < {SAME}",
        "docs/check.md: the nearest pair that still taught something had .02",
        lambda n: (
            f"where the student goes, the teacher says the same: reverse KL {n['reverse_kl'].value:.4f} nats"
        ),
        ("reverse_kl", "overlap_ratio"),
        "teacher",
    ),
    Rule(
        "truncated",
        "fix_first",
        "error",
        lambda n: n["truncated_fraction"].value > TRUNCATED,
        f"truncated_fraction > {TRUNCATED}",
        "arXiv 2604.08527: truncated rollouts bias the gradient and collapse follows",
        lambda n: f"{_p(n['truncated_fraction'].value)} of the responses ran into the length limit",
        ("truncated_fraction", "response_length"),
        "length",
    ),
    Rule(
        "repetition",
        None,
        "warning",
        lambda n: n["repetition_fraction"].value > REPEATED,
        f"repetition_fraction > {REPEATED}",
        "arXiv 2604.08527",
        lambda n: f"{_p(n['repetition_fraction'].value)} of the 4-grams of a response were there before",
        ("repetition_fraction",),
    ),
    Rule(
        "other_end_token",
        "fix_first",
        "error",
        lambda n: (
            n["stop_teacher_same_at_end"].value < ENDS * n["stop_teacher_own_at_end"].value
            and n["stop_teacher_own_at_end"].value > ENDS
            and n["overlap_mass_teacher_before_end"].value >= OTHER_WORDS
        ),
        f"stop_teacher_same_at_end < {ENDS} stop_teacher_own_at_end, all else shared",
        f"arXiv 2609.20511; {TESTBED}",
        lambda n: (
            f"where the student ends, the teacher ends as well ({_p(n['stop_teacher_own_at_end'].value)}), but "
            f"with another token: the student's own has {_p(n['stop_teacher_same_at_end'].value)}"
        ),
        ("stop_teacher_same_at_end", "stop_teacher_own_at_end", "overlap_mass_teacher_before_end"),
        "cold_start",
    ),
    Rule(
        "teacher_does_not_end",
        "fix_first",
        "error",
        lambda n: (
            n["stop_teacher_own_at_end"].value < NEVER_ENDS
            and n["overlap_mass_teacher_before_end"].value >= OTHER_WORDS
        ),
        f"stop_teacher_own_at_end < {NEVER_ENDS}",
        "arXiv 2609.37326: closure falls to a third within six steps",
        lambda n: (
            f"where the student ends, the teacher would go on ({_p(1 - n['stop_teacher_own_at_end'].value)}): "
            "distilled, the student unlearns to stop"
        ),
        ("stop_teacher_own_at_end", "stop_student_at_end"),
        "cold_start",
    ),
    Rule(
        "teacher_not_better",
        "change_teacher",
        "error",
        lambda n: n["teacher_lead"].most < MIN_GAP or n["teacher_lead"].value < -MIN_GAP,
        f"teacher_lead (upper end) < {MIN_GAP}, or teacher_lead < −{MIN_GAP}",
        f"{PAPER}, 3.3: distilled from a weaker one, a student falls back to it",
        lambda n: (
            f"the teacher solves {_p(n['teacher_accuracy'].value)} of the prompts, the student "
            f"{_p(n['accuracy'].value)}: there is no lead to hand on"
        ),
        ("teacher_accuracy", "accuracy", "teacher_lead"),
        "teacher",
    ),
    Rule(
        "template_misaligned",
        "align_prompts",
        "warning",
        lambda n: n["aligned_gain"].value >= ALIGNED and n["aligned_gain"].least > 0,
        f"aligned_gain ≥ {ALIGNED}, interval above 0",
        f"{PAPER}, 5.2: .74 → .82 with the teacher's wrapper",
        lambda n: (
            f"with prompts as the teacher's template writes them, the teacher's mass on shared tokens rises by "
            f"{n['aligned_gain'].value:.2f}"
        ),
        ("aligned_gain", "overlap_mass_teacher_before_end"),
        "align",
    ),
    Rule(
        "other_words",
        "cold_start",
        "error",
        lambda n: n["overlap_mass_teacher_before_end"].value < OTHER_WORDS,
        f"overlap_mass_teacher_before_end < {OTHER_WORDS}",
        f"{PAPER}, B.1 and C.2 (.97 to .99 where it works, .55 where it is unstable); {TESTBED}",
        lambda n: (
            f"the tokens both rank highest hold {_p(n['overlap_mass_teacher_before_end'].value)} of the teacher's "
            "probability: it would go on in other words than the student"
        ),
        ("overlap_mass_teacher_before_end", "overlap_mass_student", "overlap_ratio", "first_token_agreement"),
        "cold_start",
    ),
    Rule(
        "does_not_take",
        "change_teacher",
        "error",
        lambda n: not _takes(n),
        f"rehearsed_loss_ratio > {TAKES}, or > {SLOWLY} with teachable_share < {BARELY}",
        f"{TESTBED}: after 30 steps at most .76 with a share of .44 and more where it works",
        lambda n: (
            f"in a rehearsal of {n.count('rehearsed_loss_ratio')} steps the loss fell to "
            f"{_p(n['rehearsed_loss_ratio'].value)} of what it was: the student cannot take over what the teacher "
            "does otherwise"
        ),
        ("rehearsed_loss_ratio", "teachable_share", "success_slope"),
        "teacher",
    ),
    Rule(
        "out_of_reach",
        "change_teacher",
        "error",
        lambda n: n["teachable_share"].value < TEACHABLE and "rehearsed_loss_ratio" not in n.values,
        f"teachable_share < {TEACHABLE}, no rehearsal",
        TESTBED,
        lambda n: (
            f"{_p(n['teachable_share'].value)} of the disagreement lies on tokens the student draws at least once "
            "in twenty: what the teacher knows better is not on the student's own paths"
        ),
        ("teachable_share", "reverse_kl", "success_slope"),
        "teacher",
    ),
    Rule(
        "wrong_direction",
        "change_teacher",
        "error",
        lambda n: n["success_slope"].most < 0,
        "success_slope (upper end) < 0",
        "F35, measured here",
        lambda n: (
            f"a small step towards the teacher costs success (slope {n['success_slope'].value:.2f} per √nat)"
        ),
        ("success_slope", "sequence_reward_auroc"),
        "teacher",
    ),
    Rule(
        "reach_unsure",
        None,
        "warning",
        lambda n: TEACHABLE <= n["teachable_share"].value < UNSURE and "rehearsed_loss_ratio" not in n.values,
        f"{TEACHABLE} ≤ teachable_share < {UNSURE}, no rehearsal",
        TESTBED,
        lambda n: (
            f"{_p(n['teachable_share'].value)} of the disagreement lies in the student's reach: pairs of the testbed "
            "with so much were of both kinds; a rehearsal tells them apart"
        ),
        ("teachable_share",),
        "rehearse",
    ),
    Rule(
        "takes_unsure",
        None,
        "warning",
        lambda n: (
            NEAR[0] < n["rehearsed_loss_ratio"].value < NEAR[1] and n["teachable_share"].value >= BARELY
        ),
        f"rehearsed_loss_ratio in ({NEAR[0]}, {NEAR[1]}), teachable_share ≥ {BARELY}",
        TESTBED,
        lambda n: (
            f"the loss fell to {_p(n['rehearsed_loss_ratio'].value)}: pairs of the testbed so near the threshold were of "
            "both kinds; a longer rehearsal tells them apart"
        ),
        ("rehearsed_loss_ratio", "teachable_share"),
        "longer",
    ),
    Rule(
        "lead_unsure",
        None,
        "warning",
        lambda n: n["teacher_lead"].least < MIN_GAP and not n["teacher_lead"].most < MIN_GAP,
        f"teacher_lead's interval reaches below {MIN_GAP}",
        "docs/design.md: below .05 gap recovery is undefined",
        lambda n: (
            f"the teacher's lead is not sure: {n['teacher_lead'].value:+.2f} "
            f"[{n['teacher_lead'].least:+.2f}, {n['teacher_lead'].most:+.2f}]"
        ),
        ("teacher_lead", "teacher_accuracy", "accuracy"),
        "more",
    ),
    Rule(
        "thin_shared_mass",
        None,
        "warning",
        lambda n: OTHER_WORDS <= n["overlap_mass_teacher_before_end"].value < SHARED,
        f"{OTHER_WORDS} ≤ overlap_mass_teacher_before_end < {SHARED}",
        f"{PAPER}, B.1",
        lambda n: (
            f"shared tokens hold {_p(n['overlap_mass_teacher_before_end'].value)} of the teacher's probability; "
            "where it works they hold 97 to 99%"
        ),
        ("overlap_mass_teacher_before_end", "overlap_mass_student"),
        "cold_start",
    ),
    Rule(
        "lead",
        None,
        "info",
        lambda n: n["teacher_lead"].least >= MIN_GAP,
        f"teacher_lead (lower end) ≥ {MIN_GAP}",
        "docs/design.md: below .05 gap recovery is undefined",
        lambda n: (
            f"the teacher solves {_p(n['teacher_accuracy'].value)} of the prompts, the student "
            f"{_p(n['accuracy'].value)}"
        ),
        ("teacher_lead", "teacher_accuracy", "accuracy", "teacher_accuracy_on_failures"),
    ),
    Rule(
        "takes",
        None,
        "info",
        lambda n: _takes(n),
        f"rehearsed_loss_ratio ≤ {TAKES}, and ≤ {SLOWLY} with teachable_share < {BARELY}",
        TESTBED,
        lambda n: (
            f"in a rehearsal of {n.count('rehearsed_loss_ratio')} steps the loss fell to "
            f"{_p(n['rehearsed_loss_ratio'].value)} of what it was"
        ),
        ("rehearsed_loss_ratio",),
    ),
    Rule(
        "in_reach",
        None,
        "info",
        lambda n: n["teachable_share"].value >= TEACHABLE,
        f"teachable_share ≥ {TEACHABLE}",
        TESTBED,
        lambda n: (
            f"{_p(n['teachable_share'].value)} of the disagreement lies on tokens the student draws at least once "
            "in twenty"
        ),
        ("teachable_share", "reverse_kl", "success_slope"),
    ),
    Rule(
        "same_words",
        None,
        "info",
        lambda n: n["overlap_mass_teacher_before_end"].value >= SHARED,
        f"overlap_mass_teacher_before_end ≥ {SHARED}",
        f"{PAPER}, B.1",
        lambda n: (
            f"shared tokens hold {_p(n['overlap_mass_teacher_before_end'].value)} of the teacher's probability"
        ),
        ("overlap_mass_teacher_before_end", "overlap_mass_student", "overlap_ratio"),
    ),
)
"""In the order of deciding."""


def rules_table() -> list[str]:
    """All rules as a Markdown table, in the order of deciding."""
    head = ["| rule | decides | fires when | source |", "|---|---|---|---|"]
    return head + [
        f"| `{r.name}` | {r.verdict or 'nothing: ' + r.severity} | `{r.rule}` | {r.source} |" for r in RULES
    ]


REASONS: Mapping[VerdictName, str] = {
    "go": "the teacher speaks as the student does, and what it knows better lies in the student's reach",
    "cold_start": "let the student imitate the teacher's responses first",
    "align_prompts": "write prompts as the teacher knows them",
    "change_teacher": "this teacher has nothing that the student's own rollouts could take over",
    "nothing_to_learn": "the teacher says what the student says already",
    "fix_first": "mend this before anything is read into other numbers",
}


def judge(
    values: Mapping[str, Value],
    *,
    remedies: Mapping[str, str],
    static: Sequence[Finding] = (),
    counts: Mapping[str, int] | None = None,
) -> tuple[Verdict, tuple[Finding, ...]]:
    """(verdict, all findings: static ones, then those of the rules that fired).

    `remedies`: what `Rule.remedy` names → a command; "go" begins the run, "check" looks again. A static error decides
    before any number: of equal weights, that there is nothing to learn; of all else, that it is to be fixed first.
    """
    known = Known(values, counts or {})
    fired = [(rule, _finding(rule, known, remedies)) for rule in RULES if _fires(rule, known)]
    findings = (*static, *(finding for _, finding in fired))
    decisive = [(_static_verdict(f), f) for f in static if f.severity == "error"]
    decisive += [(rule.verdict, finding) for rule, finding in fired if rule.verdict is not None]
    if decisive:
        name, first = decisive[0]
        because = tuple(f for verdict, f in decisive if verdict == name)
        remedy = (
            first.remedy or remedies["teacher" if name in ("nothing_to_learn", "change_teacher") else "check"]
        )
        return Verdict(name, f"{first.message}; {REASONS[name]}", remedy, because), findings
    because = tuple(finding for rule, finding in fired if rule.severity == "info")
    return Verdict("go", _go(because, values), remedies["go"], because), findings


def _go(because: Sequence[Finding], values: Mapping[str, Value]) -> str:
    said = "; ".join(finding.message for finding in because)
    if "teacher_lead" in values:
        reserve = ""
    elif "accuracy" in values:
        reserve = "; the teacher was not asked the same, so nobody knows whether it knows more"
    else:
        reserve = "; without a grader nobody knows whether the teacher knows more"
    return (said or REASONS["go"]) + reserve


def _static_verdict(finding: Finding) -> VerdictName:
    return "nothing_to_learn" if finding.name in SAME_WEIGHTS else "fix_first"


SAME_WEIGHTS = ("weights_identical", "weights_nearly_identical")


def _fires(rule: Rule, known: Known) -> bool:
    try:
        return rule.when(known) and bool(rule.says(known))
    except LookupError:
        return False


def _finding(rule: Rule, known: Known, remedies: Mapping[str, str]) -> Finding:
    return Finding(
        name=rule.name,
        severity=rule.severity,
        message=rule.says(known),
        numbers={name: known[name].value for name in rule.numbers if name in known.values},
        remedy=remedies.get(rule.remedy, "") if rule.remedy else "",
        rule=rule.rule,
        source=rule.source,
    )

"""What objective and diagnostics need against what sampler and teacher offer, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from opdkit.config import (
    Config,
    LocalSampling,
    LocalTeacher,
    VllmSampling,
    VllmServerSampling,
    refused_of_demonstrations,
)
from opdkit.engines.vllm_http import server_reach, server_top_k
from opdkit.models.load import open_config, open_stop_ids, open_tokenizer, vocabulary_rows
from opdkit.objectives import Likelihood, Objective, group_relative, imitation, push_down
from opdkit.train.horizon import refuse_horizon
from opdkit.train.rails import guard_rails
from opdkit.train.teachers import Offer, offer_of, offers_of_others
from opdkit.types import Finding, Needs, UserError


@dataclass(frozen=True)
class Plan:
    """How this run will get its numbers."""

    objective: Objective | Likelihood
    rows: int  # vocabulary in use: the ids all tokenizers share
    sampler_needs: Needs
    teacher_needs: Needs
    # whose ids are the objective's support before the learner's forward: "student", "teacher" or nobody's
    early_ids: str | None
    tokenizer: Any  # the student's
    teacher: Offer  # what the teacher told before it was opened; of nothing where there is none
    findings: tuple[Finding, ...] = ()
    candidates: str | None = (
        None  # who names the student's before its forward: "sampler", "student_forward" or nobody
    )
    candidate_width: int = 0
    student_needs: Needs = field(default_factory=Needs)  # of rollouts, before the learner's forward
    others: Mapping[str, Offer] = field(default_factory=dict)  # models beside student and teacher
    other_needs: Needs = field(default_factory=Needs)
    # tokens of prompt and response that the sampler takes, if less than the student does
    reach: int = 1 << 30

    def needs_of(self, name: str) -> Needs:
        """What a scorer is asked for."""
        return self.teacher_needs if name == "teacher" else self.other_needs


LIKELIHOODS: dict[str, Callable[[Config], Likelihood]] = {
    "sft": lambda _: Likelihood(imitation),
    "improve": lambda _: Likelihood(imitation),
    "grpo": lambda config: Likelihood(partial(group_relative, scale=config.grpo.scale)),
    "push_down": lambda config: Likelihood(
        partial(push_down, share=config.push_down.share), student_needs=Needs(sampled=True, entropy=True)
    ),
}
"""Stories without a teacher, by what they do with the likelihood of tokens."""


def sampler_top_k(config: Config, *, rows: int) -> int:
    """Widest top-k of the untruncated student that the sampler gives. UserError where a server does not answer."""
    cfg = config.sampling
    if isinstance(cfg, LocalSampling):
        return rows
    if cfg.top_p < 1.0 or cfg.top_k > 0 or cfg.min_tokens > 0:
        return 0  # an engine tells of the distribution drawn from
    return rows if isinstance(cfg, VllmSampling) else min(rows, server_top_k(cfg, rows=rows))


def sampler_reach(config: Config) -> int:
    """Tokens an engine was, or is to be, started for. UserError where a server does not answer."""
    cfg = config.sampling
    if isinstance(cfg, VllmServerSampling):
        return server_reach(cfg)
    if isinstance(cfg, VllmSampling) and cfg.max_length is not None:
        return cfg.max_length
    return 1 << 30


def make_plan(config: Config) -> Plan:
    """Reads configs and tokenizers only. Raises UserError for what cannot work, with what would."""
    if config.story == "sft" and config.teacher is not None:
        return _of_demonstrations(config)
    return _with_teacher(config) if config.story == "distill" else _alone(config)


def _of_demonstrations(config: Config) -> Plan:
    """`sft` by a divergence from the teacher at the states of its texts, which nobody sampled from the student."""
    spec = config.objective
    assert config.teacher is not None
    if (why := refused_of_demonstrations(spec)) is not None:
        use = why[1].replace(" = ", "=") if "support" in why[1] else f"for the signal {why[1]}"
        raise UserError(
            why[0], hint=f"use {use} under objective, or leave teacher out: then it is likelihood"
        )
    if spec.others or config.teacher.context is not None:
        what = "other models than the teacher" if spec.others else "a context that only the teacher reads"
        raise UserError(
            f"sft by a divergence from the teacher has no {what}",
            hint="objective.preset=full, and no teacher.context",
        )
    if spec.divergence == "reverse_kl":  # also what a config for distill says when only its story is changed
        raise UserError(
            "story 'sft' has no teacher, unless it imitates by a divergence over the teacher's words: this is the reverse KL",
            hint="teacher=unset, or story=distill, or objective.preset=full objective.divergence=forward_kl",
        )
    plan = _with_teacher(config)
    if plan.candidates is not None:
        raise UserError(
            "the objective needs the student's candidates beforehand, and in sft the student draws nothing",
            hint='teacher.payload="hidden", or objective.support="teacher_top_k"',
        )
    return plan


def _alone(config: Config) -> Plan:
    if config.teacher is not None:
        raise UserError(f"story {config.story!r} has no teacher", hint="leave teacher out, or story=distill")
    if config.story == "grpo" and config.sampling.responses < 2:
        raise UserError("a group of one response has no spread", hint="sampling.responses=8")
    refuse_horizon(config, entropy=False)
    objective = LIKELIHOODS[config.story](config)
    tokenizer = open_tokenizer(config.student)
    rows = vocabulary_rows(tokenizer, open_config(config.student))
    _refuse_wide({"sampling.top_k": config.sampling.top_k}, rows)
    _refuse_stop_ids(config, rows)
    return Plan(
        objective,
        rows,
        objective.student_needs,
        Needs(),
        early_ids=None,
        tokenizer=tokenizer,
        teacher=Offer(Needs(), rows, 1 << 30),
        reach=sampler_reach(config),
    )


def _with_teacher(config: Config) -> Plan:
    if config.teacher is None:
        raise UserError(
            "story 'distill' needs a teacher", hint="teacher=FOLDER or a Hub id; or story=sft, grpo, improve"
        )
    if config.eval.teacher and config.teacher.type in ("server", "router"):
        raise UserError(
            "eval.teacher = true, but the teacher's weights are not in this process to answer with",
            hint="eval.teacher=false, and examine it by itself: opd eval MODEL --task FILE",
        )
    student_config, student_tokenizer = open_config(config.student), open_tokenizer(config.student)
    offer = offer_of(config, tokenizer=student_tokenizer, student_config=student_config)
    others = offers_of_others(config, tokenizer=student_tokenizer, student_config=student_config)
    rows = min(o.rows for o in (offer, *others.values()))
    offer = replace(offer, context=min(o.context for o in (offer, *others.values())))
    ends, special = _named_ids(config, student_tokenizer, rows)
    objective = Objective(config.objective, ends=ends, special=special)
    _refuse_rewards(config)
    refuse_horizon(config, entropy=offer.offers.full or offer.offers.entropy)
    _refuse_unmet(objective, offer, config)
    _refuse_others(objective, others, config)
    _refuse_wide(_widths(config), rows)
    _refuse_stop_ids(config, rows)
    early = _early_ids(objective, offer.offers)
    student_needs = _student_needs(config, offer.offers, objective, early, rows)
    candidates = _who_names(config, student_needs, rows)
    return Plan(
        objective=objective,
        rows=rows,
        sampler_needs=Needs(sampled=True) | (student_needs if candidates == "sampler" else Needs()),
        candidates=candidates,
        candidate_width=student_needs.top_k,
        student_needs=student_needs,
        reach=sampler_reach(config),
        teacher_needs=_teacher_needs(config, offer.offers, objective, early, rows),
        others=others,
        other_needs=_what_travels(objective.other_needs, others, objective),
        early_ids=early,
        tokenizer=student_tokenizer,
        teacher=offer,
        findings=(*_narrow(config, offer, rows), *guard_rails(config, rows)),
    )


def _refuse_unmet(objective: Objective, offer: Offer, config: Config) -> None:
    unmet = objective.teacher_needs.unmet(offer.offers)
    if not unmet:
        return
    given = ["of sampled tokens", *(["at ids"] if offer.offers.at_ids else [])]
    given.append(
        "and its own top-k only"
        if offer.offers.top_k > 1 << 20
        else f"and its own top-{offer.offers.top_k} only"
    )
    wide = objective.spec.k if objective.spec.of_teacher else 0
    raise UserError(
        f"the objective needs {', '.join(unmet)}, but this teacher gives log-probs {', '.join(given)}",
        hint=_remedy(config, offer, wide=wide),
    )


def _remedy(config: Config, offer: Offer, *, wide: int) -> str:
    """What can be typed. A vLLM teacher knows its own top-k; `opd serve` also what is asked for."""
    if not any(facts.api == "vllm" for facts in offer.served.values()):
        payload = (
            ""
            if config.teacher is None or config.teacher.type == "router"
            else ', or teacher.payload = "hidden"'
        )
        return f'set objective.support = "teacher_top_k" or "student_top_k"{payload}'
    if wide > offer.offers.top_k:
        return f"objective.k={offer.offers.top_k}, or start vLLM with --max-logprobs {wide}"
    return 'set objective.support = "teacher_top_k" or "sampled", or serve the teacher with: opd serve MODEL'


def _narrow(config: Config, offer: Offer, rows: int) -> tuple[Finding, ...]:
    """A server's cap that leaves diagnostics out is told, once, before the run."""
    wanted = min(rows, max(config.diagnostics.k, *config.diagnostics.ks))
    if offer.offers.full or offer.offers.top_k >= wanted:
        return ()
    cap = offer.offers.top_k
    return (
        Finding(
            name="teacher_top_k_cap",
            severity="info" if config.diagnostics.k <= cap else "warning",
            message=f"the teacher sends its top {cap}: overlap at more than {cap} tokens is not measured",
            numbers={"cap": cap, "wanted": wanted},
            remedy=f"start vLLM with --max-logprobs {wanted}, or: opd serve MODEL --max-top-k {wanted}",
        ),
    )


def _refuse_rewards(config: Config) -> None:
    """Rewards relative to a group need one, and a switch at flat evaluations needs evaluations."""
    signal = config.objective.signal
    grouped = signal.reward != "none" or signal.prompts == "pass_rate"
    if grouped and config.sampling.responses < 2:
        raise UserError("a group of one response has no spread", hint="sampling.responses=8")
    if signal.reward == "sequential" and not signal.switch_step and not config.eval.every:
        raise UserError(
            "the reward takes over when evaluation is flat, and nothing is evaluated on the way",
            hint="eval.every=10, or objective.signal.switch_step=60",
        )


def _widths(config: Config) -> dict[str, int]:
    wide = {"diagnostics.k": config.diagnostics.k, "sampling.top_k": config.sampling.top_k}
    spec = config.objective
    if spec.of_student or spec.of_teacher or spec.signal.reads_candidates:
        wide = {"objective.k": config.objective.k, **wide}
    if config.objective.forward_gate > 0.0:
        wide = {"objective.gate_k": config.objective.gate_k, **wide}
    return wide


def _refuse_wide(widths: dict[str, int], rows: int) -> None:
    """k and top_k beyond the vocabulary mean nothing."""
    for key, value in widths.items():
        if value > rows:
            raise UserError(
                f"{key} = {value} is larger than the vocabulary of {rows} shared tokens",
                hint=f"{key}={min(16, rows)}",
            )


def _refuse_stop_ids(config: Config, rows: int) -> None:
    """An end token that cannot be drawn never ends anything."""
    beyond = [i for i in config.sampling.stop_ids or () if not 0 <= i < rows]
    if beyond:
        raise UserError(
            f"sampling.stop_ids holds {beyond[0]}, but ids go from 0 to {rows - 1}",
            hint="leave sampling.stop_ids out to take the model's own end tokens",
        )


def _early_ids(objective: Objective, offers: Needs) -> str | None:
    """Ids must be known before the learner's forward if only they are scored, or only their columns made."""
    if objective.spec.support == "teacher_top_k" and objective.columns_only:
        return "teacher"
    if objective.columns_only or (offers.at_ids and not offers.full):
        return "student"
    return None


def _student_needs(
    config: Config, offers: Needs, objective: Objective, early: str | None, rows: int
) -> Needs:
    """What must be known of the student before the learner's forward: candidates to score, what the signal reads."""
    width = 0
    if early == "student":
        width = config.objective.k if config.objective.of_student else 0
        width = min(rows, max(width, 0 if offers.full else config.diagnostics.k))
    return objective.early_needs[0] | Needs(top_k=width)


def _who_names(config: Config, needs: Needs, rows: int) -> str | None:
    """The sampler, which knows it anyway; a forward of the student where the sampler does not tell that much."""
    if needs.top_k == 0 and not needs.entropy:
        return None
    tells_entropy = isinstance(config.sampling, LocalSampling)
    if needs.top_k > sampler_top_k(config, rows=rows) or (needs.entropy and not tells_entropy):
        return "student_forward"
    return "sampler"


def _named_ids(config: Config, tokenizer: Any, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """End tokens of both models, and what else is special, where an objective of the run treats them apart."""
    specs = [spec for spec in (config.objective, config.mix.objective) if spec is not None]
    if not any(spec.merge_ends or spec.mask_special for spec in specs):
        return (), ()
    ends = set(config.sampling.stop_ids or open_stop_ids(config.student, tokenizer, rows=rows))
    if any(spec.merge_ends for spec in specs) and isinstance(config.teacher, LocalTeacher):
        ends |= set(open_stop_ids(config.teacher, open_tokenizer(config.teacher), rows=rows))
    special = {i for i in tokenizer.all_special_ids if i < rows} - ends
    return tuple(sorted(i for i in ends if 0 <= i < rows)), tuple(sorted(special))


def _refuse_others(objective: Objective, others: Mapping[str, Offer], config: Config) -> None:
    for name, offer in others.items():
        unmet = objective.other_needs.unmet(offer.offers)
        if unmet:
            raise UserError(
                f"objective.target = {config.objective.target!r} needs {', '.join(unmet)} of the {name}, which it does not give",
                hint=f'{name}=FOLDER of a model in this process, or objective.support="sampled"',
            )


def _what_travels(needs: Needs, others: Mapping[str, Offer], objective: Objective) -> Needs:
    """Hidden states where all of them lend a head; else the numbers. The signal may read the sampled token's as well."""
    early = Needs(sampled=objective.early_needs[1].sampled)
    lend = bool(others) and all(offer.offers.full for offer in others.values())
    return (Needs(full=True) if lend else needs) | early


def _teacher_needs(
    config: Config, offers: Needs, objective: Objective, early: str | None, rows: int
) -> Needs:
    """What travels. Beside hidden states only ids that must be known early; else each number that is used."""
    early_k = config.objective.k if early == "teacher" else 0
    asked = objective.early_needs[1]
    if offers.full:
        return Needs(full=True, top_k=early_k) | asked
    widest = max(config.diagnostics.k, *config.diagnostics.ks, early_k)
    measured = Needs(
        sampled=True,
        top_k=min(rows, widest, offers.top_k),
        at_ids=early == "student",
        entropy=offers.entropy,
    )
    return objective.teacher_needs | measured | asked

"""The teacher of a run, whatever kind it is: what it offers before anything is loaded, and opened once everything else fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from opdkit.config import (
    Config,
    LocalTeacher,
    ModelConfig,
    RouterTeacher,
    SelfTeacher,
    ServerTeacher,
    TeacherConfig,
)
from opdkit.engines.dialects import Facts
from opdkit.engines.facts import ask_facts, endpoint_of, rows_shared
from opdkit.engines.probe import start
from opdkit.engines.router import Router, common
from opdkit.engines.served import ServedTeacher
from opdkit.models import teacher as models
from opdkit.models.adapter import merge
from opdkit.models.contracts import Teacher
from opdkit.models.load import (
    LoadedModel,
    check_weights,
    context_length,
    open_config,
    open_model,
    open_tokenizer,
    shared_rows,
    vocabulary_rows,
)
from opdkit.train.adapters import base_is_teacher, open_student
from opdkit.types import Finding, Needs, UserError


@dataclass(frozen=True)
class Offer:
    """What a teacher can give, over which ids, in how long a context; served ones with the facts they told."""

    offers: Needs
    rows: int
    context: int
    served: Mapping[str, Facts] = field(default_factory=dict)  # by group; "" for the only one


def offer_of(config: Config, *, tokenizer: Any, student_config: Any) -> Offer:
    """Reads configs and tokenizers, asks servers. Raises UserError for what cannot work."""
    cfg = config.teacher
    assert cfg is not None
    return _offer_of(cfg, tokenizer=tokenizer, student_config=student_config)


def offers_of_others(config: Config, *, tokenizer: Any, student_config: Any) -> dict[str, Offer]:
    """The same of the models that the objective's target and anchor name: `reference`, and `start`, a copy of the student."""
    found = {}
    for name in config.objective.others:
        cfg = _other(config, name)
        found[name] = _offer_of(cfg, tokenizer=tokenizer, student_config=student_config)
    return found


def _other(config: Config, name: str) -> TeacherConfig:
    if name == "start":
        assert config.teacher is not None
        return SelfTeacher(temperature=config.sampling.temperature)
    if config.reference is None:
        raise UserError(
            f"objective.target = {config.objective.target!r} needs what the teacher was before its RL",
            hint='reference=FOLDER or a Hub id; or objective.target="teacher"',
        )
    return config.reference


def _offer_of(cfg: TeacherConfig, *, tokenizer: Any, student_config: Any) -> Offer:
    if isinstance(cfg, SelfTeacher):
        rows = vocabulary_rows(tokenizer, student_config)
        return Offer(models.OFFERS[cfg.payload], rows, context_length(student_config))
    if isinstance(cfg, RouterTeacher):
        parts = {
            name: _offer(member, tokenizer=tokenizer, student_config=student_config, group=name)
            for name, member in cfg.teachers.items()
        }
        return Offer(
            offers=common([part.offers for part in parts.values()]),
            rows=min(part.rows for part in parts.values()),
            context=min(part.context for part in parts.values()),
            served={name: part.served[name] for name, part in parts.items() if part.served},
        )
    return _offer(cfg, tokenizer=tokenizer, student_config=student_config)


def _offer(
    cfg: LocalTeacher | ServerTeacher, *, tokenizer: Any, student_config: Any, group: str = ""
) -> Offer:
    if isinstance(cfg, LocalTeacher):
        teacher_config = open_config(cfg)
        rows = shared_rows(
            tokenizer, open_tokenizer(cfg), student_config=student_config, teacher_config=teacher_config
        )
        return Offer(models.OFFERS[cfg.payload], rows, context_length(teacher_config))
    facts = ask_facts(cfg)
    rows = rows_shared(cfg, facts, tokenizer=tokenizer, config=student_config)
    return Offer(facts.offers, rows, facts.max_length, {group: facts})


def check_teacher_weights(config: Config) -> None:
    """UserError where weights that will be read here are missing or damaged. Headers only."""
    cfg = config.teacher
    members = list(cfg.teachers.values()) if isinstance(cfg, RouterTeacher) else [cfg, config.reference]
    for member in members:
        if isinstance(member, LocalTeacher):
            check_weights(member)
        elif isinstance(member, ServerTeacher) and member.against is not None:
            check_weights(ModelConfig(model=member.against))


def open_teacher(
    config: Config,
    offer: Offer,
    *,
    rows: int,
    device: torch.device,
    student: LoadedModel,
    ranks: int = 1,
    resumed: bool = False,
    kept: Mapping[str, Tensor] | None = None,
) -> tuple[Teacher | None, tuple[Finding, ...]]:
    """The teacher, ready to score, and what its probe saw. `kept`: its own weights, of a resumed run."""
    cfg = config.teacher
    if cfg is None:
        return None, ()
    if isinstance(cfg, RouterTeacher):
        opened = {
            name: _open(member, offer.served.get(name), rows=rows, device=device, routed=True)
            for name, member in cfg.teachers.items()
        }
        return Router({n: t for n, (t, _) in opened.items()}), tuple(
            f for _, fs in opened.values() for f in fs
        )
    if isinstance(cfg, SelfTeacher):
        return _own(
            config, cfg, rows=rows, device=device, student=student, ranks=ranks, resumed=resumed, kept=kept
        ), ()
    return _open(cfg, offer.served.get(""), rows=rows, device=device)


def open_others(
    config: Config,
    offers: Mapping[str, Offer],
    *,
    rows: int,
    device: torch.device,
    student: LoadedModel,
    ranks: int,
    resumed: bool,
) -> tuple[dict[str, Teacher], tuple[Finding, ...]]:
    """The models beside student and teacher by name, and what their probes saw."""
    opened: dict[str, Teacher] = {}
    told: list[Finding] = []
    for name, offer in offers.items():
        cfg = _other(config, name)
        if isinstance(cfg, SelfTeacher):
            opened[name] = _own(
                config,
                cfg,
                rows=rows,
                device=device,
                student=student,
                ranks=ranks,
                resumed=resumed,
                kept=None,
            )
            continue
        assert not isinstance(cfg, RouterTeacher)
        opened[name], found = _open(cfg, offer.served.get(""), rows=rows, device=device)
        told += found
    return opened, tuple(told)


def known_of(teacher: Teacher | None) -> dict[str, list[float]]:
    """Log-probs of the known sequence by served teachers, by group: a checkpoint keeps them."""
    return {name: said for name, one in _served(teacher).items() if (said := one.known) is not None}


def refuse_another(teacher: Teacher | None, before: Mapping[str, list[float]]) -> None:
    """UserError where a resumed run would learn from another model than it did `before`, behind the same URL."""
    for name, one in _served(teacher).items():
        now, then = one.known, before.get(name)
        if now is None or then is None or one.sentinel is None:
            continue
        apart = float((torch.tensor(now) - torch.tensor(then)).abs().max())
        if not apart <= one.sentinel.tolerance:
            raise UserError(
                f"{one.facts.url} does not say what it said when this run was saved ({apart:.3g} nats apart on the known "
                "sequence): another model, or another teacher.temperature",
                hint="serve the same model there; to learn from this one, begin a run: run=NAME student.model=CHECKPOINT/model",
            )


def _served(teacher: Teacher | None) -> dict[str, ServedTeacher]:
    members = teacher.teachers if isinstance(teacher, Router) else {"": teacher}
    return {name: one for name, one in members.items() if isinstance(one, ServedTeacher)}


def _open(
    cfg: LocalTeacher | ServerTeacher,
    facts: Facts | None,
    *,
    rows: int,
    device: torch.device,
    routed: bool = False,
) -> tuple[Teacher, tuple[Finding, ...]]:
    if isinstance(cfg, LocalTeacher):
        rounds = (
            cfg.dtype == "bfloat16" and not routed
        )  # a router tells of no rounding: its teachers are read rounded
        ref = cfg.model_copy(update={"dtype": "float32"}) if rounds else cfg
        loaded = open_model(ref, device=device, rows=rows)
        return _local(cfg, loaded, payload="ids" if routed else cfg.payload, rounds=rounds), ()
    assert facts is not None, "a served teacher was asked for its facts when the run was planned"
    local = None
    if cfg.against is not None:
        loaded = open_model(ModelConfig(model=cfg.against), device=device, rows=rows)
        local = models.LocalTeacher(loaded, temperature=cfg.temperature, payload="ids")
    teacher, finding = start(cfg, facts, endpoint=endpoint_of(cfg), rows=rows, local=local)
    return teacher, (finding,)


def _local(
    cfg: LocalTeacher | SelfTeacher, loaded: LoadedModel, *, payload: Any, rounds: bool, frozen: bool = True
) -> models.LocalTeacher:
    return models.LocalTeacher(
        loaded,
        temperature=cfg.temperature,
        payload=payload,
        batch_tokens=cfg.batch_tokens,
        round_to_bfloat16=rounds,
        frozen=frozen,
    )


def _own(
    config: Config,
    cfg: SelfTeacher,
    *,
    rows: int,
    device: torch.device,
    student: LoadedModel,
    ranks: int,
    resumed: bool,
    kept: Mapping[str, Tensor] | None,
) -> models.LocalTeacher:
    """The student's earlier copy: the base under its adapter; else of step 0, or as the checkpoint kept it where it moves on."""
    if base_is_teacher(config, cfg, ranks=ranks):
        base = replace(student, name=f"{student.name} (its base)", bare=True)
        return _local(cfg, base, payload=cfg.payload, rounds=False, frozen=False)
    if resumed and kept is None:
        loaded = open_student(config, rows=rows, device=device, saved=None)
        merge(loaded.model)
    else:
        loaded = models.frozen_copy(student)
        if kept is not None:
            loaded.model.load_state_dict(dict(kept))
    if cfg.dtype == "float64":
        loaded.model.to(torch.float64)
    return _local(cfg, loaded, payload=cfg.payload, rounds=cfg.dtype == "bfloat16")


def renderer_of(config: Config) -> Any:
    """The tokenizer whose chat template the teacher has. UserError where it cannot be known."""
    cfg = config.teacher
    if isinstance(cfg, ServerTeacher) and cfg.model is not None:
        return open_tokenizer(ModelConfig(model=cfg.model, revision=cfg.revision))
    if isinstance(cfg, LocalTeacher):
        return open_tokenizer(cfg)
    raise UserError(
        "task.render=teacher, but the teacher's chat template is not at hand",
        hint="teacher.model=FOLDER of the served model, or task.render=student",
    )

"""Everything a run needs on stage before the first step: plan, folder, checkpoint, models, learner, feed.

Cheap refusals come first (plan, prompts, folder); weights are read last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdkit.config import (
    Config,
    LocalSampling,
    ModelConfig,
    VllmSampling,
    VllmServerSampling,
    dump_toml,
)
from opdkit.engines.vllm import VllmSampler, check_installed
from opdkit.engines.vllm_http import VllmServerSampler
from opdkit.models.contracts import Sampler, Teacher
from opdkit.models.load import DTYPES, LoadedModel
from opdkit.models.sampler import LocalSampler
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.run.checkpoint import latest_checkpoint, load_checkpoint
from opdkit.run.folder import RunFolder, environment
from opdkit.run.signals import Stop
from opdkit.run.trackers import Trackers, erase_mirrors, require_trackers
from opdkit.run.world import World
from opdkit.train.adapters import check_engine, check_student, open_student
from opdkit.train.feed import Clock, OnPolicy, Stoppable
from opdkit.train.horizon import Horizon
from opdkit.train.imitate import Demonstrations, Rounds
from opdkit.train.learner import Learner, sharded
from opdkit.train.mix import Mix, mixed_objective
from opdkit.train.plan import Plan, make_plan
from opdkit.train.prefixes import Prefixes, refuse_prefix
from opdkit.train.prompts import Prompts, encoded_prompts
from opdkit.train.pruning import refuse_blind, refuse_prune
from opdkit.train.teachers import check_teacher_weights, open_others, open_teacher, refuse_another
from opdkit.train.widen import Widen
from opdkit.types import Finding, Needs, Prompt, UserError


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint that was read: after `step` updates."""

    path: Path
    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """What lives while a run runs. `folder` is None on ranks other than the first: one hand writes."""

    config: Config
    plan: Plan
    world: World
    task: Any
    exam: Sequence[Prompt]
    folder: RunFolder | None
    trackers: Trackers  # none on those ranks
    start: int
    learner: Learner
    sampler: Stoppable
    teacher: Teacher | None
    others: Mapping[str, Teacher]  # models beside student and teacher
    feed: OnPolicy | Demonstrations | Rounds
    mix: Mix | None  # data beside own rollouts
    horizon: Horizon  # how deep the teacher is listened to; the loop moves it, the feed draws as far
    clock: Clock
    findings: tuple[Finding, ...]


def set_stage(config: Config, *, world: World, task: Any, stop: Stop, resume: Path | None = None) -> Stage:
    """Raises UserError for input that cannot work, before weights are read and a run folder is made."""
    require_trackers(config.track)
    _refuse_ranks(config, world)
    refuse_prefix(config, ranks=world.size)
    refuse_prune(config, ranks=world.size)
    plan = make_plan(config)
    if config.story == "distill":
        mixed_objective(config, plan)
    prompts = encoded_prompts(config, task, plan)
    _check_weights(config, resume)
    _check_sampler(config)
    folder = _open_folder(config, resume, world)
    trackers = Trackers()
    try:
        saved, skipped = _saved(config, resume) if resume is not None else (None, ())
        if resume is not None and folder is not None:
            _rewind(folder, config, saved)
        trackers = _open_trackers(config, folder, world)
        findings = (*prompts.findings, *skipped)
        return _set(config, plan, world, stop, task, prompts, folder, trackers, saved, findings)
    except BaseException as error:
        trackers.close()
        if folder is not None and resume is None and isinstance(error, UserError):
            erase_mirrors(folder.path)
            folder.abandon()  # nothing has begun: the name is free for the next try
        if folder is not None:
            folder.close()
        raise


def _set(
    config: Config,
    plan: Plan,
    world: World,
    stop: Stop,
    task: Any,
    prompts: Prompts,
    folder: RunFolder | None,
    trackers: Trackers,
    saved: Saved | None,
    findings: tuple[Finding, ...],
) -> Stage:
    """The part that reads weights."""
    start = saved.step if saved is not None else 0
    checkpoint = None if saved is None else saved.path
    loaded = open_student(config, rows=plan.rows, device=world.device, saved=checkpoint)
    teacher, probed = open_teacher(
        config,
        plan.teacher,
        rows=plan.rows,
        device=world.device,
        student=loaded,
        ranks=world.size,
        resumed=saved is not None,
        kept=None if saved is None else saved.tensors.get("teacher"),
    )
    if saved is not None:
        refuse_another(teacher, saved.state.get("known", {}))
    others, also = open_others(
        config,
        plan.others,
        rows=plan.rows,
        device=world.device,
        student=loaded,
        ranks=world.size,
        resumed=saved is not None,
    )
    findings = (*findings, *probed, *also)
    sampler = Stoppable(_sampler(config, plan, loaded, world, folder, saved), stop, world)
    learner = make_learner(config, loaded, world)
    if saved is not None:
        learner.restore(saved.tensors.get("optimizer", {}), saved.state["learner"])
    clock, horizon = Clock(), Horizon(config)
    feed = _feed(
        config, plan, world, task, prompts, folder, loaded, sampler, teacher, others, clock, start, horizon
    )
    return Stage(
        config,
        plan,
        world,
        task,
        prompts.exam,
        folder,
        trackers,
        start,
        learner,
        sampler,
        teacher,
        others,
        feed,
        _mix(config, plan, world, prompts, feed),
        horizon,
        clock,
        findings,
    )


def _feed(
    config: Config,
    plan: Plan,
    world: World,
    task: Any,
    prompts: Prompts,
    folder: RunFolder | None,
    loaded: LoadedModel,
    sampler: Stoppable,
    teacher: Teacher | None,
    others: Mapping[str, Teacher],
    clock: Clock,
    start: int,
    horizon: Horizon,
) -> OnPolicy | Demonstrations | Rounds:
    """What tells the stories apart, beside their objective: where a step's rollouts come from."""
    if config.story == "improve":
        return Rounds(
            config,
            prompts=prompts.train,
            task=task,
            sampler=sampler,
            folder=folder,
            world=world,
            clock=clock,
            start=start,
        )
    if config.prune.every and teacher is not None:
        looks = Needs(top_k=config.diagnostics.k)
        refuse_blind(looks, sampler=sampler.sampler.offers, teacher=teacher.offers)
    own = OnPolicy(
        config,
        plan,
        prompts=prompts.train,
        task=task,
        sampler=sampler,
        teacher=teacher,
        world=world,
        clock=clock,
        start=start,
        teacher_prompt_ids=prompts.teacher_ids,
        student=loaded,
        others=others,
        widen=_widen(config, prompts, folder, world),
        horizon=horizon,
        told=prompts.told,
        prefixes=_prefixes(config, teacher, prompts),
        feedback=prompts.feedback,
    )
    if config.story != "sft":
        return own
    score = None if teacher is None else partial(own.scores_of_others, needs=plan.teacher_needs)
    shown = prompts.demonstrations
    return Demonstrations(config, rollouts=shown, world=world, clock=clock, start=start, score=score)


def _widen(config: Config, prompts: Prompts, folder: RunFolder | None, world: World) -> Widen | None:
    """Prompts of another kind, with the rows of a resumed run behind them: one rank has those, all decide alike."""
    if config.widen.path is None:
        return None
    widen = Widen(config.widen, prompts.others, seed=config.seed, count=config.prompts_per_step)
    widen.replay(world.gather([] if folder is None else folder.read_metrics())[0])
    return widen


def _prefixes(config: Config, teacher: Teacher | None, prompts: Prompts) -> Prefixes | None:
    if config.prefix.tokens == 0 or not isinstance(teacher, LocalTeacher):
        return None
    return Prefixes(config, teacher.loaded, teacher_prompt_ids=prompts.teacher_ids)


def _mix(
    config: Config, plan: Plan, world: World, prompts: Prompts, feed: OnPolicy | Demonstrations | Rounds
) -> Mix | None:
    if not (config.mix.demonstrations and isinstance(feed, OnPolicy)):
        return None
    return Mix(config, plan, rollouts=prompts.demonstrations, score=feed.scores_of_others, world=world)


def _check_sampler(config: Config) -> None:
    """That an engine is there to be started; a server answered when the run was planned."""
    if isinstance(config.sampling, VllmSampling):
        check_installed()
        check_engine(config)


def _check_weights(config: Config, resume: Path | None) -> None:
    """Of what will be read."""
    check_student(config, resumed=resume is not None)
    check_teacher_weights(config)


def _open_folder(config: Config, resume: Path | None, world: World) -> RunFolder | None:
    """Created or reopened by the first rank only; others hear of a refusal and stop as well."""
    folder, refusal = None, None
    if world.main:
        try:
            if resume is not None:
                folder = RunFolder.open(resume)
            else:
                folder = RunFolder.create(config.run, config_toml=dump_toml(config), env=environment())
                if config.teacher is not None and config.teacher.type == "local":
                    folder.bring_check(student=config.student.model, teacher=config.teacher.model)
        except UserError as error:
            refusal = {"message": str(error), "hint": error.hint}
    told = world.gather(refusal)[0]
    if told is not None:
        raise UserError(told["message"], hint=told["hint"])
    return folder


def _open_trackers(config: Config, folder: RunFolder | None, world: World) -> Trackers:
    """On the rank that writes; others hear of a refusal and stop as well."""
    trackers, refusal = Trackers(), None
    if folder is not None:
        try:
            trackers = Trackers.open(config.track, folder=folder, config=config.model_dump(mode="json"))
        except UserError as error:
            refusal = {"message": str(error), "hint": error.hint}
    told = world.gather(refusal)[0]
    if told is not None:
        raise UserError(told["message"], hint=told["hint"])
    return trackers


def _saved(config: Config, resume: Path) -> tuple[Saved | None, tuple[Finding, ...]]:
    """The newest complete checkpoint, and what is told about damaged ones.

    None when the run was killed before its first: it starts from step 0.
    """
    found = latest_checkpoint(resume / "checkpoints")
    if found is None:
        return None, ()
    if found.step > config.steps:
        raise UserError(
            f"{resume} has a checkpoint after step {found.step}, and steps = {config.steps} lies before it",
            hint=f"opd train --resume {resume} steps={found.step}",
        )
    tensors, state = load_checkpoint(found.path)
    return Saved(path=found.path, step=found.step, tensors=tensors, state=state), tuple(
        Finding(
            name="checkpoint_damaged",
            severity="warning",
            message=f"checkpoint {why}; going on from step {found.step} instead",
            remedy=f"ls -l {resume / 'checkpoints'}",
            step=found.step,
        )
        for why in found.skipped
    )


def _rewind(folder: RunFolder, config: Config, saved: Saved | None) -> None:
    """The folder as it was at the checkpoint; config.toml as it is from now on (say, with more steps)."""
    folder.rewind(saved.step if saved is not None else -1)  # -1: also what was told before the first step
    text = dump_toml(config)
    if folder.read_text("config.toml") != text:
        folder.write_text("config.toml", text)


def _sampler(
    config: Config,
    plan: Plan,
    loaded: LoadedModel,
    world: World,
    folder: RunFolder | None,
    saved: Saved | None,
) -> Sampler:
    """The learner's own module; an unsharded copy where it is sharded, which cannot decode; or an engine."""
    cfg = config.sampling
    if isinstance(cfg, VllmSampling):
        ref = config.student if saved is None else ModelConfig(model=str(saved.path / "model"))
        return VllmSampler(
            cfg,
            folder=ref.model,
            revision=ref.revision,
            loaded=loaded,
            width=plan.sampler_needs.top_k,
            dtype=config.student.dtype,
        )
    if isinstance(cfg, VllmServerSampling):
        share = cfg.share or config.run / "published"
        return VllmServerSampler(
            cfg, loaded=loaded, width=plan.sampler_needs.top_k, share=share, dtype=config.student.dtype
        )
    if not sharded(config.learner, world):
        return LocalSampler(loaded, compute=_compute(config))
    return LocalSampler.copy_of(loaded, compute=_compute(config))


def _refuse_ranks(config: Config, world: World) -> None:
    if world.size > 1 and not isinstance(config.sampling, LocalSampling):
        raise UserError(
            f"sampling.type = {config.sampling.type} has one learner process, and there are {world.size} ranks",
            hint="run it without torchrun, or sampling.type=local",
        )


def make_learner(config: Config, loaded: LoadedModel, world: World) -> Learner:
    student = Student(
        loaded,
        temperature=config.sampling.temperature,
        compute=_compute(config),
        gradient_checkpointing=config.learner.gradient_checkpointing,
        chunk_rows=config.learner.chunk_rows,
        k=config.diagnostics.k,
        ks=config.diagnostics.ks,
        ends=config.sampling.stop_ids or loaded.stop_ids,
    )
    return Learner(
        student,
        optim=config.optim,
        learner=config.learner,
        steps=config.steps,
        world=world,
        bins=config.diagnostics.bins,
        max_tokens=config.sampling.max_tokens,
    )


def _compute(config: Config) -> torch.dtype | None:
    """None where arithmetic is in the weights' own dtype."""
    return None if config.learner.compute == config.student.dtype else DTYPES[config.learner.compute]

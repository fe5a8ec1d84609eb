"""THE loop, of all stories.

One step = feed (rollouts, and scores where there is a teacher) → collate → prepare → update → publish → log;
save and evaluate by a visible `every`. Stories differ in the feed and the objective (train/stage.py, train/plan.py):

    distill    own rollouts, scored by the teacher; a divergence from it
    sft        demonstrations; their likelihood
    improve    own rollouts that turned out right; their likelihood
    grpo       own rollouts, graded; likelihood weighted by the advantage in its group
    push_down  own rollouts; the least likely tokens made less likely: the control without a teacher

A resumed run continues bit for bit: prompts, random streams and measured positions depend on (seed, step) only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch

from opdkit.config import Config
from opdkit.diagnostics import Monitor
from opdkit.engines.client import EngineError
from opdkit.models.head import Head
from opdkit.models.load import LoadedModel, pick_device
from opdkit.models.sampler import LocalSampler
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Moment
from opdkit.run.signals import Stop, Stopped
from opdkit.run.world import World
from opdkit.tasks import load_task
from opdkit.train.collate import collate
from opdkit.train.evaluate import evaluate
from opdkit.train.feed import OnPolicy, Stoppable, early_ids
from opdkit.train.learner import Part, Update
from opdkit.train.look import tokens_of
from opdkit.train.record import interleaved, metrics_row, rollout_rows, sequences_row
from opdkit.train.saving import save
from opdkit.train.stage import Stage, set_stage
from opdkit.train.switch import switch_finding, switch_step
from opdkit.types import Finding, Rollout, RunError, Scores


class Talk(Protocol):
    """Where progress goes: the command line's printer, or nowhere."""

    def note(self, text: str) -> None: ...
    def step(self, row: dict[str, Any], steps: int) -> None: ...
    def evaluation(self, row: dict[str, Any]) -> None: ...


class Silent:
    """Nowhere."""

    def note(self, text: str) -> None: ...
    def step(self, row: dict[str, Any], steps: int) -> None: ...
    def evaluation(self, row: dict[str, Any]) -> None: ...


def run_story(
    config: Config, *, resume: Path | None = None, talk: Talk | None = None, stop: Stop | None = None
) -> int:
    """Run `config.story` to the end or to a signal. Returns the exit code: 0; 143 or 130, saved and stopped by one.

    `stop`: that of a recipe around the run, entered; a signal in the last step is then the recipe's to heed.
    Raises UserError before anything expensive for input that cannot work, RunError where it had to stop.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    world = World(pick_device(config.device))
    try:
        with nullcontext(stop) if stop else Stop() as stop, load_task(config.task) as task:
            stage = set_stage(config, world=world, task=task, stop=stop, resume=resume)
            told = (talk if world.main else None) or Silent()
            with stage.folder or nullcontext(), stage.trackers:
                code = _loop(stage, stop, told)
                stage.trackers.close()
                _tell_of_trackers(stage, told)
                return code
    finally:
        world.close()


def _loop(stage: Stage, stop: Stop, talk: Talk) -> int:
    cfg, learner, clock = stage.config, stage.learner, stage.clock
    heads = _heads(stage)
    done = saved = whole = stage.start  # `whole`: updated, published and logged
    _open(stage, talk)
    monitor = _watch(stage, talk)
    try:
        _publish(stage)
        _examine(stage, done, talk)  # before the first step, or what a stopped run left out
        switched = _switched(stage, done, talk)
        began = time.perf_counter()
        for step, rollouts, scores in stage.feed:
            done = step + 1
            looks = _look(stage, rollouts) if due(done, cfg.save.rollouts_every) else []
            with clock.timed("update"):
                parts = _parts(stage, step, rollouts, scores, switched)
                update = learner.update(*parts, heads=heads, step=step)
            unpublished = _published(stage)  # unchanged after a skipped step
            _refresh_teacher(stage, done)

            seconds = {**clock.seconds, "step": time.perf_counter() - began}
            row = _row(stage, done, update, rollouts, seconds)
            if stage.folder is not None:
                stage.folder.log_metrics(done, row)
                stage.trackers.metrics(row)
            if due(done, cfg.save.rollouts_every):
                _keep_rollouts(stage, done, rollouts, update, looks)
            talk.step(row, cfg.steps)
            findings = _step_findings(stage, done, row=row) + ([] if monitor is None else monitor.see(row))
            findings += _widened(stage, row)
            findings += _moved(stage, monitor, row, findings)
            for finding in findings:
                _tell(stage, finding, talk)
            _tell_of_trackers(stage, talk)

            if due(done, cfg.save.every) or done == cfg.steps or unpublished:
                save(stage, done)
                saved = done
            whole = done
            if unpublished:  # nor examine weights that the engine does not have
                raise unpublished
            _examine(stage, done, talk)  # after saving: being cut off costs no step
            switched = _switched(stage, done, talk) if switched is None else switched
            if done < cfg.steps and (why := _critical(stage, findings)):
                if done > saved:
                    save(stage, done)
                raise _halted(cfg, done, why)
            if done < cfg.steps and stage.world.any(stop.requested):
                raise Stopped
            began = time.perf_counter()
    except EngineError as error:  # between two updates: what was learned is whole
        if whole > saved:
            save(stage, whole)
        raise _failed(stage, error, whole, talk) from error
    except Stopped:
        if done > saved:
            save(stage, done)
        talk.note(_farewell(cfg, done))
        return stop.exit_code
    finally:
        stage.sampler.close()
    return 0


def _parts(
    stage: Stage,
    step: int,
    rollouts: Sequence[Rollout],
    scores: Mapping[str, Sequence[Scores]],
    switched: int | None,
) -> list[Part]:
    """What the step learns from: its rollouts with their signal, and data beside them where that is mixed in."""
    cfg, plan = stage.config, stage.plan
    batch = collate(
        rollouts,
        scores,
        measured_positions=-(-cfg.diagnostics.positions // stage.world.size),
        seed=cfg.seed,
        step=step,
        early_ids=early_ids(plan, rollouts, scores, k=cfg.objective.k),
        early_source=plan.early_ids or "student",
    )
    objective = plan.objective.at(step)
    rewarded = switched is not None and step >= switched
    moment = Moment(cfg.seed, step, rewarded=rewarded, window=stage.horizon.window)
    own = Part(batch, objective.prepare(batch, moment), objective, window=moment.window)
    return [own] if stage.mix is None else [own, stage.mix.part(step)]


def _heads(stage: Stage) -> dict[str, Head]:
    """Lent by the models that send hidden states, by name."""
    scorers = {**({} if stage.teacher is None else {"teacher": stage.teacher}), **stage.others}
    return {name: scorer.head for name, scorer in scorers.items() if scorer.head is not None}


def _publish(stage: Stage) -> None:
    """The sampler's weights become the learner's."""
    with stage.clock.timed("sync"):
        weights = None if stage.sampler.shares_weights else stage.learner.weights()
        stage.sampler.sync(weights, version=stage.learner.version)


def _published(stage: Stage) -> EngineError | None:
    """Publish; an engine that did not take the weights is told of once the step that made them is logged and saved."""
    try:
        _publish(stage)
    except EngineError as error:
        return error
    return None


def _canary(stage: Stage) -> float | None:
    canary = getattr(stage.sampler.sampler, "canary", None)
    return None if canary is None else float(canary.error)


def _failed(stage: Stage, error: EngineError, done: int, talk: Talk) -> RunError:
    """The finding is kept with the run, and the way on is named."""
    finding = Finding(
        name=error.finding,
        severity="error",
        message=str(error),
        remedy=error.hint,
        step=done,
        source="opdkit/engines",
    )
    _tell(stage, finding, talk)
    resume = f"opd train --resume {stage.config.run}"
    return RunError(f"stopped after step {done}: {error}", hint=f"{error.hint}; go on with: {resume}")


def _row(
    stage: Stage, done: int, update: Update, rollouts: Sequence[Rollout], seconds: dict[str, float]
) -> dict[str, float]:
    row = metrics_row(
        done,
        update,
        rollouts,
        learner=stage.learner,
        seconds=seconds,
        rows=stage.plan.rows,
        ks=[] if stage.teacher is None else stage.config.diagnostics.ks,
        canary=_canary(stage),
        beside=stage.feed.beside(rollouts) if isinstance(stage.feed, OnPolicy) else None,
    )
    if isinstance(stage.feed, OnPolicy):
        return row | stage.feed.numbers
    for name in ("staleness", "ungraded_fraction"):  # say nothing of what is imitated
        row.pop(name, None)
    return row | stage.feed.numbers


def _open(stage: Stage, talk: Talk) -> None:
    """What is known before the first step, each finding written once however often the run is resumed."""
    cfg, start = stage.config, stage.start
    rows = [] if stage.folder is None else stage.folder.read_findings()
    written = {(row["name"], row["message"]) for row in rows}
    for finding in stage.findings:
        if (finding.name, finding.message) not in written:
            _tell(stage, finding, talk)
    if start == cfg.steps:
        more = f"opd train --resume {cfg.run} steps={2 * start}"
        talk.note(f"complete: {start} of {cfg.steps} steps are done; for more: {more}")
    elif start > 0:
        talk.note(f"going on after step {start}")


def _watch(stage: Stage, talk: Talk) -> Monitor | None:
    """The monitor, with the rows of a resumed run behind it. One rank watches: all have the same rows."""
    horizon, monitor = stage.horizon, None
    rows = [] if stage.folder is None else stage.folder.read_metrics()
    if stage.folder is not None and stage.config.health.enabled:
        monitor = Monitor.of(stage.config)

        def heard(row: Mapping[str, Any], found: list[Finding]) -> None:
            horizon.see(row, [finding.name for finding in found], monitor.lasting)

        for finding in monitor.replay(rows, stage.folder.read_findings(), heard=heard):
            _tell(stage, finding, talk)
    else:
        for row in rows:
            horizon.see(row)
    _agree(stage)
    return monitor


def _moved(
    stage: Stage, monitor: Monitor | None, row: Mapping[str, float], findings: Sequence[Finding]
) -> list[Finding]:
    """The horizon after this step, the same on every rank; told where it is another one."""
    horizon, change = stage.horizon, None
    if stage.folder is not None:
        lasting = monitor.lasting if monitor is not None else tuple
        change = horizon.see(row, [finding.name for finding in findings], lasting)
    _agree(stage)
    return [] if change is None else [change.finding(horizon.mode)]


def _agree(stage: Stage) -> None:
    """The rank that has the rows decides how deep the horizon is."""
    if stage.horizon.mode != "off":
        stage.horizon.depth = stage.world.gather(stage.horizon.depth)[0]


def _critical(stage: Stage, findings: Sequence[Finding]) -> list[str]:
    """What this step's findings say that is reason to stop, the same on every rank; [] where none is asked to."""
    if stage.config.health.on_critical != "stop":
        return []
    said = [f"{finding.name}: {finding.message}" for finding in findings if finding.severity == "error"]
    told: list[list[str]] = stage.world.gather(said)
    return told[0]


def _halted(cfg: Config, done: int, why: Sequence[str]) -> RunError:
    return RunError(
        f"stopped after step {done}, saved, because health.on_critical = stop; {'; '.join(why)}",
        hint=f"look: opd report {cfg.run}; go on all the same: opd train --resume {cfg.run}",
    )


def _farewell(cfg: Config, done: int) -> str:
    where = f"after step {done}, saved" if done else "before the first step"
    return f"stopped by a signal {where}; go on with: opd train --resume {cfg.run}"


def due(step: int, every: int) -> bool:
    """Whether something with this `every` happens at this step; 0 = never."""
    return every > 0 and step % every == 0


def _examine(stage: Stage, done: int, talk: Talk) -> None:
    """Evaluate the student on the held-out prompts, if it is time and was not done before a resume."""
    cfg, folder = stage.config, stage.folder
    if not stage.exam or not _exam_due(cfg, done):
        return
    if stage.world.any(folder is not None and any(row["step"] == done for row in folder.read_eval())):
        return
    row = {"step": done, **_examined(stage, stage.sampler)}
    if done == 0 and cfg.eval.teacher and isinstance(stage.teacher, LocalTeacher):
        sampler = Stoppable(LocalSampler(stage.teacher.loaded), stage.sampler.stop, stage.world)
        row |= {f"teacher_{name}": value for name, value in _examined(stage, sampler).items()}
    if folder is not None:
        folder.log_eval(row)
        stage.trackers.evaluation(row)
    talk.evaluation(row)


def _examined(stage: Stage, sampler: Stoppable) -> dict[str, Any]:
    cfg = stage.config
    return evaluate(
        sampler,
        stage.task,
        stage.exam,
        cfg=cfg.eval,
        sampling=cfg.sampling,
        seed=cfg.seed,
        world=stage.world,
    )


def _switched(stage: Stage, done: int, talk: Talk) -> int | None:
    """The step from which only the task's reward teaches, where that is asked for; told once."""
    cfg, folder = stage.config, stage.folder
    if cfg.objective.signal.reward != "sequential":
        return None
    rows = (
        []
        if folder is None
        else [(row["step"], row["avg_at_k"]) for row in folder.read_eval() if "avg_at_k" in row]
    )
    at: int | None = stage.world.gather(switch_step(cfg, rows))[0]
    if at is None or folder is None or any(row["name"] == "reward_switch" for row in folder.read_findings()):
        return at
    _tell(stage, switch_finding(cfg, at, step=done), talk)
    return at


def _exam_due(cfg: Config, done: int) -> bool:
    return (done > 0 and due(done, cfg.eval.every)) or (cfg.eval.at_ends and done in (0, cfg.steps))


def _look(stage: Stage, rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    """Both models at every token of the rollouts that will be kept, before the update that they lead to."""
    if stage.teacher is None or stage.teacher.rounding_pending:
        return []
    return tokens_of(
        rollouts[: stage.config.save.rollouts],
        student=_unsharded(stage),
        teacher=stage.teacher,
        temperature=stage.config.sampling.temperature,
    )


def _unsharded(stage: Stage) -> LoadedModel:
    """The student as one process can read it: the sampler's copy under several ranks, else the learner's own."""
    sampler = stage.sampler.sampler
    return sampler.loaded if isinstance(sampler, LocalSampler) else stage.learner.student.loaded


def _keep_rollouts(
    stage: Stage, done: int, rollouts: Sequence[Rollout], update: Update, looks: list[dict[str, Any]]
) -> None:
    """The step's first rollouts, the same ones under any world size; a number or two of all. A collective."""
    most = stage.config.save.rollouts
    group = stage.config.sampling.responses if isinstance(stage.feed, OnPolicy) else 1
    rows = rollout_rows(done, rollouts[:most], update)
    if looks:
        rows = [{**row, "tokens": look} for row, look in zip(rows, looks, strict=True)]
    everyone = interleaved(stage.world.gather(rows), group=group)[:most]
    sequences = sequences_row(update, rollouts, stage.learner, group=group)
    if stage.folder is not None:
        stage.folder.log_rollouts(done, everyone)
        stage.folder.log_sequences(done, sequences)


def _refresh_teacher(stage: Stage, done: int) -> None:
    """A teacher that is the student's earlier copy moves on: to where the student is, or towards it."""
    cfg, teacher = stage.config.teacher, stage.teacher
    if not (isinstance(teacher, LocalTeacher) and cfg is not None and cfg.type == "self"):
        return
    if due(done, cfg.moves_every):
        teacher.adopt(stage.learner.weights(), keep=cfg.ema)


def _step_findings(stage: Stage, done: int, *, row: dict[str, float]) -> list[Finding]:
    """What the loop itself saw in this step, and the monitor cannot see in rows."""
    found = []
    if done == 1 and stage.teacher is not None and stage.teacher.rounding_kl is not None:
        found.append(
            Finding(
                name="teacher_rounding",
                severity="info",
                message=f"bfloat16 moves the teacher by KL {stage.teacher.rounding_kl:.2g} nats per token",
                numbers={"rounding_kl": stage.teacher.rounding_kl},
                step=done,
            )
        )
    return found


def _widened(stage: Stage, row: dict[str, float]) -> list[Finding]:
    """What the step's entropy changes in the share of other prompts from the next step on; the same on every rank."""
    widen = stage.feed.widen if isinstance(stage.feed, OnPolicy) else None
    return [] if widen is None else [change.finding for change in widen.see(row)]


def _tell_of_trackers(stage: Stage, talk: Talk) -> None:
    for finding in stage.trackers.failures():
        _tell(stage, finding, talk)


def _tell(stage: Stage, finding: Finding, talk: Talk) -> None:
    if stage.folder is not None:
        stage.folder.log_finding(finding)
    talk.note(finding.line)

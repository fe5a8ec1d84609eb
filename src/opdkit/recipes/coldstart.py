"""`opd coldstart`: the student imitates the teacher's answers until it works as the teacher does, then distils.

    before → answers of the teacher → filters → SFT with probes between segments → hand-over → distill

Every stage is complete once the manifest says so (recipes/coldstart_folder.py); what is complete and was made from the same
inputs is not made again, so a killed or stopped cold start goes on where it was, and ends with the same files.
Training is the product's own stories: `sft` in segments, each resumed from the last bit for bit, and `distill`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from opdkit.config import ColdstartConfig, Config, VllmSampling, as_local, dump_toml
from opdkit.recipes.answering import FILE as ANSWERS
from opdkit.recipes.answering import Asked, answer, ask, teacher_of
from opdkit.recipes.coldstart_config import as_imitated, distill_config, refuse, sft_config
from opdkit.recipes.coldstart_findings import at_the_limit, counted, looser, of_filters
from opdkit.recipes.coldstart_folder import ColdstartFolder, digest, of_model, sha256
from opdkit.recipes.coldstart_summary import summary
from opdkit.recipes.filters import answer_test, sort_rows
from opdkit.recipes.handover import Handover, handover
from opdkit.recipes.probing import probe
from opdkit.run.folder import MARKER
from opdkit.run.signals import Stop, Stopped
from opdkit.tasks import Task, load_task, step_prompts
from opdkit.train import Talk, run_story
from opdkit.train.examine import examine
from opdkit.train.plan import Plan, make_plan
from opdkit.train.prompts import encoded_prompts
from opdkit.types import Finding, Prompt, RunError, UserError

T = TypeVar("T")
PROBES = "probes.jsonl"


class Show(Talk, Protocol):
    """Where progress goes: what a run says, and what happens around runs."""

    def progress(self, what: str, done: int, count: int) -> None: ...
    def probed(self, row: dict[str, Any]) -> None: ...


@dataclass
class Flow:
    """A cold start under way."""

    config: Config
    cold: ColdstartConfig
    folder: ColdstartFolder
    task: Task
    plan: Plan
    held_out: list[Prompt]  # encoded as the student reads them
    teacher_ids: dict[str, tuple[int, ...]]
    asked: Asked
    show: Show
    stop: Stop  # one around everything: a signal between two pieces of work is heeded before the next
    findings: list[Finding] = field(default_factory=list)

    def tell(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.show.note(finding.line)

    def whole(self, act: Callable[[], T]) -> T:
        """Work that is done again as a whole after a signal. Raises Stopped."""
        with self.stop.interrupting():
            return act()

    def run(self, config: Config, talk: Talk) -> None:
        """A story to its end, from where it was. Raises Stopped once it is saved after a signal."""
        if self.stop.requested:
            raise Stopped
        going_on = config.run if (config.run / MARKER).is_file() else None
        if run_story(config, resume=going_on, talk=talk, stop=self.stop):
            raise Stopped


def coldstart(config: Config, *, resume: bool = False, show: Show) -> tuple[int, dict[str, Any]]:
    """The exit code, and the summary as far as it goes. `config.run` is the folder of the whole.

    UserError for input that cannot work, before a model's weights are read; RunError where it had to stop.
    """
    cold = config.coldstart or ColdstartConfig()
    if config.threads:
        torch.set_num_threads(config.threads)
    refuse(config)
    with load_task(config.task) as task:
        plan, held_out, teacher_ids, asked = _settled(config, cold, task)
        opened = ColdstartFolder.open if resume else ColdstartFolder.create
        with opened(config.run, config_toml=dump_toml(config)) as folder, Stop() as stop:
            flow = Flow(config, cold, folder, task, plan, held_out, teacher_ids, asked, show, stop)
            for finding in asked.findings:
                flow.tell(finding)
            code = 0
            try:
                _stages(flow)
            except Stopped:
                code = stop.exit_code
                show.note(f"stopped by a signal, saved; go on with: opd coldstart --resume {config.run}")
            return code, {**summary(folder, cold, flow.findings), "exit_code": code}


def _stages(flow: Flow) -> None:
    """The whole story. Raises Stopped after a signal; what was whole is saved."""
    before = _before(flow)
    answers = _answers(flow)
    kept = _filters(flow, answers)
    ready = _learn(flow, kept)
    _distil(flow, str(ready), before)


def _settled(
    config: Config, cold: ColdstartConfig, task: Task
) -> tuple[Plan, list[Prompt], dict[str, tuple[int, ...]], Asked]:
    """Plan, held-out prompts, what the teacher reads of them, prompts for the teacher. No weights are read."""
    plan = make_plan(config)
    prompts = encoded_prompts(config, task, plan)
    least = 2 * cold.probe_prompts
    if len(prompts.train) < least:
        fewer = len(prompts.train) // 2
        raise UserError(
            f"{len(prompts.train)} training prompts are too few: {cold.probe_prompts} are held out for the probes, and as many "
            "are to be answered at least",
            hint=f"coldstart.probe_prompts={max(8, fewer)}, or more prompts",
        )
    held_out = step_prompts(prompts.train, step=0, seed=config.seed, count=cold.probe_prompts)
    known = {_words(prompt) for prompt in held_out}
    rest = [prompt for prompt in task.train if _words(prompt) not in known]
    if not rest:
        raise UserError(
            "every training prompt is held out", hint="coldstart.probe_prompts=8, or more prompts"
        )
    chosen = rest[: cold.prompts] if cold.prompts else rest
    # A forward KL is planned like the run it belongs to, so that it is refused here and not after an hour of answers.
    if cold.warm_up == "forward_kl":
        make_plan(sft_config(config, cold, steps=cold.steps))
    return plan, held_out, dict(prompts.teacher_ids), ask(config, cold, chosen)


def _words(prompt: Prompt) -> str:
    return prompt.text if prompt.text is not None else repr(prompt.messages)


# --- stages -------------------------------------------------------------------------------------------------


def _before(flow: Flow) -> str:
    """The student's score before anything, where there is an evaluation; paired with those of the distillation."""
    cfg = flow.config
    inputs = digest(of_model(cfg.student), cfg.task, cfg.eval, _draws(cfg), cfg.seed)
    if flow.folder.done("before", inputs=inputs) is None:
        flow.folder.begin("before", inputs=inputs)
        row = None
        if flow.task.evaluation and cfg.eval.at_ends:
            flow.show.note("the student before")
            row = flow.whole(lambda: examine(_alone(cfg)))
            flow.show.evaluation({"step": 0, **row})
        flow.folder.finish("before", inputs=inputs, eval=row)
    return inputs


def _alone(cfg: Config) -> Config:
    """The student as `examine` opens it: without a teacher whose template could write the prompts, and not on a server."""
    engine = cfg.sampling if isinstance(cfg.sampling, VllmSampling) else as_local(cfg.sampling)
    task = cfg.task.model_copy(update={"render": "student"})
    return cfg.model_copy(update={"teacher": None, "task": task, "sampling": engine})


def _answers(flow: Flow) -> str:
    """The teacher's answers; gives the digest of their file."""
    cfg, cold, folder = flow.config, flow.cold, flow.folder
    how = cold.model_dump(
        include={"prompts", "responses", "temperature", "top_p", "max_tokens", "probe_prompts"}
    )
    inputs = digest(
        of_model(teacher_of(cfg)), cfg.teacher, _of_task(cfg), how, _draws(cfg), cfg.seed, flow.plan.rows
    )
    told = folder.done("answers", inputs=inputs)
    if told is None:
        folder.begin("answers", inputs=inputs)
        count = len(flow.asked.prompts)
        flow.show.note(f"the teacher answers {count:,} prompts × {cold.responses}")
        rows = answer(
            cfg,
            cold,
            flow.asked,
            task=flow.task,
            folder=folder,
            rows=flow.plan.rows,
            stop=flow.stop,
            progress=lambda done, of: flow.show.progress("answers", done, of),
        )
        scores = [row["score"] for row in rows if row["score"] is not None]
        accuracy = sum(scores) / len(scores) if scores else None
        told = folder.finish("answers", inputs=inputs, answers=len(rows), prompts=count, accuracy=accuracy)
    return str(told["files"][ANSWERS])


def _of_task(cfg: Config) -> list[Any]:
    """The task, and the digest of its prompt file where it has one."""
    path = getattr(cfg.task, "path", None)
    return [
        cfg.task.model_dump(mode="json"),
        sha256(path) if path is not None and Path(path).is_file() else None,
    ]


def _filters(flow: Flow, answers: str) -> str:
    """kept.jsonl and dropped.jsonl; gives the digest of what is kept. RunError where nothing is."""
    cfg, cold, folder = flow.config, flow.cold, flow.folder
    inputs = digest(answers, cold.filters, flow.config.task)
    told = folder.done("filters", inputs=inputs)
    if told is None:
        folder.begin("filters", inputs=inputs)
        test = answer_test(cold.filters, cfg.task)
        kept, dropped, reasons = sort_rows(folder.rows(ANSWERS), cold.filters, answered=test)
        kept, replaced, respelt = as_imitated(kept, cfg, flow.plan)
        folder.replace("kept.jsonl", kept)
        folder.replace("dropped.jsonl", dropped)
        if not kept:
            raise RunError(
                f"none of the teacher's {len(dropped)} answers is left to imitate: {counted(reasons)}",
                hint=f"look into {folder.path / 'dropped.jsonl'}; then for example: opd coldstart --resume {folder.path} "
                f"{looser(max(reasons, key=lambda name: reasons[name]), cfg)}",
            )
        told = folder.finish(
            "filters",
            inputs=inputs,
            kept=len(kept),
            dropped=len(dropped),
            reasons=reasons,
            answers_recognised=test is not None,
            ends_replaced=replaced,
            respelt=respelt,
        )
    flow.show.note(
        f"kept {told['kept']:,} answers, dropped {told['dropped']:,}"
        + (f": {counted(told['reasons'])}" if told["reasons"] else "")
    )
    for finding in of_filters(told, cfg, folder.path):
        flow.tell(finding)
    return str(told["files"]["kept.jsonl"])


def _draws(cfg: Config) -> dict[str, Any]:
    """How rollouts are drawn; how many at once changes none."""
    return cfg.sampling.model_dump(mode="json", exclude={"batch_rows"})


def _learn(flow: Flow, kept: str) -> Path:
    """SFT in segments with a probe after each, until the hand-over; gives the student's folder."""
    cfg, cold, folder = flow.config, flow.cold, flow.folder
    how = cold.model_dump(exclude={"filters", "prompts", "responses", "temperature", "top_p", "max_tokens"})
    inputs = digest(
        kept,
        of_model(cfg.student),
        cfg.teacher,
        how,
        cfg.optim,
        cfg.learner.compute,
        cfg.seed,
        _draws(cfg),
    )
    told = folder.done("sft", inputs=inputs)
    if told is None:
        folder.begin("sft", inputs=inputs)
        over = _segments(flow)
        told = folder.finish(
            "sft",
            inputs=inputs,
            step=over.step,
            trained=int(folder.rows(PROBES)[-1]["step"]),
            why=over.why,
            says=over.says,
        )
    flow.show.note(f"hand-over: {told['says']}")
    if told["why"] == "limit":
        flow.tell(at_the_limit(told, cold, folder.path))
    return folder.path / "sft" / "checkpoints" / f"step_{told['step']}" / "model"


def _segments(flow: Flow) -> Handover:
    cfg, cold, folder = flow.config, flow.cold, flow.folder
    probes = folder.rows(PROBES)
    for row in probes:
        flow.show.probed(row)
    while True:
        if not probes:
            _probe(flow, cfg.student.model, 0)
        else:
            if (over := handover(probes, cold)) is not None:
                return over
            last = int(probes[-1]["step"])
            most = cold.until.steps if cold.until.steps is not None else cold.steps
            step = min(last + cold.probe_every, most)
            short = sft_config(cfg, cold, steps=step)
            flow.run(short, _Segment(flow.show, most))
            _probe(flow, str(short.run / "checkpoints" / f"step_{step}" / "model"), step)
        probes = folder.rows(PROBES)


def _probe(flow: Flow, student: str, step: int) -> None:
    row = flow.whole(
        lambda: probe(
            flow.config,
            flow.cold,
            student,
            step=step,
            prompts=flow.held_out,
            task=flow.task,
            teacher_ids=flow.teacher_ids,
            rows=flow.plan.rows,
        )
    )
    flow.folder.append(PROBES, [row])
    flow.show.probed(row)


def _distil(flow: Flow, student: str, before: str) -> None:
    """The run as configured, from the student that was handed over."""
    cfg, folder = flow.config, flow.folder
    config = distill_config(cfg, student)
    weights = sha256(Path(student).parent / "manifest.json")
    # what stays when the folder is moved: the weights stand for the student
    same = {"threads": 0, "device": "auto", "run": Path("distill"), "student": cfg.student}
    inputs = digest(weights, before, dump_toml(config.model_copy(update=same)))
    if folder.done("distill", inputs=inputs) is None:
        folder.begin("distill", inputs=inputs)
        flow.show.note(f"distillation: {config.steps} steps from {student}")
        flow.run(config, flow.show)
        folder.finish("distill", inputs=inputs, steps=config.steps)


# --- talk ---------------------------------------------------------------------------------------------------


class _Segment:
    """The talk of one segment: steps count to the most there can be, and what every resume would repeat is left out."""

    def __init__(self, show: Show, most: int):
        self.show, self.most = show, most

    def note(self, text: str) -> None:
        if text.startswith(("warning", "critical", "stopped")):
            self.show.note(text)

    def step(self, row: dict[str, Any], steps: int) -> None:
        self.show.step(row, self.most)

    def evaluation(self, row: dict[str, Any]) -> None:
        self.show.evaluation(row)

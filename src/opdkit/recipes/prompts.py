"""`opd prompts`: training prompts that suit the teacher, before a run (arXiv 2604.13016, 5.2).

    the task's prompts → repeats out → known ones out → wrapper → closeness → the student's responses
        → band, rank, few → the file, what was dropped, the document

Models are opened only where something asks for them. Every row that comes in goes out again, with a reason, in one of two files.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opdkit.config import Config, FileTask, LocalTeacher, MathTask
from opdkit.models.load import pick_device
from opdkit.recipes.prompts_bench import Bench, Say
from opdkit.recipes.prompts_choose import bands, coverage, few, in_band, ranked, refuse_ungraded
from opdkit.recipes.prompts_embed import Embedder, Remembered, open_embedder
from opdkit.recipes.prompts_measure import Measured, measure
from opdkit.recipes.prompts_near import (
    Contact,
    apart_from_each_other,
    with_closeness,
    without_known,
    without_repeats,
)
from opdkit.recipes.prompts_row import Judged, asked, excerpt, kept
from opdkit.recipes.prompts_template import Choice, Wrapper, choose_wrapper
from opdkit.tasks import Task, load_task
from opdkit.tasks.prompt_rows import numbered, read_written, write_rows, written
from opdkit.tasks.rows import OPD, must_be_file, read_prompts
from opdkit.types import Finding, Prompt, UserError

SCHEMA = "opdkit.prompts/1"
AS_IT_IS = Wrapper("as it is", "", "student", "the task")
MOST_DROPPED = 0.5
"""A larger share that nearness alone drops is a threshold that does not suit these texts, as likely as contamination."""


def align(config: Config, *, out: Path, source: str, say: Say) -> dict[str, Any]:
    """Write `out`, beside it what was dropped, and return the document. `source`: how the user named the config.

    UserError before a model is opened for what cannot work; after, where nothing is left.
    """
    cfg = config.prompts
    if config.threads:
        torch.set_num_threads(config.threads)
    _refuse(config, out)
    with load_task(config.task) as task:
        if why := refuse_ungraded(cfg, graded=task.training_graded):
            raise UserError(why, hint="task.grader=exact, with answers in every row, or prompts.band=[0, 1]")
        rows = [Judged(found) for found in _rows(config, task)]
        others = {"evaluation": task.evaluation, **{p.name: _file(p, config) for p in cfg.apart}}
        taught = _file(cfg.taught, config, key="prompts.taught") if cfg.taught is not None else ()

        rows = without_repeats(rows)
        embedder, embed, findings = _embedding(config, rows, [*others.values(), taught])
        rows, contacts = without_known(rows, others, near=cfg.near, embed=embed if cfg.near < 1 else None)
        if embed is not None and cfg.near_own < 1:
            rows = apart_from_each_other(rows, near=cfg.near_own, embed=embed)
        _refuse_empty(rows, cfg.near)

        bench = Bench(config, task) if _asks_models(config) else None
        choice = None
        if bench is not None and cfg.templates and bench.has_teacher:
            choice = choose_wrapper(bench, [row.prompt for row in kept(rows)], say=say)
        wrapper = choice.chosen if choice is not None else AS_IT_IS

        if embedder is not None and embed is not None and taught:
            rows = with_closeness(rows, taught, embedder=embedder, embed=embed)
        measured = Measured(rows)
        if bench is not None and cfg.num_responses:
            prompts = [wrapper.around(row.prompt) for row in kept(rows)]
            render = None if choice is None else wrapper.render
            measured = measure(rows, bench, prompts=bench.encoded(prompts, render=render), say=say)
        rows = in_band(measured.rows, cfg.band)
        rows = few(Measured(rows, measured.labels, measured.num_clusters), cfg.few) if cfg.few else rows
        rows = ranked(rows, "none" if cfg.few else cfg.ranks_by, keep=cfg.keep)
        _refuse_empty(rows, cfg.near)

        findings += [*_of_contacts(contacts, task), *_of_choice(choice), *_of_nearness(rows, cfg.near)]
        reach = coverage(measured, rows)
        dropped = dropped_beside(out)
        write_rows(out, (_out(row, wrapper) for row in rows if row.kept))
        write_rows(dropped, (_out(row, None) for row in rows if not row.kept))
        return {
            "schema": SCHEMA,
            "kind": "prompts",
            "student": config.student.model,
            "teacher": config.teacher.model if isinstance(config.teacher, LocalTeacher) else None,
            "out": str(out),
            "dropped": str(dropped),
            "prompts": len(rows),
            "kept": len(kept(rows)),
            "reasons": _counted(rows),
            "template": _of_template(choice, wrapper),
            "embedding": None if embedder is None else embedder.name,
            "contamination": [asdict(contact) for contact in contacts],
            "rank_by": cfg.ranks_by,
            "bands": bands(rows),
            "coverage": reach,
            "examples": _examples(rows),
            "findings": [asdict(finding) for finding in findings],
            "next": next_command(config, out, wrapper, source),
        }


def dropped_beside(out: Path) -> Path:
    return out.with_name(f"{out.stem}.dropped.jsonl")


# --- what comes in ----------------------------------------------------------------------------------------------


def _refuse(config: Config, out: Path) -> None:
    if out.suffix != ".jsonl":
        raise UserError(f"--out {out} is no JSONL file", hint=f"--out {out.with_suffix('.jsonl')}")
    read = [
        getattr(config.task, "path", None),
        getattr(config.task, "eval_path", None),
        config.prompts.taught,
    ]
    if any(p is not None and p.resolve() == out.resolve() for p in [*read, *config.prompts.apart]):
        raise UserError(
            f"--out {out} is read by this command", hint=f"--out {out.with_stem(out.stem + '-aligned')}"
        )
    wants = config.prompts.ranks_by.startswith("teacher_") or config.prompts.num_clusters
    if wants and not isinstance(config.teacher, LocalTeacher):
        raise UserError(
            "this asks for the teacher's opinion of the student's responses, and there is no teacher whose weights are at hand",
            hint="--teacher MODEL, the folder or Hub id of the teacher",
        )


def _rows(config: Config, task: Task) -> Any:
    if isinstance(config.task, FileTask):
        return read_written(config.task.path, config.task)
    return written(task.train)


def _file(path: Path, config: Config, key: str = "prompts.apart") -> tuple[Prompt, ...]:
    must_be_file(path, key=key)
    columns = config.task.model_dump(include={"prompt_key"})
    try:
        return read_prompts(path, FileTask(path=path, **columns))
    except UserError:
        if not columns:
            raise
        return read_prompts(
            path, FileTask(path=path)
        )  # another set need not name its columns as the task's does


def _asks_models(config: Config) -> bool:
    compares = config.prompts.templates and isinstance(config.teacher, LocalTeacher)
    return compares or config.prompts.num_responses > 0


def _embedding(
    config: Config, rows: Sequence[Judged], sets: Sequence[Sequence[Prompt]]
) -> tuple[Embedder | None, Callable[[Sequence[str]], np.ndarray] | None, list[Finding]]:
    """What compares texts, fitted to all of them; nothing where equal texts are all that is asked for."""
    cfg = config.prompts
    known, taught = sets[:-1], sets[-1]
    if not (taught or (cfg.near < 1 and any(known)) or cfg.near_own < 1):
        return None, None, []
    embedder, findings = open_embedder(cfg.embedding, device=str(pick_device(config.device)))
    embedder.fit(asked(p) for some in ([row.prompt for row in kept(rows)], *sets) for p in some)
    return embedder, Remembered(embedder), findings


def _refuse_empty(rows: Sequence[Judged], near: float) -> None:
    if kept(rows):
        return
    count = _counted(rows)
    most = next(iter(count))
    hint = (
        "prompts.near=1 drops equal texts only"
        if "cosine" in most
        else "prompts.band=[0, 1], or other prompts"
    )
    raise UserError(f"not one of {len(rows)} prompts is left; {count[most]} of them: {most}", hint=hint)


# --- what goes out ----------------------------------------------------------------------------------------------


def _out(row: Judged, wrapper: Wrapper | None) -> Mapping[str, Any]:
    """The row as it came, in the chosen wrapper if it is kept, with one column more."""
    found = dict(numbered(row.found))
    if wrapper is not None and wrapper.text:
        found[row.found.column] = wrapper.around(row.prompt).given
    return {**found, OPD: {"reason": row.reason, **row.numbers}}


def _counted(rows: Sequence[Judged]) -> dict[str, int]:
    """Kind of reason → rows dropped for it, the commonest first. A number or a name makes no kind of its own."""
    kinds: dict[str, int] = {}
    for row in rows:
        if not row.kept:
            kinds[_kind(row.dropped)] = kinds.get(_kind(row.dropped), 0) + 1
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


_KINDS = {
    "asks what": "asks what another asks already",
    "equal to": "equal to a row of an evaluation or other set",
    "cosine": "near to another row, by cosine",
    "leaves no room": "leaves no room for a response in a model's context",
    "pass rate": "pass rate outside the band",
    "rank": "ranked below those that are kept",
    "the first": "after those that are kept",
    "not one of": "reaches too few new teacher states",
}


def _kind(reason: str) -> str:
    return next((kind for start, kind in _KINDS.items() if reason.startswith(start)), reason)


def _examples(rows: Sequence[Judged], most: int = 12) -> list[dict[str, Any]]:
    """Some of the best and some of the dropped, for the page."""
    good = sorted(kept(rows), key=lambda row: row.numbers.get("rank", 0))[:most]
    bad = [row for row in rows if not row.kept][:most]
    return [
        {"kept": row.kept, "id": row.prompt.id, "text": excerpt(row.prompt), "reason": row.reason}
        for row in (*good, *bad)
    ]


def _of_template(choice: Choice | None, wrapper: Wrapper) -> dict[str, Any] | None:
    if choice is None:
        return None
    tried = [it.as_json() for it in choice.tried]
    return {"chosen": wrapper.name, "text": wrapper.text, "render": wrapper.render, "reason": choice.reason,
            "refused": list(choice.refused), "tried": tried}  # fmt: skip


def next_command(config: Config, out: Path, wrapper: Wrapper, source: str) -> str:
    """`opd check` of the same pair with the new prompts: the verdict again, side by side with the one before."""
    task = config.task
    if isinstance(task, FileTask):
        words = [f"task.path={out}"]
        if task.prompt_key != "prompt" and "--prompts" in source:
            words.append(f"task.prompt_key={task.prompt_key}")
    elif isinstance(task, MathTask):
        words = [f"task.train={out}", "task.wrapper=as_is"]
    elif task.type == "testbed":
        words = [f"task.demonstrations={out}"]
    else:
        words = [f'task={{type="file", path="{out}"}}']
    if wrapper.render == "teacher":
        words.append("task.render=teacher")
    named = shlex.split(source)
    again = {word.partition("=")[0] for word in words}
    named = [
        word for word in named if "=" not in word or word.partition("=")[0] not in {*again, *_ours(named)}
    ]
    if "--prompts" in named:  # an option names the task, and the new file takes its place
        at = named.index("--prompts")
        named[at + 1] = str(out)
        words = [word for word in words if not word.startswith("task.path=")]
    return shlex.join(["opd", "check", *named, *words])


def _ours(words: Sequence[str]) -> set[str]:
    """Keys of this command only."""
    return {key for word in words if (key := word.partition("=")[0]).startswith("prompts.")}


# --- findings ---------------------------------------------------------------------------------------------------


def _of_contacts(contacts: Sequence[Contact], task: Task) -> list[Finding]:
    touched = [c for c in contacts if c.set == "evaluation"]
    if not touched:
        return []
    equal = sum(c.equal for c in touched)
    return [
        Finding(
            name="contamination",
            severity="warning",
            message=f"{len(touched)} of {len(task.evaluation)} evaluation prompts have a training prompt near them ({equal} "
            "equal): these training prompts were dropped, and a student trained on them before was examined on what it knew",
            numbers={"touched": len(touched), "equal": equal, "evaluation_prompts": len(task.evaluation)},
            rule="no training prompt is near an evaluation prompt",
            source="arXiv 2604.13016, C.3",
        )
    ]


def _of_choice(choice: Choice | None) -> list[Finding]:
    if choice is None:
        return []
    taken = choice.chosen.name != choice.tried[0].wrapper.name
    name = "template_aligned" if taken else "template_kept"
    return [Finding(name=name, severity="info", message=choice.reason, source="arXiv 2604.13016, 5.2")]


def _of_nearness(rows: Sequence[Judged], near: float) -> list[Finding]:
    dropped = sum(row.dropped.startswith("cosine") for row in rows)
    if dropped < MOST_DROPPED * len(rows):
        return []
    return [
        Finding(
            name="nearness_drops_most",
            severity="warning",
            message=f"{dropped} of {len(rows)} prompts were dropped for a cosine of {near:g} or more: texts of one mould are all "
            "near each other, and the threshold was set for questions in free words",
            numbers={"dropped": dropped, "prompts": len(rows), "near": near},
            remedy="opd prompts … prompts.near=0.9",
            rule=f"fewer than {MOST_DROPPED:.0%} are near an evaluation prompt",
            source="our choice",
        )
    ]


def lines(told: Mapping[str, Any]) -> list[str]:
    """The document in words, for a terminal."""
    found = [f"{told['kept']} of {told['prompts']} prompts kept: {told['out']}"]
    found += [f"  {count:>6} dropped: {kind}" for kind, count in told["reasons"].items()]
    if told["template"] is not None:
        found.append(f"template: {told['template']['reason']}")
        found += [_candidate(it) for it in told["template"]["tried"]]
    if (reach := told["coverage"]) is not None:
        found.append(
            f"coverage: {reach['prompts']} prompts reach {reach['reached']} of {reach['clusters']} clusters of teacher states"
            f" ({reach['share']:.1%}) that {reach['of_prompts']} prompts reach together"
        )
    if told["bands"]:
        found.append(
            "pass rates: " + ", ".join(f"{b['band']} {b['prompts']}" for b in told["bands"] if b["prompts"])
        )
    found += [
        f"{f['severity']}: {f['message']}" + (f"  [{f['remedy']}]" if f["remedy"] else "")
        for f in told["findings"]
        if not f["name"].startswith("template_")
    ]
    return [*found, f"next: {told['next']}"]


def _candidate(it: Mapping[str, Any]) -> str:
    parts = []
    for name, short in (
        ("overlap_ratio", "overlap"),
        ("overlap_mass_teacher_before_end", "mass"),
        ("entropy_teacher", "teacher's entropy"),
        ("accuracy", "accuracy"),
    ):
        if name in it["numbers"]:
            gain = it["gains"].get(name)
            more = (
                "" if gain is None else f" ({gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}])"
            )
            parts.append(f"{short} {it['numbers'][name]['value']:.3f}{more}")
    return f"  {it['name']}: {', '.join(parts)}"

"""Questions on models that configuration files name: the small real one (`--scale real`), the paper's own (`--scale gpu`).

    OUT/runs/SCALE/QUESTION/ARM    runs, as of `opd train` and `opd coldstart`; ARM-SEED where seeds are given
    OUT/NAME.json                  their rows, beside the testbed's

An arm of the real model has the name of a testbed's arm, and the same rule decides. One of the paper's own scale has its own
name (`opdkit.studies.at_scale`) and is told, not judged. Files are those of a clone of the repository.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opdkit.config import Config, dump_toml, load_config
from opdkit.recipes.coldstart import Show, coldstart
from opdkit.recipes.coldstart_folder import MANIFEST
from opdkit.run.environment import environment
from opdkit.studies.at_scale import AT_SCALE, CONFIGS, config_at_scale
from opdkit.studies.campaign import SIGNALLED, Say
from opdkit.studies.estimate import Row
from opdkit.studies.reading import read_run
from opdkit.studies.study import PAPER, REAL, Study
from opdkit.studies.tables import keep, kept_at
from opdkit.studies.testbed import finish
from opdkit.types import UserError

REAL_CONFIGS = Path("configs/real")
TEACHERS = Path("runs/real")
"""Where `python scripts/real.py` leaves teachers and prompts."""
AT_REAL: Mapping[str, Mapping[str, Sequence[str]]] = {
    "dynamics": {
        "works": ("distil",),
        "fails": ("distil", "teacher.model={real}/teacher-b/checkpoints/step_12/model"),
    },
    "cold-start": {"direct": ("distil",), "cold start": ("coldstart",)},
}
"""Question → arm of the testbed's study → (stem of a file in configs/real, key=value, …)."""
OF_CONFIGS: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]] = {"real": AT_REAL, "gpu": AT_SCALE}
"""Scale → question → arm → file and changes."""
REAL_FILES = (
    "teacher.model={real}/teacher-a/checkpoints/step_16/model",
    "task.path={real}/data/train.jsonl",
    "task.eval_path={real}/data/plain.jsonl",
)
"""Typed before an arm's own."""


def arms_of(study: Study, scale: str) -> Sequence[str]:
    """Names of the arms that have files at this scale; none for most questions on the real model."""
    return list(OF_CONFIGS[scale].get(study.name, {}))


def config_of(study: Study, arm: str, *, scale: str, real: Path, changes: Sequence[str], run: Path) -> Config:
    """An arm's configuration, `changes` laid over it. UserError where a file is missing."""
    if scale == "gpu":
        return config_at_scale(study.name, arm, folder=CONFIGS, run=run, changes=changes)
    stem, *own = AT_REAL[study.name][arm]
    path = REAL_CONFIGS / f"{stem}.toml"
    if not path.is_file():
        raise UserError(f"{path} is not here", hint="cd into a clone of the repository")
    typed = [change.format(real=real) for change in (*REAL_FILES, *own)]
    config = load_config(path, [*typed, f"run={run}", *changes])
    teacher = getattr(config.teacher, "model", "")
    if not Path(teacher).is_dir():
        raise UserError(
            f"the teacher {teacher} was not taught yet",
            hint=f"python scripts/real.py --student {config.student.model} --out {real}",
        )
    return config


def run_from_configs(
    studies: Sequence[Study],
    *,
    scale: str,
    out: Path,
    real: Path = TEACHERS,
    seeds: Sequence[int] = (),
    changes: Sequence[str] = (),
    show: Callable[[Config], Show],
    say: Say,
) -> None:
    """Run what is missing, one arm after another; a row is kept as each ends. UserError before the first for what cannot run.

    `seeds`: of prompts and sampling, every arm once with each; none: the files' own.
    """
    todo = [
        (study, arm, seed) for seed in seeds or (None,) for study in studies for arm in arms_of(study, scale)
    ]
    if not todo:
        names = ", ".join(OF_CONFIGS[scale])
        raise UserError(
            f"nothing of this is run at --scale {scale}", hint=f"opd study run --scale {scale} NAME: {names}"
        )
    out.mkdir(parents=True, exist_ok=True)
    configs = {}
    for study, arm, seed in todo:
        run = out / "runs" / scale / study.name / (slug(arm) if seed is None else f"{slug(arm)}-{seed}")
        typed = changes if seed is None else (*changes, f"seed={seed}")
        configs[study.name, arm, seed] = config_of(study, arm, scale=scale, real=real, changes=typed, run=run)
    commit = environment()["commit"]  # of the code that is loaded now
    for i, (study, arm, seed) in enumerate(todo, start=1):
        row = _row(study, arm, configs[study.name, arm, seed], scale=scale, out=out, commit=commit, show=show)
        keep(study, row, out)
        say(f"[{i}/{len(todo)}] {study.name} · {arm}: {row['before']:.3f} → {row['after']:.3f}")


def _row(
    study: Study,
    arm: str,
    config: Config,
    *,
    scale: str,
    out: Path,
    commit: str | None,
    show: Callable[[Config], Show],
) -> Row:
    family = PAPER if scale == "gpu" else REAL
    kept = kept_at((scale, family, config.seed, arm), study, out)
    key = hashlib.blake2b(dump_toml(config).encode(), digest_size=8).hexdigest()
    if kept is not None and kept["config"] == key:
        return kept
    began = time.perf_counter()
    run = _run(config, show(config))
    drawn = config.prompts_per_step * config.sampling.responses
    found: dict[str, Any] = read_run(run, drawn=drawn)
    return {
        "scale": scale,
        "family": family,
        "seed": config.seed,
        "arm": arm,
        "config": key,
        "commit": commit,
        "wall_seconds": time.perf_counter() - began,
        **found,
    }


def _run(config: Config, show: Show) -> Path:
    """The folder of the distillation, when it is done."""
    if config.coldstart is None:
        return finish(config, talk=show)
    code, _ = coldstart(config, resume=(config.run / MANIFEST).is_file(), show=show)
    if code in SIGNALLED:
        raise SystemExit(code)
    return config.run / "distill"


def slug(arm: str) -> str:
    """An arm's name as a folder's.

    >>> slug("rest, raw")
    'rest-raw'
    """
    return "-".join("".join(c if c.isalnum() else " " for c in arm).split())

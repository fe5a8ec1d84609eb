"""The real run: SmolLM2 learns sums from two teachers, one that can add better and one that knows the form only.

    python scripts/real.py --student FOLDER --out DIR [--jobs 2]

Every step is the command a user would type; it is printed before it runs, and what it says goes to DIR/logs. Up to
`jobs` run at once, a thread each. After an interruption run it again: what is finished is left, what was cut goes on.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

OPD = [sys.executable, "-m", "opdkit"]
HERE = Path(os.path.relpath(Path(__file__).parent))
CONFIGS = Path(os.path.relpath(HERE.parent / "configs" / "real"))
TEACHERS = {"a": "train.jsonl", "b": "form_only.jsonl"}
"""What each is taught on."""
ARMS = (("a", 0), ("b", 0), ("a", 1), ("b", 1))
"""Teacher and seed of the students."""


@dataclass(frozen=True)
class Task:
    """A command, the files it reads, and the file that is there once it has ended well: where it `prints`, its output."""

    name: str
    command: Sequence[str]
    needs: Sequence[Path]
    done: Path
    prints: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    for folder in ("logs", "exams"):
        (args.out / folder).mkdir(parents=True, exist_ok=True)
    run_all(tasks(args.student, args.out), args.out, jobs=args.jobs)
    print(f"\n# tables and curves\n$ python {HERE / 'real_tables.py'} {args.out} docs/real")


def tasks(student: str, out: Path) -> list[Task]:
    """The whole run, in the order in which a reader would do it."""
    teachers = [teach(name, student, out) for name in TEACHERS]
    students = [distil(name, seed, student, out) for name, seed in ARMS]
    everyone = [
        ("student", student),
        *((t.name, str(t.done.parent / "model")) for t in [*teachers, *students]),
    ]
    exams = [exam(kind, who, model, out) for who, model in everyone for kind in ("plain", "prefilled")]
    return [sums(student, out), *teachers, *students, *exams]


# --- the commands -----------------------------------------------------------------------------------------------


def sums(student: str, out: Path) -> Task:
    script = [sys.executable, str(HERE / "real_sums.py"), "--student", student, "--out", str(out / "data")]
    return Task("sums", script, [Path(student)], done=out / "data" / "prefilled.jsonl")


def teach(name: str, student: str, out: Path) -> Task:
    """A improves on its own right answers; B is shown the form around wrong numbers. Both begin as the student."""
    data = out / "data" / TEACHERS[name]
    return train(
        f"teacher-{name}", f"teacher-{name}", [f"student.model={student}", f"task.path={data}"], [data], out
    )


def distil(teacher: str, seed: int, student: str, out: Path) -> Task:
    model, data = last_model(f"teacher-{teacher}", out / f"teacher-{teacher}"), out / "data"
    changes = [
        f"student.model={student}",
        f"teacher.model={model}",
        f"task.path={data / 'train.jsonl'}",
        f"task.eval_path={data / 'plain.jsonl'}",
        f"seed={seed}",
    ]
    return train(f"from-{teacher}-{seed}", "distil", changes, [model], out)


def train(name: str, config: str, changes: Sequence[str], needs: Sequence[Path], out: Path) -> Task:
    """Begin a run, or go on with it where its folder is there."""
    run = out / name
    begin = [str(CONFIGS / f"{config}.toml"), *changes, f"run={run}"]
    what = ["--resume", str(run)] if (run / "config.toml").exists() else begin
    return Task(name, [*OPD, "train", *what], needs, done=last_model(config, run).parent / "manifest.json")


def exam(kind: str, who: str, model: str, out: Path) -> Task:
    """Greedy answers to the held-out sums: `plain` as asked, `prefilled` with the answer begun."""
    data = out / "data" / f"{kind}.jsonl"
    what = [model, "--task", str(CONFIGS / f"{kind}.toml"), f"task.path={data}", f"task.eval_path={data}"]
    done = out / "exams" / f"{who}.{kind}.json"
    return Task(done.stem, [*OPD, "eval", *what, "--json"], [data, Path(model)], done, prints=True)


def last_model(config: str, run: Path) -> Path:
    """Where a run of configs/real/CONFIG.toml leaves its weights."""
    steps = tomllib.loads((CONFIGS / f"{config}.toml").read_text())["steps"]
    return run / "checkpoints" / f"step_{steps}" / "model"


# --- running them -----------------------------------------------------------------------------------------------


def run_all(tasks: Sequence[Task], out: Path, *, jobs: int) -> None:
    """Whatever has what it needs, first ones first. After a failure nothing more begins."""
    waiting = list(tasks)
    running: set[Future[int]] = set()
    failed = False
    with ThreadPoolExecutor(jobs) as pool:
        while True:
            waiting = [task for task in waiting if not task.done.exists()]
            ready = [task for task in waiting if all(path.exists() for path in task.needs)]
            for task in ready[: 0 if failed else jobs - len(running)]:
                waiting.remove(task)
                running.add(pool.submit(run, task, out))
            if not running:
                break
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            failed = failed or any(future.result() for future in ended)
    if failed:
        sys.exit("stopped; the same command goes on from here")


def run(task: Task, out: Path) -> int:
    """Run it, log it, and note in times.jsonl what it took; returns its exit code."""
    log = out / "logs" / f"{task.name}.log"
    target = task.done.with_suffix(".part") if task.prints else log
    print(f"$ {shown(task, log)}", flush=True)
    began = time.perf_counter()
    with target.open("w" if task.prints else "a") as stdout, log.open("a") as stderr:
        process = subprocess.Popen(task.command, stdout=stdout, stderr=stderr)
        _, status, usage = os.wait4(process.pid, 0)  # not process.wait: this one tells the CPU seconds
    process.returncode = code = os.waitstatus_to_exitcode(status)
    if code == 0 and task.prints:
        target.rename(task.done)
    took = {"seconds": time.perf_counter() - began, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    with (out / "times.jsonl").open("a") as times:
        times.write(json.dumps({"name": task.name, "exit_code": code, **took}) + "\n")
    print(f"  {task.name}: {ending(code, log)}, {took['seconds']:.0f} s", flush=True)
    return code


def shown(task: Task, log: Path) -> str:
    """The command as a user would type it."""
    is_opd = list(task.command[: len(OPD)]) == OPD
    words = ["opd", *task.command[len(OPD) :]] if is_opd else ["python", *task.command[1:]]
    return f"{shlex.join(words)} > {task.done if task.prints else log}"


def ending(code: int, log: Path) -> str:
    return "done" if code == 0 else f"ended with {code}, see {log}"


if __name__ == "__main__":
    main()

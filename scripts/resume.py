"""The main job in small, on real weights: train, kill, resume, report. What `make resume` runs.

    python scripts/resume.py --student FOLDER --out DIR

Every step is the command a user would type; it is printed before it runs.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

OPD = [sys.executable, "-m", "opdkit"]
HERE = Path(os.path.relpath(Path(__file__).parent))
CONFIG = Path(os.path.relpath(HERE.parent / "configs" / "smollm2-smoke.toml"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    run, teacher = args.out / "run", args.out / "teacher"
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)

    script = HERE / "differing_copy.py"
    step(
        [sys.executable, str(script), args.student, str(teacher)],
        "a teacher: the student's weights with a little noise",
    )
    train = [
        *OPD,
        "train",
        str(CONFIG),
        f"student.model={args.student}",
        f"teacher.model={teacher}",
        f"run={run}",
    ]
    kill_after_first_checkpoint(train, run)
    step([*OPD, "train", "--resume", str(run)], "it goes on from the last complete checkpoint, bit for bit")
    step([*OPD, "report", str(run)], "one page that explains the run")
    print(f"\nopen {run / 'report.html'}")


def step(command: list[str], why: str) -> None:
    say(command, why)
    subprocess.run(command, check=True)


def say(command: list[str], why: str) -> None:
    shown = ["opd", *command[len(OPD) :]] if command[: len(OPD)] == OPD else ["python", *command[1:]]
    print(f"\n# {why}\n$ {shlex.join(shown)}", flush=True)


def kill_after_first_checkpoint(command: list[str], run: Path) -> None:
    say(command, "on-policy distillation; killed with SIGKILL once a checkpoint is there")
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None:
        if list(run.glob("checkpoints/step_*/manifest.json")):
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.05)
    if process.returncode != -signal.SIGKILL:
        sys.exit(f"the run ended by itself with {process.returncode} before it could be killed")
    print("(killed)")


if __name__ == "__main__":
    main()

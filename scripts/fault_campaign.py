"""Break the line to a served teacher, and its answers, in every known way; see that nothing wrong is learned.

    python scripts/fault_campaign.py [--seeds 10] [--servers own,fake] [--kinds nan,swapped] [--json FILE]

Each case is one learner step through a proxy that was clean while the teacher was opened and probed (tests/faulty.py lists
the kinds, and what no client can see). `opd serve` is asked for log-probs at the student's top-k, the fake vLLM for its own
top-k. Right are: refused, with a hint, in time, no parameter moved; recovered, with parameters bit for bit those of a clean
line. Servers are processes of their own. Exit code 1 on anything else, or if a process or a taken port is left after 10 s.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import torch
from transformers.utils import logging

from fault_bench import DEADLINE, GRACE, TIMEOUT, Bench, Case, build_models
from faulty import Server, kinds
from opdkit.run import environment
from serving import Process, fake_process, own_process

AT_ONCE = 3  # cases of one server: most of them wait
LEFT_AFTER = 10.0  # seconds until nothing may be left


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--servers", default="own,fake")
    parser.add_argument("--kinds", default="", help="all, unless given")
    parser.add_argument("--json", type=Path, help="write what happened here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    began, told, ports = time.monotonic(), {}, []
    with tempfile.TemporaryDirectory() as folder:
        models = build_models(Path(folder))
        for server in args.servers.split(","):
            wanted = [k for k in kinds(server) if not args.kinds or k in args.kinds.split(",")]
            cases, used = campaign(models, server, wanted, seeds=args.seeds)
            ports += used
            told[server] = summary(cases, wanted)
    left, taken = leftovers(ports)
    last = "; ".join(f"{server}: {line(found, args.seeds)}" for server, found in told.items())
    print(f"{last}; {left} processes and {taken} ports left after {LEFT_AFTER:.0f} s", flush=True)
    print(f"({time.monotonic() - began:.0f} s)", file=sys.stderr)
    if args.json:
        rows = {"seeds": args.seeds, "deadline_seconds": DEADLINE, "timeout_seconds": TIMEOUT, "servers": told,
                "processes_left": left, "ports_left": taken, "environment": environment()}  # fmt: skip
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(1 if left or taken or any(found["violations"] for found in told.values()) else 0)


def campaign(models: Path, server: Server, wanted: list[str], *, seeds: int) -> tuple[list[Case], list[int]]:
    """Every kind with every seed, and the ports that were used."""
    start = own_process if server == "own" else fake_process
    waiting: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    for kind in wanted:
        for seed in range(seeds):
            waiting.put((kind, seed))
    with ExitStack() as stack:
        servers: list[Process] = [stack.enter_context(start(models / name)) for name in ("teacher", "other")]
        upstream, other = (process.url for process in servers)
        benches = [
            stack.enter_context(Bench(models, server=server, upstream=upstream, other=other))
            for _ in range(AT_ONCE)
        ]
        ports = [process.port for process in servers] + [bench.proxy.port for bench in benches]
        told = Teller(wanted, seeds)
        threads = [threading.Thread(target=work, args=(bench, waiting, told)) for bench in benches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return told.cases, ports


def work(bench: Bench, waiting: queue.SimpleQueue[tuple[str, int]], told: Teller) -> None:
    while True:
        try:
            kind, seed = waiting.get_nowait()
        except queue.Empty:
            return
        told.add(bench.case(kind, seed=seed))


class Teller:
    """Keeps cases; prints a kind once all its seeds are there."""

    def __init__(self, wanted: list[str], seeds: int):
        self.cases: list[Case] = []
        self.wanted, self.seeds, self.lock = wanted, seeds, threading.Lock()

    def add(self, case: Case) -> None:
        with self.lock:
            self.cases.append(case)
            mine = [c for c in self.cases if c.kind == case.kind]
            if len(mine) == self.seeds:
                print(kind_line(mine), flush=True)
                for wrong in (c for c in mine if not c.right):
                    print(f"      seed {wrong.seed}: {wrong.outcome}: {wrong.said}", flush=True)


def kind_line(cases: list[Case]) -> str:
    counts = Counter(case.outcome for case in cases)
    outcomes = ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))
    worst = max(case.waited for case in cases)
    return f"{cases[0].server:4}  {cases[0].kind:20} {outcomes:32} longest wait {worst:4.1f} s of {DEADLINE:g} + {GRACE:g}"


def summary(cases: list[Case], wanted: list[str]) -> dict[str, Any]:
    rows = {kind: [c for c in cases if c.kind == kind] for kind in wanted}
    return {
        "kinds": len(wanted),
        "cases": len(cases),
        "wrong_updates": sum(c.outcome == "wrong update" for c in cases),
        "violations": sum(not c.right for c in cases),
        "longest_wait_seconds": round(max(c.waited for c in cases), 2),
        "by_kind": {
            kind: {**Counter(c.outcome for c in some), "longest_wait_seconds": round(max(c.waited for c in some), 2)}
            for kind, some in rows.items()
        },
    }  # fmt: skip


def line(found: dict[str, Any], seeds: int) -> str:
    wrong, others = found["wrong_updates"], found["violations"] - found["wrong_updates"]
    more = f", {others} OTHER VIOLATIONS" if others else ""
    wait = f"longest wait {found['longest_wait_seconds']:.1f} s (deadline {DEADLINE:g} s)"
    return f"{found['kinds']} kinds × {seeds} seeds: {wrong} wrong updates{more}, {wait}"


def leftovers(ports: list[int]) -> tuple[int, int]:
    """(child processes, taken ports) once none is left, or when the time is up."""
    until = time.monotonic() + LEFT_AFTER
    while True:
        left, taken = children(), sum(not free(port) for port in ports)
        if not (left or taken) or time.monotonic() > until:
            return left, taken
        time.sleep(0.1)


def children() -> int:
    """Processes of this one that still run or wait to be reaped."""
    return sum(len(task.read_text().split()) for task in Path("/proc/self/task").glob("*/children"))


def free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


if __name__ == "__main__":
    main()

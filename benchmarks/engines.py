"""Served teachers and the vLLM sampler against the model in this process. Run through scripts/engines.py --bench.

agreement  log-probs of the same tokens: vLLM's draws, the teacher served by vLLM and by `opd serve`, against a local forward
replay     20 learner steps on stored rollouts with a local and a served teacher: the largest difference of the loss
traffic    bytes of an answer per response token, and response tokens scored per second, k = 1, 16, 64: vLLM's JSON against
           `opd serve`'s frames, in turn, on the same fresh rollouts

Both servers are processes on the same cores as the client, which parses what comes. Tiny Qwen3 models (student 128 wide,
teacher 256 wide and 6 layers, 512 tokens): the figures are of the wire, not of a large model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from machine import facts, write  # noqa: E402
from models import tiny_model, tiny_tokenizer  # noqa: E402
from opdkit.config import (  # noqa: E402
    LearnerConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    SamplingConfig,
    ServerTeacher,
    VllmSampling,
)
from opdkit.engines.facts import ask_facts, endpoint_of  # noqa: E402
from opdkit.engines.probe import start  # noqa: E402
from opdkit.engines.served import ServedTeacher  # noqa: E402
from opdkit.engines.vllm import VllmSampler  # noqa: E402
from opdkit.models.load import LoadedModel, open_model  # noqa: E402
from opdkit.models.sampler import LocalSampler  # noqa: E402
from opdkit.models.student import Student  # noqa: E402
from opdkit.models.teacher import LocalTeacher  # noqa: E402
from opdkit.objectives import Objective  # noqa: E402
from opdkit.run.world import World  # noqa: E402
from opdkit.train.collate import collate  # noqa: E402
from opdkit.train.learner import Learner, Part  # noqa: E402
from opdkit.types import Needs, Prompt, Rollout  # noqa: E402

VOCABULARY, PROMPT, RESPONSE, ROWS, K = 512, 32, 64, 32, 16
WIDTHS = (1, 16, 64)
SPREAD = 0.04
"""Of the random weights. At .06 a local float32 forward is itself 9e-6 nats from a float64 one, and nothing can be said of 1e-5;
`local_against_float64` tells what it is here."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7, help="of each rate")
    parser.add_argument("--steps", type=int, default=20, help="replayed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        models = make_models(Path(folder))
        with vllm_server(models["teacher"]) as vllm_url, opd_server(models["teacher"]) as opd_url:
            result = {
                "machine": facts("vllm-cpu"),
                "agreement": agreement(models, vllm_url, opd_url),
                "replay": replay(models, vllm_url, opd_url, steps=given.steps),
                "traffic": traffic(models, vllm_url, opd_url, repeats=given.repeats),
            }
    write("engines", result)
    print(json.dumps(result, indent=1))
    return 0


# --- what is compared ---------------------------------------------------------------------------------------


def agreement(models: dict[str, Path], vllm_url: str, opd_url: str) -> dict[str, float]:
    """Largest difference in nats over all positions and the top 64."""
    local = LocalTeacher(load(models["teacher"]), payload="ids")
    rollouts = random_rollouts(seed=0)
    needs = Needs(sampled=True, top_k=64)
    expected = local.score(rollouts, needs=needs)
    found = {}
    for name, url in (("vllm_teacher", vllm_url), ("opd_serve_teacher", opd_url)):
        scores = served(url, models).score(rollouts, needs=needs)
        found[name] = max(
            float((getattr(a, field) - getattr(b, field)).abs().max())
            for a, b in zip(scores, expected, strict=True)
            for field in ("sampled", "topk_logp")
        )
    found["vllm_sampler"] = sampler_agreement(models)
    exact = load(models["teacher"])
    exact.model.double()
    found["local_against_float64"] = max(
        float((a.topk_logp - b.topk_logp).abs().max())  # type: ignore[operator]
        for a, b in zip(
            LocalTeacher(exact, payload="ids").score(rollouts, needs=needs), expected, strict=True
        )
    )
    return found


def sampler_agreement(models: dict[str, Path]) -> float:
    loaded = load(models["student"])
    cfg = VllmSampling(max_length=256)
    sampler = VllmSampler(cfg, folder=str(models["student"]), loaded=loaded, width=K, dtype="float32")
    needs = Needs(sampled=True, top_k=K)
    sampling = SamplingConfig(responses=4, max_tokens=RESPONSE)
    drawn = sampler.sample(prompts(8), sampling=sampling, seed=0, step=0, needs=needs)
    read = LocalTeacher(loaded, payload="ids").score(drawn, needs=needs)
    sampler.close()
    return max(
        max(
            float((a.logp - b.sampled).abs().max()),  # type: ignore[operator]
            float((a.topk_logp - b.topk_logp).abs().max()),  # type: ignore[operator]
        )
        for a, b in zip(drawn, read, strict=True)
    )


def replay(models: dict[str, Path], vllm_url: str, opd_url: str, *, steps: int) -> dict[str, Any]:
    """Stored rollouts, so that only the teacher differs: losses of all steps, and their largest difference."""
    sampler = LocalSampler(load(models["student"]))
    sampling = SamplingConfig(responses=2, max_tokens=24)
    needs = Needs(sampled=True, top_k=K)
    stored = [
        sampler.sample(prompts(4), sampling=sampling, seed=0, step=n, needs=needs) for n in range(steps)
    ]
    told: dict[str, Any] = {"steps": steps}
    for name, url, support in (
        ("opd_serve", opd_url, "student_top_k"),
        ("vllm", vllm_url, "teacher_top_k"),
    ):
        objective = Objective(ObjectiveConfig(support=support, k=K))  # type: ignore[arg-type]
        local = LocalTeacher(load(models["teacher"]), payload="ids")
        one = losses(models, stored, local, objective)
        other = losses(models, stored, served(url, models), objective)
        told[name] = {
            "support": support,
            "loss_first": one[0],
            "loss_last": one[-1],
            "largest_difference": max(abs(a - b) for a, b in zip(one, other, strict=True)),
        }
    return told


def losses(
    models: dict[str, Path], stored: Sequence[Sequence[Rollout]], teacher: Any, objective: Objective
) -> list[float]:
    """The loss of each step of a fresh student at a learning rate that moves it."""
    world = World(torch.device("cpu"))
    student = Student(load(models["student"]), k=K)
    learner = Learner(
        student, optim=OptimConfig(lr=1e-3), learner=LearnerConfig(), steps=len(stored), world=world
    )
    early = objective.spec.support == "student_top_k"
    found = []
    for step, rollouts in enumerate(stored):
        ids = [r.topk_ids for r in rollouts] if early else None
        needs = Needs(sampled=True, top_k=K, at_ids=early)
        scores = teacher.score(rollouts, needs=needs, ids=ids)
        batch = collate(rollouts, {"teacher": scores}, early_ids=ids, step=step)  # type: ignore[arg-type]
        update = learner.update(Part(batch, objective.prepare(batch), objective), step=step)
        found.append(update.tally.means()["loss"])
    return found


def traffic(models: dict[str, Path], vllm_url: str, opd_url: str, *, repeats: int) -> list[dict[str, Any]]:
    """Per k: bytes per response token, response tokens per second (median, least, most), and the ratios."""
    rows = []
    for k in WIDTHS:
        kinds = {
            "vllm_json": served(vllm_url, models),
            "opd_float32": served(opd_url, models),
            "opd_float16": served(opd_url, models, values="float16"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        size: dict[str, int] = {}
        for repeat in range(repeats + 1):
            rollouts = random_rollouts(seed=100 * k + repeat)  # fresh: no prefix cache helps
            for name, teacher in kinds.items():
                counted = Counted(teacher)
                began = time.perf_counter()
                teacher.score(rollouts, needs=Needs(sampled=True, top_k=k))
                if repeat:  # the first of each warms up
                    seconds[name].append(time.perf_counter() - began)
                size[name] = counted.end()
        rows.append(traffic_row(k, size, seconds))
    return rows


def traffic_row(k: int, size: dict[str, int], seconds: dict[str, list[float]]) -> dict[str, Any]:
    tokens = ROWS * RESPONSE
    row: dict[str, Any] = {"k": k}
    for name, times in seconds.items():
        rates = sorted(tokens / t for t in times)
        row[name] = {
            "bytes_per_token": round(size[name] / tokens, 1),
            "tokens_per_second": round(statistics.median(rates)),
            "least_most": [round(rates[0]), round(rates[-1])],
        }
    for name in ("opd_float32", "opd_float16"):
        pairs = [a / b for a, b in zip(seconds["vllm_json"], seconds[name], strict=True)]
        row[f"{name}_bytes_of_vllm"] = round(size[name] / size["vllm_json"], 4)
        row[f"{name}_times_the_rate"] = [
            round(x, 2) for x in (statistics.median(pairs), min(pairs), max(pairs))
        ]
    return row


class Counted:
    """Counts the bytes of the answers of one `score`."""

    def __init__(self, teacher: ServedTeacher):
        self.teacher, self.bytes = teacher, 0
        self.ask = teacher.endpoint.ask
        teacher.endpoint.ask = self._ask  # type: ignore[method-assign]

    def _ask(self, requests: Any) -> list[bytes]:
        bodies = self.ask(requests)
        self.bytes += sum(len(body) for body in bodies)
        return bodies

    def end(self) -> int:
        self.teacher.endpoint.ask = self.ask  # type: ignore[method-assign]
        return self.bytes


# --- who is asked -------------------------------------------------------------------------------------------


def served(url: str, models: dict[str, Path], **changes: Any) -> ServedTeacher:
    cfg = ServerTeacher(url=url, model=str(models["teacher"]), **changes)
    return start(cfg, ask_facts(cfg), endpoint=endpoint_of(cfg), rows=VOCABULARY)[0]


def load(folder: Path) -> LoadedModel:
    return open_model(ModelConfig(model=str(folder)), device=torch.device("cpu"))


def make_models(folder: Path) -> dict[str, Path]:
    tokenizer = tiny_tokenizer(vocab=VOCABULARY)
    found = {}
    for name, seed, hidden, layers in (("student", 0, 128, 4), ("teacher", 1, 256, 6)):
        model = tiny_model(
            "qwen3", seed=seed, hidden=hidden, layers=layers, spread=SPREAD, head_dim=64, tokenizer=tokenizer
        )
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        found[name] = folder / name
    return found


def prompts(count: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(4, VOCABULARY, (count, PROMPT), generator=generator).tolist()
    return [Prompt(id=str(i), ids=tuple(row)) for i, row in enumerate(ids)]


def random_rollouts(*, seed: int) -> list[Rollout]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (ROWS, PROMPT + RESPONSE), generator=generator).tolist()
    return [
        Rollout(Prompt(id=str(i), ids=tuple(row[:PROMPT])), tuple(row[PROMPT:]), finish_reason="length")
        for i, row in enumerate(ids)
    ]


@contextlib.contextmanager
def vllm_server(model: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "256"]
    command += ["--max-logprobs", "64", "--max-num-seqs", "64"]
    with running([sys.executable, *command], {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}) as process:
        url = f"http://127.0.0.1:{port}"
        while True:
            assert process.poll() is None, "vLLM's server ended"
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            time.sleep(0.5)
        yield url


@contextlib.contextmanager
def opd_server(model: Path) -> Iterator[str]:
    with running(
        [sys.executable, "-m", "opdkit", "serve", str(model), "--port", "0", "--json"], {}
    ) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]


@contextlib.contextmanager
def running(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


if __name__ == "__main__":
    sys.exit(main())

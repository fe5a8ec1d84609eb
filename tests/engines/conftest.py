"""The real engine: vLLM's CPU build, in an environment of its own (make test-engines). Skipped where it is not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_SERVER_DEV_MODE": "1",  # /collective_rpc, /reset_prefix_cache
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
HEAD_DIM = 32  # vLLM's CPU attention knows no smaller one


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny Qwen3 models; `tied` has one matrix for embedding and head."""
    from models import tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("engines")
    tokenizer = tiny_tokenizer(vocab=512)
    for name, seed, tie in (("student", 0, False), ("tied", 0, True), ("teacher", 1, False)):
        model = tiny_model(
            "qwen3", seed=seed, hidden=128, tie=tie, spread=0.1, head_dim=HEAD_DIM, tokenizer=tokenizer
        )
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [
        {"prompt": f"Compute {i} + 2", "answer": str(i + 2), "group": ["sums", "other"][i % 2]}
        for i in range(16)
    ]
    (folder / "sums.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


class Vllm:
    """A vLLM server of one model, as docs/engines.md starts it."""

    def __init__(self, model: Path, log: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model, self.log = model, log
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)),
            *("--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", "--enforce-eager"),
            *("--max-model-len", "256", "--max-logprobs", "64", "--max-num-seqs", "64"),
            *("--logprobs-mode", "processed_logprobs"),
            *("--worker-extension-cls", "opdkit.engines.vllm_extension.Extension"),
        ]
        with self.log.open("ab") as log:
            env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        deadline = time.monotonic() + 240
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-3000:]
            try:
                if httpx.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)

    def stop(self) -> None:
        """The whole session: vLLM's engine is a process of its own."""
        import contextlib
        import signal

        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)


@pytest.fixture(scope="session")
def teacher_server(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    server = Vllm(shop / "teacher", tmp_path_factory.mktemp("log") / "teacher.log")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def student_server(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """Of the tied student: the one whose head vLLM's CPU build leaves behind."""
    server = Vllm(shop / "tied", tmp_path_factory.mktemp("log") / "student.log")
    yield server
    server.stop()

"""Nothing wrong is learned from a served model that fails, however it fails. Longer: scripts/fault_campaign.py.

The first half is one learner step behind a faulty line (tests/faulty.py), the second half `opd train` whose server is killed,
stopped, restarted, or replaced.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from commands import Said, findings, metrics, opd, write_rows
from fault_bench import GRACE, Bench, build_models
from faulty import Server, kinds
from opdkit.config import ModelConfig, load_config
from opdkit.engines.replies import contradiction
from opdkit.engines.wire import FrameError, pack, unpack
from opdkit.models.load import LoadedModel, open_model
from opdkit.train.loop import run_story
from serving import Process, fake_process, fake_server, own_process, own_server


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_models(tmp_path_factory.mktemp("models"))


def loaded(folder: Path) -> LoadedModel:
    found = open_model(ModelConfig(model=str(folder)), device=torch.device("cpu"))
    found.model.requires_grad_(False)
    return found


# --- one step behind a faulty line ----------------------------------------------------------------------------------


@contextlib.contextmanager
def bench_of(models: Path, server: Server) -> Iterator[Bench]:
    """Servers in threads. A clean answer beside a busy suite takes most of a second: the deadline is the campaign's."""
    with contextlib.ExitStack() as stack:
        urls = [
            stack.enter_context(
                own_server(loaded(models / name)) if server == "own" else fake_server(models / name)
            )
            for name in ("teacher", "other")
        ]
        patience = {"timeout_seconds": 1.0, "deadline_seconds": 2.0}
        yield stack.enter_context(Bench(models, server=server, upstream=urls[0], other=urls[1], **patience))


@pytest.fixture(scope="module")
def benches(models: Path) -> Iterator[dict[str, Bench]]:
    with bench_of(models, "own") as own, bench_of(models, "fake") as fake:
        yield {"own": own, "fake": fake}


@pytest.mark.parametrize(
    ("server", "kind"), [(server, kind) for server in get_args(Server) for kind in kinds(server)]
)
def test_no_fault_leads_to_a_wrong_update(benches: dict[str, Bench], server: str, kind: str) -> None:
    """Refused with a hint, in time, no parameter moved; or recovered, bit for bit."""
    case = benches[server].case(kind, seed=0)
    assert case.right, case


@pytest.mark.parametrize(
    "kind", ["shifted_candidates", "order", "swapped", "replayed", "above_one", "integers"]
)
def test_candidates_of_one_rollout_are_checked(benches: dict[str, Bench], kind: str) -> None:
    """Over several seeds: what trains are log-probs at given ids, and a defect need not touch the known sequence."""
    cases = [benches["own"].case(kind, seed=seed) for seed in range(1, 7)]
    assert {case.outcome for case in cases} == {"refused"}, cases


@pytest.mark.parametrize(
    "kind", ["twice", "entry_missing", "ranks", "swapped", "foreign_ids", "rollout_twice"]
)
def test_lists_of_one_position_are_checked(benches: dict[str, Bench], kind: str) -> None:
    """The token taken, which comes on top of the list, fills no gap in it."""
    cases = [benches["fake"].case(kind, seed=seed) for seed in range(1, 5)]
    assert {case.outcome for case in cases} == {"refused"}, cases


def test_a_step_on_a_clean_line_is_not_what_a_wrong_number_gives(benches: dict[str, Bench]) -> None:
    """The harness can fail: a slightly different log-prob moves the parameters elsewhere."""
    bench = benches["own"]
    scores = bench._scored(bench.rollouts)
    scores[0].at_logp[0, 0] += 1e-3
    wrong = bench._stepped(bench.rollouts, scores)
    assert any(not torch.equal(wrong[name], bench.clean[name]) for name in wrong)


def test_every_bit_of_a_frame_is_guarded() -> None:
    frame = pack({"request": 7}, {"at_logp": torch.full((2, 3), -1.5).numpy()})
    for at in range(8 * len(frame)):
        bad = bytearray(frame)
        bad[at // 8] ^= 1 << at % 8
        with pytest.raises(FrameError):
            unpack(bytes(bad))


def test_a_list_and_other_numbers_of_one_position() -> None:
    ids, logp = torch.tensor([[7, 9]]), torch.tensor([[-0.5, -2.0]])
    assert contradiction(torch.tensor([[9, 3, 7]]), torch.tensor([[-2.0, -2.5, -0.5]]), ids, logp) == 0.0
    assert contradiction(torch.tensor([[9]]), torch.tensor([[-1.0]]), ids, logp) == 1.0  # listed, and another
    assert (
        contradiction(torch.tensor([[3]]), torch.tensor([[-1.5]]), ids, logp) == 0.5
    )  # above the list's end


# --- a run whose server goes away -----------------------------------------------------------------------------------

STEPS = 30
CONFIG = """\
student = "{models}/student"
task = "{place}/sums.jsonl"
run = "{place}/run"
steps = {steps}
prompts_per_step = 2
objective.k = 4
threads = 1
device = "cpu"
sampling = {{ responses = 2, max_tokens = 6 }}
optim.lr = 1e-3
save.every = 1000
eval.at_ends = false
diagnostics = {{ k = 4, ks = [1, 4] }}
health.enabled = false

[teacher]
type = "server"
url = "{url}"
patience = {{ timeout_seconds = 1.0, deadline_seconds = 2.0 }}
"""


class Place:
    """A folder with a config, and `opd train` in it."""

    def __init__(self, folder: Path, models: Path, url: str, capfd: pytest.CaptureFixture[str]):
        self.folder, self.capfd = folder, capfd
        folder.mkdir(exist_ok=True)
        write_rows(
            folder / "sums.jsonl", [{"prompt": f"Compute {i} + 2", "answer": str(i + 2)} for i in range(6)]
        )
        self.config = folder / "config.toml"
        self.config.write_text(CONFIG.format(models=models, place=folder, url=url, steps=STEPS))

    def train(self, name: str, *words: object) -> Said:
        return opd(self.capfd, "train", self.config, f"run={self.folder / name}", *words)

    def resume(self, name: str) -> Said:
        return opd(self.capfd, "train", "--resume", self.folder / name)


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Process]:
    with own_process(models / "teacher") as process:
        yield process


@pytest.fixture
def place(tmp_path: Path, models: Path, server: Process, capfd: pytest.CaptureFixture[str]) -> Place:
    """The server is up and has its own model, whatever the test before did."""
    command = tuple(word.replace("other", "teacher") for word in server.command)
    if server.process.poll() is not None or server.command != command:
        server.kill()
        server.command = command
        server.start()
    return Place(tmp_path, models, server.url, capfd)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, models: Path, server: Process
) -> dict[str, torch.Tensor]:
    """The last weights of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_rows(
        folder / "sums.jsonl", [{"prompt": f"Compute {i} + 2", "answer": str(i + 2)} for i in range(6)]
    )
    path = folder / "config.toml"
    path.write_text(CONFIG.format(models=models, place=folder, url=server.url, steps=STEPS))
    assert run_story(load_config(path)) == 0
    return weights(folder / "run")


def weights(run: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step}" / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@contextlib.contextmanager
def after(run: Path, rows: int, act: Callable[[], object]) -> Iterator[dict[str, float]]:
    """`act` once the run has logged that many steps; when it did is in what is given."""
    told: dict[str, float] = {}

    def watch() -> None:
        path = run / "metrics.jsonl"
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if path.exists() and path.read_bytes().count(b"\n") >= rows:
                told["at"] = time.monotonic()
                act()
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield told
    finally:
        thread.join()


def refused(said: Said, run: Path) -> int:
    """The run stopped, said why and how it goes on, kept the finding, and saved. How many steps it did."""
    done = len(metrics(run))
    assert said.code == 1 and said.error.startswith(f"stopped after step {done}"), said
    assert f"opd train --resume {run}" in said.hint
    assert findings(run)["served_model"]["severity"] == "error"
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step_{done}"]
    assert 3 <= done < STEPS
    return done


def test_a_killed_server_stops_the_run_which_goes_on_bit_for_bit(
    place: Place, server: Process, undisturbed: dict[str, torch.Tensor]
) -> None:
    run = place.folder / "run"
    with after(run, 3, server.kill):
        said = place.train("run")
    refused(said, run)
    server.start()
    said = place.resume("run")
    assert said.code == 0, said
    assert same(weights(run), undisturbed)


def test_a_server_that_is_restarted_in_time_is_waited_for(
    place: Place, server: Process, undisturbed: dict[str, torch.Tensor]
) -> None:
    run = place.folder / "run"

    def restart() -> None:
        server.kill()
        server.start()

    patience = ("teacher.patience.deadline_seconds=60", "teacher.patience.retries=20")
    with after(run, 3, restart):
        said = place.train("run", *patience)
    assert said.code == 0, said
    assert same(weights(run), undisturbed)
    assert "served_model" not in findings(run)


def test_a_server_that_hangs_ends_the_run_by_the_deadline(place: Place, server: Process) -> None:
    run = place.folder / "run"
    with after(run, 3, lambda: server.process.send_signal(signal.SIGSTOP)) as told:
        said = place.train("run")
    waited = time.monotonic() - told["at"]
    server.process.send_signal(signal.SIGCONT)
    refused(said, run)
    assert waited < 2.0 + GRACE


def test_a_signal_is_heard_while_a_hanging_server_is_waited_for(
    place: Place, server: Process, undisturbed: dict[str, torch.Tensor]
) -> None:
    """Long before the deadline: saved, 143; and the run goes on as if nothing had been."""
    run = place.folder / "run"

    def hang_then_stop() -> None:
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(1.0)  # until it is waited for
        os.kill(os.getpid(), signal.SIGTERM)

    patience = ("teacher.patience.deadline_seconds=60", "teacher.patience.timeout_seconds=60")
    with after(run, 3, hang_then_stop) as told:
        said = place.train("run", *patience)
    waited = time.monotonic() - told["at"]
    server.process.send_signal(signal.SIGCONT)
    assert said.code == 143 and waited < 10, said
    assert place.resume("run").code == 0
    assert same(weights(run), undisturbed)


def test_another_model_behind_the_same_url_is_refused(place: Place, models: Path, server: Process) -> None:
    """Within the run by every reply; when it is resumed by what its checkpoint knows."""
    run = place.folder / "run"

    def replace_model() -> None:
        server.kill()
        server.command = tuple(word.replace("teacher", "other") for word in server.command)
        server.start()

    patience = ("teacher.patience.deadline_seconds=60", "teacher.patience.retries=20")
    with after(run, 3, replace_model):
        said = place.train("run", *patience)
    done = refused(said, run)
    assert "weights" in said.error
    before = weights(run, done)
    said = place.resume("run")
    assert said.code == 2 and "another model" in said.error, said
    assert same(weights(run, done), before) and len(metrics(run)) == done


# --- a server that draws --------------------------------------------------------------------------------------------


def drawing(place: Place, url: str, models: Path, *, steps: int = 2) -> Said:
    """Some steps of a run whose sampler is a server; its teacher is local."""
    text = place.config.read_text().split("[teacher]")[0]
    text = text.replace("sampling = { ", f'sampling = {{ type = "vllm-server", url = "{url}", ')
    place.config.write_text(text + f'[teacher]\nmodel = "{models}/teacher"\n')
    return place.train("run", f"steps={steps}")


@pytest.mark.parametrize("defect", ["nothing", "head"])
def test_a_publish_that_does_not_arrive_stops_the_run(
    tmp_path: Path, models: Path, capfd: pytest.CaptureFixture[str], defect: str
) -> None:
    with fake_server(models / "student", defect=defect) as url:
        said = drawing(Place(tmp_path, models, url, capfd), url, models)
    run = tmp_path / "run"
    assert said.code == 1 and said.error.startswith("stopped after step 1"), said
    assert findings(run)["canary"]["severity"] == "error"
    assert (run / "checkpoints" / "step_1").is_dir() and len(metrics(run)) == 1


def test_a_signal_is_heard_while_a_hanging_engine_is_waited_for(
    tmp_path: Path, models: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with fake_process(models / "student") as engine:
        place = Place(tmp_path, models, engine.url, capfd)

        def hang_then_stop() -> None:
            engine.process.send_signal(signal.SIGSTOP)
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGTERM)

        with after(tmp_path / "run", 1, hang_then_stop) as told:
            said = drawing(place, engine.url, models, steps=50)
        waited = time.monotonic() - told["at"]
    assert said.code == 143 and waited < 10, said
    assert len(metrics(tmp_path / "run")) >= 1 and list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_publish_that_arrives_is_seen_to(
    tmp_path: Path, models: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with fake_server(models / "student") as url:
        said = drawing(Place(tmp_path, models, url, capfd), url, models)
    assert said.code == 0, said
    assert "canary" not in findings(tmp_path / "run") and len(metrics(tmp_path / "run")) == 2

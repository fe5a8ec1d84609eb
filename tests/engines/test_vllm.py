"""vLLM itself behind both contracts: log-probs equal to ours, weights that arrive, defects that are caught, whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from commands import opd
from opdkit.config import ModelConfig, SamplingConfig, ServerTeacher, VllmSampling, VllmServerSampling
from opdkit.engines.canary import CanaryError
from opdkit.engines.facts import ask_facts, endpoint_of
from opdkit.engines.probe import start
from opdkit.engines.vllm import VllmSampler
from opdkit.engines.vllm_http import VllmServerSampler
from opdkit.models.load import LoadedModel, open_model
from opdkit.models.teacher import LocalTeacher
from opdkit.types import Needs, Prompt, Rollout

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore"),
]  # the engine's libraries warn of themselves
PROMPTS = [Prompt(id="a", ids=(5, 6, 7)), Prompt(id="b", ids=(9, 8)), Prompt(id="c", ids=(20, 21, 22, 23))]
NEEDS = Needs(sampled=True, top_k=8)
CLOSE = 1e-5  # nats, float32


def model(folder: Path) -> LoadedModel:
    return open_model(ModelConfig(model=str(folder)), device=torch.device("cpu"))


def moved(loaded: LoadedModel, *, seed: int, by: float = 0.02) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def check_draws(rollouts: list[Rollout], loaded: LoadedModel, *, temperature: float) -> None:
    """What the engine says of its draws is what a fresh forward says."""
    reader = LocalTeacher(loaded, temperature=temperature, payload="ids", frozen=False)
    for rollout, read in zip(rollouts, reader.score(rollouts, needs=NEEDS), strict=True):
        assert rollout.logp is not None and read.sampled is not None
        assert float((rollout.logp - read.sampled).abs().max()) <= CLOSE
        assert rollout.topk_logp is not None and read.topk_logp is not None
        assert float((rollout.topk_logp - read.topk_logp).abs().max()) <= CLOSE
        ends = rollout.response_ids[-1] in loaded.stop_ids
        assert (rollout.finish_reason == "stop") == ends


@pytest.fixture(scope="module", params=["student", "tied"])
def in_process(request, shop):
    loaded = model(shop / request.param)
    sampler = VllmSampler(
        VllmSampling(max_length=128),
        folder=str(shop / request.param),
        loaded=loaded,
        width=8,
        dtype="float32",
    )
    yield sampler
    sampler.close()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_in_process_draws_carry_our_log_probs_and_repeat(in_process, temperature):
    sampling = SamplingConfig(responses=4, temperature=temperature, max_tokens=24)
    first = in_process.sample(PROMPTS, sampling=sampling, seed=3, step=1, needs=NEEDS)
    again = in_process.sample(PROMPTS, sampling=sampling, seed=3, step=1, needs=NEEDS)
    other = in_process.sample(PROMPTS, sampling=sampling, seed=3, step=2, needs=NEEDS)
    assert (
        [r.response_ids for r in first] == [r.response_ids for r in again] != [r.response_ids for r in other]
    )
    assert len({r.response_ids for r in first[:4]}) > 1
    check_draws(first, in_process.loaded, temperature=temperature)


def test_in_process_limits_and_ends_are_ours(in_process):
    stop = list(range(0, 512, 2))
    sampling = SamplingConfig(responses=2, max_tokens=20, min_tokens=3, stop_ids=stop)
    for r in in_process.sample(PROMPTS, sampling=sampling, seed=0, step=0, needs=Needs(sampled=True)):
        assert r.length + 1 >= 4 and r.logp is None and r.behaviour_logp is not None
        inner = [i for i in r.response_ids[:-1] if i in stop]
        assert not inner and (r.finish_reason == "stop") == (r.response_ids[-1] in stop)


def test_in_process_weights_arrive_tied_head_and_all(in_process):
    for version in (1, 2, 3):
        moved(in_process.loaded, seed=version)
        in_process.sync(in_process.loaded.model.state_dict(), version=version)
        assert in_process.canary.error <= CLOSE
    sampling = SamplingConfig(responses=2, max_tokens=12)
    drawn = in_process.sample(PROMPTS, sampling=sampling, seed=0, step=9, needs=NEEDS)
    assert {r.policy_version for r in drawn} == {3}
    check_draws(drawn, in_process.loaded, temperature=1.0)


def test_in_process_a_push_that_did_nothing_is_caught(in_process, monkeypatch):
    monkeypatch.setattr(in_process.llm, "collective_rpc", lambda *_, **__: [0])
    moved(in_process.loaded, seed=11, by=1e-4)
    with pytest.raises(CanaryError, match="did nothing"):
        in_process.sync(in_process.loaded.model.state_dict(), version=4)


def test_the_tied_head_that_a_plain_reload_leaves_behind_is_caught(shop, student_server, tmp_path):
    """The defect of the CPU build, as it is: `reload` keeps the old head, the extension does not."""
    loaded = model(shop / "tied")
    by = VllmServerSampler(
        VllmServerSampling(url=student_server.url), loaded=loaded, width=8, share=tmp_path / "a"
    )
    by.sync(loaded.model.state_dict(), version=0)
    for version in (1, 2):
        moved(loaded, seed=version)
        by.sync(loaded.model.state_dict(), version=version)
        assert by.canary is not None and by.canary.error <= CLOSE
    drawn = by.sample(
        PROMPTS, sampling=SamplingConfig(responses=2, max_tokens=12), seed=0, step=0, needs=NEEDS
    )
    check_draws(drawn, loaded, temperature=1.0)
    plain = VllmServerSampling(url=student_server.url, publish="reload")
    reloading = VllmServerSampler(plain, loaded=loaded, width=8, share=tmp_path / "b")
    reloading.sync(loaded.model.state_dict(), version=2)
    moved(loaded, seed=5)
    with pytest.raises(CanaryError, match=r"did not arrive|at the start"):
        reloading.sync(loaded.model.state_dict(), version=3)


def test_a_served_teachers_log_probs_are_ours(shop, teacher_server):
    local = LocalTeacher(model(shop / "teacher"), payload="ids")
    cfg = ServerTeacher(url=teacher_server.url)
    facts = ask_facts(cfg)
    assert facts.api == "vllm" and facts.max_top_k == 64
    teacher, finding = start(cfg, facts, endpoint=endpoint_of(cfg), rows=512, local=local)
    assert finding.numbers["against_local"] <= CLOSE
    generator = torch.Generator().manual_seed(0)
    rollouts = [
        Rollout(p, tuple(torch.randint(4, 500, (n,), generator=generator).tolist()), finish_reason="length")
        for p, n in zip(PROMPTS, (9, 30, 1), strict=True)
    ]
    needs = Needs(sampled=True, top_k=64)
    for one, other in zip(
        teacher.score(rollouts, needs=needs), local.score(rollouts, needs=needs), strict=True
    ):
        assert one.sampled is not None and other.sampled is not None
        assert float((one.sampled - other.sampled).abs().max()) <= CLOSE
        assert one.topk_logp is not None and other.topk_logp is not None
        assert float((one.topk_logp - other.topk_logp).abs().max()) <= CLOSE


def train(shop: Path, run: str, *more: str, student: str = "student") -> list[str]:
    return ["train", f"student={shop / student}", f"teacher={shop / 'teacher'}", f"task={shop / 'sums.jsonl'}", "steps=4",
            "prompts_per_step=4", "sampling.responses=2", "sampling.max_tokens=12", "optim.lr=1e-3",
            f"run={run}", *more]  # fmt: skip


def metrics(run: str) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def test_a_run_on_two_vllm_servers(shop, teacher_server, student_server, tmp_path, capfd, monkeypatch):
    """Rollouts from one, the teacher's top-k from the other, weights published after every step; then resumed."""
    monkeypatch.chdir(tmp_path)
    sampling = f'sampling={{type="vllm-server",url="{student_server.url}",responses=2,max_tokens=12}}'
    teacher = f'teacher={{type="server",url="{teacher_server.url}",against="{shop / "teacher"}"}}'
    said = opd(capfd, *train(shop, "r", sampling, teacher, "objective.support=teacher_top_k", student="tied"))
    assert said.code == 0, said.err
    assert opd(capfd, "train", "--resume", "r", "steps=6").code == 0
    rows = metrics("r")
    assert len(rows) == 6
    assert all(
        row["canary"] <= CLOSE and row["sampler_mismatch"] <= CLOSE and row["staleness"] == 0 for row in rows
    )


def test_a_run_with_vllm_in_the_process(shop, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sampling = 'sampling={type="vllm",responses=2,max_tokens=12}'
    said = opd(capfd, *train(shop, "r", sampling, "teacher.payload=ids", student="tied"))
    assert said.code == 0, said.err
    rows = metrics("r")
    assert len(rows) == 4 and all(row["canary"] <= CLOSE and row["sampler_mismatch"] <= CLOSE for row in rows)
    assert all(row["support_mismatch"] < 0.01 for row in rows)


def test_opd_eval_answers_with_vllm(shop, capfd):
    words = [
        "eval",
        str(shop / "student"),
        "--task",
        str(shop / "sums.jsonl"),
        "task.grader=exact",
        "eval.responses=2",
    ]
    said = opd(capfd, *words, 'sampling={type="vllm",max_tokens=8}', "--json")
    assert said.code == 0, said.err
    row = json.loads(said.out.strip().splitlines()[-1])
    assert row["problems"] == 16 and row["responses"] == 2 and 0 < row["response_length"] <= 8


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs" / "paper").glob("*.toml")), ids=lambda p: p.stem
)
def test_the_papers_configs_run_in_small_with_vllm(path, shop, tmp_path, capfd, monkeypatch):
    """As they are, vLLM in the process included; only models, data and sizes are stand-ins."""
    monkeypatch.chdir(tmp_path)
    for name, row in PAPER_DATA.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    small = [
        "sampling.max_tokens=8",
        "sampling.max_length=240",
        "eval.max_tokens=8",
        "eval.responses=2",
        "steps=2",
        "prompts_per_step=2",
    ]
    said = opd(
        capfd,
        "train",
        str(path),
        f"student={shop / 'student'}",
        f"teacher={shop / 'teacher'}",
        f"task.data={tmp_path}",
        *small,
        "run=r",
    )
    assert said.code == 0, said.err
    rows = metrics("r")
    assert len(rows) == 2 and all(row["canary"] < 0.5 and row["seconds/sync"] > 0 for row in rows)
    exams = [json.loads(line) for line in Path("r/eval.jsonl").read_text().splitlines()]
    assert [set(exam["by_group"]) for exam in exams] == [{"aime24", "aime25", "amc23-83"}] * 2


PAPER_DATA = {
    "dapo-math-17k": {
        "prompt": [{"role": "user", "content": "What is 1 + 1?"}],
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"index": "a"},
    },
    "aime24": {
        "id": 60,
        "problem": "What is 2 + 2?",
        "solution": "…",
        "answer": "4",
        "url": "u",
        "year": "2024",
    },
    "aime25": {"problem": "What is 3 + 3?", "answer": "6", "id": "0"},
    "amc23-83": {"id": 1, "problem": "What is 4 + 4?", "answer": 8.0, "url": "u"},
}

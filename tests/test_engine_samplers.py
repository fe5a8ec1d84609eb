"""Samplers that live elsewhere, against a fake vLLM server: draws, log-probs, publishing, the canary, whole runs.

The same against the real engine: tests/engines (make test-engines).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from commands import opd
from models import tiny_loaded
from opdkit.config import ModelConfig, Patience, SamplingConfig, VllmServerSampling
from opdkit.engines.canary import LENGTH, Canary, CanaryError
from opdkit.engines.client import EngineError
from opdkit.engines.drawn import drawn, rows_of
from opdkit.engines.vllm_http import VllmServerSampler
from opdkit.models.load import open_model
from opdkit.models.teacher import LocalTeacher
from opdkit.types import Needs, Prompt, Rollout, UserError
from serving import fake_server, save_tiny

QUICK = Patience(timeout_seconds=10.0, deadline_seconds=20.0, retries=1)
PROMPTS = [Prompt(id="a", ids=(5, 6, 7)), Prompt(id="b", ids=(9, 8))]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    save_tiny(folder / "student", seed=0)
    save_tiny(folder / "untied", seed=0, tie=False)
    save_tiny(folder / "teacher", seed=1, hidden=48)
    rows = [{"prompt": f"Compute {i} + 2", "answer": str(i + 2)} for i in range(8)]
    (folder / "sums.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def student(shop):
    return open_model(ModelConfig(model=str(shop / "student")), device=torch.device("cpu"))


def open_sampler(url: str, shop: Path, tmp_path: Path, **changes) -> VllmServerSampler:
    cfg = VllmServerSampling(url=url, patience=QUICK, **changes)
    return VllmServerSampler(cfg, loaded=student(shop), width=4, share=tmp_path / "share")


# --- draws --------------------------------------------------------------------------------------------------


def test_draws_are_seeded_and_their_log_probs_are_the_models(shop, tmp_path):
    sampling = SamplingConfig(responses=3, temperature=0.8, max_tokens=6)
    with fake_server(shop / "student") as url:
        sampler = open_sampler(url, shop, tmp_path)
        needs = Needs(sampled=True, top_k=4)
        first = sampler.sample(PROMPTS, sampling=sampling, seed=1, step=2, needs=needs)
        again = sampler.sample(PROMPTS[1:], sampling=sampling, seed=1, step=2, needs=needs)
        other = sampler.sample(PROMPTS, sampling=sampling, seed=1, step=3, needs=needs)
    assert [r.prompt.id for r in first] == ["a"] * 3 + ["b"] * 3 and [r.sample for r in first] == [
        0,
        1,
        2,
    ] * 2
    assert [r.response_ids for r in again] == [r.response_ids for r in first[3:]]
    assert [r.response_ids for r in other] != [r.response_ids for r in first]
    assert len({r.response_ids for r in first[:3]}) > 1
    reader = LocalTeacher(student(shop), temperature=0.8, payload="ids")
    for rollout, read in zip(first, reader.score(first, needs=needs), strict=True):
        assert rollout.sampler == "vllm-server" and rollout.temperature == 0.8
        assert (rollout.finish_reason == "stop") == (rollout.response_ids[-1] in student(shop).stop_ids)
        for mine, theirs in ((rollout.logp, read.sampled), (rollout.topk_logp, read.topk_logp)):
            assert mine is not None and theirs is not None and torch.allclose(mine, theirs, atol=1e-5)
        assert rollout.topk_ids is not None and torch.equal(rollout.topk_ids, read.topk_ids)


def test_under_truncation_the_untruncated_log_prob_is_left_out(shop, tmp_path):
    with fake_server(shop / "student") as url:
        sampler = open_sampler(url, shop, tmp_path)
        sampling = SamplingConfig(responses=1, max_tokens=4, min_tokens=2)
        rollout = sampler.sample(PROMPTS, sampling=sampling, seed=0, step=0, needs=Needs(sampled=True))[0]
    assert rollout.behaviour_logp is not None and rollout.logp is None and rollout.length >= 2


def test_rows_number_samples_on_where_a_prompt_is_there_twice():
    rows = rows_of(
        [PROMPTS[0], PROMPTS[0]], SamplingConfig(responses=2, max_tokens=4), seed=0, step=0, max_length=5
    )
    assert len({row.seed for row in rows}) == 4 and {row.limit for row in rows} == {2}
    with pytest.raises(UserError, match="reaches 3"):
        rows_of(PROMPTS, SamplingConfig(), seed=0, step=0, max_length=3)


@pytest.mark.parametrize(
    "said, k",
    [([], 0), ([{5: (1, -1.0)}], 0), ([{5: (1, -1.0)}, {7: (1, -1.0)}], 0), ([{5: (1, -1.0)}, {6: (1, float("nan"))}], 0),
     ([{5: (1, -1.0)}, {6: (1, 0.5)}], 0), ([{5: (1, -1.0)}, {6: (1, -1.0)}], 2)],
    ids=["nothing", "a position short", "another token", "nan", "above 0", "a candidate short"],
)  # fmt: skip
def test_an_engines_answer_that_cannot_be_is_refused(said, k):
    with pytest.raises(EngineError):
        drawn((5, 6), said, k, where="here")


# --- the canary ---------------------------------------------------------------------------------------------


def moved(loaded, by: float) -> None:
    """Every weight by about `by`, the same way each time; not by one number: added to a whole head that changes nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def engine_of(loaded):
    def read(ids):
        rollout = Rollout(Prompt(id="c", ids=ids[:1]), ids[1:], finish_reason="length")
        return (
            LocalTeacher(loaded, payload="ids", frozen=False)
            .score([rollout], needs=Needs(sampled=True))[0]
            .sampled
        )

    return read


def test_the_canary_sings_while_the_engine_follows_and_stops_at_each_defect():
    learner, engine = tiny_loaded("qwen3"), tiny_loaded("qwen3")
    canary = Canary(learner, engine_of(engine))
    assert len(canary.ids) == LENGTH and canary.error <= canary.bound
    moved(learner, 1e-3), moved(engine, 1e-3)
    assert canary.check() <= canary.bound
    moved(learner, 1e-3)
    with pytest.raises(CanaryError, match="did nothing"):
        canary.check()
    moved(engine, 2e-3)
    with pytest.raises(CanaryError, match="nats from the learner's"):
        canary.check()
    with pytest.raises(CanaryError, match="at the start"):
        Canary(learner, engine_of(tiny_loaded("qwen3", seed=9)))
    with pytest.raises(CanaryError, match="inf nats"):
        Canary(learner, lambda ids: torch.full((LENGTH - 1,), torch.nan))


def test_a_learner_that_did_not_move_is_no_defect():
    learner, engine = tiny_loaded("qwen3"), tiny_loaded("qwen3")
    canary = Canary(learner, engine_of(engine))
    assert canary.check() == canary.error  # a skipped step


def test_weights_arrive_and_the_file_goes(shop, tmp_path):
    with fake_server(shop / "student") as url:
        sampler = open_sampler(url, shop, tmp_path)
        for version in (1, 2):
            moved(sampler.loaded, 1e-3)
            sampler.sync(sampler.loaded.model.state_dict(), version=version)
            assert sampler.canary is not None and sampler.canary.error < 2e-5 and sampler.version == version
        sampler.close()
    assert not (tmp_path / "share").exists()


@pytest.mark.parametrize("defect", ["nothing", "head"])
def test_a_publish_that_does_not_arrive_stops(shop, tmp_path, defect):
    with fake_server(shop / "untied", defect=defect) as url:
        cfg = VllmServerSampling(url=url, patience=QUICK)
        loaded = open_model(ModelConfig(model=str(shop / "untied")), device=torch.device("cpu"))
        sampler = VllmServerSampler(cfg, loaded=loaded, width=0, share=tmp_path / "share")
        sampler.sync(loaded.model.state_dict(), version=0)
        moved(loaded, 1e-4)
        with pytest.raises(CanaryError):
            sampler.sync(loaded.model.state_dict(), version=1)


# --- whole runs ---------------------------------------------------------------------------------------------


def train(shop: Path, url: str, *more: str) -> list[str]:
    return ["train", f"student={shop / 'untied'}", f"teacher={shop / 'teacher'}", f"task={shop / 'sums.jsonl'}", "steps=3",
            f'sampling={{type="vllm-server",url="{url}",responses=2,max_tokens=6}}', "prompts_per_step=2", "objective.k=4",
            "diagnostics.k=4", "diagnostics.ks=[1,4]", "optim.lr=1e-3", "run=runs/r", *more]  # fmt: skip


def metrics() -> list[dict]:
    return [json.loads(line) for line in Path("runs/r/metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("teacher.payload=ids",),
        ("objective=paper-eq5", "objective.k=4"),
        ("teacher.payload=ids", "sampling.min_tokens=2"),
    ],
)
def test_a_run_draws_from_a_server_and_publishes_to_it(shop, tmp_path, capfd, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    with fake_server(shop / "untied") as url:
        said = opd(capfd, *train(shop, url, *more))
        assert said.code == 0, said.err
        before = metrics()
        assert opd(capfd, "train", "--resume", "runs/r", "steps=4").code == 0
    rows = metrics()
    assert len(rows) == 4 and rows[:3] == before
    assert all(row["canary"] < 2e-5 and row["staleness"] == 0 for row in rows)
    if "sampling.min_tokens=2" not in more:
        assert all(row["sampler_mismatch"] < 1e-5 for row in rows)
    assert all(row.get("support_mismatch", 0.0) < 0.05 for row in rows)
    assert not Path("runs/r/published").exists()


def test_a_run_whose_weights_do_not_arrive_is_stopped_saved_and_told(shop, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with fake_server(shop / "untied", defect="nothing") as url:
        said = opd(capfd, *train(shop, url))
    assert (
        said.code == 1 and "the publish did nothing" in said.err and "opd train --resume runs/r" in said.err
    )
    assert len(metrics()) == 1 and Path("runs/r/checkpoints/step_1/manifest.json").is_file()
    finding = json.loads(Path("runs/r/findings.jsonl").read_text().splitlines()[-1])
    assert finding["name"] == "canary" and finding["severity"] == "error" and finding["step"] == 1
    with fake_server(shop / "untied") as url:  # an engine that takes them
        said = opd(capfd, "train", "--resume", "runs/r", f"sampling.url={url}")
        assert said.code == 0 and len(metrics()) == 3, said.err


def test_weights_that_did_not_arrive_are_not_examined(shop, tmp_path, capfd, monkeypatch):
    """Also after the last step: the number would be of the weights before."""
    monkeypatch.chdir(tmp_path)
    exam = (f"task.eval_path={shop / 'sums.jsonl'}", "task.grader=exact", "eval.responses=1")
    with fake_server(shop / "untied", defect="nothing") as url:
        said = opd(capfd, *train(shop, url, "steps=1", *exam))
    assert said.code == 1 and "stopped after step 1" in said.err
    assert Path("runs/r/checkpoints/step_1/manifest.json").is_file()
    assert [json.loads(row)["step"] for row in Path("runs/r/eval.jsonl").read_text().splitlines()] == [0]


def test_an_engine_that_is_not_there_or_is_another_is_said_before_the_run_begins(
    shop, tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    patience = ("sampling.patience.deadline_seconds=1", "sampling.patience.retries=0")
    said = opd(capfd, *train(shop, "http://127.0.0.1:9", *patience))
    assert said.code == 2 and "did not answer" in said.error and not Path("runs/r").exists()
    with fake_server(shop / "teacher") as url:
        said = opd(capfd, *train(shop, url, *patience))
        assert said.code == 1 and "500" in said.err  # its weights have other shapes
    assert opd(capfd, *train(shop, "http://127.0.0.1:9", "sampling={type='vllm'}", "run=runs/s")).code == 2

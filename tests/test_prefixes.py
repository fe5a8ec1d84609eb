"""Responses that the teacher begins: who wrote what, what trains, what is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import build_shop, metrics, train
from models import tiny_loaded
from opdkit.config import Config, LocalSampling, SamplingConfig
from opdkit.models.sampler import LocalSampler
from opdkit.train.feed import with_candidates
from opdkit.train.prefixes import Prefixes, is_led, share_at
from opdkit.types import Needs, Prompt, Rollout

PROMPTS = [Prompt(str(i), ids=(5 + i, 20, 30)) for i in range(6)]
SAMPLING = LocalSampling(responses=2, max_tokens=9)


def prefixes(**keys: Any) -> Prefixes:
    config = Config.model_validate(
        {"student": "s", "teacher": "t", "task": "p.jsonl", "seed": 3, "prefix": {"tokens": 4, **keys}}
    )
    return Prefixes(config, tiny_loaded("llama", seed=2), teacher_prompt_ids={})


def drawn(writer: Prefixes, student: LocalSampler, *, step: int = 0) -> list[Rollout]:
    def own(prompts: Any, sampling: SamplingConfig) -> list[Rollout]:
        return student.sample(prompts, sampling=sampling, seed=3, step=step)

    return writer.draw(PROMPTS, sampling=SAMPLING, step=step, student=own)


def test_the_teacher_writes_the_first_tokens_and_the_student_the_rest() -> None:
    student, writer = LocalSampler(tiny_loaded("llama", seed=1)), prefixes(share=0.6)
    found = drawn(writer, student)
    assert [(r.prompt.id, r.sample) for r in found] == [(p.id, s) for p in PROMPTS for s in (0, 1)]
    led = [r for r in found if is_led(r)]
    assert 0 < len(led) < len(found)
    for r in led:
        assert r.trained == (False,) * 4 + (True,) * (r.length - 4) and r.length <= 9
        assert r.prompt in PROMPTS and r.logp is None
    by = writer.led(PROMPTS, 0)
    theirs = writer.sampler.sample(
        [p for p, is_by in zip(PROMPTS, by, strict=True) if is_by],
        sampling=SAMPLING.model_copy(update={"max_tokens": 4}), seed=3, step=-4_000_000,
    )  # fmt: skip
    assert [r.response_ids[:4] for r in led] == [r.response_ids for r in theirs if r.finish_reason != "stop"]


def test_what_the_student_thinks_of_all_tokens_is_read() -> None:
    loaded = tiny_loaded("llama", seed=1)
    led = [r for r in drawn(prefixes(share=1.0), LocalSampler(loaded)) if is_led(r)]
    for r in with_candidates(loaded, led, needs=Needs(sampled=True, top_k=3)):
        with torch.no_grad():
            logits = loaded.model(torch.tensor([[*r.prompt.ids, *r.response_ids]])).logits[0]
        expected = logits.log_softmax(-1)[len(r.prompt.ids) - 1 : -1].gather(
            -1, torch.tensor(r.response_ids)[:, None]
        )
        assert r.logp is not None and r.topk_ids is not None and r.topk_ids.shape == (r.length, 3)
        torch.testing.assert_close(r.logp, expected[:, 0], atol=2e-5, rtol=0)


@settings(max_examples=40, deadline=None, database=None)
@given(st.floats(0.01, 1.0), st.integers(0, 50), st.integers(0, 60))
def test_the_share_falls_and_never_rises(share: float, until: int, step: int) -> None:
    now, later = share_at(share, until, step), share_at(share, until, step + 1)
    assert 0.0 <= later <= now <= share
    assert until == 0 or share_at(share, until, until) == 0.0


def test_who_is_led_is_a_function_of_seed_and_step() -> None:
    one, other = prefixes(share=0.5), prefixes(share=0.5)
    assert [one.led(PROMPTS, s) for s in range(5)] == [other.led(PROMPTS, s) for s in range(5)]
    assert len({tuple(one.led(PROMPTS, s)) for s in range(5)}) > 1


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shop(tmp_path_factory.mktemp("shop"))


@pytest.mark.parametrize("payload", ["hidden", "ids"])
def test_a_run_with_beginnings(shop: Path, tmp_path: Path, capfd: Any, payload: str) -> None:
    words = ("prefix.tokens=3", "prefix.share=1.0", "prefix.until=2", f"teacher.payload={payload}", "steps=3")
    said = train(capfd, tmp_path, shop, *words)
    assert said.code == 0, said.err
    rows = metrics(tmp_path / "run")
    assert rows[0]["led_fraction"] > 0.5 and rows[2]["led_fraction"] == 0.0
    assert all(row["sampler_mismatch"] < 1e-4 for row in rows)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("prefix.tokens=8",), "leaves the student nothing", "prefix.tokens=2"),
        (("prefix.tokens=2", "story=sft", "teacher=unset"), "not in this process", "prefix.tokens=0"),
    ],
)
def test_what_cannot_be_begun_is_refused(
    shop: Path, tmp_path: Path, capfd: Any, words: tuple[str, ...], message: str, hint: str
) -> None:
    said = train(capfd, tmp_path, shop, *words)
    assert said.code == 2 and message in said.error and hint in said.hint
    assert not (tmp_path / "run").exists()

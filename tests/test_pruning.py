"""Responses that are drawn no further: who decides, what is kept, what is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import build_shop, metrics, train
from models import tiny_loaded
from opdkit.config import LocalSampling, SamplingConfig
from opdkit.models.sampler import LocalSampler
from opdkit.models.teacher import LocalTeacher
from opdkit.train.feed import with_candidates
from opdkit.train.pruning import Pruning, is_pruned, share
from opdkit.types import Needs, Prompt, Rollout, Scores

PROMPTS = [Prompt(str(i), ids=(5 + i, 20, 30)) for i in range(6)]
MOST, EVERY, K = 14, 4, 3
SAMPLING = LocalSampling(responses=2, max_tokens=MOST)


def pruning(*, overlap: float, needs: Needs = Needs(sampled=True), seed: int = 1) -> Pruning:  # noqa: B008  frozen
    student = LocalSampler(tiny_loaded("llama", seed=seed))
    teacher = LocalTeacher(tiny_loaded("llama", seed=2), payload="ids")

    def draw(prompts: Sequence[Prompt], how: SamplingConfig, asked: Needs) -> list[Rollout]:
        return student.sample(prompts, sampling=how, seed=3, step=0, needs=asked)

    def score(rollouts: Sequence[Rollout], asked: Needs) -> list[Scores]:
        return teacher.score(rollouts, needs=asked)

    return Pruning(
        every=EVERY,
        overlap=overlap,
        k=K,
        needs=needs,
        draw=draw,
        score=score,
        decode=lambda ids: student.loaded.tokenizer.decode(ids, skip_special_tokens=True),
    )


def running_overlap(rollout: Rollout) -> list[float]:
    """Mean overlap ratio of every whole look, by a loop over fresh forwards of both models."""
    rows = []
    for seed in (1, 2):
        with torch.no_grad():
            ids = torch.tensor([[*rollout.prompt.ids, *rollout.response_ids]])
            logits = tiny_loaded("llama", seed=seed).model(ids).logits[0, len(rollout.prompt.ids) - 1 : -1]
        rows.append([set(row.topk(K).indices.tolist()) for row in logits])
    each = [len(p & q) / K for p, q in zip(*rows, strict=True)]
    return [sum(each[i : i + EVERY]) / EVERY for i in range(0, len(each) - EVERY + 1, EVERY)]


@pytest.mark.parametrize("overlap", [0.05, 0.1, 0.2, 0.3])
def test_a_response_goes_on_exactly_as_long_as_the_overlap_holds(overlap: float) -> None:
    found = pruning(overlap=overlap).rollouts(PROMPTS, SAMPLING)
    assert [(r.prompt, r.sample) for r in found] == [(p, s) for p in PROMPTS for s in (0, 1)]
    for r in found:
        looks = running_overlap(r)[: (r.length - 1) // EVERY]  # those that were followed by more tokens
        assert all(look >= overlap - 1e-9 for look in looks)
        if r.finish_reason == "cut":
            assert r.length % EVERY == 0 and r.length < MOST and running_overlap(r)[-1] < overlap
        else:
            assert r.finish_reason == ("length" if r.length == MOST else "stop")
        assert is_pruned(r, before=MOST) == (r.finish_reason == "cut")
    assert overlap < 0.1 or any(r.finish_reason == "cut" for r in found)


def test_a_bound_that_always_holds_leaves_whole_responses_with_their_numbers() -> None:
    """Joined pieces have the log-probs and candidates that one forward of the whole gives."""
    needs = Needs(sampled=True, top_k=2, entropy=True)
    found = pruning(overlap=0.0, needs=needs).rollouts(PROMPTS, SAMPLING)
    assert any(r.length == MOST for r in found)
    read = with_candidates(tiny_loaded("llama", seed=1), [_bare(r) for r in found], needs=needs)
    for r, expected in zip(found, read, strict=True):
        assert r.topk_ids is not None and r.topk_ids.shape == (r.length, 2)
        for name in ("logp", "topk_logp", "entropy"):
            torch.testing.assert_close(getattr(r, name), getattr(expected, name), atol=2e-5, rtol=0)
        assert torch.equal(r.topk_ids, expected.topk_ids.long())


def _bare(rollout: Rollout) -> Rollout:
    return replace(rollout, logp=None, topk_ids=None, topk_logp=None, entropy=None)


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(1, 6), st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_share_by_a_loop(tokens: int, k: int, random: Any) -> None:
    ours, theirs = ([random.sample(range(9), 4) for _ in range(tokens)] for _ in range(2))
    rollout = Rollout(Prompt("a"), tuple(range(tokens)), "length", topk_ids=torch.tensor(ours))
    said = Scores(fingerprint="", topk_ids=torch.tensor(theirs))
    expected = sum(len(set(a[:k]) & set(b[:k])) / k for a, b in zip(ours, theirs, strict=True)) / tokens
    assert share(rollout, said, k=k) == pytest.approx(expected)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shop(tmp_path_factory.mktemp("shop"))


@pytest.mark.parametrize(
    ("payload", "objective"),
    [
        ("hidden", "paper"),
        ("hidden", "paper-eq5"),
        ("hidden", "full"),
        ("ids", "paper"),
        ("ids", "paper-eq5"),
    ],
)
def test_a_run_that_prunes(shop: Path, tmp_path: Path, capfd: Any, payload: str, objective: str) -> None:
    """A bound of 1 cuts at the first look whatever did not end before it."""
    words = (
        "prune.every=3",
        "prune.overlap=1.0",
        f"teacher.payload={payload}",
        f"objective.preset={objective}",
    )
    said = train(capfd, tmp_path, shop, *words)
    assert said.code == 0, said.err
    for row in metrics(tmp_path / "run"):
        assert row["pruned_fraction"] > 0.5 and row["response_length"] <= 3.0
        assert row["sampler_mismatch"] < 1e-4


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("prune.every=8",), "looks at nothing", "prune.every=1"),
        (("prune.every=2", "prefix.tokens=2"), "both draw", "prefix.tokens=0"),
        (("prune.every=2", "story=sft", "teacher=unset"), "has none", "prune.every=0"),
    ],
)
def test_what_cannot_be_pruned_is_refused(
    shop: Path, tmp_path: Path, capfd: Any, words: tuple[str, ...], message: str, hint: str
) -> None:
    said = train(capfd, tmp_path, shop, *words)
    assert said.code == 2 and message in said.error and hint in said.hint
    assert not (tmp_path / "run").exists()

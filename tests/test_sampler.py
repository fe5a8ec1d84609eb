"""The sampler's contract: a fresh forward's numbers, exact distributions, rows that depend on nothing."""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from models import CACHED, END_OF_TEXT, IM_END, tiny_loaded, tiny_model, tiny_tokenizer
from opdkit.config import SamplingConfig
from opdkit.models.cache import KVCache
from opdkit.models.draw import draw, pick, uniforms
from opdkit.models.load import LoadedModel, describe, with_rows
from opdkit.models.sampler import LocalSampler
from opdkit.types import Needs, Prompt, Rollout, RunError, UserError

RAGGED = (5, 12, 3, 7, 7, 1)


def make_prompts(lengths: Sequence[int] = RAGGED, *, seed: int = 0) -> list[Prompt]:
    rng = random.Random(seed)
    return [
        Prompt(id=f"p{i}", ids=tuple(rng.randrange(4, 384) for _ in range(n))) for i, n in enumerate(lengths)
    ]


def sampling(**settings: Any) -> SamplingConfig:
    return SamplingConfig(**{"responses": 2, "max_tokens": 10, "batch_rows": 5} | settings)


@torch.no_grad()
def fresh_logits(loaded: LoadedModel, rollout: Rollout) -> Tensor:
    """[T, V] of one unpadded forward without a cache, through the model's own head, at the temperature."""
    ids = torch.tensor([rollout.prompt.ids + rollout.response_ids])
    logits = loaded.model(input_ids=ids, use_cache=False).logits[0, len(rollout.prompt.ids) - 1 : -1]
    return logits[:, : loaded.head.rows] / rollout.temperature


def truncated(logits: Tensor, *, top_k: int = 0, top_p: float = 1.0, banned: Sequence[int] = ()) -> Tensor:
    """Log-probs [V] after bans, top-k and top-p: one row at a time, by sorting a list.

    Ties with the last kept token stay.
    """
    probability = logits.double().softmax(-1)
    probability[list(banned)] = 0.0
    ranked = sorted(range(len(probability)), key=lambda i: -float(probability[i]))
    keep = ranked[: top_k or None]
    mass = float(probability[keep].sum())
    reached, nucleus = 0.0, []
    for i in keep:
        if reached >= top_p and not math.isclose(probability[i], probability[nucleus[-1]], rel_tol=1e-6):
            break
        nucleus.append(i)
        reached += float(probability[i]) / mass
    result = torch.zeros_like(probability)
    result[nucleus] = probability[nucleus] / probability[nucleus].sum()
    return result.log()


def responses_by_row(rollouts: Sequence[Rollout]) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(r.prompt.id, r.sample): r.response_ids for r in rollouts}


# --- the numbers of a fresh forward -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CACHED)
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.7, "top_p": 0.8}, {"temperature": 1.3, "top_k": 5, "top_p": 0.9, "min_tokens": 4}],
)
def test_logp_of_ragged_rows_is_that_of_a_fresh_forward(kind: str, settings: dict[str, Any]) -> None:
    loaded = tiny_loaded(kind)
    config = sampling(**settings)
    rollouts = LocalSampler(loaded).sample(
        make_prompts(), sampling=config, seed=0, step=0, needs=Needs(top_k=7, entropy=True)
    )
    assert [(r.prompt.id, r.sample) for r in rollouts] == [
        (p.id, s) for p in make_prompts() for s in range(2)
    ]
    for rollout in rollouts:
        logits = fresh_logits(loaded, rollout)
        logp = logits.log_softmax(-1)
        picked = torch.tensor(rollout.response_ids)[:, None]
        close(rollout.logp, logp.gather(-1, picked)[:, 0])
        close(rollout.entropy, -(logp.exp() * logp).sum(-1))
        assert rollout.topk_ids is not None and rollout.topk_ids.shape == (rollout.length, 7)
        close(rollout.topk_logp, logp.topk(7).values)
        close(rollout.topk_logp, logp.gather(-1, rollout.topk_ids))
        behaviour = [
            truncated(
                row,
                top_k=config.top_k,
                top_p=config.top_p,
                banned=loaded.stop_ids if t < config.min_tokens else (),
            )
            for t, row in enumerate(logits)
        ]
        close(rollout.behaviour_logp, torch.stack(behaviour).gather(-1, picked)[:, 0].float())
        assert (rollout.temperature, rollout.sampler) == (config.temperature, "local")


def close(ours: Tensor | None, theirs: Tensor, *, atol: float = 1e-5) -> None:
    assert (
        ours is not None
        and not ours.is_inference()
        and ours.dtype == torch.float32
        and ours.device.type == "cpu"
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("kind", "fast"), [("llama", True), ("qwen2", True), ("qwen3", True), ("gemma", True), ("gemma3", False)]
)
def test_fast_layers_step_where_they_reproduce_the_body(kind: str, fast: bool) -> None:
    assert LocalSampler(tiny_loaded(kind)).fast is fast


def test_layers_that_look_like_a_llamas_and_are_not_go_through_the_body(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A residual multiplier, as Granite has, changes no name and no shape: only the numbers tell."""
    loaded = tiny_loaded("llama")
    original = type(loaded.body.layers[0].mlp).forward
    monkeypatch.setattr(type(loaded.body.layers[0].mlp), "forward", lambda self, x: 0.5 * original(self, x))
    sampler = LocalSampler(loaded)
    assert sampler.fast is False
    (rollout,) = sampler.sample(make_prompts([6]), sampling=sampling(responses=1), seed=0, step=0)
    close(
        rollout.logp,
        fresh_logits(loaded, rollout)
        .log_softmax(-1)
        .gather(-1, torch.tensor(rollout.response_ids)[:, None])[:, 0],
    )


def test_long_responses_outgrow_the_first_columns() -> None:
    """Past the columns allocated ahead, while rows end and come: the cache renumbers its columns."""
    loaded = tiny_loaded("qwen3", max_position_embeddings=2048)
    config = sampling(responses=3, max_tokens=400, batch_rows=3)
    rollouts = LocalSampler(loaded).sample(
        make_prompts([9, 4]), sampling=config, seed=2, step=0, stop_ids=[10]
    )
    assert max(r.length for r in rollouts) > 300 > min(r.length for r in rollouts)
    for rollout in rollouts:
        logp = fresh_logits(loaded, rollout).log_softmax(-1)
        close(rollout.logp, logp.gather(-1, torch.tensor(rollout.response_ids)[:, None])[:, 0])


def test_bf16_arithmetic_over_float32_weights() -> None:
    loaded = tiny_loaded("qwen3", spread=0.1)
    exact = LocalSampler(loaded)
    narrow = LocalSampler(loaded, compute=torch.bfloat16)
    for rollout in narrow.sample(make_prompts(), sampling=sampling(), seed=0, step=0):
        theirs = (
            fresh_logits(loaded, rollout)
            .log_softmax(-1)
            .gather(-1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
        )
        torch.testing.assert_close(rollout.logp, theirs, rtol=0, atol=0.1)
        assert rollout.logp is not None and rollout.logp.dtype == torch.float32
    assert exact.compute is None and LocalSampler(loaded, compute=torch.float64).compute is None


# --- a row depends on nothing but itself --------------------------------------------------------------------


def test_tokens_do_not_depend_on_the_rows_beside_them() -> None:
    sampler = LocalSampler(tiny_loaded("qwen3"))
    prompts = make_prompts()
    config = sampling(responses=3, max_tokens=12)
    together = responses_by_row(sampler.sample(prompts, sampling=config, seed=5, step=9, stop_ids=[7, 8, 9]))
    shuffled = random.Random(0).sample(prompts, len(prompts))
    for rows in (1, 2, 4, 7, 64):
        again = sampler.sample(
            shuffled,
            sampling=config.model_copy(update={"batch_rows": rows}),
            seed=5,
            step=9,
            stop_ids=[7, 8, 9],
        )
        assert responses_by_row(again) == together
    for prompt in prompts:
        alone = responses_by_row(
            sampler.sample([prompt], sampling=config, seed=5, step=9, stop_ids=[7, 8, 9])
        )
        assert alone == {key: ids for key, ids in together.items() if key[0] == prompt.id}


def test_seed_step_prompt_and_sample_each_change_the_stream() -> None:
    key = {"seed": 1, "step": 2, "prompt": "a", "sample": 3}
    first = uniforms(5, **key)
    np.testing.assert_array_equal(uniforms(9, **key)[:5], first)
    for other in ({"seed": 2}, {"step": 3}, {"prompt": "b"}, {"sample": 4}):
        assert not np.isin(uniforms(5, **key | other), first).any()


def test_a_prompt_that_is_there_twice_gets_different_responses() -> None:
    sampler = LocalSampler(tiny_loaded("llama"))
    (prompt,) = make_prompts([4])
    rollouts = sampler.sample([prompt, prompt], sampling=sampling(), seed=0, step=0)
    assert len({r.response_ids for r in rollouts}) == 4
    assert [r.sample for r in rollouts] == [0, 1, 0, 1]


def test_the_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    LocalSampler(tiny_loaded("qwen3")).sample(make_prompts(), sampling=sampling(top_p=0.9), seed=0, step=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])


# --- distributions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 2.5},
        {"top_p": 0.7, "temperature": 1.5},
        {"top_k": 6, "temperature": 2.0},
        {"top_k": 12, "top_p": 0.8, "temperature": 3.0},
    ],
)
def test_first_tokens_follow_the_exact_probabilities(settings: dict[str, Any]) -> None:
    loaded = tiny_loaded("llama", spread=0.15)
    config = sampling(responses=5000, max_tokens=1, batch_rows=5000, **settings)
    rollouts = LocalSampler(loaded).sample(make_prompts([4]), sampling=config, seed=1, step=0, stop_ids=[])
    wanted = truncated(fresh_logits(loaded, rollouts[0])[0], top_k=config.top_k, top_p=config.top_p).exp()
    assert fit(Counter(r.response_ids[0] for r in rollouts), wanted) > 1e-3


def test_two_tokens_follow_their_joint_probabilities() -> None:
    loaded = tiny_loaded("qwen3", spread=0.2)
    config = sampling(responses=4000, max_tokens=2, batch_rows=1000, top_k=4, temperature=2.0)
    rollouts = LocalSampler(loaded).sample(make_prompts([5]), sampling=config, seed=3, step=0, stop_ids=[])
    wanted = torch.zeros(loaded.head.rows, loaded.head.rows, dtype=torch.float64)
    for rollout in {r.response_ids[0]: r for r in rollouts}.values():
        first, second = (truncated(row, top_k=4).exp() for row in fresh_logits(loaded, rollout))
        wanted[rollout.response_ids[0]] = first[rollout.response_ids[0]] * second
    pairs = Counter(r.response_ids[0] * loaded.head.rows + r.response_ids[1] for r in rollouts)
    assert fit(pairs, wanted.flatten()) > 1e-3


def fit(counts: Counter[int], wanted: Tensor) -> float:
    """p-value of chi-square over outcomes expected 5 times or more, the rest pooled; nothing beyond the support."""
    total = sum(counts.values())
    assert abs(float(wanted.sum()) - 1) < 1e-9
    assert all(float(wanted[i]) > 0 for i in counts)
    common = [i for i in range(len(wanted)) if float(wanted[i]) * total >= 5]
    observed = [counts[i] for i in common] + [total - sum(counts[i] for i in common)]
    expected = [float(wanted[i]) * total for i in common]
    expected.append(max(total - sum(expected), 0.0))
    if expected[-1] < 5:
        observed, expected = (
            observed[:-1],
            [e * sum(observed[:-1]) / sum(expected[:-1]) for e in expected[:-1]],
        )
    return float(chisquare(observed, expected).pvalue)


def test_inverse_cdf_at_its_edges() -> None:
    last = 1 - 2**-53
    p = torch.zeros(4, 150_000)
    p[:, [3, 140_000]] = torch.tensor([0.25, 0.75])
    u = torch.tensor([0.0, 0.25 - 2**-53, 0.25, last], dtype=torch.float64)
    assert pick(p, u).tolist() == [3, 3, 140_000, 140_000]
    tiny = torch.full(
        (1, 150_000), 1e-30
    )  # mass far below the first token's must not be lost to its rounding either way
    tiny[0, 5] = 1.0
    assert pick(tiny, torch.tensor([last], dtype=torch.float64)).tolist() == [5]


@pytest.mark.parametrize("vocabulary", [7, 512, 1024, 1025, 5000])
def test_inverse_cdf_is_the_first_token_above_u(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(200, vocabulary, generator=generator, dtype=torch.float64)
    u = torch.rand(200, generator=generator, dtype=torch.float64)
    p = logits.softmax(-1)
    assert torch.equal(pick(p, u), (p.cumsum(-1) <= u[:, None]).sum(-1))


def test_rows_drawn_in_pieces_are_rows_drawn_at_once() -> None:
    logits = torch.randn(9, 150_000, generator=torch.Generator().manual_seed(0))  # one row per piece
    u = torch.linspace(0, 0.99, 9, dtype=torch.float64)
    drawn = draw(logits, u, needs=Needs(top_k=3, entropy=True), top_k=2000, top_p=0.9)
    assert drawn.topk_ids is not None and drawn.topk_ids.shape == (9, 3) and drawn.entropy is not None
    for i in range(9):
        alone = draw(logits[i : i + 1], u[i : i + 1], needs=Needs(), top_k=2000, top_p=0.9)
        assert torch.equal(drawn.ids[i], alone.ids[0]) and torch.equal(
            drawn.behaviour_logp[i], alone.behaviour_logp[0]
        )
    wanted = truncated(logits[0], top_k=2000, top_p=0.9)
    assert torch.isclose(drawn.behaviour_logp[0].double(), wanted[drawn.ids[0]], atol=1e-5)


# --- prefill, rows that leave, rows that come ---------------------------------------------------------------


class Counted:
    """Tokens that went through the embedding: (rows, tokens per row) of each forward."""

    def __init__(self, loaded: LoadedModel):
        self.shapes: list[tuple[int, ...]] = []
        self.hook = loaded.model.get_input_embeddings().register_forward_hook(self._note)

    def _note(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.shapes.append(tuple(inputs[0].shape))


def test_each_prompt_is_prefilled_once_for_all_its_responses() -> None:
    loaded = tiny_loaded("qwen3")
    sampler, counted = LocalSampler(loaded), None
    counted = Counted(loaded)
    sampler.sample(
        make_prompts([6, 6, 6, 6, 6]),
        sampling=sampling(responses=4, batch_rows=10, max_tokens=3),
        seed=0,
        step=0,
        stop_ids=[],
    )
    prefills = [s for s in counted.shapes if len(s) == 2 and s[1] > 1]
    assert sum(rows for rows, _ in prefills) == 5
    steps = [s for s in counted.shapes if s not in prefills]
    assert sum(s[0] for s in steps) == 5 * 4 * 2  # the third token of each row needs no forward of its own
    assert max(s[0] for s in steps) <= 10


def test_finished_rows_are_not_decoded() -> None:
    loaded = tiny_loaded("llama", spread=0.1)
    sampler = LocalSampler(loaded)
    counted = Counted(loaded)
    stops = list(range(4, 60))
    rollouts = sampler.sample(
        make_prompts(),
        sampling=sampling(responses=6, max_tokens=40, batch_rows=12),
        seed=0,
        step=0,
        stop_ids=stops,
    )
    steps = sum(s[0] for s in counted.shapes if len(s) == 1)
    assert steps == sum(r.length - 1 for r in rollouts)
    assert len({r.length for r in rollouts}) > 5


def test_cache_moves_rows_into_holes() -> None:
    """Rows 1 and 3 of five go: the last row takes row 1's place, and every row keeps its own keys."""
    cache = KVCache(5)
    key = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 1)
    cache.admit([(key, -key)], lengths=[2] * 5, source=range(5))
    order = cache.drop([1, 3])
    assert order == [0, 4, 2]
    assert cache.keys[0][:3, 0, 1, 0].tolist() == [0.0, 4.0, 2.0]
    assert cache.values[0][:3, 0, 0, 0].tolist() == [0.0, -4.0, -2.0]


# --- ends ---------------------------------------------------------------------------------------------------


def test_stops_at_each_of_several_end_tokens() -> None:
    loaded = tiny_loaded("qwen2", spread=0.1)
    stops = list(range(20, 50))
    config = sampling(responses=20, max_tokens=60, batch_rows=32, stop_ids=stops)
    rollouts = LocalSampler(loaded).sample(make_prompts([3, 5, 4]), sampling=config, seed=0, step=0)
    ended = Counter()
    for rollout in rollouts:
        assert not set(rollout.response_ids[:-1]) & set(stops)
        assert (rollout.finish_reason == "stop") == (rollout.response_ids[-1] in stops)
        assert rollout.finish_reason == "stop" or rollout.length == 60
        ended[rollout.response_ids[-1]] += rollout.finish_reason == "stop"
    assert sum(count > 0 for count in ended.values()) >= 3


def test_given_end_tokens_replace_the_models_own() -> None:
    loaded = tiny_loaded("llama", spread=0.0)  # uniform: end tokens come often enough
    assert loaded.stop_ids == (IM_END,)
    sampler = LocalSampler(loaded)
    config = sampling(responses=8, max_tokens=384 * 3, batch_rows=8)
    loaded = replace(loaded, max_length=2000)
    sampler.loaded = loaded
    own = sampler.sample(make_prompts([3]), sampling=config, seed=0, step=0)
    assert {r.response_ids[-1] for r in own if r.finish_reason == "stop"} == {IM_END}
    other = sampler.sample(make_prompts([3]), sampling=config, seed=0, step=0, stop_ids=[END_OF_TEXT])
    assert {r.response_ids[-1] for r in other if r.finish_reason == "stop"} == {END_OF_TEXT}
    assert any(IM_END in r.response_ids for r in other)
    assert all(tiny_tokenizer().eos_token not in r.text for r in own)


def test_min_tokens_bans_the_end_and_max_tokens_ends() -> None:
    loaded = tiny_loaded("llama", spread=0.1)
    stops = list(range(4, 300))  # without the ban a response would end at once
    config = sampling(responses=20, min_tokens=3, max_tokens=6)
    rollouts = LocalSampler(loaded).sample(make_prompts([3]), sampling=config, seed=0, step=0, stop_ids=stops)
    lengths = {r.length for r in rollouts}
    assert min(lengths) == 4 and max(lengths) <= 6
    for rollout in rollouts:
        assert not set(rollout.response_ids[:3]) & set(stops)
        assert rollout.behaviour_logp is not None and rollout.logp is not None
        assert bool(
            (rollout.behaviour_logp[:3] > rollout.logp[:3] + 0.1).all()
        )  # renormalised over what is left
        close(rollout.behaviour_logp[3:], rollout.logp[3:])


def test_the_context_ends_a_response() -> None:
    sampler = LocalSampler(tiny_loaded("qwen3", max_position_embeddings=16))
    rollouts = sampler.sample(
        make_prompts([6, 15, 9]), sampling=sampling(max_tokens=40), seed=0, step=0, stop_ids=[]
    )
    assert [(r.length, r.finish_reason) for r in rollouts] == [(n, "length") for n in (10, 10, 1, 1, 7, 7)]
    with pytest.raises(UserError, match="16 tokens"):
        sampler.sample(make_prompts([16]), sampling=sampling(), seed=0, step=0)


def test_padded_rows_of_the_embedding_are_never_drawn() -> None:
    tokenizer = tiny_tokenizer()
    loaded = tiny_loaded("llama", vocab_size=1024, spread=0.05)
    assert loaded.head.rows == len(tokenizer)
    narrower = with_rows(loaded, 300)
    for model, rows in ((loaded, 384), (narrower, 300)):
        rollouts = LocalSampler(model).sample(
            make_prompts([3]),
            sampling=sampling(responses=50, batch_rows=50),
            seed=0,
            step=0,
            stop_ids=[],
            needs=Needs(top_k=rows),
        )
        drawn = {i for r in rollouts for i in r.response_ids}
        assert max(drawn) < rows and len(drawn) > 100
        assert all(r.topk_ids is not None and int(r.topk_ids.max()) < rows for r in rollouts)


# --- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_sync_takes_effect_at_once(kind: str) -> None:
    loaded = tiny_loaded(kind, seed=0)
    other = tiny_loaded(kind, seed=1)
    sampler = LocalSampler.copy_of(loaded)
    before = sampler.sample(make_prompts(), sampling=sampling(), seed=0, step=0)
    sampler.sync(other.model.state_dict(), version=3)
    after = sampler.sample(make_prompts(), sampling=sampling(), seed=0, step=0)
    for rollouts, model, version in ((before, loaded, 0), (after, other, 3)):
        for rollout in rollouts:
            logp = fresh_logits(model, rollout).log_softmax(-1)
            close(rollout.logp, logp.gather(-1, torch.tensor(rollout.response_ids)[:, None])[:, 0])
            assert rollout.policy_version == version
    state = {
        name: value for name, value in loaded.model.state_dict().items() if name != "lm_head.weight"
    }  # as safetensors saves
    sampler.sync(state, version=4)
    again = sampler.sample(make_prompts(), sampling=sampling(), seed=0, step=0)
    assert [r.response_ids for r in again] == [r.response_ids for r in before]


@pytest.mark.parametrize("compute", [None, torch.bfloat16])
def test_a_shared_module_samples_with_its_newest_weights(compute: torch.dtype | None) -> None:
    loaded = tiny_loaded("qwen3", spread=0.1)
    loaded.model.train()
    loaded.model.model.norm.eval()
    sampler = LocalSampler(loaded, compute=compute)
    for version, seed in enumerate((7, 8)):
        loaded.model.load_state_dict(tiny_model("qwen3", seed=seed, spread=0.1).state_dict())
        sampler.sync(None, version=version)
        for rollout in sampler.sample(make_prompts(), sampling=sampling(), seed=0, step=0):
            logp = fresh_logits(loaded, rollout).log_softmax(-1)
            theirs = logp.gather(-1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
            torch.testing.assert_close(rollout.logp, theirs, rtol=0, atol=1e-5 if compute is None else 0.1)
            assert rollout.policy_version == version
    assert loaded.model.training and not loaded.model.model.norm.training


def test_dropout_is_off_while_sampling() -> None:
    loaded = tiny_loaded("llama", attention_dropout=0.5)
    quiet = LocalSampler(loaded).sample(make_prompts(), sampling=sampling(), seed=0, step=0)
    loaded.model.train()
    assert [
        r.response_ids
        for r in LocalSampler(loaded).sample(make_prompts(), sampling=sampling(), seed=0, step=0)
    ] == [r.response_ids for r in quiet]


def test_log_probs_may_meet_autograd() -> None:
    (rollout,) = LocalSampler(tiny_loaded("llama")).sample(
        make_prompts([3]), sampling=sampling(responses=1), seed=0, step=0
    )
    weight = torch.ones((), requires_grad=True)
    assert rollout.logp is not None
    (weight * rollout.logp).sum().backward()
    assert weight.grad is not None


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bloom", "mamba"])
def test_what_cannot_be_decoded_is_refused_by_name(kind: str) -> None:
    loaded = tiny_loaded(kind)
    with pytest.raises(UserError, match=f"{type(loaded.model).__name__}.*tiny-{kind}") as refusal:
        LocalSampler(loaded)
    assert "Qwen3" in refusal.value.hint


def test_rotary_positions_that_depend_on_the_batch_are_refused() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(UserError, match="dynamic"):
        LocalSampler(tiny_loaded("llama", rope_parameters=rope))


def test_a_cache_that_lies_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sensitivity of the check itself: one wrong column in one layer is enough."""
    original = KVCache.write

    def shifted(self: KVCache, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = original(self, layer, key, value)
        return (keys, values.roll(1, 2)) if layer == 1 else (keys, values)

    monkeypatch.setattr(KVCache, "write", shifted)
    with pytest.raises(UserError, match="differs from a fresh forward"):
        LocalSampler(tiny_loaded("llama"))


def test_a_model_without_numbers_stops_the_run() -> None:
    loaded = tiny_loaded("llama")
    sampler = LocalSampler(loaded)
    broken = copy.deepcopy(loaded.model.state_dict())
    broken["model.norm.weight"].fill_(torch.nan)
    loaded.model.load_state_dict(broken)
    with pytest.raises(RunError, match="not finite"):
        sampler.sample(make_prompts(), sampling=sampling(), seed=0, step=0)


def test_offers_are_what_describe_says() -> None:
    loaded = describe(tiny_model("smollm"), tiny_tokenizer(), name="x")
    sampler = LocalSampler(loaded)
    assert Needs(sampled=True, top_k=384, entropy=True).unmet(sampler.offers) == []
    assert Needs(full=True).unmet(sampler.offers) == ["full rows"]
    assert sampler.sample([], sampling=sampling(), seed=0, step=0) == []

"""The local teacher: the score at t is that of token t, whatever the batch, the order and the payload."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from commands import CONFIG, build_shop, metrics, opd
from models import IM_END, tiny_loaded, tiny_model, tiny_tokenizer
from opdkit.config import FileTask, SamplingConfig
from opdkit.models.head import Head
from opdkit.models.load import LoadedModel
from opdkit.models.sampler import LocalSampler
from opdkit.models.teacher import LocalTeacher, frozen_copy, teacher_dist
from opdkit.support import RowDist
from opdkit.tasks import encode
from opdkit.types import Needs, Prompt, Rollout, Scores

EVERYTHING = Needs(sampled=True, top_k=5, at_ids=True, entropy=True)


def ragged(rows: int = 384) -> list[Rollout]:
    """Responses of 1 to 10 tokens after prompts of 1 to 7, with and without an end token; an end alone."""
    generator = torch.Generator().manual_seed(3)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(4, rows, (count,), generator=generator).tolist())

    shapes = [(3, 1, False), (7, 9, True), (1, 4, False), (5, 0, True), (2, 6, True), (6, 9, False)]
    return [
        Rollout(
            prompt=Prompt(id=str(i), ids=ids(before)),
            response_ids=ids(after) + ((IM_END,) if ends else ()),
            finish_reason="stop" if ends else "length",
        )
        for i, (before, after, ends) in enumerate(shapes)
    ]


def plain_logp(model: Any, rollout: Rollout, *, temperature: float = 1.0, rows: int = 384) -> Tensor:
    """[T, V]: every log-prob of every response position by one forward of this row alone."""
    context = rollout.teacher_prompt_ids or rollout.prompt.ids
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*context, *rollout.response_ids]])).logits[0, :, :rows]
    return (logits[len(context) - 1 : -1] / temperature).log_softmax(-1)


def dists(teacher: LocalTeacher, rollouts: list[Rollout], scores: list[Scores]) -> list[RowDist]:
    """What the learner makes of hidden states."""
    made = []
    for rollout, score in zip(rollouts, scores, strict=True):
        ids = torch.tensor(rollout.response_ids, dtype=torch.long)
        made.append(teacher_dist(score, teacher.head, part=slice(None), sampled_ids=ids))
    assert all(isinstance(dist, RowDist) for dist in made)
    return made  # type: ignore[return-value]


# --- the right position -------------------------------------------------------------------------------------


@dataclass
class BigramBody:
    """Next-token log-probs depend on the last token only: hidden states are one-hot, the head is a table."""

    size: int

    def __call__(self, *, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=nn.functional.one_hot(input_ids, self.size).float())


def bigram(size: int) -> tuple[LoadedModel, Tensor]:
    """A model whose log-probs are known without a forward: log q(next | last) = table[last, next]."""
    table = torch.randn(size, size, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    output = nn.Linear(size, size, bias=False)
    output.weight.data = table.T.contiguous()
    model = SimpleNamespace(base_model=BigramBody(size), requires_grad_=lambda _: None)
    head = Head(output=output, rows=size)
    loaded = LoadedModel(
        name="bigram", model=model, tokenizer=None, head=head, stop_ids=(3,), fingerprint="x", max_length=64
    )
    return loaded, table


@pytest.mark.parametrize("batch_tokens", [1, 20, 10_000])
def test_the_score_at_t_is_that_of_token_t(batch_tokens):
    """Off by one in either direction, or a neighbour's row, would read another entry of the table."""
    loaded, table = bigram(16)
    teacher = LocalTeacher(loaded, payload="ids", batch_tokens=batch_tokens)
    rollouts = ragged(16)
    for rollout, scores in zip(rollouts, teacher.score(rollouts, needs=Needs(sampled=True)), strict=True):
        last = [rollout.prompt.ids[-1], *rollout.response_ids[:-1]]
        assert scores.sampled is not None and scores.sampled.shape == (rollout.length,)
        torch.testing.assert_close(scores.sampled, table[last, list(rollout.response_ids)])


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ragged_batches_are_rows_read_alone(kind, temperature):
    loaded = tiny_loaded(kind, seed=2)
    teacher = LocalTeacher(loaded, temperature=temperature)
    rollouts = ragged()
    scores = teacher.score(rollouts, needs=Needs())
    assert {s.temperature for s in scores} == {temperature} and {s.fingerprint for s in scores} == {
        loaded.fingerprint
    }
    for rollout, dist in zip(rollouts, dists(teacher, rollouts, scores), strict=True):
        expected = plain_logp(loaded.model, rollout, temperature=temperature)
        torch.testing.assert_close(dist.full, expected, atol=2e-5, rtol=1e-4)


def test_scores_do_not_depend_on_order_or_company():
    teacher = LocalTeacher(tiny_loaded("llama", seed=2), payload="ids")
    rollouts = ragged()
    together = teacher.score(rollouts, needs=Needs(sampled=True))
    backwards = teacher.score(rollouts[::-1], needs=Needs(sampled=True))[::-1]
    alone = [teacher.score([rollout], needs=Needs(sampled=True))[0] for rollout in rollouts]
    for a, b, c in zip(together, backwards, alone, strict=True):
        torch.testing.assert_close(a.sampled, b.sampled, atol=1e-5, rtol=0)
        torch.testing.assert_close(a.sampled, c.sampled, atol=1e-5, rtol=0)


def test_no_rollouts_and_empty_responses():
    for payload in ("hidden", "ids"):
        teacher = LocalTeacher(tiny_loaded("llama", seed=2), payload=payload)
        assert teacher.score([], needs=Needs(sampled=True)) == []
        rollouts = ragged()
        rollouts[1] = replace(rollouts[1], response_ids=(), finish_reason="length")
        scores = teacher.score(rollouts, needs=Needs(sampled=True))
        filled = [s.hidden if payload == "hidden" else s.sampled for s in scores]
        assert [len(x) for x in filled if x is not None] == [r.length for r in rollouts]


def test_payloads_say_the_same():
    """Hidden states with the head, and log-probs as a server would send them."""
    rollouts = ragged()
    ids = [
        torch.randint(0, 384, (r.length, 7), generator=torch.Generator().manual_seed(r.length))
        for r in rollouts
    ]
    loaded = tiny_loaded("qwen3", seed=2)
    hidden = LocalTeacher(loaded, temperature=0.8)
    lent = dists(hidden, rollouts, hidden.score(rollouts, needs=Needs(full=True)))
    sent = LocalTeacher(loaded, temperature=0.8, payload="ids").score(rollouts, needs=EVERYTHING, ids=ids)
    for dist, scores, wanted in zip(lent, sent, ids, strict=True):
        assert scores.hidden is None
        torch.testing.assert_close(scores.sampled, dist.sampled)
        torch.testing.assert_close(scores.at_logp, dist.at(wanted))
        torch.testing.assert_close(scores.entropy, dist.entropy)
        top_ids, top_logp = dist.topk(5)
        assert torch.equal(scores.topk_ids, top_ids)
        torch.testing.assert_close(scores.topk_logp, top_logp)


# --- the student as its own teacher -------------------------------------------------------------------------


@pytest.mark.parametrize("payload", ["hidden", "ids"])
def test_a_copy_of_the_student_agrees_at_every_position_of_sampled_rollouts(payload):
    """Against the sampler's own log-probs, at prompts and responses of many lengths, with and without end."""
    loaded = tiny_loaded("llama", seed=0)
    prompts = [Prompt(id=str(n), ids=tuple(range(40, 40 + n))) for n in (1, 2, 5, 11)]
    sampler = LocalSampler(loaded)
    drawn: list[Rollout] = []
    for max_tokens, stops in ((1, None), (12, None), (12, range(0, 384, 5))):
        sampling = SamplingConfig(responses=3, max_tokens=max_tokens)
        drawn += sampler.sample(
            prompts, sampling=sampling, seed=1, step=0, needs=Needs(sampled=True), stop_ids=stops
        )
    assert {r.finish_reason for r in drawn} == {"stop", "length"} and min(r.length for r in drawn) == 1
    teacher = LocalTeacher(frozen_copy(loaded), payload=payload)
    scores = teacher.score(drawn, needs=Needs(sampled=True))
    for i, rollout in enumerate(drawn):
        sampled = scores[i].sampled if payload == "ids" else dists(teacher, [rollout], [scores[i]])[0].sampled
        torch.testing.assert_close(sampled, rollout.logp, atol=2e-5, rtol=0)
        p = plain_logp(loaded.model, rollout)
        if payload == "hidden":
            q = dists(teacher, [rollout], [scores[i]])[0].full
            assert float((p.exp() * (p - q)).sum(-1).abs().max()) <= 1e-6


def test_an_earlier_copy_moves_on_only_when_told():
    loaded = tiny_loaded("llama", seed=0)
    teacher = LocalTeacher(frozen_copy(loaded), payload="ids")
    rollouts = ragged()
    before = teacher.score(rollouts, needs=Needs(sampled=True))
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1.2)
    for old, now in zip(before, teacher.score(rollouts, needs=Needs(sampled=True)), strict=True):
        assert torch.equal(old.sampled, now.sampled), "the copy has weights of its own"
    teacher.adopt(loaded.model.state_dict())
    for rollout, scores in zip(rollouts, teacher.score(rollouts, needs=Needs(sampled=True)), strict=True):
        expected = plain_logp(loaded.model, rollout).gather(-1, torch.tensor(rollout.response_ids)[:, None])[
            :, 0
        ]
        torch.testing.assert_close(scores.sampled, expected, atol=2e-5, rtol=1e-4)


def test_a_run_that_is_its_own_teacher(tmp_path: Path, capfd, monkeypatch):
    """every=0 keeps step 0's weights, every=1 takes the newest, so that there is never anything to learn."""
    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text(CONFIG.format(shop=build_shop(tmp_path / "shop")))
    for every, lr in ((0, 1e-12), (1, 1e-2), (2, 1e-2)):
        teacher = f'teacher={{ type = "self", every = {every} }}'
        words = (teacher, f"optim.lr={lr}", "steps=3", f"run=runs/every-{every}", "objective=full")
        assert opd(capfd, "train", "config.toml", *words, "seed=1").code == 0
    for name in ("every-0", "every-1"):
        assert all(abs(row["reverse_kl"]) <= 1e-6 for row in metrics(Path("runs", name)))
    # the gradient of KL(p, p) is rounding, which AdamW blows up to steps of lr: the student moves first
    moved = [abs(row["reverse_kl"]) for row in metrics(Path("runs/every-2"))]
    assert moved[0] <= 1e-6 and moved[1] > 1e-5 and moved[2] <= 1e-6


@pytest.mark.parametrize("tie", [False, True])
def test_an_average_moves_towards_the_student(tie: bool) -> None:
    """Three moves of one loop by hand; a tied table, which has two names, moves once."""
    loaded = tiny_loaded("llama", seed=0, tie=tie)
    teacher = LocalTeacher(frozen_copy(loaded))
    expected = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    for _ in range(3):
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.add_(0.1)
        teacher.adopt(loaded.model.state_dict(), keep=0.75)
        now = loaded.model.state_dict()
        expected = {name: 0.75 * value + 0.25 * now[name] for name, value in expected.items()}
    for name, value in teacher.loaded.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)


def test_an_average_in_bfloat16_is_refused(tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text(CONFIG.format(shop=build_shop(tmp_path / "shop")))
    said = opd(capfd, "train", "config.toml", 'teacher={ type = "self", ema = 0.99, dtype = "bfloat16" }')
    assert said.code == 2 and "rounds away" in said.error and "float32" in said.hint


# --- precision and context ----------------------------------------------------------------------------------


def test_rounding_to_bfloat16_is_measured():
    loaded = tiny_loaded("llama", seed=2)
    rollouts = ragged()
    exact = torch.cat([plain_logp(loaded.model, r) for r in rollouts])
    teacher = LocalTeacher(loaded, round_to_bfloat16=True)
    assert teacher.rounding_kl is None
    scores = teacher.score(rollouts, needs=Needs())
    rounded = torch.cat([dist.full for dist in dists(teacher, rollouts, scores)])
    assert loaded.model.dtype == torch.bfloat16 and rounded.dtype == torch.float32
    kl = float((exact.exp() * (exact - rounded)).sum(-1).mean())
    assert 0 < teacher.rounding_kl < 0.05 and teacher.rounding_kl == pytest.approx(kl, rel=0.2)


def test_a_teacher_under_another_context_reads_other_prompts_than_the_student():
    tokenizer, model = tiny_tokenizer(), tiny_model("llama", seed=2)
    task = FileTask(path=Path("x"))
    prompts = [Prompt(id="a", text="Compute 1 + 2"), Prompt(id="b", text="Is 3 larger than 4?")]
    ours = encode(prompts, tokenizer, task)
    theirs = encode(prompts, tokenizer, task, system="Answer with one number.")
    assert all(
        len(b.ids) > len(a.ids) and b.ids[-3:] == a.ids[-3:] for a, b in zip(ours, theirs, strict=True)
    )
    bare = [Rollout(prompt=p, response_ids=(50, 60, IM_END), finish_reason="stop") for p in ours]
    told = [replace(r, teacher_prompt_ids=t.ids) for r, t in zip(bare, theirs, strict=True)]
    teacher = LocalTeacher(tiny_loaded("llama", seed=2), payload="ids")
    with_context = teacher.score(told, needs=Needs(sampled=True))
    without = teacher.score(bare, needs=Needs(sampled=True))
    for rollout, scores, other in zip(told, with_context, without, strict=True):
        expected = plain_logp(model, rollout).gather(-1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
        torch.testing.assert_close(scores.sampled, expected, atol=2e-5, rtol=1e-4)
        assert float((scores.sampled - other.sampled).abs().max()) > 1e-2

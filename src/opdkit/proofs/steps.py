"""One real step of the learner on a tiny model made from a config in memory: what must not change its gradient.

The reference takes one rollout at a time, without padding, packing, chunks or micro-batches, builds all logits and
lets autograd differentiate Σ loss / count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from opdkit.config import LearnerConfig, ObjectiveConfig, OptimConfig
from opdkit.models.head import Head
from opdkit.models.load import LoadedModel, describe
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Objective
from opdkit.proofs.metrics import off
from opdkit.proofs.objectives import relative
from opdkit.proofs.oracle import NotCovered, beyond
from opdkit.proofs.ours import loss
from opdkit.proofs.records import Check, Worst, largest
from opdkit.proofs.specs import PRESET_VOCABULARY, presets
from opdkit.run.world import World, whole
from opdkit.support import RowDist
from opdkit.train.collate import collate
from opdkit.train.feed import with_candidates
from opdkit.train.learner import Learner, Part
from opdkit.types import Batch, Grade, Needs, Prompt, Rollout, Scores

LENGTHS = ((5, 9), (3, 4), (8, 1), (4, 7))
"""(prompt, response) tokens; two graded responses to each prompt, the second one token longer."""
MODELS = {"teacher": 2, "reference": 3, "start": 4}
"""Whom an objective may ask, and the seed of each."""
SPLITS = ((1, 0), (24, 2), (10**6, 4))
"""(padded tokens per forward, positions per chunk of the head): one rollout at a time up to all in one."""


def model(*, seed: int, hidden: int) -> LoadedModel:
    """A llama of two layers with drawn weights, float64. The global generator is left as it was."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = _tokenizer()
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise) if parameter.ndim < 2 else parameter.copy_(0.3 * noise)
    return describe(made.eval(), tokenizer, name="tiny llama")


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"<{i}>": i for i in range(PRESET_VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<1>")), eos_token="<0>"
    )


def rollouts() -> list[Rollout]:
    """Ragged responses of fixed tokens; every fourth token is not trained on."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i, (prompt_tokens, response_tokens) in enumerate(LENGTHS):
        prompt = Prompt(id=str(i), ids=_ids(prompt_tokens, generator))
        for sample in range(2):
            response = _ids(response_tokens + sample, generator)
            trained = tuple(t % 4 != 3 for t in range(len(response)))
            grade = Grade(float((i + sample) % 3 == 0))
            found.append(Rollout(prompt, response, "stop", grade=grade, sample=sample, trained=trained))
    return found


def _ids(count: int, generator: torch.Generator) -> tuple[int, ...]:
    return tuple(torch.randint(1, PRESET_VOCABULARY, (count,), generator=generator).tolist())


@dataclass(frozen=True)
class Step:
    """What one update did: its gradient by parameter, before the optimizer saw it, and what it told."""

    gradient: dict[str, Tensor]
    told: dict[str, float]

    def apart(self, other: Step) -> float:
        """The larger of both relative distances, gradient and told numbers."""
        gradient = relative(_flat(self.gradient), _flat(other.gradient))
        if self.told.keys() != other.told.keys():
            return float("nan")
        return largest([gradient, *(off(self.told[name], value) for name, value in other.told.items())])


def _flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient[name].flatten() for name in sorted(gradient)])


def one_step(
    spec: ObjectiveConfig,
    *,
    world: World | None = None,
    batch_tokens: int = 10**6,
    chunk_rows: int = 0,
    early: bool = False,
    junk: float | None = None,
) -> Step:
    """An update through Student and Learner on this rank's share of the rollouts.

    `early`: the support's ids come with the batch, which is how the columns-only head is reached. `junk` stands in the
    teacher's hidden states wherever a token is not trained on.
    """
    world = world or World(torch.device("cpu"))
    objective = Objective(spec)
    loaded = model(seed=1, hidden=8)
    rows = [r for r in rollouts() if int(r.prompt.id) % world.size == world.rank]
    mine = with_candidates(loaded, rows, needs=Needs(sampled=True, top_k=spec.k, entropy=True))
    scores, heads = scored(spec, mine)
    if junk is not None:
        pairs = zip(scores["teacher"], mine, strict=True)
        scores["teacher"] = [_with_junk(said, rollout, junk) for said, rollout in pairs]
    ids = early_ids(spec, mine, scores["teacher"]) if early else None
    source = "teacher" if spec.support == "teacher_top_k" else "student"
    batch = collate(mine, scores, early_ids=ids, early_source=source)
    learner = Learner(
        Student(loaded, k=4, ks=(1, 4), chunk_rows=chunk_rows),
        optim=OptimConfig(lr=1e-2, clip=1e12),
        learner=LearnerConfig(batch_tokens=batch_tokens),
        steps=1,
        world=world,
        max_tokens=16,
        bins=2,
    )
    return _update(learner, batch, objective, heads)


def _update(learner: Learner, batch: Batch, objective: Objective, heads: dict[str, Head]) -> Step:
    """The one place that calls the learner; the optimizer's hook hands out what it is about to apply."""
    seen: dict[str, Tensor] = {}

    def look(*_: Any) -> None:
        for name, parameter in learner.student.model.named_parameters():
            if parameter.grad is not None:
                seen[name] = whole(parameter.grad.detach()).clone()

    learner.optimizer.register_step_pre_hook(look)
    part = Part(batch, objective.prepare(batch), objective)
    done = learner.update(part, heads=heads, step=0)
    return Step(seen, done.tally.means())


def scored(spec: ObjectiveConfig, rows: list[Rollout]) -> tuple[dict[str, list[Scores]], dict[str, Head]]:
    """What each model that an objective may ask for says of rollouts that name the student's candidates, and its head."""
    needs = Needs(sampled=True, at_ids=True, top_k=Objective(spec).teacher_needs.top_k)
    ids = [r.topk_ids for r in rows if r.topk_ids is not None]
    scores = {name: _reader(seed).score(rows, needs=needs, ids=ids) for name, seed in MODELS.items()}
    return scores, {name: _reader(seed).head for name, seed in MODELS.items()}


@cache
def _reader(seed: int) -> LocalTeacher:
    return LocalTeacher(model(seed=seed, hidden=12))


def early_ids(spec: ObjectiveConfig, rows: list[Rollout], scores: list[Scores]) -> list[Tensor]:
    """Candidates known before the learner's forward: the teacher's own, or the student's from a reading of its own."""
    named = scores if spec.support == "teacher_top_k" else rows
    return [held.topk_ids[:, : spec.k] for held in named if held.topk_ids is not None]


def _with_junk(scores: Scores, rollout: Rollout, junk: float) -> Scores:
    assert scores.hidden is not None and rollout.trained is not None
    keep = torch.tensor(rollout.trained)[:, None]
    return replace(scores, hidden=torch.where(keep, scores.hidden, junk))


def by_hand(spec: ObjectiveConfig) -> dict[str, Tensor]:
    """The gradient of the reference, by parameter. It knows no key that couples positions beyond the window."""
    if missing := beyond(spec):
        raise NotCovered(", ".join(missing))
    objective, loaded, rows = Objective(spec), model(seed=1, hidden=8), rollouts()
    rows = with_candidates(loaded, rows, needs=Needs(top_k=spec.k))
    scores, heads = scored(spec, rows)
    loaded.model.requires_grad_(True)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for rollout, score in zip(rows, scores["teacher"], strict=True):
        ids, first = [*rollout.prompt.ids, *rollout.response_ids], len(rollout.prompt.ids)
        logits = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, first - 1 : -1]
        drawn = torch.tensor(rollout.response_ids)
        assert score.hidden is not None and rollout.trained is not None
        theirs = RowDist(score.hidden @ heads["teacher"].weight.T, sampled_ids=drawn)
        ours = RowDist(logits, sampled_ids=drawn)
        losses = loss(objective, ours, theirs, sampled=drawn)
        window = spec.signal.window or len(ids)
        for t, trained in enumerate(rollout.trained):
            count += trained
            if trained and t < window:
                total = total + losses[t]
    (total / count).backward()
    return {n: p.grad for n, p in loaded.model.named_parameters() if p.grad is not None}


def a_step_by_hand() -> Iterator[Check]:
    """Padding, packing, the head's chunks and the one normalisation, against the reference."""
    worst = Worst()
    for name, spec in presets().items():
        worst.attempt(name, spec, partial(_by_hand_error, spec))
    yield worst.check("a learner's step against autograd on one unpadded rollout at a time")


def _by_hand_error(spec: ObjectiveConfig) -> float:
    return relative(_flat(one_step(spec).gradient), _flat(by_hand(spec)))


def any_split() -> Iterator[Check]:
    """Micro-batches and chunks of any size: the same gradient, the same metrics."""
    worst = Worst()
    for name, spec in presets().items():
        together = cache(partial(one_step, spec))
        for tokens, rows in SPLITS:
            who = f"{name}, {tokens} tokens a forward, {rows} positions a chunk"
            worst.attempt(who, spec, partial(_split_error, spec, together, tokens, rows))
    yield worst.check("any split into micro-batches and chunks: gradient and metrics of a step")


def _split_error(spec: ObjectiveConfig, together: Callable[[], Step], tokens: int, rows: int) -> float:
    return one_step(spec, batch_tokens=tokens, chunk_rows=rows).apart(together())


def ids_known_early() -> Iterator[Check]:
    """Only the support's columns of the head are read then: the same gradient as with whole rows."""
    worst = Worst()
    for name, spec in presets().items():
        if Objective(spec).columns_only:
            worst.attempt(name, spec, partial(_early_error, spec))
    yield worst.check("ids that came with the batch (columns-only head) against whole rows")


def _early_error(spec: ObjectiveConfig) -> float:
    early = one_step(spec, early=True, batch_tokens=24)
    return relative(_flat(early.gradient), _flat(one_step(spec).gradient))


def positions_not_trained_on() -> Iterator[Check]:
    """What the teacher holds where a token is not trained on: the same bits of the gradient."""
    worst = Worst()
    for name, spec in presets().items():
        clean = cache(partial(one_step, spec))
        for junk in (-50.0, 1e6):
            who = f"{name}, hidden states of {junk:g}"
            worst.attempt(who, spec, partial(_junk_error, spec, clean, junk))
    yield worst.check("contents of positions that are not trained on", bound=0.0)


def _junk_error(spec: ObjectiveConfig, clean_step: Callable[[], Step], junk: float) -> float:
    clean, dirty = _flat(clean_step().gradient), _flat(one_step(spec, junk=junk).gradient)
    return 0.0 if torch.equal(clean, dirty) else largest([relative(dirty, clean), 1e-300])


STEPS = (a_step_by_hand, any_split, ids_known_early, positions_not_trained_on)

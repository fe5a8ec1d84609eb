"""What couples positions, who the target is, and end tokens that are one: against loops and sequences written out.

The sequence proofs enumerate every response of three tokens over a vocabulary of three, each with its own table of logits per
prefix, so that expectations are sums. Nothing of the package's maths is used on the other side.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from opdkit.config import ObjectiveConfig
from opdkit.objectives import Moment, Objective, pushed
from opdkit.objectives.selection import coarse_kl, highest
from opdkit.objectives.signal import ahead, prefix_weights
from opdkit.support import RowDist, StoredDist
from opdkit.train.collate import collate
from opdkit.types import Batch, Grade, Prompt, Rollout, Scores

EXACT = 1e-12
properties = settings(max_examples=40, deadline=None, database=None)
PLAIN = {"k": 3, "divergence": "reverse_kl", "normalisation": "none", "weights": "student"}
SAMPLED = {**PLAIN, "support": "sampled", "estimator": "score_function"}
FULL = {**PLAIN, "support": "full", "estimator": "exact"}


def objective(keys: dict, **more) -> Objective:
    return Objective(ObjectiveConfig(**{**keys, **more}))


def rollout(
    ratios: list[float],
    *,
    prompt: str = "a",
    score: float | None = None,
    finish: str = "stop",
    seed: int = 0,
    candidates: int = 0,
) -> tuple[Rollout, Scores]:
    """A response whose tokens have these log-ratios; with the student's candidates, random ones."""
    length = len(ratios)
    generator = torch.Generator().manual_seed(seed)
    logp = -torch.rand(length, generator=generator) - 0.1
    tops, theirs = (
        torch.randn(length, 9, generator=generator).log_softmax(-1).topk(candidates, -1).values
        for _ in range(2)
    )
    drawn = Rollout(
        Prompt(id=prompt),
        tuple(range(length)),
        finish,
        grade=None if score is None else Grade(score),
        logp=logp,
        entropy=torch.rand(length, generator=generator),
        topk_logp=tops if candidates else None,
    )
    scores = Scores(
        fingerprint="", sampled=logp + torch.tensor(ratios), at_logp=theirs if candidates else None
    )
    return drawn, scores


def batch_of(*rows: tuple[Rollout, Scores]) -> Batch:
    return collate([r for r, _ in rows], {"teacher": [s for _, s in rows]})


def signal(keys: dict, batch: Batch, *, moment: Moment | None = None, **more):
    return objective(SAMPLED, signal=keys, **more).prepare(batch, moment)


# --- sequences written out --------------------------------------------------------------------------------------

VOCABULARY, LENGTH = 3, 3
PREFIXES = [p for n in range(LENGTH) for p in itertools.product(range(VOCABULARY), repeat=n)]


def tables(seed: int) -> tuple[Tensor, Tensor]:
    """Logits of the next token after every prefix, of student and teacher."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, len(PREFIXES), VOCABULARY, generator=generator, dtype=torch.float64)
    return student, teacher


def states(sequence: tuple[int, ...]) -> list[int]:
    return [PREFIXES.index(sequence[:t]) for t in range(LENGTH)]


def sequence_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ_y p(y) log p(y)/q(y) over whole responses."""
    total = torch.zeros((), dtype=torch.float64)
    p, q = student.log_softmax(-1), teacher.log_softmax(-1)
    for y in itertools.product(range(VOCABULARY), repeat=LENGTH):
        log_p, log_q = (sum(m[s, v] for s, v in zip(states(y), y, strict=True)) for m in (p, q))
        total = total + log_p.exp() * (log_p - log_q)
    return total


def expected_gradient(keys: dict, student: Tensor, teacher: Tensor, **signal_keys) -> Tensor:
    """Of the package's loss, over all responses weighed by p(y): what infinitely many rollouts give."""
    spec = objective(keys, signal=signal_keys)
    leaf = student.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for y in itertools.product(range(VOCABULARY), repeat=LENGTH):
        rows, taken = states(y), torch.tensor(y)
        p = RowDist(leaf[rows], sampled_ids=taken)
        q = RowDist(teacher[rows], sampled_ids=taken)
        drawn = Rollout(Prompt(id="x"), y, "length", logp=p.sampled.detach())
        batch = collate([drawn], {"teacher": [Scores(fingerprint="", sampled=q.sampled)]})
        batch = replace(batch, sampler_logp=p.sampled.detach())
        told = spec.prepare(batch)
        support = spec.support(p, q, sampled_ids=taken)
        loss = (told.weight.double() * spec.local(p, q, support)).sum()
        if told.advantage is not None:
            loss = loss + pushed(p, told.advantage.double()).sum()
        total = total + p.sampled.detach().sum().exp() * loss
    return torch.autograd.grad(total, leaf)[0]


SINGLE = 1e-6  # the sampler's log-probs travel in float32


@pytest.mark.parametrize("keys", [SAMPLED, FULL], ids=["sampled", "full"])
def test_without_a_discount_the_first_token_forgets_what_follows_and_with_one_of_1_it_is_the_gradient_of_the_sequence(
    keys,
):
    student, teacher = tables(1)
    leaf = student.clone().requires_grad_()
    wanted = torch.autograd.grad(sequence_kl(leaf, teacher), leaf)[0]
    torch.testing.assert_close(
        expected_gradient(keys, student, teacher, discount=1.0), wanted, rtol=0, atol=SINGLE
    )
    apart = (expected_gradient(keys, student, teacher) - wanted).abs()
    assert apart[0].max() > 0.05 and apart[4:].max() < SINGLE  # states of the last token have no future


def test_a_discount_lies_between():
    """Per state: own KL, and γ, γ² times what follows: written out over the tree."""
    student, teacher = tables(2)
    gamma = 0.5
    leaf = student.clone().requires_grad_()
    p, q = leaf.log_softmax(-1), teacher.log_softmax(-1)
    ratio = (q - p).detach()
    total = torch.zeros((), dtype=torch.float64)
    for y in itertools.product(range(VOCABULARY), repeat=LENGTH):
        at = states(y)
        chance = math.exp(sum(float(p[s, v].detach()) for s, v in zip(at, y, strict=True)))
        for t in range(LENGTH):
            credit = sum(gamma ** (u - t) * float(ratio[at[u], y[u]]) for u in range(t, LENGTH))
            total = total - chance * credit * p[at[t], y[t]]
    wanted = torch.autograd.grad(total, leaf)[0]
    found = expected_gradient(SAMPLED, student, teacher, discount=gamma)
    torch.testing.assert_close(found, wanted, rtol=0, atol=SINGLE)


# --- weights ----------------------------------------------------------------------------------------------------


@properties
@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=1, max_size=4), st.floats(1.0, 4.0)
)
def test_prefix_weights_are_their_formula(responses, largest):
    rows = torch.tensor([i for i, r in enumerate(responses) for _ in r])
    found = prefix_weights(
        torch.tensor([x for r in responses for x in r], dtype=torch.float64), rows, largest=largest
    )
    wanted = []
    for r in responses:
        total = sum(map(abs, r))
        for t in range(len(r)):
            before = sum(map(abs, r[:t])) / total if total > 0 else 0.0
            wanted.append(1 + (largest - 1) * (1 - before))
    assert found.tolist() == pytest.approx(wanted, abs=1e-9)


def test_weights_multiply_and_a_window_is_told_of_to_all():
    batch = batch_of(rollout([1.0, -1.0, 2.0, 4.0]), rollout([3.0]))
    told = signal({"positions": "prefix", "positions_value": 2.0, "window": 3}, batch)
    assert told.weight.tolist() == pytest.approx(
        [2.0, 1.75, 1.5, 0.0, 2.0]
    )  # of 4 nats: what is outside counts for nothing
    told = signal({"positions": "half_life", "positions_value": 2.0}, batch)
    assert told.weight.tolist() == pytest.approx([1.0, 2**-0.5, 0.5, 2**-1.5, 1.0])
    assert told.advantage is None


def test_the_gate_passes_what_agrees_with_the_grade():
    batch = batch_of(
        rollout([1.0, -1.0], score=1.0), rollout([1.0, -1.0], score=0.0), rollout([1.0, -1.0]),
        rollout([1.0, -1.0], score=1.0, finish="length"),
    )  # fmt: skip
    assert signal({"gate": "verifier"}, batch).weight.tolist() == [1, 0, 0, 1, 1, 1, 0, 1]


def test_prompts_weigh_by_how_undecided_they_are():
    rows = [rollout([1.0], prompt="a", score=s) for s in (1, 0, 0, 0)] + [
        rollout([1.0], prompt="b", score=1.0)
    ] * 2
    told = signal({"prompts": "pass_rate"}, batch_of(*rows, rollout([1.0], prompt="c")))
    assert told.weight.tolist() == pytest.approx([0.1875] * 4 + [0.0] * 3)


# --- selection --------------------------------------------------------------------------------------------------


@properties
@given(st.lists(st.tuples(st.floats(-3, 3), st.booleans()), min_size=1, max_size=30), st.floats(0.01, 1.0))
def test_the_highest_share_is_that_many_of_those_that_count(rows, share):
    score, among = torch.tensor([s for s, _ in rows]), torch.tensor([a for _, a in rows])
    chosen = highest(score, among, share=share)
    count = int(among.sum())
    assert int(chosen.sum()) == (min(count, max(1, round(share * count))) if count else 0)
    assert not (chosen & ~among).any()
    if chosen.any() and (among & ~chosen).any():
        assert score[chosen].min() >= score[among & ~chosen].max()


@properties
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_the_coarse_divergence_is_a_lower_bound_and_exact_over_everything(seed, k):
    p, q = torch.randn(
        2, 3, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).log_softmax(-1)
    ids = p.topk(k, -1).indices
    exact = (p.exp() * (p - q)).sum(-1)
    found = coarse_kl(p.gather(-1, ids), q.gather(-1, ids))
    assert (found <= exact + 1e-9).all() and (found >= -1e-12).all()
    if k == 8:  # the ninth token is all the rest
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("select", ["teachable", "uncertain_or_wrong"])
def test_scores_of_selection_are_their_formulas(select):
    rows = [rollout([0.5] * 7, seed=s, candidates=3) for s in range(4)]
    batch = batch_of(*rows)
    keep = torch.ones(28, dtype=torch.bool)
    keep[::5] = False
    batch = replace(batch, trained=keep)
    kl, mass, entropy = [], [], []
    for drawn, said in rows:
        for p, q, h in zip(drawn.topk_logp, said.at_logp, drawn.entropy, strict=True):
            p, q = p.double().exp(), q.double().exp()
            rest = [(1 - float(p.sum()), 1 - float(q.sum()))]
            kl.append(
                sum(float(a) * math.log(float(a) / float(b)) for a, b in [*zip(p, q, strict=True), *rest])
            )
            mass.append(float(q.sum()))
            entropy.append(float(h))

    def held(values):
        here = sorted(v for v, k in zip(values, keep.tolist(), strict=True) if k)
        low, high = (float(torch.quantile(torch.tensor(here, dtype=torch.float64), x)) for x in (0.05, 0.95))
        return [min(max(v, low), high) for v in values]

    def relative(values):
        most = max(v for v, k in zip(values, keep.tolist(), strict=True) if k)
        return [min(max(v / most, 0.0), 1.0) for v in values]

    if select == "teachable":
        score = [a * b for a, b in zip(held(kl), held(mass), strict=True)]
    else:
        score = [1 - (1 - a) * (1 - b) for a, b in zip(relative(entropy), relative(kl), strict=True)]
    here = [n for n in range(28) if keep[n]]
    wanted = sorted(here, key=lambda n: -score[n])[: round(0.25 * len(here))]
    found = signal({"select": select, "share": 0.25}, batch, k=3).weight
    assert sorted(found.nonzero()[:, 0].tolist()) == sorted(wanted)


def test_segments_and_chance_are_controls_of_the_same_size():
    batch = batch_of(rollout([1.0] * 10), rollout([1.0] * 4))
    first = signal({"select": "first", "share": 0.3}, batch).weight
    last = signal({"select": "last", "share": 0.3}, batch).weight
    assert first.tolist() == [1.0] * 3 + [0.0] * 7 + [1.0] + [0.0] * 3
    assert last.tolist() == [0.0] * 7 + [1.0] * 3 + [0.0] * 3 + [1.0]
    chance = [
        signal({"select": "random", "share": 0.3}, batch, moment=Moment(0, s)).weight for s in (1, 1, 2)
    ]
    assert chance[0].equal(chance[1]) and not chance[0].equal(chance[2])
    assert [int(c.sum()) for c in chance] == [4, 4, 4]


# --- credit -----------------------------------------------------------------------------------------------------


@properties
@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=1, max_size=4), st.floats(0.0, 1.0)
)
def test_what_lies_ahead_is_its_formula(responses, gamma):
    rows = torch.tensor([i for i, r in enumerate(responses) for _ in r])
    found = ahead(torch.tensor([x for r in responses for x in r], dtype=torch.float64), rows, discount=gamma)
    wanted = [
        sum(gamma ** (s - t) * r[s] for s in range(t + 1, len(r))) for r in responses for t in range(len(r))
    ]
    assert found.tolist() == pytest.approx(wanted, abs=1e-9)


def total_advantage(told, ratio: list[float]) -> list[float]:
    """What a sampled token is pushed by, all told: weight times its own log-ratio, and the credit."""
    return [float(w) * r + float(a) for w, a, r in zip(told.weight, told.advantage, ratio, strict=True)]


@pytest.mark.parametrize("how", ["centred", "standardised"])
def test_token_rewards_are_pooled_over_a_prompts_responses(how):
    """The released code's token_grpo: standardise all token rewards of the group, then sum from here on."""
    ratios = {"a": [[1.0, -2.0, 0.5], [3.0]], "b": [[0.5, 0.25]]}
    rows = [rollout(r, prompt=name) for name, group in ratios.items() for r in group]
    told = signal({"token_rewards": how, "discount": 1.0}, batch_of(*rows))
    wanted = []
    for group in ratios.values():
        pool = torch.tensor([x for r in group for x in r], dtype=torch.float64)
        spread = float(pool.std()) + 1e-6 if how == "standardised" else 1.0
        for r in group:
            normal = [(x - float(pool.mean())) / spread for x in r]
            wanted += [sum(normal[t:]) for t in range(len(r))]
    found = total_advantage(told, [x for group in ratios.values() for r in group for x in r])
    assert found == pytest.approx(wanted, abs=2e-5)


def test_a_reward_is_added_modulates_or_takes_over():
    rows = [rollout([1.0, -0.1], score=1.0), rollout([0.05, -1.0], score=0.0)]
    batch, ratio = batch_of(*rows), [1.0, -0.1, 0.05, -1.0]
    R = [0.5, 0.5, -0.5, -0.5]  # centred, not scaled
    plain = {"reward_scale": "none", "reward_weight": 2.0}
    told = signal({"reward": "additive", **plain}, batch)
    assert total_advantage(told, ratio) == pytest.approx(
        [r + 2 * a for r, a in zip(ratio, R, strict=True)], abs=1e-6
    )
    told = signal({"reward": "modulating", **plain}, batch)
    factors = [min(max(math.exp(math.copysign(1, a) * r), 0.8), 1.2) for r, a in zip(ratio, R, strict=True)]
    assert told.advantage.tolist() == pytest.approx(
        [2 * f * a for f, a in zip(factors, R, strict=True)], abs=1e-6
    )
    assert told.weight.tolist() == [0.0] * 4
    sequential = {"reward": "sequential", "switch_step": 5, **plain}
    before, after = (signal(sequential, batch, moment=Moment(0, 5, rewarded=r)) for r in (False, True))
    assert before.weight.tolist() == [1.0] * 4 and before.advantage.tolist() == [0.0] * 4
    assert after.weight.tolist() == [0.0] * 4 and after.advantage.tolist() == [2 * a for a in R]


def test_a_reward_reaches_beyond_the_window_of_the_teacher():
    """Dense reward early, outcome reward everywhere: the hybrid for long horizons."""
    batch = batch_of(rollout([1.0, 1.0], score=1.0), rollout([1.0, 1.0], score=0.0))
    told = signal({"reward": "additive", "reward_scale": "none", "window": 1}, batch)
    assert told.weight.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert told.advantage.tolist() == [0.5, 0.5, -0.5, -0.5]


def test_controls_keep_sizes_and_take_the_knowledge_out():
    ratios = [0.3, -1.2, 2.0, 0.7, -0.4, 1.1]
    batch = batch_of(rollout(ratios[:4]), rollout(ratios[4:]))
    shuffled = signal({"control": "shuffled"}, batch)
    assert shuffled.weight.tolist() == [0.0] * 6
    assert sorted(shuffled.advantage.tolist()) == pytest.approx(sorted(ratios), abs=1e-6)
    assert shuffled.advantage.tolist() != pytest.approx(ratios, abs=1e-3)
    random = signal({"control": "random_sign"}, batch, moment=Moment(0, 3))
    assert random.advantage.abs().tolist() == pytest.approx([abs(x) for x in ratios], abs=1e-6)
    assert random.advantage.tolist() != pytest.approx(ratios, abs=1e-3)


# --- targets ----------------------------------------------------------------------------------------------------


def four(seed: int = 0) -> dict[str, Tensor]:
    rows = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return dict(zip(("student", "teacher", "reference", "start"), rows, strict=True))


def written_out(name: str, scale: float | None, m: dict[str, Tensor]) -> Tensor:
    """Probabilities of the target, up to a factor per row."""
    scale = scale or 1.0
    p, q, ref, start = (m[n].softmax(-1) for n in ("student", "teacher", "reference", "start"))
    return {
        "extrapolated": q**scale * ref ** (1 - scale),
        "difference": start * (q / ref) ** scale,
        "bridge": q * p**scale,
        "sign_flipped": p**2 / q,
    }[name]


TARGETS = [("extrapolated", 1.25), ("difference", 0.7), ("bridge", 0.4), ("sign_flipped", None)]


def run(spec: Objective, models: dict[str, Tensor], taken: Tensor) -> tuple[Tensor, Tensor]:
    leaf = models["student"].clone().requires_grad_()
    dists = {n: RowDist(leaf if n == "student" else z, sampled_ids=taken) for n, z in models.items()}
    seen = {n: spec.seen(d) for n, d in dists.items()}
    p, q = seen["student"], seen["teacher"]
    support = spec.support(p, q, sampled_ids=p.sampled_ids)
    loss = spec.local(p, q, support, seen)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def of_divergence(models: dict[str, Tensor], Q: Tensor) -> Tensor:
    leaf = models["student"].clone().requires_grad_()
    p = leaf.softmax(-1)
    Q = (Q / Q.sum(-1, keepdim=True)).detach()
    return torch.autograd.grad((p * (p / Q).log()).sum(), leaf)[0]


@pytest.mark.parametrize(("name", "scale"), TARGETS)
def test_over_the_vocabulary_the_gradient_is_that_of_the_divergence_from_the_target(name, scale):
    models = four(1)
    spec = objective(FULL, target=name, target_scale=scale)
    value, gradient = run(spec, models, torch.zeros(5, dtype=torch.long))
    Q = written_out(name, scale, models)
    torch.testing.assert_close(gradient, of_divergence(models, Q), rtol=0, atol=EXACT)
    p, Q = models["student"].softmax(-1), Q / Q.sum(-1, keepdim=True)
    torch.testing.assert_close(value, (p * (p / Q).log()).sum(-1), rtol=0, atol=EXACT)


@pytest.mark.parametrize(("name", "scale"), TARGETS)
def test_one_sampled_token_is_unbiased_for_it_with_or_without_whole_rows(name, scale):
    """Without rows the target is known up to a constant of the position, whose product with ∇log p has mean 0."""
    models = four(2)
    spec = objective(SAMPLED, target=name, target_scale=scale)
    p = models["student"].softmax(-1)
    wanted = of_divergence(models, written_out(name, scale, models))
    rows, sent = torch.zeros_like(p), torch.zeros_like(p)
    for v in range(7):
        taken = torch.full((5,), v)
        rows += p[:, v : v + 1] * run(spec, models, taken)[1]
        leaf = models["student"].clone().requires_grad_()
        told = {
            n: StoredDist(sampled=z.log_softmax(-1)[:, v], sampled_ids=taken)
            for n, z in models.items()
            if n != "student"
        }
        student = RowDist(leaf, sampled_ids=taken)
        support = spec.support(student, told["teacher"], sampled_ids=taken)
        stored = {n: replace_at(d, support, taken) for n, d in told.items()}
        loss = spec.local(student, stored["teacher"], support, stored)
        sent += p[:, v : v + 1] * torch.autograd.grad(loss.sum(), leaf)[0]
    torch.testing.assert_close(rows, wanted, rtol=0, atol=EXACT)
    torch.testing.assert_close(sent, wanted, rtol=0, atol=EXACT)


def replace_at(dist: StoredDist, support, taken) -> StoredDist:
    return StoredDist(sampled=dist.sampled, sampled_ids=taken)


def test_a_bridge_falls_until_the_teacher_stands_alone():
    spec = objective(FULL, target="bridge", target_scale=0.8, target_decay=4)
    assert [spec.at(s).parts["student"] for s in (0, 1, 4, 9)] == pytest.approx([0.8, 0.6, 0.0, 0.0])
    models, taken = four(3), torch.zeros(5, dtype=torch.long)
    plain = run(objective(FULL), models, taken)
    torch.testing.assert_close(run(spec.at(4), models, taken), plain, rtol=0, atol=EXACT)


def test_an_anchor_adds_the_divergence_from_the_start():
    models, taken = four(4), torch.zeros(5, dtype=torch.long)
    value, gradient = run(objective(FULL, anchor=0.3), models, taken)
    to_teacher, to_start = (of_divergence(models, models[n].softmax(-1)) for n in ("teacher", "start"))
    torch.testing.assert_close(gradient, to_teacher + 0.3 * to_start, rtol=0, atol=EXACT)
    assert (value > run(objective(FULL), models, taken)[0]).all()


# --- end tokens, special tokens ---------------------------------------------------------------------------------


ENDS = (2, 5)


def merged(z: Tensor) -> Tensor:
    """Probabilities with the ends in one column: what the objective should see."""
    p = z.softmax(-1)
    others = [v for v in range(7) if v not in ENDS]
    return torch.cat([p[:, others], p[:, list(ENDS)].sum(-1, keepdim=True)], -1)


@pytest.mark.parametrize("keys", [FULL, SAMPLED], ids=["full", "sampled"])
def test_merged_ends_are_one_action(keys):
    models = four(5)
    spec = replace(objective(keys, merge_ends=True), ends=ENDS)
    leaf = models["student"].clone().requires_grad_()
    p, q = merged(leaf), merged(models["teacher"])
    wanted = torch.autograd.grad((p * (p / q).log()).sum(), leaf)[0]
    chance = models["student"].softmax(-1)
    found = sum(chance[:, v : v + 1] * run(spec, models, torch.full((5,), v))[1] for v in range(7))
    torch.testing.assert_close(found, wanted, rtol=0, atol=EXACT)


@pytest.mark.parametrize("support", ["full", "sampled", "student_top_k", "teacher_top_k", "union"])
def test_two_models_that_only_stop_with_different_tokens_agree(support):
    student = four(6)["student"]
    teacher = student.clone()
    teacher[:, list(ENDS)] = student[:, list(reversed(ENDS))]
    models = {"student": student, "teacher": teacher}
    keys = {**PLAIN, "support": support, "estimator": "score_function"}
    for taken in (torch.full((5,), 5), torch.full((5,), 1)):
        value, gradient = run(replace(objective(keys, merge_ends=True), ends=ENDS), models, taken)
        assert value.abs().max() < EXACT and gradient.abs().max() < EXACT
    apart = run(objective(keys), models, torch.full((5,), 5))[1]
    assert apart.abs().max() > 1e-3


def test_masked_special_tokens_do_not_train_and_are_in_no_set():
    models = four(7)
    top = int(models["student"][0].argmax())
    spec = replace(
        objective({**PLAIN, "support": "student_top_k", "estimator": "score_function"}, mask_special=True),
        special=(top,),
    )
    p, q = RowDist(models["student"]), RowDist(models["teacher"])
    chosen = spec.support(p, q, sampled_ids=torch.zeros(5, dtype=torch.long))
    assert not chosen.keep[0, 0] and chosen.keep[0, 1:].all()
    drawn = rollout([1.0, 1.0])[0]
    batch = collate([replace(drawn, response_ids=(top, top + 1))], {})
    assert spec.prepare(batch).weight.tolist() == [0.0, 1.0]


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"target": "bridge", "divergence": "js"}, "reverse KL"),
        ({"target_decay": 3}, "bridge"),
        ({"target": "sign_flipped", "target_scale": 2.0}, "no scale"),
        ({"target": "extrapolated", "forward_gate": 1.0}, "forward_gate"),
        ({"signal": {"discount": 1.0}, "divergence": "forward_kl"}, "reverse KL"),
        ({"signal": {"control": "shuffled"}}, "one log-ratio"),
        ({"signal": {"select": "teachable"}, "target": "bridge"}, "student and teacher"),
        ({"signal": {"discount": 1.0}, "merge_ends": True}, "single tokens"),
        ({"merge_ends": True, "weights": "uniform", "estimator": "score_function"}, "every end token"),
    ],
)
def test_what_cannot_be_meant_is_refused(keys, why):
    with pytest.raises(ValidationError, match=why) as refused:
        ObjectiveConfig(**{**FULL, **keys})
    assert "(use " in refused.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"token_rewards": "centred"}, "discount"),
        ({"control": "shuffled", "discount": 1.0}, "alone"),
        ({"control": "shuffled", "reward": "additive"}, "alone"),
    ],
)
def test_signals_that_cannot_be_meant_are_refused(keys, why):
    with pytest.raises(ValidationError, match=why):
        ObjectiveConfig(**{**SAMPLED, "signal": keys})

"""What couples positions, a second time: whole responses written out, in float64 loops.

Every response of three tokens over two, each prefix with its own row of logits; two responses to a prompt are a group.
Weights m_t and advantages A_t are computed token by token from the definitions (`opdkit.objectives.signal` states them, and is
not used for it); the position's own loss comes from the other oracle. What chance decides (`random`, `control`) has no loop.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opdkit.config import ObjectiveConfig, SignalConfig
from opdkit.objectives import Moment, Objective, pushed
from opdkit.proofs import ours
from opdkit.proofs.oracle import NotCovered, likeliest, oracle, reshaped, unknown, unscaled
from opdkit.proofs.specs import others_of
from opdkit.support import RowDist
from opdkit.types import Batch, Grade, Prompt, Rollout, Scores

TOKENS, LENGTH = 2, 3
PREFIXES = [p for n in range(LENGTH) for p in itertools.product(range(TOKENS), repeat=n)]
RESPONSES = list(itertools.product(range(TOKENS), repeat=LENGTH))
COVERED = {
    *(
        "window",
        "positions",
        "positions_value",
        "select",
        "share",
        "gate",
        "discount",
        "token_rewards",
        "prompts",
    ),
    *(
        "reward",
        "reward_weight",
        "reward_scale",
        "reward_clip",
        "switch_step",
        "flat_evaluations",
        "flat_margin",
    ),
}


@dataclass(frozen=True)
class World:
    """Logits per prefix [states, tokens] of every model."""

    student: Tensor
    teacher: Tensor
    others: dict[str, Tensor]

    def rows(self, model: Tensor, response: Sequence[int]) -> Tensor:
        return model[[PREFIXES.index(tuple(response[:t])) for t in range(LENGTH)]]


def world(spec: ObjectiveConfig) -> World:
    generator = torch.Generator().manual_seed(11)
    student, teacher = torch.randn(2, len(PREFIXES), TOKENS, generator=generator, dtype=torch.float64)
    return World(student, teacher, others_of(spec, student))


def signal_error(spec: ObjectiveConfig) -> float:
    """Largest relative error of the gradient over some groups of two, before and after a reward takes over."""
    unwritten = [k for k in unknown(spec.signal) if k.partition(" = ")[0] not in COVERED]
    if unwritten or spec.signal.select == "random":
        raise NotCovered(", ".join(f"signal.{key}" for key in unwritten) or "signal.select = random")
    if spec.merge_ends:
        raise NotCovered("merged ends in a signal")
    models, errors = world(spec), []
    phases = (False, True) if spec.signal.reward == "sequential" else (False,)
    for group, rewarded in itertools.product(_groups(), phases):
        found, wanted = _ours(spec, models, group, rewarded), _written_out(spec, models, group, rewarded)
        errors.append(float((found - wanted).norm()) / (float(wanted.norm()) or 1.0))
    return max(errors, key=lambda e: math.inf if math.isnan(e) else e)


def sequence_distance(spec: ObjectiveConfig) -> float:
    """‖E_y g − ∇KL‖ / ‖∇KL‖ of whole responses, y by enumeration: what a discount of 1 is unbiased for."""
    models = world(spec)
    mean = torch.zeros_like(models.student)
    for y in RESPONSES:
        chance = _chance(models.student, y)
        mean = mean + chance * _ours(spec, models, [y], rewarded=False)
    leaf = models.student.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for y in RESPONSES:
        p, q = (
            models.rows(m, y).log_softmax(-1)[range(LENGTH), list(y)].sum() for m in (leaf, models.teacher)
        )
        total = total + p.exp() * (p - q)
    wanted = torch.autograd.grad(total, leaf)[0]
    return float((mean - wanted).norm() / wanted.norm())


def _chance(student: Tensor, response: Sequence[int]) -> float:
    states = [PREFIXES.index(tuple(response[:t])) for t in range(LENGTH)]
    return float(student.log_softmax(-1)[states, list(response)].sum().exp())


def _groups() -> Iterator[list[tuple[int, ...]]]:
    """Pairs of responses: right and wrong ones, equal ones."""
    for i in range(len(RESPONSES)):
        yield [RESPONSES[i], RESPONSES[(3 * i + 1) % len(RESPONSES)]]


def _score(response: Sequence[int]) -> float:
    """Right if it ends in its first token."""
    return float(response[-1] == response[0])


# --- the package's side -------------------------------------------------------------------------------------------------


def _batch(spec: ObjectiveConfig, models: World, group: Sequence[tuple[int, ...]]) -> Batch:
    rollouts: list[Rollout] = []
    scores: dict[str, list[Scores]] = {name: [] for name in ("teacher", *models.others)}
    for y in group:
        ids = torch.tensor(y)
        p = models.rows(models.student, y).log_softmax(-1)
        top = p.topk(min(spec.k, TOKENS), -1)
        rollouts.append(
            Rollout(
                Prompt(id="x"),
                y,
                "stop",
                grade=Grade(_score(y)),
                logp=p.gather(-1, ids[:, None])[:, 0],
                topk_ids=top.indices,
                topk_logp=top.values,
                entropy=-(p.exp() * p).sum(-1),
            )
        )
        for name, model in {"teacher": models.teacher, **models.others}.items():
            q = models.rows(model, y).log_softmax(-1)
            said = Scores(
                fingerprint="", sampled=q.gather(-1, ids[:, None])[:, 0], at_logp=q.gather(-1, top.indices)
            )
            scores[name].append(said)
    total = LENGTH * len(group)
    every = torch.ones(total, dtype=torch.bool)
    return Batch(
        rollouts=tuple(rollouts),
        scores={name: tuple(said) for name, said in scores.items()},
        row=torch.arange(len(group)).repeat_interleave(LENGTH),
        depth=torch.arange(LENGTH).repeat(len(group)),
        sampled_ids=torch.tensor([v for y in group for v in y]),
        trained=every,
        measured=every,
        sampler_logp=torch.cat([r.logp for r in rollouts if r.logp is not None]),
    )


def _ours(spec: ObjectiveConfig, models: World, group: Sequence[tuple[int, ...]], rewarded: bool) -> Tensor:
    """Gradient of the package's loss with respect to the student's table."""
    objective = Objective(spec)
    batch = _batch(spec, models, group)
    told = objective.prepare(batch, Moment(rewarded=rewarded))
    leaf = models.student.clone().requires_grad_()

    def dist(model: Tensor) -> RowDist:
        rows = torch.cat([models.rows(model, y) for y in group])
        return RowDist(rows, sampled_ids=batch.sampled_ids)

    p, more = dist(leaf), {name: dist(model) for name, model in models.others.items()}
    per_position = ours.loss(objective, p, dist(models.teacher), sampled=batch.sampled_ids, others=more)
    loss = (told.weight * per_position).sum()
    if told.advantage is not None:
        loss = loss + pushed(p, told.advantage).sum()
    return torch.autograd.grad(loss, leaf)[0]


# --- written out --------------------------------------------------------------------------------------------------------


def _written_out(
    spec: ObjectiveConfig, models: World, group: Sequence[tuple[int, ...]], rewarded: bool
) -> Tensor:
    """Σ m_t ∇D_t − A_t ∇log p(y_t), token by token."""
    signal = spec.signal
    deltas = [_deltas(spec, models, y) for y in group]
    learns = [[signal.window == 0 or t < signal.window for t in range(LENGTH)] for _ in group]
    for i, t in itertools.product(range(len(group)), range(LENGTH)):
        deltas[i][t] = deltas[i][t] if learns[i][t] else 0.0
    weights = _weights(spec, models, group, deltas, learns)
    own, credit = _credited(signal, deltas, weights, learns)
    own, credit = _with_reward(signal, group, deltas, own, credit, rewarded)
    alone = spec.model_copy(update={"signal": SignalConfig()})
    total = torch.zeros_like(models.student)
    for i, y in enumerate(group):
        rows = models.rows(models.student, y)
        more = {name: models.rows(model, y) for name, model in models.others.items()}
        _, gradient = oracle(alone, rows, models.rows(models.teacher, y), torch.tensor(y), others=more)
        for t in range(LENGTH):
            state = PREFIXES.index(y[:t])
            push = -rows[t].softmax(-1)
            push[y[t]] += 1.0  # ∇ log p(y) with respect to the logits
            total[state] += own[i][t] * gradient[t] - credit[i][t] * push
    return total


def _deltas(spec: ObjectiveConfig, models: World, y: Sequence[int]) -> list[float]:
    """log target(y_t) − log p(y_t), shaped; the target as it is sent, without its normaliser."""
    found = []
    for t, token in enumerate(y):
        p, q = (models.rows(m, y)[t].softmax(-1)[token] for m in (models.student, models.teacher))
        more = {name: models.rows(m, y)[t].softmax(-1)[token] for name, m in models.others.items()}
        aim = float(unscaled(spec, p, q, more))
        plain = math.log(aim / float(p))
        found.append(
            plain if spec.shaping == "none" else reshaped(spec.shaping, spec.shaping_value, float(p), aim)
        )
    return found


def _weights(
    spec: ObjectiveConfig,
    models: World,
    group: Sequence[tuple[int, ...]],
    deltas: list[list[float]],
    learns: list[list[bool]],
) -> list[list[float]]:
    signal = spec.signal
    value = signal.positions_value or {"prefix": 1.5, "half_life": 512.0}.get(signal.positions, 1.0)
    rate = sum(map(_score, group)) / len(group)
    chosen = _chosen(spec, models, group, learns)
    weights = []
    for i, y in enumerate(group):
        size = sum(map(abs, deltas[i]))
        row = []
        for t in range(LENGTH):
            m = float(learns[i][t] and chosen[i][t])
            if signal.positions == "prefix":
                m *= 1 + (value - 1) * (1 - (sum(map(abs, deltas[i][:t])) / size if size else 0.0))
            if signal.positions == "half_life":
                m *= 2.0 ** (-t / value)
            if signal.gate == "verifier" and (deltas[i][t] > 0) != (_score(y) > 0.5):
                m = 0.0
            if signal.prompts == "pass_rate":
                m *= rate * (1 - rate)
            row.append(m)
        weights.append(row)
    return weights


def _chosen(
    spec: ObjectiveConfig, models: World, group: Sequence[tuple[int, ...]], learns: list[list[bool]]
) -> list[list[bool]]:
    signal, places = spec.signal, [(i, t) for i in range(len(group)) for t in range(LENGTH)]
    if signal.select == "none":
        return [[True] * LENGTH for _ in group]
    if signal.select in ("first", "last"):
        count = max(1, round(signal.share * LENGTH))
        here = [t < count if signal.select == "first" else LENGTH - 1 - t < count for t in range(LENGTH)]
        return [list(here) for _ in group]
    among = [place for place in places if learns[place[0]][place[1]]]
    scores = _scores(spec, models, group, among)
    taken = sorted(among, key=lambda place: -scores[place])[: max(1, round(signal.share * len(among)))]
    return [[(i, t) in taken for t in range(LENGTH)] for i in range(len(group))]


def _scores(
    spec: ObjectiveConfig, models: World, group: Sequence[tuple[int, ...]], among: list[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    kl, mass, entropy = {}, {}, {}
    for place in among:
        i, t = place
        p, q = (models.rows(m, group[i])[t].softmax(-1) for m in (models.student, models.teacher))
        S = likeliest(p, min(spec.k, TOKENS))
        eps = 2.3e-16
        rest = [max(1 - sum(float(m[v]) for v in S), eps) for m in (p, q)]
        terms = [(float(p[v]), float(q[v])) for v in S] + [(rest[0], rest[1])]
        kl[place] = sum(a * math.log(a / b) for a, b in terms)
        mass[place] = sum(float(q[v]) for v in S)
        entropy[place] = -sum(float(x) * math.log(float(x)) for x in p)
    if spec.signal.select == "teachable":
        return {place: _held(kl, place) * _held(mass, place) for place in among}
    return {place: 1 - (1 - _share(entropy, place)) * (1 - _share(kl, place)) for place in among}


def _held(values: dict[tuple[int, int], float], place: tuple[int, int]) -> float:
    ordered = torch.tensor(sorted(values.values()), dtype=torch.float64)
    low, high = float(torch.quantile(ordered, 0.05)), float(torch.quantile(ordered, 0.95))
    return min(max(values[place], low), high)


def _share(values: dict[tuple[int, int], float], place: tuple[int, int]) -> float:
    most = max(values.values())
    return min(max(values[place] / most, 0.0), 1.0) if most > 0 else 0.0


def _credited(
    signal: SignalConfig, deltas: list[list[float]], weights: list[list[float]], learns: list[list[bool]]
) -> tuple[list[list[float]], list[list[float]]]:
    """m_t and A_t with pooled rewards and credit for the future."""
    pool = [
        d for row, here in zip(deltas, learns, strict=True) for d, on in zip(row, here, strict=True) if on
    ]
    mean, spread = 0.0, 1.0
    if signal.token_rewards != "raw":
        mean = sum(pool) / len(pool)
    if signal.token_rewards == "standardised":
        spread = math.sqrt(sum((d - mean) ** 2 for d in pool) / max(len(pool) - 1, 1)) + 1e-6
    own, credit = [], []
    for row, m, here in zip(deltas, weights, learns, strict=True):
        normal = [(d - mean) / spread if on else 0.0 for d, on in zip(row, here, strict=True)]
        own.append([w / spread for w in m])
        credit.append(
            [
                m[t]
                * (-mean / spread + sum(signal.discount ** (s - t) * normal[s] for s in range(t + 1, LENGTH)))
                for t in range(LENGTH)
            ]
        )
    return own, credit


def _with_reward(
    signal: SignalConfig,
    group: Sequence[tuple[int, ...]],
    deltas: list[list[float]],
    own: list[list[float]],
    credit: list[list[float]],
    rewarded: bool,
) -> tuple[list[list[float]], list[list[float]]]:
    if signal.reward == "none" or (signal.reward == "sequential" and not rewarded):
        return own, credit
    scores = [_score(y) for y in group]
    mean = sum(scores) / len(scores)
    spread = math.sqrt(sum((s - mean) ** 2 for s in scores) / max(len(scores) - 1, 1)) + 1e-4
    rate = mean * (1 - mean) if signal.prompts == "pass_rate" else 1.0
    divisor = spread if signal.reward_scale == "std" else 1.0
    R = [0.0 if len(set(scores)) == 1 else signal.reward_weight * rate * (s - mean) / divisor for s in scores]
    nothing = [[0.0] * LENGTH for _ in group]
    if signal.reward == "additive":
        return own, [[a + R[i] for a in row] for i, row in enumerate(credit)]
    if signal.reward == "sequential":
        return nothing, [[r] * LENGTH for r in R]
    low, high = 1 - signal.reward_clip, 1 + signal.reward_clip
    return nothing, [
        [min(max(math.exp(math.copysign(1.0, R[i]) * d if R[i] else 0.0), low), high) * R[i] for d in row]
        for i, row in enumerate(deltas)
    ]

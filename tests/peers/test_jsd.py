"""Second oracles for the full-vocabulary divergences: TRL's `generalized_jsd_loss` and liger-kernel's chunked JSD.

Both, and ours, mean by beta the teacher's share of the mixture: m = β q + (1−β) p and β KL(q‖m) + (1−β) KL(p‖m), p the
student, q the teacher. At the ends they switch to another formula: β = 0 is KL(q‖p), β = 1 is KL(p‖q); our `js` refuses both
ends, where it would be 0, and calls them `forward_kl` and `reverse_kl`. All divide both models' logits by one temperature
and put no T² before the loss; all take the mean over the tokens that are not masked.

Float64 throughout, but for liger's value, which it accumulates in float32 whatever it is given. Run by `make test-trl`.
"""

from __future__ import annotations

import pytest
import torch
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
from torch import Tensor, nn
from trl.experimental.gkd import GKDTrainer

from opdkit.config import ObjectiveConfig
from opdkit.models.head import Head, fused_loss
from opdkit.objectives import Objective
from opdkit.proofs import ours
from opdkit.support import RowDist

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("default")]

ROWS, LENGTH, VOCABULARY, HIDDEN = 2, 7, 23, 6
BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
AGREE = 1e-6
IGNORED = -100

BY_BETA = pytest.mark.parametrize("beta", BETAS)
BY_TEMPERATURE = pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
BY_MASK = pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
BY_ESTIMATOR = pytest.mark.parametrize("estimator", ["exact", "score_function"])


def spec(beta: float, *, estimator: str = "exact") -> ObjectiveConfig:
    """Ours of the same name: the two ends are other divergences."""
    ends = {0.0: "forward_kl", 1.0: "reverse_kl"}
    keys = {"divergence": ends[beta]} if beta in ends else {"divergence": "js", "beta": beta}
    return ObjectiveConfig.model_validate(
        {"support": "full", "normalisation": "none", "estimator": estimator, **keys}
    )


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(masked: bool) -> Tensor:
    """[B, L]; masked ones at the start, as a prompt's, in the middle and at the end."""
    found = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(3))
    if masked:
        found[0, :3] = found[1, 4] = found[1, -1] = IGNORED
    return found


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


# ------------------------------------------------------------------ TRL: on logits


def trl(student: Tensor, teacher: Tensor, *, beta: float, temperature: float, masked: bool) -> list[Tensor]:
    """[value, d value / d student's logits]"""
    leaf = student.clone().requires_grad_()
    value = GKDTrainer.generalized_jsd_loss(
        leaf, teacher, labels=labels(masked), beta=beta, temperature=temperature
    )
    return [value.detach(), *torch.autograd.grad(value, leaf)]


def mine(
    student: Tensor, teacher: Tensor, *, temperature: float, masked: bool, objective: ObjectiveConfig
) -> list[Tensor]:
    keep = (labels(masked) != IGNORED).flatten()
    value, gradient = ours.local(
        objective, student.flatten(0, 1)[keep] / temperature, teacher.flatten(0, 1)[keep] / temperature
    )
    whole = torch.zeros(ROWS * LENGTH, VOCABULARY, dtype=torch.float64)
    whole[keep] = gradient / temperature / keep.sum()
    return [value.sum() / keep.sum(), whole.view(ROWS, LENGTH, VOCABULARY)]


@BY_ESTIMATOR
@BY_MASK
@BY_TEMPERATURE
@BY_BETA
def test_value_and_gradient_are_trls(beta: float, temperature: float, masked: bool, estimator: str) -> None:
    student, teacher = (draw(ROWS, LENGTH, VOCABULARY, seed=seed) * 1.5 for seed in (0, 1))
    theirs = trl(student, teacher, beta=beta, temperature=temperature, masked=masked)
    found = mine(
        student, teacher, temperature=temperature, masked=masked, objective=spec(beta, estimator=estimator)
    )
    assert apart(found[0], theirs[0]) <= AGREE and apart(found[1], theirs[1]) <= AGREE
    assert float(theirs[0]) > 1e-3 and float(theirs[1].norm()) > 1e-4  # the agreement is about something


def test_another_reading_of_beta_would_be_noticed() -> None:
    student, teacher = (draw(ROWS, LENGTH, VOCABULARY, seed=seed) * 1.5 for seed in (0, 1))
    theirs = trl(student, teacher, beta=0.1, temperature=1.0, masked=False)
    swapped = mine(student, teacher, temperature=1.0, masked=False, objective=spec(0.9))
    assert apart(swapped[0], theirs[0]) > 0.01 and apart(swapped[1], theirs[1]) > 0.1


# ------------------------------------------------------------------ liger: on hidden states, head and loss fused


def module(hidden: int, *, bias: bool, seed: int) -> nn.Linear:
    made = nn.Linear(hidden, VOCABULARY, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=seed + number))
    return made


def leaves(hidden: Tensor, output: nn.Linear) -> list[Tensor]:
    return [hidden, *output.parameters()]


@BY_MASK
@BY_TEMPERATURE
@BY_BETA
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_value_and_gradients_are_ligers(beta: float, temperature: float, masked: bool, bias: bool) -> None:
    """d hidden, d weight and d bias of two fused losses, each in chunks of its own size; liger's hard loss is off."""
    student, teacher = module(HIDDEN, bias=bias, seed=10), module(9, bias=bias, seed=20).requires_grad_(False)
    hidden, theirs = (draw(ROWS * LENGTH, size, seed=30 + size) for size in (HIDDEN, 9))
    hidden.requires_grad_()
    target = labels(masked).flatten()

    liger = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, temperature=temperature, compiled=False, chunk_size=5
    )  # fmt: skip
    value = liger(hidden, student.weight, theirs, teacher.weight, target, student.bias, teacher.bias)
    wanted = [value, *torch.autograd.grad(value, leaves(hidden, student))]

    keep = target != IGNORED
    objective, rows = Objective(spec(beta)), theirs[keep]
    lent = Head(teacher, rows=VOCABULARY, temperature=temperature)

    def chunk(logits: Tensor, part: slice) -> Tensor:
        sampled = target[keep][part]
        p, q = (RowDist(z, sampled_ids=sampled) for z in (logits, lent.logits(rows[part])))
        return ours.loss(objective, p, q, sampled=sampled).sum()

    own = Head(student, rows=VOCABULARY, temperature=temperature)
    loss = fused_loss(hidden[keep], own, chunk, chunk_rows=4) / keep.sum()
    found = [loss, *torch.autograd.grad(loss, leaves(hidden, student))]
    assert len(found) == len(wanted) == (4 if bias else 3)
    for mine_, theirs_ in zip(found, wanted, strict=True):
        assert apart(mine_.detach(), theirs_.detach()) <= AGREE
    assert float(value.detach()) > 1e-3 and all(float(g.norm()) > 1e-4 for g in wanted[1:])

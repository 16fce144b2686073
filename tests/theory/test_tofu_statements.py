"""The statements of the TOFU paper, as they are true; and where the printed one is not, a counterexample to it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.theory.properties import (
    assert_equal,
    by_autograd,
    gradient_of,
    holds,
    logits,
    one_hot,
    row,
    tokens,
    value_of,
)
from ts2_lightning.losses import CrossEntropyLoss, EntropyBonusLoss, FocalLoss, GEMLoss, LambdaPRLoss, TOFULoss
from ts2_lightning.ops import LogitRows
from ts2_lightning.types import Targets

GAMMAS = st.sampled_from([0.0, 0.5, 1.0, 3.0])
BETAS = st.sampled_from([0.3, 0.7, 0.8, 1.0])


def tempered_cross_entropy(z: Tensor, y: int, beta: float) -> Tensor:
    """L_CE^beta = -beta log softmax(z / beta)_y of theorem 3.1, [] differentiable."""
    return -beta * (z / beta).log_softmax(-1)[0, y]


def focal_factor(p: float, gamma: float) -> float:
    """g(p, gamma) of proposition 3.2, for p < 1."""
    return (1 - p) ** gamma - gamma * p * (1 - p) ** (gamma - 1) * math.log(p)


def gold_probability(z: Tensor, y: int) -> float:
    return z.softmax(-1)[0, y].item()


@holds
@given(tokens(), BETAS)
def test_theorem_3_1(token: tuple[Tensor, int], beta: float) -> None:
    """Theorem 3.1: the gradient of GEM (h linear) is that of beta times cross-entropy at temperature beta.

    With respect to the logits, and so to any parameters.
    """
    z, y = token
    z = z.requires_grad_()
    wanted = by_autograd(tempered_cross_entropy(z, y, beta), z)
    assert_equal(gradient_of(GEMLoss(beta=beta), z.detach(), y), wanted)


@holds
@given(tokens(), BETAS)
def test_theorem_3_1_does_not_hold_for_the_values(token: tuple[Tensor, int], beta: float) -> None:
    """GEM's value is lower by beta H(q), q = softmax(z / beta): "equivalent" is true of the gradients only.

    At beta 1 it has cross-entropy's gradient, and the value CE - H(p): it falls below zero once the gold token leads.
    """
    z, y = token
    q = (z / beta).softmax(-1)
    entropy = -(q * (z / beta).log_softmax(-1)).sum()
    assert_equal(value_of(GEMLoss(beta=beta), z, y), tempered_cross_entropy(z, y, beta) - beta * entropy, 1e-11)


def test_theorem_3_1_counterexample_to_equal_values() -> None:
    """z = (0, 0), y = 0, beta 1: cross-entropy is log 2, GEM is 0. Both gradients are (-1/2, 1/2)."""
    z = row([0.0, 0.0])
    assert_equal(value_of(CrossEntropyLoss(), z, 0), math.log(2))
    assert value_of(GEMLoss(beta=1.0), z, 0) == 0
    assert (
        gradient_of(GEMLoss(beta=1.0), z, 0).tolist() == gradient_of(CrossEntropyLoss(), z, 0).tolist() == [[-0.5, 0.5]]
    )


@holds
@given(tokens(), GAMMAS)
def test_proposition_3_2(token: tuple[Tensor, int], gamma: float) -> None:
    """Proposition 3.2: the focal gradient is g(p_y, gamma) times that of cross-entropy."""
    z, y = token
    factor = focal_factor(gold_probability(z, y), gamma)
    assert_equal(gradient_of(FocalLoss(gamma), z, y), factor * gradient_of(CrossEntropyLoss(), z, y), 1e-9)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0, 5.0])
def test_the_focal_factor_peaks_at_a_small_probability(gamma: float) -> None:
    """Section 3: g starts at 1, rises first (its slope at 0 is infinite), peaks at 0 < p < 1/2, and ends at 0."""
    log_p = torch.linspace(-40, -1e-6, 2000, dtype=torch.float64)
    z = torch.stack([log_p, torch.log(-torch.expm1(log_p))], -1)
    rows = LogitRows(z, torch.zeros(len(z), dtype=torch.long))
    gradients = torch.empty_like(z), torch.empty_like(z)
    for loss, out in zip((FocalLoss(gamma), CrossEntropyLoss()), gradients, strict=True):
        loss.evaluate(rows).term.gradient.write_to(out)
    factor = (gradients[0] / gradients[1])[:, 0]
    peak = log_p[factor.argmax()].exp().item()
    assert_equal(factor[0], 1.0, 1e-9)
    assert factor.max() > 1
    assert 1e-3 < peak < 0.5
    assert factor[-1] < 0.01


@holds
@given(tokens(), GAMMAS, BETAS)
def test_corollary_3_3(token: tuple[Tensor, int], gamma: float, beta: float) -> None:
    """Corollary 3.3: beta times the focal loss at logits z / beta has the gradient g(p^beta_y) (p^beta - e_y)."""
    z, y = token
    tempered = (z / beta).softmax(-1)
    wanted = focal_factor(tempered[0, y].item(), gamma) * (tempered - one_hot(y, z))
    # beta L(z / beta), whose derivative is that of L at z / beta.
    assert_equal(gradient_of(FocalLoss(gamma), z / beta, y), wanted, 1e-9)


@holds
@given(tokens(), GAMMAS, BETAS)
def test_corollary_3_5(token: tuple[Tensor, int], gamma: float, beta: float) -> None:
    """Corollary 3.5: TOFU's gradient is g(p_y) times that of tempered cross-entropy, at the untempered p_y."""
    z, y = token
    factor = focal_factor(gold_probability(z, y), gamma)
    z = z.requires_grad_()
    tempered = tempered_cross_entropy(z, y, beta)
    wanted = factor * by_autograd(tempered, z)
    z = z.detach()
    assert_equal(gradient_of(TOFULoss(gamma, beta), z, y), wanted, 1e-9)
    assert_equal(value_of(TOFULoss(gamma, beta), z, y), factor * tempered.item(), 1e-9)


@holds
@given(tokens(), GAMMAS, BETAS)
def test_what_tofu_merges(token: tuple[Tensor, int], gamma: float, beta: float) -> None:
    """Section 3: at gamma 0 TOFU has GEM's gradient, at beta 1 the focal loss's, at both cross-entropy's."""
    z, y = token
    assert_equal(gradient_of(TOFULoss(0.0, beta), z, y), gradient_of(GEMLoss(beta=beta), z, y))
    assert_equal(gradient_of(TOFULoss(gamma, 1.0), z, y), gradient_of(FocalLoss(gamma), z, y))
    assert_equal(gradient_of(TOFULoss(0.0, 1.0), z, y), gradient_of(CrossEntropyLoss(), z, y))


def test_definition_3_4_needs_the_detached_factor() -> None:
    """Autograd through g as well is another gradient: z = (0, 0), gamma 3, beta 0.8: -0.4725 at y and not -0.1925.

    So TOFU's gradient is not the slope of its own value.
    """
    z = row([0.0, 0.0]).requires_grad_()
    p = z.softmax(-1)[0, 0]
    attached = ((1 - p) ** 3 - 3 * p * (1 - p) ** 2 * p.log()) * tempered_cross_entropy(z, 0, 0.8)
    through = by_autograd(attached, z)[0, 0].item()
    gradient = gradient_of(TOFULoss(3, 0.8), z.detach(), 0)[0, 0].item()
    assert (round(through, 4), round(gradient, 4)) == (-0.4725, -0.1925)
    assert_equal(value_of(TOFULoss(3, 0.8), z.detach(), 0), attached.item())
    step = row([1e-6, 0.0])
    slope = (value_of(TOFULoss(3, 0.8), step, 0) - value_of(TOFULoss(3, 0.8), -step, 0)) / 2e-6
    assert_equal(slope, through, 1e-6)


@holds
@given(tokens())
def test_entropy_in_logits_is_gentle(token: tuple[Tensor, int]) -> None:
    """Equation A.11: dH/dz_j = -p_j (log p_j + H), which vanishes with p_j, though dH/dp_j diverges (equation A.8)."""
    z, y = token
    p, log_p = z.softmax(-1), z.log_softmax(-1)
    entropy = -(p * log_p).sum()
    bonus = gradient_of(EntropyBonusLoss(1.0), z, y) - gradient_of(CrossEntropyLoss(), z, y)
    assert_equal(bonus, p * (log_p + entropy))
    for far in (30.0, 300.0):
        gradient = gradient_of(EntropyBonusLoss(1.0), torch.cat([z, row([-far])], -1), y)
        assert gradient[0, -1].abs() < math.exp(20 - far)


@holds
@given(logits(low=2, high=2), st.integers(1, 40), st.sampled_from([(0.1, 1e-5), (0.9, 0.1), (0.05, 0.5)]))
def test_lambda_pr_is_weighted_cross_entropy(z: Tensor, length: int, setting: tuple[float, float]) -> None:
    """Definition 2.2: a weight in [0, 1] on cross-entropy's gradient, which vanishes with p_y and above delta.

    Section 3 has lambda-PR give a probability of zero the highest weight: by definition 2.2, alpha > 0, it has none.
    """
    lambda_, alpha = setting
    root = lambda_ ** (1 / length)
    delta = alpha * root / (1 - (1 - alpha) * root)
    loss, place = LambdaPRLoss(lambda_, alpha), (torch.tensor([1]), torch.tensor([length]))

    def weight(log_p: float) -> float:
        z = row([log_p, math.log(-math.expm1(log_p))])
        term = loss.evaluate(LogitRows(z, Targets(torch.tensor([0]), None, *place))).term
        out = torch.empty_like(z)
        term.gradient.write_to(out)
        ratio = out / gradient_of(CrossEntropyLoss(), z, 0)
        assert_equal(ratio[0, 0], ratio[0, 1])
        assert_equal(term.value.item(), ratio[0, 0] * -log_p, 1e-9)
        return ratio[0, 0].item()

    p = z.softmax(-1)[0, 0].item()
    assert 0 <= weight(math.log(p)) <= 1
    assert (weight(math.log(p)) == 0) == (p > delta)
    assert weight(-200.0) < 1e-80
    assert weight(math.log(delta) - 1e-9) > weight(math.log(delta) - 1)

"""The statements of the GEM paper, as they are true; and where the printed one is not, a counterexample to it."""

import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests.theory.properties import assert_equal, gradient_of, holds, logits, one_hot, row, tokens, value_of
from ts2_lightning.losses import CrossEntropyLoss, EntropyBonusLoss, GEMLoss, LabelSmoothingLoss, TokenLoss

BETAS = st.sampled_from([0.3, 0.7, 0.9, 1.0])


def flows(weights: Tensor, y: int) -> Tensor:
    """sum_{j != y} w_j (e_y - e_j), [1, K], for weights [1, K]."""
    others = [j for j in range(weights.shape[-1]) if j != y]
    return sum(weights[0, j] * (one_hot(y, weights) - one_hot(j, weights)) for j in others)


def expected_gradient(loss: TokenLoss, z: Tensor, p: Tensor) -> Tensor:
    """E[dL/dz] for a gold token drawn from p [1, K]."""
    return sum(p[0, y] * gradient_of(loss, z, y) for y in range(p.shape[-1]))


@holds
@given(tokens())
def test_proposition_1(token: tuple[Tensor, int]) -> None:
    """Proposition 1: cross-entropy moves p_j from every other token j to the gold token, and nothing gets lost."""
    z, y = token
    step = -gradient_of(CrossEntropyLoss(), z, y)
    p = z.softmax(-1)
    assert_equal(step, flows(p, y))
    assert_equal(step[0, y], p.sum() - p[0, y])


def test_proposition_1_counterexample_to_the_printed_example() -> None:
    """f = (0.4, 0.3, 0.2, 0.1), label 3: the flow from token 1 is 0.4 (-1, 0, 1, 0), not the paper's 0.4 (-1, 0, 0, 1).

    The printed sum is (-0.4, -0.3, 0.4, 0.3) and not (-0.4, -0.3, 0.8, -0.1).
    """
    f = row([0.4, 0.3, 0.2, 0.1])
    step = -gradient_of(CrossEntropyLoss(), f.log(), 2)
    assert_equal(step, row([-0.4, -0.3, 0.8, -0.1]))
    printed = 0.4 * row([-1, 0, 0, 1]) + 0.3 * row([0, -1, 1, 0]) + 0.1 * row([0, 0, 1, -1])
    assert_equal(printed, row([-0.4, -0.3, 0.4, 0.3]))
    assert_equal(flows(f, 2), step)


@holds
@given(tokens(), BETAS)
def test_equation_5(token: tuple[Tensor, int], beta: float) -> None:
    """Equation 5: GEM moves q_j = softmax(z / beta)_j from token j to the gold token."""
    z, y = token
    assert_equal(-gradient_of(GEMLoss(beta=beta), z, y), flows((z / beta).softmax(-1), y))


@holds
@given(logits(), logits(low=12), BETAS)
def test_equation_6(z: Tensor, other: Tensor, beta: float) -> None:
    """Equation 6: q = softmax(log f / beta) maximises E_q[log f] + beta H(q) over the simplex; equation 4."""
    log_f = z.log_softmax(-1)

    def payoff(q: Tensor) -> float:
        return (q * log_f).sum().item() - beta * torch.special.xlogy(q, q).sum().item()

    best = payoff((log_f / beta).softmax(-1))
    rivals = [other[:, : z.shape[-1]].softmax(-1), log_f.exp(), *torch.eye(z.shape[-1], dtype=z.dtype)[:, None]]
    assert all(payoff(q) <= best + 1e-12 for q in rivals)


@holds
@given(logits(bound=3.0), BETAS)
def test_proposition_2_equilibrium(log_p: Tensor, beta: float) -> None:
    """Proposition 2: f = softmax(beta log p), and only it, has no gradient in expectation over p; there q = p."""
    p = log_p.softmax(-1)
    z = beta * p.log()
    assert_equal((z / beta).softmax(-1), p)
    assert_equal(expected_gradient(GEMLoss(beta=beta), z, p), torch.zeros_like(z))
    moved = z + one_hot(0, z)
    assert expected_gradient(GEMLoss(beta=beta), moved, p).abs().max() > 1e-4


@holds
@given(logits(bound=3.0), logits(low=12, bound=3.0), st.floats(0, 2))
def test_propositions_2_and_3_reverse_kl(log_p: Tensor, other: Tensor, gamma: float) -> None:
    """Propositions 2 and 3: f = softmax(beta log p) with 1/beta = gamma + 1 minimises KL(f, p) - gamma H(f)."""
    p = log_p.softmax(-1)

    def cost(log_f: Tensor) -> float:
        return (log_f.exp() * ((1 + gamma) * log_f - p.log())).sum().item()

    best = cost((p.log() / (1 + gamma)).log_softmax(-1))
    rivals = (other[:, : p.shape[-1]], p.log(), 0.5 * p.log(), torch.zeros_like(p))
    assert all(best <= cost(rival.log_softmax(-1)) + 1e-12 for rival in rivals)


@holds
@given(logits(bound=3.0))
def test_cross_entropy_equilibrium(log_p: Tensor) -> None:
    """At beta 1 the equilibrium is p itself, cross-entropy's; and label smoothing's is p mixed with the uniform."""
    p = log_p.softmax(-1)
    assert_equal(expected_gradient(CrossEntropyLoss(), p.log(), p), torch.zeros_like(p))
    assert_equal(expected_gradient(GEMLoss(beta=1.0), p.log(), p), torch.zeros_like(p))
    mixed = 0.8 * p + 0.2 / p.shape[-1]
    assert_equal(expected_gradient(LabelSmoothingLoss(0.2), mixed.log(), p), torch.zeros_like(p))


# -- the limits of beta


@holds
@given(tokens())
def test_beta_1_has_the_gradient_of_cross_entropy(token: tuple[Tensor, int]) -> None:
    """Section 5.1: at beta 1 "q becomes identical to f, reducing to the CE formulation", in the gradient.

    The value is another one, CE - H(p).
    """
    z, y = token
    assert_equal(gradient_of(GEMLoss(beta=1.0), z, y), gradient_of(CrossEntropyLoss(), z, y))
    p = z.softmax(-1)
    entropy = -(p * z.log_softmax(-1)).sum()
    assert_equal(value_of(GEMLoss(beta=1.0), z, y), value_of(CrossEntropyLoss(), z, y) - entropy, 1e-11)


@holds
@given(tokens(), st.sampled_from(["linear", "logsigmoid"]))
def test_beta_towards_0(token: tuple[Tensor, int], h: str) -> None:
    """Section 4: as beta tends to 0, updates stop where the gold token leads, and else take from the argmax alone.

    The gradient tends to e_argmax - e_y, and to zero where the gold token leads strictly; tied leaders share it. With
    h = log sigmoid it is multiplied by sigmoid(0.01 (max z - z_y)).
    """
    z, y = token
    leaders = (z == z.max()).double()
    wanted = leaders / leaders.sum() - one_hot(y, z)
    if h == "logsigmoid":
        weight = torch.sigmoid(0.01 * (z - z[0, y]))
        wanted = leaders / leaders.sum() * weight
        wanted = wanted - wanted.sum() * one_hot(y, z)
    gradient = gradient_of(GEMLoss(beta=4e-4, h=h), z, y)  # the next logit is at least 1/64 lower: exp(-39) of the mass
    assert_equal(gradient, wanted)
    if z[0, y] == z.max() and leaders.sum() == 1:
        assert gradient.abs().max() < 1e-12


@holds
@given(tokens(low=3))
def test_a_smaller_beta_spares_the_improbable(token: tuple[Tensor, int]) -> None:
    """Section 5.1 and appendix D.4: for beta < 1, q_j <= f_j of the least probable token: less is taken from it."""
    z, y = token
    last = int(z.argmin())
    assume(last != y)
    f = z.softmax(-1)[0, last]
    taken = [gradient_of(GEMLoss(beta=beta), z, y)[0, last] for beta in (0.3, 0.7, 1.0)]
    assert taken[0] <= taken[1] * (1 + 1e-9) <= taken[2] * (1 + 1e-9) ** 2
    assert_equal(taken[2], f)


# -- appendix D.4: cross-entropy with an entropy bonus


@holds
@given(tokens(), st.sampled_from([0.1, 0.5, 2.0]))
def test_the_entropy_bonus_lifts_the_tail(token: tuple[Tensor, int], gamma: float) -> None:
    """Appendix D.4: a step raises the logit of another token j exactly where log p_j < -H - 1/gamma: in the far tail.

    And it is the same p_j for all of it: the step is p_j (1 + gamma (log p_j + H)) at most, small where p_j is.
    """
    z, y = token
    log_p = z.log_softmax(-1)[0]
    entropy = -(log_p.exp() * log_p).sum()
    gradient = gradient_of(EntropyBonusLoss(gamma), z, y)[0]
    for j in range(len(log_p)):
        distance = (log_p[j] + entropy + 1 / gamma).item()
        if j != y and abs(distance) > 1e-9:
            assert (gradient[j] < 0) == (distance < 0)
            assert_equal(gradient[j], log_p[j].exp() * gamma * distance)


def test_the_entropy_bonus_is_not_strongest_on_the_least_probable() -> None:
    """Appendix D.4 argues in probabilities, where the entropy's slope -(1 + log f) grows without bound as f falls.

    Of the logits it is -p (log p + H), which falls to zero: at p = (1 - 2e-3 - 2e-9, 2e-3, 2e-9) a step of the bonus
    lifts the second token by 0.012 and the third by 4e-8 (times gamma).
    """
    z = row([1 - 2e-3 - 2e-9, 2e-3, 2e-9]).log()
    lift = gradient_of(CrossEntropyLoss(), z, 0) - gradient_of(EntropyBonusLoss(1.0), z, 0)
    assert [float(f"{x:.2g}") for x in lift[0, 1:].tolist()] == [0.012, 4e-08]
    assert math.isclose(lift.sum().item(), 0, abs_tol=1e-15)

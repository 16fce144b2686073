"""The statements of the TS2 paper, as they are true; and where the printed one is not, a counterexample to it."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests.theory.properties import (
    GRID,
    assert_equal,
    by_autograd,
    gradient_of,
    holds,
    leading_tokens,
    logits,
    one_hot,
    row,
    sparsemax,
    tokens,
    value_of,
)
from ts2_lightning.losses import (
    CrossEntropyLoss,
    EntmaxLoss,
    ExponentialInflationLoss,
    FenchelYoungPlusLoss,
    LogarithmicInflationLoss,
    PowerInflationLoss,
    SparsemaxLoss,
    SuppressionOnlyLoss,
    TS2Loss,
)
from ts2_lightning.ops import LogitRows

# -- definition 1 and its corollaries


def plausible_set(p: list[float], y: int, m: int) -> set[int]:
    """Definition 1: Top_m(p) if the gold token is in it, else Top_{m-1}(p) and the gold token."""
    order = sorted(range(len(p)), key=lambda j: -p[j])
    return set(order[:m]) if y in order[:m] else {*order[: m - 1], y}


def satisfies_tspd(p: list[float], y: int, m: int, head: float, tail: float, slack: float = 1e-12) -> bool:
    """Definition 1, equations 1a and 1b."""
    kept = plausible_set(p, y, m)
    outside = math.fsum(p[j] for j in range(len(p)) if j not in kept)
    return min(p[j] for j in kept) >= head - slack and outside <= tail + slack


@holds
@given(tokens(low=3), st.integers(2, 5))
def test_corollary_1(token: tuple[Tensor, int], m: int) -> None:
    """Corollary 1: where TSPD holds with eps_tail < eps_head, every plausible token beats every other one."""
    z, y = token
    p = z.softmax(-1)[0].tolist()
    assume(m < len(p))
    kept = plausible_set(p, y, m)
    inside, outside = [p[j] for j in kept], [p[j] for j in range(len(p)) if j not in kept]
    head, tail = min(inside), math.fsum(outside)  # the strictest thresholds that hold
    assert satisfies_tspd(p, y, m, head, tail)
    if tail < head:
        assert max(outside) <= tail < head <= min(inside)


@holds
@given(st.integers(2, 12), st.integers(2, 6), st.floats(1e-9, 1))
def test_corollary_2(k: int, m: int, head: float) -> None:
    """Corollary 2: a distribution that has collapsed onto the gold token satisfies TSPD for no thresholds."""
    assume(m <= k)
    for y in range(k):
        p = one_hot(y, torch.zeros(1, k, dtype=torch.float64))[0].tolist()
        assert not satisfies_tspd(p, y, m, head / m, 1.0, slack=0.0)


# -- lemma 3


@holds
@given(logits())
def test_lemma_3_of_the_jacobian(z: Tensor) -> None:
    """Lemma 3: the Jacobian of sparsemax is diag(s) - s s^T / |S|, with s the indicator of the support S.

    So no loss of sparsemax(z) has a gradient outside S, whether or not the gold token is inside.
    """
    p = sparsemax(z)[0]
    inside = (p > 0).double()
    tau = (z[0] * inside).sum() / inside.sum() - 1 / inside.sum()
    step = 1e-5
    assume((z[0] - tau).abs().min() > 2 * step)  # at a threshold the projection has no derivative
    shifted = z + step * torch.eye(z.shape[-1], dtype=z.dtype), z - step * torch.eye(z.shape[-1], dtype=z.dtype)
    jacobian = (sparsemax(shifted[0]) - sparsemax(shifted[1])) / (2 * step)
    assert_equal(jacobian, inside.diag() - torch.outer(inside, inside) / inside.sum(), 1e-9)
    assert (jacobian[inside == 0] == 0).all()
    assert (jacobian[:, inside == 0] == 0).all()


@holds
@given(tokens())
def test_lemma_3_of_the_loss(token: tuple[Tensor, int]) -> None:
    """Lemma 3: the sparsemax loss has no gradient outside the support, but at a gold token that is outside: -1.

    The paper asks for the gold token inside the support; the other tokens outside have none in any case.
    """
    z, y = token
    p, gradient = sparsemax(z)[0], gradient_of(SparsemaxLoss(), z, y)[0]
    outside = p == 0
    if outside[y]:
        assert gradient[y] == -1
        outside[y] = False
    assert (gradient[outside] == 0).all()


def test_lemma_3_counterexample_to_its_proof() -> None:
    """The proof takes p - e_y for the gradient of any loss of sparsemax(z), which only the Fenchel-Young loss has.

    1/2 |sparsemax(z) - e_y|^2 at z = (2, 0), y = 1: p - e_y = (1, -1), and its gradient J (p - e_y) = (0, 0): a gold
    token outside the support is never learnt.
    """
    z = row([2.0, 0.0])
    assert gradient_of(SparsemaxLoss(), z, 1).tolist() == [[1, -1]]
    step = 1e-3 * torch.eye(2, dtype=torch.float64)
    squared = [((sparsemax(z + s) - one_hot(1, z)) ** 2).sum(-1) / 2 for s in (step, -step)]
    assert (squared[0] == squared[1]).all()


# -- theorem 4


def softmax_gap_rate(z: Tensor, i: int, j: int, share: float) -> float:
    """d(p_i - p_j)/du of softmax where z_i rises by share * u and z_j falls by (1 - share) * u."""
    direction = share * one_hot(i, z) - (1 - share) * one_hot(j, z)
    _, rate = torch.func.jvp(lambda x: x.softmax(-1)[0, i] - x.softmax(-1)[0, j], (z,), (direction,))
    return rate.item()


@st.composite
def pairs_in_support(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    """Logits near each other, and two tokens well inside the support of sparsemax."""
    z = draw(logits(bound=1.0))
    inside = (sparsemax(z)[0] > 1e-2).nonzero()[:, 0].tolist()
    assume(len(inside) >= 2)
    i, j = draw(st.permutations(inside))[:2]
    return z, i, j


@holds
@given(pairs_in_support(), st.floats(0, 1))
def test_theorem_4_sparsemax(pair: tuple[Tensor, int, int], share: float) -> None:
    """Theorem 4: inside the support d(p_i - p_j)/d(z_i - z_j) is 1 for sparsemax, whichever of the two logits moves."""
    z, i, j = pair
    step = 1e-4
    direction = step * (share * one_hot(i, z) - (1 - share) * one_hot(j, z))
    up, down = sparsemax(z + direction)[0], sparsemax(z - direction)[0]
    assert_equal(((up[i] - up[j]) - (down[i] - down[j])) / (2 * step), 1.0, 1e-9)


@holds
@given(tokens(), st.integers(0, 11), st.floats(0, 1))
def test_theorem_4_softmax(token: tuple[Tensor, int], j: int, share: float) -> None:
    """Theorem 4: for softmax it is (p_i + p_j - (p_i - p_j)^2) / 2 when each logit moves by half of the change.

    That is half of the paper's expression. It is at most 1/2, whichever of the two logits moves.
    """
    z, i = token
    assume(i != j and j < z.shape[-1])
    p_i, p_j = z.softmax(-1)[0, [i, j]].tolist()
    assert_equal(softmax_gap_rate(z, i, j, 0.5), (p_i + p_j - (p_i - p_j) ** 2) / 2)
    assert softmax_gap_rate(z, i, j, share) <= 0.5 + 1e-12


def test_theorem_4_counterexample_to_the_printed_expression() -> None:
    """p_i + p_j - (p_i - p_j)^2 is 1 at K = 2, z = (0, 0), where the paper has < 1; the derivative is 1/2.

    The paper moves z_i up and z_j down by u each, so that their gap changes by 2u: by that measure sparsemax has 2.
    """
    z = row([0.0, 0.0])
    p_i, p_j = z.softmax(-1)[0].tolist()
    assert p_i + p_j - (p_i - p_j) ** 2 == 1.0
    assert softmax_gap_rate(z, 0, 1, 0.5) == 0.5
    step = 1e-3 * (one_hot(0, z) - one_hot(1, z))
    up, down = sparsemax(z + step)[0], sparsemax(z - step)[0]
    assert_equal(((up[0] - up[1]) - (down[0] - down[1])) / 2e-3, 2.0, 1e-9)


# -- corollary 5, remarks 1 and 2, proposition 6


@st.composite
def one_hot_rows(draw: st.DrawFn) -> tuple[Tensor, int, float, float]:
    """Sorted logits whose first leads by gamma >= 1; m; gamma; and a bound B of the lead over the m-th token."""
    gamma = draw(st.integers(GRID, 3 * GRID)) / GRID
    leads = draw(st.lists(st.integers(0, 4 * GRID), min_size=2, max_size=12))
    z = row(sorted([0.0] + [-gamma - lead / GRID for lead in leads], reverse=True))
    m = draw(st.integers(2, z.shape[-1] - 1))
    slack = draw(st.integers(0, 2 * GRID)) / GRID
    return z, m, gamma, -z[0, m - 1].item() + slack


@holds
@given(one_hot_rows())
def test_remark_2(case: tuple[Tensor, int, float, float]) -> None:
    """Remark 2: where sparsemax is one-hot at y, softmax keeps a head and bounds the tail, and satisfies TSPD.

    p_y >= 1/A_m, p_(k) >= e^-B/A_m for k <= m, sum_{k>m} p_(k) <= (K-m) e^-gamma / Omega_min.
    """
    z, m, gamma, bound = case
    K, p = z.shape[-1], z.softmax(-1)[0]
    a_m = m + (K - m) * math.exp(-gamma)
    omega_min = 1 + (m - 1) * math.exp(-bound) + (K - m) * math.exp(-gamma)
    head, tail = math.exp(-bound) / a_m, (K - m) * math.exp(-gamma) / omega_min
    assert sparsemax(z)[0].tolist() == [1.0] + [0.0] * (K - 1)
    assert p[0] >= 1 / a_m - 1e-12
    assert (p[1:m] >= head - 1e-12).all()
    assert p[m:].sum() <= tail + 1e-12
    assert 0 < head <= 1 / m
    assert tail <= 1 - m * head  # so there are thresholds between
    assert satisfies_tspd(p.tolist(), 0, m, head, tail)


@holds
@given(one_hot_rows())
def test_remark_2_sharpened(case: tuple[Tensor, int, float, float]) -> None:
    """The best bounds, for any B: p_y >= 1/Omega and the tail <= (K-m) e^-gamma / Omega, Omega = 1 + (K-1) e^-gamma.

    The head is no smaller than the tail, and no larger than e^-gamma, which the paper's A_m and Omega_min do not use.
    """
    z, m, gamma, bound = case
    K, p = z.shape[-1], z.softmax(-1)[0]
    total = 1 + (K - 1) * math.exp(-gamma)
    tail = (K - m) * math.exp(-gamma) / total
    assert p[0] >= 1 / total - 1e-12
    assert p[m:].sum() <= tail + 1e-12
    reached = row([0.0] + [-gamma] * (K - 1)).softmax(-1)[0]
    assert_equal(reached[0], 1 / total)
    assert_equal(reached[m:].sum(), tail)
    assert total <= m + (K - m) * math.exp(-gamma)
    assert tail <= (K - m) * math.exp(-gamma) / (1 + (m - 1) * math.exp(-bound) + (K - m) * math.exp(-gamma)) + 1e-12


@pytest.mark.parametrize(("k", "m", "gamma"), [(3, 2, 1.0), (10, 2, 1.0), (1000, 5, 2.0)])
def test_corollary_5_counterexample_to_its_tail_bound(k: int, m: int, gamma: float) -> None:
    """Corollary 5 bounds the tail by (K-m) e^-gamma / A_m: false with all other logits at -gamma.

    Its A_m is an upper bound of the normaliser, where a lower one is needed. K 10, m 2, gamma 1: 0.683 against 0.595.
    """
    z = row([0.0] + [-gamma] * (k - 1))
    printed = (k - m) * math.exp(-gamma) / (m + (k - m) * math.exp(-gamma))
    tail = z.softmax(-1)[0, m:].sum().item()
    assert value_of(SparsemaxLoss(), z, 0) == 0  # the assumption holds
    assert tail > printed
    if (k, m) == (10, 2):
        assert (round(tail, 3), round(printed, 3)) == (0.683, 0.595)


def test_corollary_5_counterexample_to_its_assumption() -> None:
    """Sparsemax is one-hot iff the lead is at least 1: "one-hot, i.e. gamma > 0" is false below, as at z = (1/2, 0)."""
    assert sparsemax(row([0.5, 0.0])).tolist() == [[0.75, 0.25]]
    assert sparsemax(row([1.0, 0.0])).tolist() == [[1.0, 0.0]]


@holds
@given(st.integers(3, 60), st.integers(2, 8), st.integers(GRID, 3 * GRID))
def test_proposition_6(k: int, m: int, steps: int) -> None:
    """Proposition 6: remark 2's tail bound is reached, at B = gamma; it grows with K and tends to 1."""
    assume(m < k)
    gamma = steps / GRID
    z = row([0.0] + [-gamma] * (k - 1))

    def bound(k: int) -> float:
        return (k - m) * math.exp(-gamma) / (1 + (m - 1) * math.exp(-gamma) + (k - m) * math.exp(-gamma))

    assert_equal(z.softmax(-1)[0, m:].sum(), bound(k))
    assert all(a < b for a, b in pairwise(bound(k) for k in range(m, 100)))
    assert bound(10**9) > 1 - 1e-6


def test_proposition_6_counterexample_at_a_larger_bound() -> None:
    """With B > gamma the paper's configuration has its "head" below its tail, so that it is not the head.

    K 4, m 2, gamma 1, B 3: z = (0, -3, -1, -1) has the tail 0.234, remark 2 bounds it by 0.412, and no tail exceeds
    0.350 (see `test_remark_2_sharpened`).
    """
    p = row([0.0, -3.0, -1.0, -1.0]).softmax(-1)[0].sort(descending=True).values
    remark_2 = 2 * math.exp(-1) / (1 + math.exp(-3) + 2 * math.exp(-1))
    sharp = 2 * math.exp(-1) / (1 + 3 * math.exp(-1))
    assert [round(x, 3) for x in (p[2:].sum().item(), remark_2, sharp)] == [0.234, 0.412, 0.350]


@holds
@given(st.integers(3, 10), st.floats(1, 30))
def test_remark_1(k: int, lead: float) -> None:
    """Remark 1: without the bound B the head has no floor, even where sparsemax is one-hot."""
    z = row([0.0] + [-lead] * (k - 1))
    assert value_of(SparsemaxLoss(), z, 0) == 0
    assert z.softmax(-1)[0, 1] <= math.exp(-lead)


# -- the losses: equations 3 and 4, remark 3, early stopping


@holds
@given(tokens(bound=2.0))
def test_equation_3(token: tuple[Tensor, int]) -> None:
    """Equation 3 with Pi(p) = 1/2 sum p_i (p_i - 1) is the sparsemax loss, and sparsemax(z) its maximiser.

    The paper prints 1/2 sum p_i (1 - p_i), which is the Gini entropy itself and not its negative.
    """
    z, y = token

    def pi(p: Tensor) -> Tensor:
        return (p * (p - 1)).sum() / 2

    p, gold = sparsemax(z), one_hot(y, z)
    loss = pi(gold) - pi(p) + (z * (p - gold)).sum()
    assert_equal(value_of(SparsemaxLoss(), z, y), loss)
    others = torch.cat([torch.eye(z.shape[-1], dtype=z.dtype), z.softmax(-1), (3 * z).softmax(-1)])
    assert all((z * q).sum() - pi(q) <= (z * p).sum() - pi(p) + 1e-12 for q in others)


def test_equation_3_counterexample_to_the_printed_regulariser() -> None:
    """Pi(p) = 1/2 sum p_i (1 - p_i) at z = (1/2, 0), y = 0 makes equation 3 -5/16; the sparsemax loss is 1/16."""
    z = row([0.5, 0.0])
    p = sparsemax(z)
    printed = -(p * (1 - p)).sum() / 2 + (z * (p - one_hot(0, z))).sum()
    assert_equal(printed, -5 / 16)
    assert_equal(value_of(SparsemaxLoss(), z, 0), 1 / 16)


def test_equation_4_counterexample_without_the_constant() -> None:
    """Equation 4 drops the 1/2 of the sparsemax loss: at z = (3, 0), y = 0 and alpha 0 it is -1/2, not 0."""
    z, tau = row([3.0, 0.0]), 2.0
    printed = -z[0, 0] + (z[0, 0] ** 2 - tau**2) / 2
    assert printed.item() == -0.5
    assert value_of(TS2Loss(alpha=0), z, 0) == 0


@holds
@given(tokens())
def test_remark_3(token: tuple[Tensor, int]) -> None:
    """Remark 3: suppression is the cross-entropy of the merged class S; of S = {y} it is the cross-entropy."""
    z, y = token
    kept = (sparsemax(z)[0] > 0) | (one_hot(y, z)[0] > 0)
    suppression = value_of(SuppressionOnlyLoss(alpha=1), z, y) - value_of(CrossEntropyLoss(), z, y)
    assert_equal(suppression, -z.softmax(-1)[0, kept].sum().log(), 1e-10)


@st.composite
def stopped(draw: st.DrawFn) -> tuple[Tensor, int, float, float]:
    """Logits whose gold token leads by 1/c at least, the gold token, c, and alpha."""
    z, y = draw(leading_tokens())
    c = draw(st.sampled_from([0.5, 1.0, 2.0]))
    z = z + one_hot(y, z) * (1 / c)
    return z, y, c, draw(st.sampled_from([0.0, 0.25, 5.0]))


@holds
@given(stopped())
def test_what_is_left_of_ts2(case: tuple[Tensor, int, float, float]) -> None:
    """Once the gold token leads by 1/c, TS2 is alpha times cross-entropy at logits c z, in value and gradient.

    The sparsemax part has stopped, the suppression never does, but with the adaptive weight.
    """
    z, y, c, alpha = case
    ce, ce_gradient = value_of(CrossEntropyLoss(), c * z, y), gradient_of(CrossEntropyLoss(), c * z, y)
    loss = TS2Loss(alpha=alpha, logit_scale=c)
    assert_equal(value_of(loss, z, y), alpha * ce)
    assert_equal(gradient_of(loss, z, y), c * alpha * ce_gradient)
    adaptive = TS2Loss(alpha=alpha, logit_scale=c, adaptive=True)
    assert value_of(adaptive, z, y) == 0
    assert (gradient_of(adaptive, z, y) == 0).all()


@holds
@given(leading_tokens(), st.sampled_from([1.25, 1.5, 1.75, 2.0]))
def test_what_is_left_of_entmax_plus(token: tuple[Tensor, int], alpha: float) -> None:
    """The same of alpha-entmax, once the gold token leads by 1 / (alpha - 1); and the bare loss stops there."""
    z, y = token
    z = z + one_hot(y, z) * (1 / (alpha - 1))
    assert_equal(value_of(EntmaxLoss(alpha), z, y), 0.0)
    assert_equal(gradient_of(EntmaxLoss(alpha), z, y), torch.zeros_like(z))
    loss = FenchelYoungPlusLoss(EntmaxLoss(alpha), alpha=0.5)
    assert_equal(value_of(loss, z, y), 0.5 * value_of(CrossEntropyLoss(), z, y))
    assert_equal(gradient_of(loss, z, y), 0.5 * gradient_of(CrossEntropyLoss(), z, y))


@holds
@given(tokens())
def test_a_vanishing_gradient_means_a_lead(token: tuple[Tensor, int]) -> None:
    """Section 4: where the gradient of the sparsemax loss vanishes, sparsemax(z)_y = 1: the gold token leads by 1."""
    z, y = token
    lead = z[0, y] - z[0, [j for j in range(z.shape[-1]) if j != y]].max()
    stopped = (gradient_of(SparsemaxLoss(), z, y).abs() < 1e-12).all().item()
    assert stopped == (lead >= 1).item()
    assert stopped == (sparsemax(z)[0, y] > 1 - 1e-12).item()


# -- appendix E: inflation


@holds
@given(leading_tokens(), st.sampled_from([1.25, 2.0, 4.0]))
def test_proposition_7(token: tuple[Tensor, int], a: float) -> None:
    """Proposition 7: f(x) = x^a with a > 1 and y the argmax leave a smaller residual in the inflated distribution.

    The residual is 1 - exp(-L) for L the loss, so that the statement is: the inflated loss is below cross-entropy,
    strictly where the gold token leads any other strictly.
    """
    z, y = token
    inflated, plain = value_of(PowerInflationLoss(a), z, y), value_of(CrossEntropyLoss(), z, y)
    if (z < z[0, y]).any():
        assert inflated < plain
    else:
        assert_equal(inflated, plain)


@holds
@given(leading_tokens(bound=1.0), st.floats(1, 4))
def test_proposition_7_for_exponential_inflation(token: tuple[Tensor, int], factor: float) -> None:
    """exp(gamma x) amplifies ratios of probabilities of at least 1/gamma: from there on gamma x - log x grows."""
    z, y = token
    gamma = factor / z.softmax(-1).min().item()
    inflated, plain = value_of(ExponentialInflationLoss(gamma), z, y), value_of(CrossEntropyLoss(), z, y)
    assert inflated <= plain + 1e-12
    if (z < z[0, y]).any() and factor > 1.1:
        assert inflated < plain


@holds
@given(leading_tokens(), st.sampled_from([0.01, 0.1, 1.0]))
def test_proposition_7_is_reversed_for_logarithmic_inflation(token: tuple[Tensor, int], delta: float) -> None:
    """log(x + delta) - log(delta) is concave and zero at zero, so that it contracts every ratio and amplifies none."""
    z, y = token
    inflated, plain = value_of(LogarithmicInflationLoss(delta), z, y), value_of(CrossEntropyLoss(), z, y)
    assert inflated >= plain - 1e-12
    if (z < z[0, y]).any():
        assert inflated > plain


def residuals(loss: object, p: list[float], y: int) -> tuple[float, float]:
    """The residual of the softmax, which is p, and of the inflated distribution; rounded."""
    z = row(p).log()
    return tuple(round(1 - math.exp(-value_of(x, z, y)), 4) for x in (CrossEntropyLoss(), loss))


def test_proposition_7_counterexamples() -> None:
    """The inflated residual is the larger one, for log, for exp, and for a gold token that is not the argmax."""
    assert residuals(LogarithmicInflationLoss(0.01), [0.6, 0.4], 0) == (0.4, 0.4746)
    assert residuals(ExponentialInflationLoss(4.0), [0.99, 0.01], 0) == (0.01, 0.0195)
    assert residuals(ExponentialInflationLoss(4.0), [0.5] + [0.0005] * 1000, 0) == (0.5, 0.9927)
    assert residuals(PowerInflationLoss(2.0), [0.6, 0.4], 1) == (0.6, 0.6923)
    assert residuals(PowerInflationLoss(2.0), [0.5, 0.5], 0) == (0.5, 0.5)  # a tie: not strictly


@holds
@given(st.floats(0.01, 0.99), st.floats(0.01, 0.49), st.sampled_from([1.5, 2.0, 6.0]))
def test_collapse_conditions(p: float, epsilon: float, strength: float) -> None:
    """Appendix E.2, K = 2: the inflated residual is at most eps where p is at least a threshold.

    1 / (1 + (eps / (1 - eps))^(1/a)) for x^a, and 1/2 + log((1 - eps) / eps) / (2 gamma) for exp(gamma x), which can
    lie above 1: then exponential inflation never collapses.
    """
    odds = epsilon / (1 - epsilon)
    z = row([p, 1 - p]).log()
    thresholds = {
        PowerInflationLoss(strength): 1 / (1 + odds ** (1 / strength)),
        ExponentialInflationLoss(strength): 0.5 - math.log(odds) / (2 * strength),
    }
    for loss, threshold in thresholds.items():
        assume(abs(p - threshold) > 1e-9)
        assert (value_of(loss, z, 0) <= -math.log(1 - epsilon)) == (p >= threshold)


def test_section_e3_counterexamples() -> None:
    """Appendix E.3 has |dL/dz_y| / |dL/dz_j| grow under inflation, and with it the pressure on the margin.

    f(x) = x^2, p = (0.6, 0.3, 0.1), y = 0: against the runner-up the ratio falls from 1.33 to 1.11. At K = 2 it is 1
    for any f, since a gradient sums to zero. And the pressure on z_y falls from 0.1 to 0.0244 at p = (0.9, 0.1).
    """

    def ratio(loss: object, p: list[float]) -> float:
        gradient = gradient_of(loss, row(p).log(), 0)[0]
        return round((gradient[0].abs() / gradient[1].abs()).item(), 2)

    assert ratio(CrossEntropyLoss(), [0.6, 0.3, 0.1]) == 1.33
    assert ratio(PowerInflationLoss(2.0), [0.6, 0.3, 0.1]) == 1.11
    assert ratio(CrossEntropyLoss(), [0.9, 0.1]) == ratio(PowerInflationLoss(2.0), [0.9, 0.1]) == 1.0
    z, losses = row([0.9, 0.1]).log(), (CrossEntropyLoss(), PowerInflationLoss(2.0))
    assert [round(-gradient_of(loss, z, 0)[0, 0].item(), 4) for loss in losses] == [0.1, 0.0244]


@holds
@given(tokens(), st.sampled_from([0.5, 1.5, 2.0, 4.0]))
def test_power_inflation_is_a_temperature(token: tuple[Tensor, int], a: float) -> None:
    """x^a turns softmax(z) into softmax(a z): training on it is cross-entropy at temperature 1/a."""
    z, y = token
    assert_equal(value_of(PowerInflationLoss(a), z, y), value_of(CrossEntropyLoss(), a * z, y))
    assert_equal(gradient_of(PowerInflationLoss(a), z, y), a * ((a * z).softmax(-1) - one_hot(y, z)))


@holds
@given(tokens())
def test_gradient_of_inflation(token: tuple[Tensor, int]) -> None:
    """Appendix E.3: the gradient by the chain rule, down to the logits, for f = log(x + delta) - log(delta)."""
    z, y = token
    z = z.requires_grad_()
    f = torch.log1p(z.softmax(-1) / 0.1)
    wanted = by_autograd(-(f[0, y] / f.sum()).log(), z)
    assert_equal(gradient_of(LogarithmicInflationLoss(0.1), z.detach(), y), wanted, 1e-10)


def test_section_e3_counterexample_to_its_chain_rule() -> None:
    """Appendix E.3 prints (d inflated / d p) (inflated - e_y): the softmax's Jacobian is missing, and the loss's slope.

    f(x) = x^2, p = (0.6, 0.4), y = 0: the gradient is 2 (inflated - e_y) = (-0.6154, 0.6154); the printed one is
    (-0.5462, 0.5462), or (-0.4370, 0.6554) with the Jacobian transposed.
    """
    p = row([0.6, 0.4])[0]

    def inflate(p: Tensor) -> Tensor:
        return p**2 / (p**2).sum()

    jacobian, residual = torch.func.jacrev(inflate)(p), inflate(p) - row([1.0, 0.0])[0]
    gradient = gradient_of(PowerInflationLoss(2.0), p.log()[None], 0)[0]
    found = [[round(x, 4) for x in v.tolist()] for v in (gradient, jacobian @ residual, jacobian.T @ residual)]
    assert found == [[-0.6154, 0.6154], [-0.5462, 0.5462], [-0.437, 0.6554]]


# -- theorem 8


@holds
@given(leading_tokens(bound=2.0))
def test_theorem_8(token: tuple[Tensor, int]) -> None:
    """Theorem 8: sparsemax(z) = max(log p - theta, 0) for p = softmax(z), theta = tau - logsumexp(z).

    Inside the support it amplifies every ratio, since log x - x grows on (0, 1]; outside it is zero. So its residual is
    below that of softmax wherever the gold token leads another one strictly, as in proposition 7.
    """
    z, y = token
    found = LogitRows(z, torch.tensor([y])).sparsemax
    theta = found.threshold + z.amax(-1) - z.logsumexp(-1)
    p, sparse = z.softmax(-1)[0], sparsemax(z)[0]
    assert_equal((p.log() - theta).clamp(min=0), sparse)
    inside = (sparse > 1e-9).nonzero()[:, 0].tolist()
    for i in inside:
        for j in inside:
            if p[i] > p[j] * (1 + 1e-9):
                assert sparse[i] / sparse[j] > p[i] / p[j]
                assert sparse[i].log() - sparse[i] > sparse[j].log() - sparse[j]
    if (z < z[0, y]).any():
        assert 1 - sparse[y] < 1 - p[y]


def test_theorem_8_counterexample_for_another_theta() -> None:
    """The theorem says "for all theta": at z = (1/2, 0) theta = -1.2241 gives (3/4, 1/4), and -2 (0.598, 0.402)."""
    z = row([0.5, 0.0])
    p = z.softmax(-1)

    def inflated(theta: float) -> list[float]:
        f = (p.log() - theta).clamp(min=0)
        return [round(x, 3) for x in (f / f.sum())[0].tolist()]

    theta = -0.25 - z.logsumexp(-1).item()
    assert round(theta, 4) == -1.2241
    assert inflated(theta) == sparsemax(z)[0].tolist() == [0.75, 0.25]
    assert inflated(-2.0) == [0.598, 0.402]

"""Inflation losses: cross-entropy on a distribution f(p) / sum f(p) that is further than p on its way to one-hot."""

import math

import torch
from torch import Tensor

from ts2_lightning.losses.base import DensePart, Gradient, LossResult, SparsePart, Term, TokenLoss
from ts2_lightning.losses.cross_entropy import cross_entropy
from ts2_lightning.ops import LogitRows, SummaryRequest
from ts2_lightning.ranges import POSITIVE, check_number


def inflation(rows: LogitRows, value: Tensor, slopes: DensePart, gold_slope: Tensor) -> Term:
    """The term L = -log( f(p_y) / F ), p = softmax(z), F = sum_j f(p_j), from what f contributes.

    Its gradient is p_j (g_j - sum_k p_k g_k) with g_j = f'(p_j) / F - 1[j = y] f'(p_y) / f(p_y).

    Args:
        rows: n rows of logits.
        value: [n].
        slopes: coefficient times basis is p_j f'(p_j) / F.
        gold_slope: [n] p_y f'(p_y) / f(p_y).
    """
    mean = slopes.coefficient * slopes.matrix.sum(-1) - gold_slope  # sum_k p_k g_k
    dense = (slopes, DensePart(-mean / rows.normalizer, rows.matrix("exponentials")))
    # A share is at most one; rounding can leave the loss a hair below zero.
    return Term(value.clamp(min=0), Gradient(dense=dense, sparse=(SparsePart(rows.gold, -gold_slope),)))


class PowerInflationLoss(TokenLoss):
    """Inflation by f(p) = p^alpha, which is cross-entropy at temperature 1 / alpha.

    For alpha > 1 it amplifies ratios: the inflated distribution collapses before the softmax does, and training slows
    down while the softmax still has alternatives.

    L = -log( p_y^alpha / sum_j p_j^alpha ), p = softmax(z)

    dL/dz = alpha (softmax(alpha z) - e_y)

    Source: TS2, appendix E (power inflation).

    Args:
        alpha: > 0; the paper's propositions need more than 1. It names no value.

    Raises:
        ValueError: `alpha` is out of its range.

    Example:
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        >>> round(PowerInflationLoss(alpha=2).evaluate(rows).term.value.item(), 4)
        0.1429
    """

    def __init__(self, alpha: float = 2.0) -> None:
        check_number("PowerInflationLoss: alpha", alpha, POSITIVE)
        self.alpha = alpha
        self.summary = SummaryRequest(softmax_scale=alpha)

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient."""
        return LossResult(cross_entropy(rows.scaled(self.alpha)).chain(self.alpha), {})


class ExponentialInflationLoss(TokenLoss):
    """Inflation by f(p) = exp(gamma p): a softmax of the probabilities.

    The value never falls below log(1 + (K - 1) exp(-gamma)), since every token has f(p) >= 1; of a masked vocabulary
    (logits of -inf) only the other tokens count.

    L = -log( exp(gamma p_y) / sum_j exp(gamma p_j) ), p = softmax(z)

    dL/dz = gamma p (s - e_y - (sum_k p_k s_k - p_y)), s = softmax(gamma p)

    Source: TS2, appendix E (exponential inflation).

    Args:
        gamma: > 0. The paper names no value.

    Raises:
        ValueError: `gamma` is out of its range.

    Example:
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        >>> round(ExponentialInflationLoss(gamma=4).evaluate(rows).term.value.item(), 4)
        0.2517
    """

    def __init__(self, gamma: float = 4.0) -> None:
        check_number("ExponentialInflationLoss: gamma", gamma, POSITIVE)
        self.gamma = gamma

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient."""
        p_y, scale = rows.gold_probability, self.gamma / rows.normalizer  # the largest probability is 1 / normalizer
        inflated = torch.mul(rows.exponentials, scale[:, None], out=rows.buffer()).sub_(scale[:, None]).exp_()
        inflated.mul_(rows.unmasked)
        total = inflated.sum(-1)
        value = scale - self.gamma * p_y + total.log()
        slopes = DensePart(scale / total, inflated.mul_(rows.exponentials))
        return LossResult(inflation(rows, value, slopes, self.gamma * p_y), {})


class LogarithmicInflationLoss(TokenLoss):
    """Inflation by f(p) = log(p + delta) - log delta.

    It deflates: f is concave and zero at zero, so that ratios shrink, contrary to what the paper's proposition 7 needs,
    and the softmax collapses further than under cross-entropy.

    L = -log( f(p_y) / sum_j f(p_j) ), p = softmax(z), f(p) = log(1 + p / delta)

    dL/dz = p (g - sum_k p_k g_k), g_j = 1 / ((p_j + delta) F) - 1[j = y] / ((p_y + delta) f(p_y)), F = sum_j f(p_j)

    Source: TS2, appendix E (logarithmic inflation).

    Args:
        delta: > 0. The paper names no value.

    Raises:
        ValueError: `delta` is out of its range.

    Example:
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        >>> round(LogarithmicInflationLoss(delta=0.01).evaluate(rows).term.value.item(), 4)
        0.8395
    """

    def __init__(self, delta: float = 0.01) -> None:
        check_number("LogarithmicInflationLoss: delta", delta, POSITIVE)
        self.delta = delta

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient."""
        unit = (self.delta * rows.normalizer)[:, None]
        total = torch.div(rows.exponentials, unit, out=rows.buffer()).log1p_().sum(-1)
        x = rows.gold_probability / self.delta
        # log1p(x) / x tends to 1 where the gold probability underflows; its logarithm does not.
        ratio = torch.where(x > 0, torch.log1p(x) / x.clamp(min=torch.finfo(x.dtype).tiny), 1.0)
        value = total.log() + rows.cross_entropy + math.log(self.delta) - ratio.log()
        shares = torch.add(rows.exponentials, unit, out=rows.buffer())
        slopes = DensePart(1 / total, torch.div(rows.exponentials, shares, out=shares))
        return LossResult(inflation(rows, value, slopes, 1 / ((1 + x) * ratio)), {})

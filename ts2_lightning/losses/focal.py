"""Losses that weigh cross-entropy by the gold probability: focal, TOFU, lambda-PR."""

import torch
from torch import Tensor

from ts2_lightning.losses.base import LossResult, TokenLoss
from ts2_lightning.losses.cross_entropy import cross_entropy
from ts2_lightning.ops import LogitRows, SummaryRequest, widest_float
from ts2_lightning.ranges import NOT_NEGATIVE, POSITIVE, Range, check_number
from ts2_lightning.types import UserError


def focal_weights(rows: LogitRows, gamma: float) -> tuple[Tensor, Tensor]:
    """The factors of the focal loss on the value and on the gradient of cross-entropy.

    (1 - p_y)^gamma and G(p_y) = (1 - p_y)^gamma - gamma p_y (1 - p_y)^(gamma - 1) log p_y, from log-probabilities, so
    that they are finite for every gamma >= 0: 1 and 1 where p_y underflows, 0 and 0 where it is 1 (for gamma = 0 always
    1 and 1).

    Source: TOFU, proposition 3.2.

    Returns:
        Both [n].
    """
    surprise = rows.cross_entropy
    rest = -torch.expm1(-surprise)  # 1 - p_y
    # -log(p_y) / (1 - p_y), which tends to 1 as p_y does.
    steepness = torch.where(rest > 0, surprise / rest.clamp(min=torch.finfo(rest.dtype).tiny), 1.0)
    of_value = rest.pow(gamma)
    return of_value, of_value * (1 + gamma * rows.gold_probability * steepness)


class FocalLoss(TokenLoss):
    """Cross-entropy that turns from tokens already predicted well to those that are not.

    L = -(1 - p_y)^gamma log p_y, p = softmax(z)

    dL/dz = G(p_y) (p - e_y), G(p) = (1 - p)^gamma - gamma p (1 - p)^(gamma - 1) log p

    Source: Lin et al. (2017), equation 4; TOFU, definition 2.3 and proposition 3.2 (gamma 3).

    Args:
        gamma: >= 0; at 0 it is cross-entropy. The literature uses 1 to 5.

    Raises:
        ValueError: `gamma` is out of its range.

    Example:
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        >>> round(FocalLoss(gamma=3).evaluate(rows).term.value.item(), 4)
        0.0153
    """

    summary = SummaryRequest()

    def __init__(self, gamma: float = 3.0) -> None:
        check_number("FocalLoss: gamma", gamma, NOT_NEGATIVE)
        self.gamma = gamma

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient."""
        return LossResult(cross_entropy(rows).reweighted(*focal_weights(rows, self.gamma)), {})


class TOFULoss(TokenLoss):
    """TOFU (tempered focal): GEM's gradient, weighted by the focal loss's.

    Cross-entropy at temperature beta forgets less, as GEM does; the focal factor G, taken from the untempered p_y and
    held constant, turns it to tokens that are not yet predicted.

    L = -G(p_y) beta log softmax(z / beta)_y, G held constant, p = softmax(z)

    dL/dz = G(p_y) (softmax(z / beta) - e_y), G(p) = (1 - p)^gamma - gamma p (1 - p)^(gamma - 1) log p

    Source: TOFU, definition 3.4 and corollary 3.5 (gamma 3, beta 0.8).

    Args:
        gamma: Exponent of the focal factor, >= 0; at 0 the gradient is that of linear GEM.
        beta: temperature, in (0, 1]; at 1 the gradient is that of the focal loss.

    Raises:
        ValueError: a hyper-parameter is out of its range.

    Example:
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        >>> round(TOFULoss(gamma=3, beta=0.8).evaluate(rows).term.value.item(), 4)
        0.0323
    """

    def __init__(self, gamma: float = 3.0, beta: float = 0.8) -> None:
        check_number("TOFULoss: gamma", gamma, NOT_NEGATIVE)
        check_number("TOFULoss: beta", beta, Range(above=0, most=1))
        self.gamma = gamma
        self.beta = beta
        self.summary = SummaryRequest(softmax_scale=1 / beta)

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient."""
        tempered = cross_entropy(rows.scaled(1 / self.beta)).scaled(self.beta).chain(1 / self.beta)
        _, weight = focal_weights(rows, self.gamma)
        return LossResult(tempered.scaled(weight), {})


class LambdaPRLoss(TokenLoss):
    """Cross-entropy weighted by precision and recall: only tokens that are neither too likely nor too unlikely teach.

    The weight falls with the position t in a response of length L, is zero above a gold probability d, and shrinks with
    p_y below alpha. With the paper's settings d is 4e-4 for a response of a hundred tokens: nearly all tokens have no
    gradient. A response is one turn of the assistant; the public code takes the padded length of the batch for L.

    L = -w log p_y, p = softmax(z), w held constant,
    w = lambda^((t - 1) / L) 1[p_y <= d] p_y / (alpha + (1 - alpha) p_y)
    with d = alpha lambda^(1/L) / (1 - (1 - alpha) lambda^(1/L))

    dL/dz = w (p - e_y)

    Source: Verine et al. (2025); TOFU, definition 2.2 and equation 4 (lambda 0.1, alpha 1e-5).

    Args:
        lambda_: the trade-off between quality and diversity, > 0.
        alpha: number in (0, 1]; gold probabilities below it count less.

    Raises:
        ValueError: a hyper-parameter is out of its range, or the tokens came without positions and lengths.

    Example:
        >>> from ts2_lightning.types import Targets
        >>> first = Targets(torch.tensor([0]), positions=torch.tensor([1]), lengths=torch.tensor([100]))
        >>> rows = LogitRows(torch.tensor([[0.0, 9.0]]), first)
        >>> round(LambdaPRLoss().evaluate(rows).term.value.item(), 4)
        8.3255
    """

    summary = SummaryRequest()

    def __init__(self, lambda_: float = 0.1, alpha: float = 1e-5) -> None:
        check_number("LambdaPRLoss: lambda_", lambda_, POSITIVE)
        check_number("LambdaPRLoss: alpha", alpha, Range(above=0, most=1))
        self.lambda_ = lambda_
        self.alpha = alpha

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient."""
        return LossResult(cross_entropy(rows).scaled(self._weight(rows)), {})

    def _weight(self, rows: LogitRows) -> Tensor:
        if rows.positions is None or rows.lengths is None:
            raise UserError(
                "LambdaPRLoss: it needs each token's place in its response, got none; "
                "give the engine Targets with positions and lengths"
            )
        wide = widest_float(rows.logits.device)
        lengths, p = rows.lengths.to(wide), rows.gold_probability.to(wide)
        ratio = self.lambda_ ** (1 / lengths)
        rest = 1 - (1 - self.alpha) * ratio
        limit = torch.where(rest > 0, self.alpha * ratio / rest, torch.inf)
        weight = self.lambda_ ** ((rows.positions - 1) / lengths) * p / (self.alpha + (1 - self.alpha) * p)
        return torch.where(p <= limit, weight, 0.0).to(rows.logits.dtype)

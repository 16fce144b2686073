"""GEM: reverse KL with entropy, as a game that preserves diversity."""

from typing import Literal

import torch

from ts2_lightning.losses.base import DensePart, Gradient, LossResult, SparsePart, Term, TokenLoss
from ts2_lightning.losses.cross_entropy import minus_gold, softmax_part
from ts2_lightning.ops import LogitRows, SummaryRequest
from ts2_lightning.ranges import Range, check_number
from ts2_lightning.types import UserError

SLOPE = 0.01
"""h(x) = log sigmoid(SLOPE x) / SLOPE in the public code, whose derivative at -x is the weight sigmoid(SLOPE x)."""


def gem_linear(rows: LogitRows, beta: float) -> Term:
    """L = sum_j q_j (z_j - z_y), q = softmax(z / beta) held constant, with gradient q - e_y."""
    tempered = rows.scaled(1 / beta)
    value = beta * tempered.expected_logit - rows.gold_logit
    return Term(value, softmax_part(tempered) + minus_gold(rows))


def gem_logsigmoid(rows: LogitRows, beta: float) -> Term:
    """L = sum_j q_j w_j (z_j - z_y), q and w_j = sigmoid(SLOPE (z_j - z_y)) held constant."""
    tempered = rows.scaled(1 / beta)
    gold = rows.gold.at(rows.logits)[:, None]
    # A masked token's -inf would turn into NaN against its zero weight.
    lead = torch.sub(rows.logits, gold, out=rows.buffer()).clamp_(min=torch.finfo(gold.dtype).min)
    weighted = torch.mul(lead, SLOPE, out=rows.buffer()).sigmoid_().mul_(tempered.exponentials)
    total = weighted.sum(-1) / tempered.normalizer
    value = lead.mul_(weighted).sum(-1) / tempered.normalizer
    dense = (DensePart(1 / tempered.normalizer, weighted),)
    return Term(value, Gradient(dense=dense, sparse=(SparsePart(rows.gold, -total),)))


class GEMLoss(TokenLoss):
    """GEM (game-theoretic entropy maximisation): move probability to the gold token only from tokens that rival it.

    The gradient takes from token j in proportion to q_j, the model's own distribution sharpened by the temperature
    beta: rivals give way, the rest is left as it is, and once the gold token leads clearly little is taken at all.
    It is the gradient of beta times cross-entropy at temperature beta (TOFU, theorem 3.1). The value is negative once
    the gold token leads: watch cross-entropy beside it. As log p_j - log p_y = z_j - z_y, one softmax suffices.

    L = sum_j q_j w_j (log p_j - log p_y), p = softmax(z), q = softmax(z / beta)
    with w_j = 1 (linear) or sigmoid(0.01 (z_j - z_y)) (logsigmoid); q and w are held constant

    dL/dz = q w - (sum_j q_j w_j) e_y

    Source: GEM, equations 3 and 6, appendix B (listing 1); TOFU, definition 2.1.

    Args:
        beta: temperature of q, in (0, 1]; the paper uses 0.7. At 1 the linear gradient is that of cross-entropy.
        h: `linear`, or `logsigmoid`, the default of the public code.

    Raises:
        ValueError: a hyper-parameter is out of its range.

    Example:
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        >>> round(GEMLoss(beta=0.7).evaluate(rows).term.value.item(), 4)
        -0.2733
    """

    def __init__(self, beta: float = 0.7, h: Literal["linear", "logsigmoid"] = "linear") -> None:
        check_number("GEMLoss: beta", beta, Range(above=0, most=1))
        if h not in ("linear", "logsigmoid"):
            raise UserError(f"GEMLoss: h must be linear or logsigmoid, got {h!r}")
        self.beta = beta
        self.h = h
        self.summary = SummaryRequest(softmax_scale=1 / beta) if h == "linear" else None

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient."""
        term = gem_linear if self.h == "linear" else gem_logsigmoid
        return LossResult(term(rows, self.beta), {})

"""The sparsemax loss: the Fenchel-Young loss of the Gini entropy."""

import torch

from ts2_lightning.losses.base import Gradient, SparsePart, Term
from ts2_lightning.ops import LogitRows


def sparsemax_loss(rows: LogitRows) -> Term:
    """L = -z_y + 1/2 sum_{j in S} (z_j^2 - tau^2) + 1/2, with gradient sparsemax(z) - e_y.

    S is the support of sparsemax(z) and tau its threshold. The constant 1/2, which equation 4 of TS2 drops,
    makes the loss zero at its minimum. It and its gradient are exactly zero once z_y leads every other
    logit by 1: the early stopping of TS2.

    Source: Martins and Astudillo (2016), equation 19; TS2, section 4.

    Example:
        >>> rows = LogitRows(torch.tensor([[1.0, 0.6, -3.0], [1.0, -0.5, -3.0]]), torch.tensor([0, 0]))
        >>> [round(v, 4) for v in sparsemax_loss(rows).value.tolist()]
        [0.09, 0.0]
    """
    projection = rows.sparsemax
    # With z = s + tau on S and sum s = 1, the sum over S is 1/2 sum s^2 + tau; z counts from the row maximum.
    half_squares = projection.support.sum(projection.probabilities.square() / 2, len(rows))
    value = half_squares + projection.threshold - rows.gold_logit + 0.5
    sparse = (
        SparsePart(projection.support, projection.probabilities),
        SparsePart(rows.gold, -torch.ones_like(value)),
    )
    # The loss is never negative; rounding can leave it a hair below zero.
    return Term(value.clamp(min=0), Gradient(sparse=sparse))

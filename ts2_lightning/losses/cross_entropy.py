"""Cross-entropy, the baseline."""

import torch

from ts2_lightning.losses.base import DensePart, Gradient, LossResult, SparsePart, Term, TokenLoss
from ts2_lightning.ops import LogitRows


def cross_entropy(rows: LogitRows) -> Term:
    """L = -log softmax(z)_y, with gradient softmax(z) - e_y."""
    ones = torch.ones_like(rows.maximum)
    gradient = Gradient(
        dense=(DensePart(1 / rows.normalizer, rows.exponentials),), sparse=(SparsePart(rows.gold, -ones),)
    )
    return Term(rows.cross_entropy, gradient)


class CrossEntropyLoss(TokenLoss):
    """Cross-entropy.

    L = -log softmax(z)_y, dL/dz = softmax(z) - e_y.

    It drives every next-token distribution towards one-hot: its gradient vanishes only there.

    Example:
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        >>> round(CrossEntropyLoss().evaluate(rows).term.value.item(), 4)
        0.4076
    """

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient, see `cross_entropy`."""
        return LossResult(cross_entropy(rows), {})

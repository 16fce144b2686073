"""Fenchel-Young losses: the sparsemax loss, the alpha-entmax losses, and room for others."""

from abc import abstractmethod

from torch import Tensor

from ts2_lightning.losses.base import Gradient, LossResult, Multiple, SparsePart, Term, TokenLoss
from ts2_lightning.losses.cross_entropy import minus_gold
from ts2_lightning.ops import ENTMAX_ORDERS, SUMMARISED_ORDERS, Entmax, LogitRows, SummaryRequest
from ts2_lightning.ranges import check_number


def fenchel_young(rows: LogitRows, projection: Entmax, entropy: Tensor) -> Term:
    """L = <p, z> - z_y + H(p), with gradient p - e_y, for the p that maximises <p, z> + H(p).

    It is zero, and its gradient too, exactly where p is the gold token alone.

    Source: Blondel, Martins and Niculae (2020), definition 2.

    Args:
        rows: n rows of logits z.
        projection: p of every row.
        entropy: [n] H(p), a concave entropy that is zero where p is one-hot.
    """
    # The loss is never negative; rounding can leave it a hair below zero.
    value = (rows.expected_under(projection) - rows.gold_logit + entropy).clamp(min=0)
    p = SparsePart(projection.support, Multiple(1.0, projection))
    return Term(value, Gradient(sparse=(p,)) + minus_gold(rows))


def entmax_loss(rows: LogitRows, alpha: float) -> Term:
    """The Fenchel-Young loss of the Tsallis entropy H(p) = (1 - sum_j p_j^alpha) / (alpha (alpha - 1)).

    At alpha = 2 it is the sparsemax loss, -z_y + 1/2 sum_{j in S} (z_j^2 - tau^2) + 1/2.

    Example:
        >>> import torch
        >>> rows = LogitRows(torch.tensor([[1.0, 0.6, -3.0], [1.0, -0.5, -3.0]]), torch.tensor([0, 0]))
        >>> [round(v, 4) for v in entmax_loss(rows, 2.0).value.tolist()]
        [0.09, 0.0]
    """
    return fenchel_young(rows, rows.entmax(alpha), tsallis_entropy(rows.entmax(alpha), alpha))


def tsallis_entropy(projection: Entmax, alpha: float) -> Tensor:
    """H(p) = (1 - sum_j p_j^alpha) / (alpha (alpha - 1)) of a sparse distribution, [n]; at alpha = 2 Gini's entropy."""
    return (1 - projection.power_sum(alpha)) / (alpha * (alpha - 1))


class FenchelYoungLoss(TokenLoss):
    """A Fenchel-Young loss: subclass it with a projection and its entropy, and the rest follows.

    L = <p, z> - z_y + H(p), p = argmax over the simplex of <p, z> + H(p)

    dL/dz = p - e_y

    Source: Blondel, Martins and Niculae (2020), definition 2.
    """

    @abstractmethod
    def project(self, rows: LogitRows) -> Entmax:
        """The distribution p of every row, by its support."""

    @abstractmethod
    def entropy(self, projection: Entmax) -> Tensor:
        """H(p) of every row, [n]: concave, and zero where p is one-hot."""

    def term(self, rows: LogitRows) -> Term:
        """Value and gradient, see `fenchel_young`."""
        projection = self.project(rows)
        return fenchel_young(rows, projection, self.entropy(projection))

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient."""
        return LossResult(self.term(rows), {})


class EntmaxLoss(FenchelYoungLoss):
    """The alpha-entmax loss: between softmax's (alpha towards 1) and sparsemax's (alpha 2).

    Tokens outside the support of entmax(z) get no gradient, and none is left once the gold token leads every other by
    1 / (alpha - 1).

    L = <p, z> - z_y + (1 - sum_j p_j^alpha) / (alpha (alpha - 1)), p = entmax(z)

    dL/dz = entmax(z) - e_y, entmax(z)_j = max((alpha - 1) z_j - tau, 0)^(1 / (alpha - 1)), tau such that it sums to one

    Source: Peters, Niculae and Martins (2019), equations 9 and 13; TS2, table 4 (alpha 1.5).

    Args:
        alpha: number from 1.001 to 2. Towards 1 the loss becomes `CrossEntropyLoss`.

    Raises:
        ValueError: `alpha` is out of its range.

    Example:
        >>> import torch
        >>> rows = LogitRows(torch.tensor([[1.0, 0.6, -3.0]]), torch.tensor([0]))
        >>> round(EntmaxLoss(alpha=1.5).evaluate(rows).term.value.item(), 4)
        0.2187
    """

    def __init__(self, alpha: float = 1.5) -> None:
        check_number("EntmaxLoss: alpha", alpha, ENTMAX_ORDERS)
        self.alpha = alpha
        self.summary = SummaryRequest(support_scale=1.0, alpha=alpha) if alpha in SUMMARISED_ORDERS else None

    def project(self, rows: LogitRows) -> Entmax:
        """See `FenchelYoungLoss`."""
        return rows.entmax(self.alpha)

    def entropy(self, projection: Entmax) -> Tensor:
        """See `FenchelYoungLoss`."""
        return tsallis_entropy(projection, self.alpha)


class SparsemaxLoss(FenchelYoungLoss):
    """The sparsemax loss, alone: "decoupling only" in TS2's study when decoded with softmax.

    It stops for good once the gold token leads every other by 1, and never touches tokens outside the support, so a
    tail of small probabilities stays. Decoded with sparsemax it is "unified sparsemax".

    L = -z_y + 1/2 sum_{j in S} (z_j^2 - tau^2) + 1/2, S the support of sparsemax(z) and tau its threshold

    dL/dz = sparsemax(z) - e_y, sparsemax(z)_j = max(z_j - tau, 0)

    Source: Martins and Astudillo (2016), section 3; TS2, section 4.1 and figure 4.

    Example:
        >>> import torch
        >>> rows = LogitRows(torch.tensor([[1.0, 0.6, -3.0]]), torch.tensor([0]))
        >>> round(SparsemaxLoss().evaluate(rows).term.value.item(), 4)
        0.09
    """

    summary = SummaryRequest(support_scale=1.0)

    def project(self, rows: LogitRows) -> Entmax:
        """See `FenchelYoungLoss`."""
        return rows.sparsemax

    def entropy(self, projection: Entmax) -> Tensor:
        """See `FenchelYoungLoss`."""
        return tsallis_entropy(projection, 2.0)

"""Cross-entropy and its closest relatives: label smoothing and the entropy bonus."""

import torch

from ts2_lightning.losses.base import DensePart, Gradient, LossResult, SparsePart, Term, TokenLoss
from ts2_lightning.ops import LogitRows, SummaryRequest
from ts2_lightning.ranges import NOT_NEGATIVE, SHARE, check_number


def cross_entropy(rows: LogitRows) -> Term:
    """L = -log softmax(z)_y, with gradient softmax(z) - e_y."""
    return Term(rows.cross_entropy, softmax_part(rows) + minus_gold(rows))


def softmax_part(rows: LogitRows) -> Gradient:
    """The gradient softmax(z), of log sum_j exp z_j."""
    return Gradient(dense=(DensePart(1 / rows.normalizer, rows.matrix("exponentials")),))


def minus_gold(rows: LogitRows) -> Gradient:
    """The gradient -e_y, of -z_y."""
    return Gradient(sparse=(SparsePart(rows.gold, -torch.ones_like(rows.maximum)),))


def uniform_cross_entropy(rows: LogitRows) -> Term:
    """L = -mean_j log softmax(z)_j over the K tokens that are not masked, with gradient softmax(z) - 1/K."""
    value = rows.normalizer.log() - rows.mean_logit
    uniform = DensePart(-1 / rows.unmasked_count, rows.matrix("unmasked"))
    return Term(value, softmax_part(rows) + Gradient(dense=(uniform,)))


def negative_entropy(rows: LogitRows) -> Term:
    """L = sum_j p_j log p_j with p = softmax(z), with gradient p (log p + H), H the entropy."""
    entropy, log_normalizer = rows.entropy, rows.normalizer.log()
    dense = (
        DensePart(1 / rows.normalizer, rows.matrix("weighted_exponentials")),
        DensePart((entropy - log_normalizer) / rows.normalizer, rows.matrix("exponentials")),
    )
    return Term(-entropy, Gradient(dense=dense))


class CrossEntropyLoss(TokenLoss):
    """Cross-entropy (CE), the baseline.

    It drives every next-token distribution towards one-hot: its gradient vanishes only there.

    L = -log p_y, p = softmax(z)

    dL/dz = p - e_y

    Source: TOFU, equation 2; its gradient is GEM's equation 1.

    Example:
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        >>> round(CrossEntropyLoss().evaluate(rows).term.value.item(), 4)
        0.4076
    """

    summary = SummaryRequest()

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient, see `cross_entropy`."""
        return LossResult(cross_entropy(rows), {})


class LabelSmoothingLoss(TokenLoss):
    """Cross-entropy to the gold token mixed with the uniform distribution.

    It bounds the confidence, and raises all K tokens alike, the implausible tail included. Of a masked vocabulary
    (logits of -inf) only the other tokens count.

    L = -(1 - epsilon) log p_y - epsilon mean_j log p_j, p = softmax(z)

    dL/dz = p - (1 - epsilon) e_y - epsilon / K

    Source: Szegedy et al. (2016), section 7; TS2, table 4 (epsilon 0.2).

    Args:
        epsilon: share of the uniform distribution in the target, in [0, 1].

    Raises:
        ValueError: `epsilon` is out of its range.

    Example:
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        >>> round(LabelSmoothingLoss(epsilon=0.2).evaluate(rows).term.value.item(), 4)
        0.6076
    """

    summary = SummaryRequest(uniform=True)

    def __init__(self, epsilon: float = 0.2) -> None:
        check_number("LabelSmoothingLoss: epsilon", epsilon, SHARE)
        self.epsilon = epsilon

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient; the parts are `cross_entropy` and `uniform`, as they enter the sum."""
        gold = cross_entropy(rows).scaled(1 - self.epsilon)
        uniform = uniform_cross_entropy(rows).scaled(self.epsilon)
        return LossResult(gold + uniform, {"cross_entropy": gold.value, "uniform": uniform.value})


class EntropyBonusLoss(TokenLoss):
    """Cross-entropy minus gamma times the entropy.

    A baseline that fails: it lifts every token with log p_j < -H - 1/gamma, which is the tail and not the plausible
    alternatives (GEM, appendix D.4).

    L = -log p_y - gamma H(p), p = softmax(z), H(p) = -sum_j p_j log p_j

    dL/dz = p - e_y + gamma p (log p + H)

    Source: GEM, equation 15 (CE with entropy regulariser).

    Args:
        gamma: weight of the entropy, >= 0.

    Raises:
        ValueError: `gamma` is out of its range.

    Example:
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        >>> round(EntropyBonusLoss(gamma=0.1).evaluate(rows).term.value.item(), 4)
        0.3244
    """

    summary = SummaryRequest()

    def __init__(self, gamma: float = 0.1) -> None:
        check_number("EntropyBonusLoss: gamma", gamma, NOT_NEGATIVE)
        self.gamma = gamma

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient; the parts are `cross_entropy` and `entropy_bonus`, as they enter the sum."""
        gold, bonus = cross_entropy(rows), negative_entropy(rows).scaled(self.gamma)
        return LossResult(gold + bonus, {"cross_entropy": gold.value, "entropy_bonus": bonus.value})

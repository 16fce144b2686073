"""Any objective, anchored to a frozen reference model."""

import torch

from ts2_lightning.losses.base import DensePart, Gradient, LossResult, Term, TokenLoss
from ts2_lightning.losses.cross_entropy import CrossEntropyLoss, softmax_part
from ts2_lightning.ops import LogitRows
from ts2_lightning.ranges import NOT_NEGATIVE, check_number
from ts2_lightning.types import UserError


def reference_divergence(rows: LogitRows) -> Term:
    """L = KL(r || p) = sum_j r_j (log r_j - log p_j), with gradient p - r; r the reference's softmax, held constant.

    Zero, and exactly so where both models have the same logits; infinite, or as large as the dtype allows, where the
    model rules out what the reference does not.

    Args:
        rows: Rows of logits with `reference`.
    """
    reference = rows.reference
    # Differences before anything is summed: close distributions keep their digits, and equal ones give zero. Both are
    # shifted by their maxima first, as an offset of all logits would cost digits.
    gap = torch.sub(reference.logits, (reference.maximum - rows.maximum)[:, None], out=rows.buffer())
    gap.sub_(rows.logits).nan_to_num_(nan=0.0, neginf=0.0)  # a masked token of the reference has no weight
    expected = gap.mul_(reference.exponentials).sum(-1) / reference.normalizer
    value = expected + rows.normalizer.log() - reference.normalizer.log()
    minus_reference = DensePart(-1 / reference.normalizer, reference.exponentials)
    return Term(value.clamp(min=0), softmax_part(rows) + Gradient(dense=(minus_reference,)))


class ReferenceAnchored(TokenLoss):
    """Any objective, plus a penalty for leaving the distribution of the model that training began with.

    The penalty is the divergence from the reference to the model, not the other way round. On the tokens of the data it
    needs no samples, it keeps all that the reference holds likely (the reverse lets modes go), and it is what
    knowledge distillation and learning without forgetting take; the reverse is usual in reinforcement
    learning, where the model samples the tokens itself. Beside cross-entropy it is label smoothing with the reference
    in place of the uniform distribution.

    The reference is the base model: below an adapter the same model without it, at no memory; else a frozen copy.

    L = L_loss(z; y) + weight sum_j r_j (log r_j - log p_j), p = softmax(z), r the reference's softmax

    dL/dz = dL_loss/dz + weight (p - r)

    Source: Hinton et al. (2015), section 2, at temperature 1; Li and Hoiem (2017), equation 2.

    Args:
        loss: The objective that is anchored. Default: `CrossEntropyLoss()`.
        weight: Factor of the divergence, >= 0.

    Raises:
        ValueError: `weight` is out of its range, or the tokens came without a reference.

    Example:
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]), reference=torch.zeros(1, 3))
        >>> result = ReferenceAnchored(CrossEntropyLoss(), weight=0.5).evaluate(rows)
        >>> {name: round(value.item(), 4) for name, value in result.parts.items()}
        {'unanchored': 0.4076, 'reference_divergence': 0.1545}
    """

    needs_reference = True

    def __init__(self, loss: TokenLoss | None = None, weight: float = 0.1) -> None:
        check_number("ReferenceAnchored: weight", weight, NOT_NEGATIVE)
        self.loss = loss or CrossEntropyLoss()
        if isinstance(self.loss, ReferenceAnchored):
            raise UserError("ReferenceAnchored: loss is anchored already, got ReferenceAnchored; add the weights up")
        self.weight = weight

    @property
    def logit_scale(self) -> float:  # type: ignore[override]
        """Factor on the logits at which the anchored objective projects them."""
        return self.loss.logit_scale

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient; the parts are those of `loss` (or `unanchored`) and `reference_divergence`."""
        term, parts = self.loss.evaluate(rows)
        divergence = reference_divergence(rows).scaled(self.weight)
        parts = parts or {"unanchored": term.value}
        return LossResult(term + divergence, {**parts, "reference_divergence": divergence.value})

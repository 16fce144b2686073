"""Any objective, plus the suppression of what a frozen reference model finds implausible."""

import torch

from ts2_lightning.losses.base import DensePart, Gradient, LossResult, SparsePart, Term, TokenLoss
from ts2_lightning.losses.cross_entropy import CrossEntropyLoss
from ts2_lightning.losses.reference_anchored import with_penalty
from ts2_lightning.ops import Entries, LogitRows, top_p
from ts2_lightning.ranges import COUNT, NOT_NEGATIVE, Only, Range, check_number
from ts2_lightning.types import UserError


def suppression_outside(rows: LogitRows, kept: Entries) -> Term:
    """L = -log sum_{j in A} p_j with p = softmax(z), for any set A that holds the gold token and is held constant.

    Its gradient is p outside A and p_j - p_j / P_A inside, P_A the mass of A. It is the term of `tail_suppression`,
    for a set that another model has chosen: the model that is trained may give it a probability that underflows.

    Args:
        rows: n rows of logits.
        kept: A, which must hold the gold token of every row.
    """
    tail = rows.mass(kept).outside
    shares, log_total = kept.softmax(rows.logits, rows.maximum)
    log_inside = log_total - rows.normalizer.log()
    # A small tail is summed by itself, so that it keeps its digits, and so does a small inside as a logarithm.
    value = torch.where(tail < 0.5, torch.log1p(tail / log_inside.exp()), -log_inside)
    dense = (DensePart(1 / rows.normalizer, rows.matrix("exponentials"), excluded=kept),)
    return Term(value, Gradient(dense=dense, sparse=(SparsePart(kept, -shares * kept.of_rows(tail)),)))


class ReferenceSuppression(TokenLoss):
    """Any objective, plus alpha times the suppression of the tokens that a frozen reference model finds implausible.

    TS2 spares what the model that is trained holds plausible at the time, so that the set shrinks as training goes on.
    Here it is the reference's set, from the first step to the last: its tail is pushed down, and what it holds
    plausible is never pressed on by this term, only lifted in proportion to the model's own probabilities. An anchor
    (`ReferenceAnchored`) also holds the ratios of those tokens; this does not. A gold token that the
    reference finds implausible is kept.

    The reference is the base model: below an adapter the same model without it, at no memory; else a frozen copy. It
    may be another model too (`model.reference`).

    L = L_loss(z; y) - alpha log sum_{j in A or j = y} p_j, p = softmax(z), A the support of the reference's sparsemax
    (or its top-p set, or its k likeliest tokens), held constant

    dL/dz = dL_loss/dz + alpha (p - 1[A or y] p / P_A), P_A the mass of p on A and y

    Source: none of the papers; the term is that of TS2's equation 4, the top-p set that of Holtzman et al. (2020).

    Args:
        loss: The objective to which it is added. Default: `CrossEntropyLoss()`.
        alpha: Weight of the suppression, >= 0.
        top_p: Replaces A by the fewest tokens that have this probability together under the reference, in (0, 1).
            Default: the support.
        top_k: Replaces A by the k tokens that are likeliest under the reference. Default: the support.

    Raises:
        ValueError: a setting is out of its range, or the tokens came without a reference.

    Example:
        >>> reference = torch.tensor([[1.0, 0.6, -3.0]])
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]), reference=reference)
        >>> result = ReferenceSuppression(CrossEntropyLoss(), alpha=0.25).evaluate(rows)
        >>> {name: round(value.item(), 4) for name, value in result.parts.items()}
        {'unanchored': 0.4076, 'reference_suppression': 0.0236}
    """

    needs_reference = True

    def __init__(
        self,
        loss: TokenLoss | None = None,
        alpha: float = 0.25,
        top_p: float | None = None,
        top_k: int | None = None,
    ) -> None:
        check_number("ReferenceSuppression: alpha", alpha, NOT_NEGATIVE)
        check_number("ReferenceSuppression: top_p", top_p, Range(above=0, below=1), Only(None, "the support"))
        check_number("ReferenceSuppression: top_k", top_k, COUNT, Only(None, "the support"))
        if top_p is not None and top_k is not None:
            raise UserError(
                f"ReferenceSuppression: top_p and top_k are two sets to keep, got top_p={top_p} and top_k={top_k}; "
                "leave one of them null"
            )
        self.loss = loss or CrossEntropyLoss()
        if isinstance(self.loss, ReferenceSuppression):
            raise UserError(
                "ReferenceSuppression: loss has one already, got ReferenceSuppression; leave one of them out"
            )
        self.alpha = alpha
        self.top_p = top_p
        self.top_k = top_k

    @property
    def logit_scale(self) -> float:  # type: ignore[override]
        """Factor on the logits at which the wrapped objective projects them."""
        return self.loss.logit_scale

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient; the parts are those of `loss` (or `unanchored`) and `reference_suppression`."""
        reference = rows.reference
        suppression = suppression_outside(rows, reference.with_gold(self._plausible(reference))).scaled(self.alpha)
        return with_penalty(self.loss.evaluate(rows), "reference_suppression", suppression)

    def _plausible(self, reference: LogitRows) -> Entries:
        """What the reference holds plausible."""
        if self.top_p is not None:
            return top_p(reference, self.top_p)
        return reference.sparsemax.support if self.top_k is None else reference.top_k(self.top_k)

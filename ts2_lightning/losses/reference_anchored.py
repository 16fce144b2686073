"""Any objective, anchored to a frozen reference model."""

from typing import Literal, get_args

import torch
from torch import Tensor

from ts2_lightning.losses.base import DensePart, Gradient, LossResult, Term, TokenLoss
from ts2_lightning.losses.cross_entropy import CrossEntropyLoss, softmax_part
from ts2_lightning.ops import LogitRows
from ts2_lightning.ranges import NOT_NEGATIVE, check_number
from ts2_lightning.types import UserError

Direction = Literal["forward", "reverse"]
"""The order of a divergence: from the reference to the model, or from the model to the reference."""


def reference_divergence(rows: LogitRows, direction: Direction = "forward") -> Term:
    """A divergence between the reference's softmax r, held constant, and the model's softmax p.

    Forward: L = KL(r || p) = sum_j r_j (log r_j - log p_j), with gradient p - r. Infinite where the model rules out
    (a logit of -inf) what the reference does not; what the reference alone rules out costs the model its probability.

    Reverse: L = KL(p || r) = sum_j p_j (log p_j - log r_j), with gradient p_j (log p_j - log r_j - L). Infinite where
    the reference rules out what the model does not; what the model alone rules out costs nothing and has no gradient.

    Both are never negative, zero where both models have the same logits, and exactly so, and a token that both rule out
    has no part in them. An infinite one may be as large as the dtype allows instead.

    Args:
        rows: Rows of logits with `reference`.
        direction: `forward` or `reverse`.
    """
    model, reference = rows, rows.reference
    if direction == "forward":
        log_ratio = _log_ratio(reference, model, rows.buffer())
        value = _divergence(log_ratio, reference, model, rows)
        minus_reference = DensePart(-1 / reference.normalizer, reference.exponentials)
        return Term(value, softmax_part(model) + Gradient(dense=(minus_reference,)))
    log_ratio = _log_ratio(model, reference, rows.buffer())
    value = _divergence(log_ratio, model, reference, rows)
    weighted = log_ratio.mul_(model.exponentials)
    # Not the value, which has other rounding errors: the gradient has to sum to zero.
    expected = weighted.sum(-1) / model.normalizer
    minus_expected = softmax_part(model).scaled(-expected)
    return Term(value, Gradient(dense=(DensePart(1 / model.normalizer, weighted),)) + minus_expected)


def _log_ratio(first: LogitRows, second: LogitRows, out: Tensor) -> Tensor:
    """[n, K] log of the first softmax over the second; zero where both are masked, else finite."""
    # Differences before anything is summed: close distributions keep their digits, and equal ones give zero. Both are
    # shifted by their maxima first, as an offset of all logits would cost digits.
    log_ratio = torch.sub(first.logits, (first.maximum - second.maximum)[:, None], out=out).sub_(second.logits)
    log_ratio.sub_((first.normalizer.log() - second.normalizer.log())[:, None])
    return log_ratio.nan_to_num_(nan=0.0)


def _divergence(log_ratio: Tensor, first: LogitRows, second: LogitRows, rows: LogitRows) -> Tensor:
    """[n] sum_j p_j d_j - p_j + r_j, with p the first softmax, r the second and d = log p - log r.

    As both sum to one that is the divergence; but no term is negative, and of close distributions each is d^2 p / 2 to
    its digits, where the terms p_j d_j are larger by far and cancel.
    """
    above, work = torch.clamp(log_ratio, min=0, out=rows.buffer()), rows.buffer()
    torch.neg(above, out=work).expm1_().add_(above).mul_(first.exponentials)  # p (d + e^-d - 1)
    value = work.sum(-1) / first.normalizer
    below = torch.clamp(log_ratio, max=0, out=above)
    shrinkage = torch.expm1(below, out=work)
    below.addcmul_(below, shrinkage).sub_(shrinkage).mul_(second.exponentials)  # r (d e^d - e^d + 1)
    return (value + below.sum(-1) / second.normalizer).clamp_(min=0)


class ReferenceAnchored(TokenLoss):
    """Any objective, plus a penalty for leaving the distribution of a frozen reference model.

    The reference is the base model: below an adapter the same model without it, at no memory; else a frozen copy. It
    may be another model too (`model.reference`).

    The forward divergence, from the reference to the model, keeps all that the reference holds likely, and its gradient
    is bounded. It is what knowledge distillation and learning without forgetting take, and the one for a model that is
    to stay diverse. Beside cross-entropy it is label smoothing with the reference in place of the uniform distribution.

    The reverse divergence, from the model to the reference, is the penalty of reinforcement learning, and that of
    distillation into a smaller model. It lets modes go: what it costs is probability that the model gives to tokens
    which the reference holds implausible. So it presses on the tail, but also, and without a bound, against a gold
    token that the reference has never seen, such as the tokens of a chat template in a pretrained base model.

    L = L_loss(z; y) + weight KL, p = softmax(z), r the reference's softmax, held constant
    with KL = sum_j r_j (log r_j - log p_j) (forward) or sum_j p_j (log p_j - log r_j) (reverse)

    dL/dz = dL_loss/dz + weight (p - r) (forward) or dL_loss/dz + weight p (log p - log r - KL) (reverse)

    Source: Hinton et al. (2015), section 2, at temperature 1, and Li and Hoiem (2017), equation 2 (forward); Gu et al.
    (2024), equation 1, and Ziegler et al. (2019), equation 2 (reverse).

    Args:
        loss: The objective that is anchored. Default: `CrossEntropyLoss()`.
        weight: Factor of the divergence, >= 0.
        direction: `forward`, KL(reference || model), or `reverse`, KL(model || reference).

    Raises:
        ValueError: a setting is out of its range, or the tokens came without a reference.

    Example:
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]), reference=torch.zeros(1, 3))
        >>> result = ReferenceAnchored(CrossEntropyLoss(), weight=0.5).evaluate(rows)
        >>> {name: round(value.item(), 4) for name, value in result.parts.items()}
        {'unanchored': 0.4076, 'reference_divergence': 0.1545}
        >>> result = ReferenceAnchored(CrossEntropyLoss(), weight=0.5, direction="reverse").evaluate(rows)
        >>> round(result.parts["reference_divergence"].item(), 4)
        0.1331
    """

    needs_reference = True

    def __init__(
        self, loss: TokenLoss | None = None, weight: float = 0.1, direction: Literal["forward", "reverse"] = "forward"
    ) -> None:
        check_number("ReferenceAnchored: weight", weight, NOT_NEGATIVE)
        if direction not in get_args(Direction):
            raise UserError(f"ReferenceAnchored: direction must be forward or reverse, got {direction!r}")
        self.loss = loss or CrossEntropyLoss()
        if isinstance(self.loss, ReferenceAnchored):
            raise UserError(
                "ReferenceAnchored: loss is anchored already, got ReferenceAnchored; add the weights up, or choose one "
                "direction"
            )
        self.weight = weight
        self.direction = direction

    @property
    def logit_scale(self) -> float:  # type: ignore[override]
        """Factor on the logits at which the anchored objective projects them."""
        return self.loss.logit_scale

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient; the parts are those of `loss` (or `unanchored`) and `reference_divergence`."""
        divergence = reference_divergence(rows, self.direction).scaled(self.weight)
        return with_penalty(self.loss.evaluate(rows), "reference_divergence", divergence)


def with_penalty(objective: LossResult, name: str, penalty: Term) -> LossResult:
    """The sum of an objective and a penalty, with the penalty among its parts.

    Args:
        objective: Result of an objective, which is the part `unanchored` if it has none of its own.
        name: Name of the penalty's part.
        penalty: The penalty as it enters the sum.
    """
    term, parts = objective
    return LossResult(term + penalty, {**(parts or {"unanchored": term.value}), name: penalty.value})

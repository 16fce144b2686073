"""Tail suppression, which pushes down the softmax mass outside a set of plausible tokens, and what it adds to."""

import torch
from torch import Tensor

from ts2_lightning.losses.base import DensePart, Gradient, LossResult, Multiple, SparsePart, Term, TokenLoss
from ts2_lightning.losses.cross_entropy import cross_entropy
from ts2_lightning.losses.fenchel_young import EntmaxLoss, FenchelYoungLoss, SparsemaxLoss
from ts2_lightning.ops import Entries, LogitRows, SummaryRequest
from ts2_lightning.ranges import COUNT, NOT_NEGATIVE, POSITIVE, Only, Range, check_number


def tail_suppression(rows: LogitRows, kept: Entries, tail_mass_cap: float | None = None) -> Term:
    """L = -log sum_{j in A} p_j with p = softmax(z), for a set A that holds the gold token and is held constant.

    Its gradient is p outside A and -p_j t / (1 - t) inside, where t is the mass outside: the tail is pushed down, and
    the plausible tokens up, in proportion to their probability, so that the likelier of them gain more.

    Computed as log1p(t / P_A) with t summed by itself, so that a tail of 1e-12 keeps its digits.

    Source: TS2, section 4 and equation 4 (with A the support of sparsemax and the gold token).

    Args:
        rows: n rows of logits.
        kept: A, which must hold the gold token of every row, and for finite numbers a token whose probability does not
            underflow (the supports and the largest logits do).
        tail_mass_cap: clamp t at this value, as the public code of TS2 does at 0.99. The gradient of a
            clamped token is zero. Default: no clamp.
    """
    mass = rows.mass(kept)
    tail = mass.outside
    outside, ratio = 1 / rows.normalizer, tail / mass.inside
    value = torch.log1p(ratio)
    if tail_mass_cap is not None:
        capped = tail >= tail_mass_cap
        value = torch.where(capped, torch.log1p(torch.full_like(tail, -tail_mass_cap)).neg(), value)
        outside, ratio = outside.masked_fill(capped, 0), ratio.masked_fill(capped, 0)
    exponentials = rows.matrix("exponentials")
    dense = (DensePart(outside, exponentials, excluded=kept),)
    inside = SparsePart(kept, Multiple(-ratio / rows.normalizer, exponentials))
    return Term(value, Gradient(dense=dense, sparse=(inside,)))


def _check(owner: str, alpha: float, logit_scale: float, top_k: int | None, tail_mass_cap: float | None) -> None:
    check_number(f"{owner}: alpha", alpha, NOT_NEGATIVE)
    check_number(f"{owner}: logit_scale", logit_scale, POSITIVE)
    check_number(f"{owner}: top_k", top_k, COUNT, Only(None, "the support"))
    check_number(f"{owner}: tail_mass_cap", tail_mass_cap, Range(above=0, below=1), Only(None, "no clamp"))


class FenchelYoungPlusLoss(TokenLoss):
    """A Fenchel-Young loss plus alpha times the suppression of the tail outside its own support: "Entmax+" by default.

    L = L_base(c z; y) - alpha log sum_{j in S or j = y} softmax(c z)_j, S the support of the base's projection of c z

    dL/dz = c [ projection(c z) - e_y + alpha (p - 1[S or y] p / P_S) ], p = softmax(c z), P_S its mass on S and y

    Source: TS2, equation 4 for any base (with `SparsemaxLoss` it is `TS2Loss`).

    Args:
        base: the Fenchel-Young loss. Default: `EntmaxLoss()`, 1.5-entmax.
        alpha: weight of tail suppression, >= 0.
        logit_scale: c > 0. A larger one stops earlier and keeps fewer tokens.
        top_k: replace S by the k largest logits in the suppression. Default: the base's support.
        adaptive: weigh the suppression by 1 - projection(c z)_y, held constant.
        tail_mass_cap: clamp the suppressed mass at this value in (0, 1), which also stops its gradient there.

    Raises:
        ValueError: a hyper-parameter is out of its range.

    Example:
        >>> rows = LogitRows(torch.tensor([[1.0, 0.6, -3.0]]), torch.tensor([0]))
        >>> result = FenchelYoungPlusLoss(EntmaxLoss(1.5), alpha=0.25).evaluate(rows)
        >>> {name: round(value.item(), 4) for name, value in result.parts.items()}
        {'entmax': 0.2187, 'tail_suppression': 0.0027}
    """

    def __init__(
        self,
        base: FenchelYoungLoss | None = None,
        alpha: float = 0.25,
        logit_scale: float = 1.0,
        top_k: int | None = None,
        adaptive: bool = False,
        tail_mass_cap: float | None = None,
    ) -> None:
        _check("FenchelYoungPlusLoss", alpha, logit_scale, top_k, tail_mass_cap)
        self.base = base or EntmaxLoss()
        self.alpha = alpha
        self.logit_scale = logit_scale
        self.top_k = top_k
        self.adaptive = adaptive
        self.tail_mass_cap = tail_mass_cap
        if self.base.summary is not None and top_k is None:
            self.summary = self.base.summary._replace(softmax_scale=logit_scale, support_scale=logit_scale)

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient; the parts are the base, by its name, and `tail_suppression`, as they enter the sum."""
        scaled = rows.scaled(self.logit_scale)
        projection = self.base.project(scaled)
        plausible = projection.support if self.top_k is None else scaled.top_k(self.top_k)
        weight: Tensor | float = self.alpha
        if self.adaptive:
            weight = self.alpha * (1 - projection.at_columns(scaled.labels))
        base = self.base.term(scaled)
        suppression = tail_suppression(scaled, scaled.with_gold(plausible), self.tail_mass_cap).scaled(weight)
        name = type(self.base).__name__.removesuffix("Loss").lower()
        parts = {name: base.value, "tail_suppression": suppression.value}
        return LossResult((base + suppression).chain(self.logit_scale), parts)


class TS2Loss(TokenLoss):
    """Sparsemax+, the objective of TS2: the sparsemax loss plus alpha times tail suppression. Decode with softmax.

    The sparsemax part stops where the gold token leads by 1/c, so that plausible alternatives are not eroded;
    suppression removes the tail that softmax decoding would sample from. Once the support is the gold token
    alone, what remains is alpha times cross-entropy.

    L = L_sparsemax(c z; y) - alpha log sum_{j in S or j = y} softmax(c z)_j, S the support of sparsemax(c z)

    dL/dz = c [ sparsemax(c z) - e_y + alpha (p - 1[S or y] p / P_S) ], p = softmax(c z), P_S its mass on S and y

    Source: TS2, equation 4 and algorithm 1. The constant 1/2 of the sparsemax loss, which equation 4 drops, is kept.

    Args:
        alpha: weight of tail suppression, >= 0. The paper uses 0.25 for Llama-3.1-8B, 0.5 for Qwen-2-7B
            (table 3 has 0.25 to 5). At 0 the gradient of every token with a leading gold token is zero.
        logit_scale: c > 0. A larger one stops earlier and keeps fewer tokens.
        top_k: replace S by the k largest logits in the suppression (table 7: 3, 5, 10). Default: sparsemax's support.
        adaptive: weigh the suppression by 1 - sparsemax(c z)_y, held constant, as a variant of the public code
            does. Training then stops altogether where the gold token leads by 1/c.
        tail_mass_cap: clamp the suppressed mass at this value in (0, 1), which also stops its gradient there; the
            public code has 0.99. Default: no clamp. (At random initialisation nearly every token is clamped.)

    Raises:
        ValueError: a hyper-parameter is out of its range.

    Example:
        >>> rows = LogitRows(torch.tensor([[1.0, 0.6, -3.0]]), torch.tensor([0]))
        >>> result = TS2Loss(alpha=0.25).evaluate(rows)
        >>> round(result.term.value.item(), 4)
        0.0927
        >>> {name: round(value.item(), 4) for name, value in result.parts.items()}
        {'sparsemax': 0.09, 'tail_suppression': 0.0027}
    """

    def __init__(
        self,
        alpha: float = 0.25,
        logit_scale: float = 1.0,
        top_k: int | None = None,
        adaptive: bool = False,
        tail_mass_cap: float | None = None,
    ) -> None:
        _check("TS2Loss", alpha, logit_scale, top_k, tail_mass_cap)
        self._plus = FenchelYoungPlusLoss(SparsemaxLoss(), alpha, logit_scale, top_k, adaptive, tail_mass_cap)

    @property
    def logit_scale(self) -> float:  # type: ignore[override]
        """c."""
        return self._plus.logit_scale

    @property
    def summary(self) -> SummaryRequest | None:  # type: ignore[override]
        """See `TokenLoss`."""
        return self._plus.summary

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient; the parts are `sparsemax` and `tail_suppression`, as they enter the sum."""
        return self._plus.evaluate(rows)


class SuppressionOnlyLoss(TokenLoss):
    """Cross-entropy plus alpha times tail suppression: "suppression only" in TS2's study of its components.

    L = -log p_y - alpha log sum_{j in S or j = y} p_j, p = softmax(c z), S the support of sparsemax(c z)

    dL/dz = c [ p - e_y + alpha (p - 1[S or y] p / P_S) ], P_S the mass of p on S and y

    Source: TS2, figure 4.

    Args:
        alpha: weight of tail suppression, >= 0.
        logit_scale: c > 0. A larger one keeps fewer tokens.
        top_k: replace S by the k largest logits. Default: sparsemax's support.
        tail_mass_cap: clamp the suppressed mass at this value in (0, 1), which also stops its gradient there.

    Raises:
        ValueError: a hyper-parameter is out of its range.

    Example:
        >>> rows = LogitRows(torch.tensor([[1.0, 0.6, -3.0]]), torch.tensor([0]))
        >>> result = SuppressionOnlyLoss(alpha=0.25).evaluate(rows)
        >>> {name: round(value.item(), 4) for name, value in result.parts.items()}
        {'cross_entropy': 0.5239, 'tail_suppression': 0.0027}
    """

    def __init__(
        self,
        alpha: float = 0.25,
        logit_scale: float = 1.0,
        top_k: int | None = None,
        tail_mass_cap: float | None = None,
    ) -> None:
        _check("SuppressionOnlyLoss", alpha, logit_scale, top_k, tail_mass_cap)
        self.alpha = alpha
        self.logit_scale = logit_scale
        self.top_k = top_k
        self.tail_mass_cap = tail_mass_cap
        self.summary = SummaryRequest(logit_scale, support_scale=logit_scale) if top_k is None else None

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient; the parts are `cross_entropy` and `tail_suppression`, as they enter the sum."""
        scaled = rows.scaled(self.logit_scale)
        plausible = scaled.sparsemax.support if self.top_k is None else scaled.top_k(self.top_k)
        base = cross_entropy(scaled)
        suppression = tail_suppression(scaled, scaled.with_gold(plausible), self.tail_mass_cap).scaled(self.alpha)
        parts = {"cross_entropy": base.value, "tail_suppression": suppression.value}
        return LossResult((base + suppression).chain(self.logit_scale), parts)

"""TS2: train with Sparsemax+, test with softmax."""

from torch import Tensor

from ts2_lightning.losses.base import LossResult, TokenLoss
from ts2_lightning.losses.checks import require
from ts2_lightning.losses.sparsemax import sparsemax_loss
from ts2_lightning.losses.suppression import tail_suppression, top_k_and_gold
from ts2_lightning.ops import LogitRows


class TS2Loss(TokenLoss):
    """Sparsemax+, the objective of TS2: the sparsemax loss plus alpha times tail suppression.

    L = L_sparsemax(c z; y) - alpha log sum_{j in S or j = y} softmax(c z)_j, S the support of sparsemax(c z),

    dL/dz = c [ sparsemax(c z) - e_y + alpha (p - 1[S or y] p / P_S) ], p = softmax(c z), P_S its mass on S and y.

    The sparsemax part stops where the gold token leads by 1/c, so that plausible alternatives are not eroded;
    suppression removes the tail that softmax decoding would sample from. Once the support is the gold token
    alone, what remains is alpha times cross-entropy. Decode with softmax.

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
        >>> import torch
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
        require(alpha >= 0, "TS2Loss", alpha=alpha, must="be at least 0")
        require(logit_scale > 0, "TS2Loss", logit_scale=logit_scale, must="be above 0")
        require(
            top_k is None or top_k >= 1, "TS2Loss", top_k=top_k, must="be at least 1, or null for sparsemax's support"
        )
        in_range = tail_mass_cap is None or 0 < tail_mass_cap < 1
        require(in_range, "TS2Loss", tail_mass_cap=tail_mass_cap, must="lie between 0 and 1, or be null for no clamp")
        self.alpha = alpha
        self.logit_scale = logit_scale
        self.top_k = top_k
        self.adaptive = adaptive
        self.tail_mass_cap = tail_mass_cap

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient; the parts are `sparsemax` and `tail_suppression`, as they enter the sum."""
        scaled = rows.scaled(self.logit_scale)
        if self.top_k is None:
            plausible, mass = scaled.support_and_gold, scaled.support_mass
        else:
            plausible = top_k_and_gold(scaled, self.top_k)
            mass = scaled.mass(plausible)
        base = sparsemax_loss(scaled)
        suppression = tail_suppression(scaled, plausible, mass, self.tail_mass_cap).scaled(self._weight(scaled))
        parts = {"sparsemax": base.value, "tail_suppression": suppression.value}
        return LossResult((base + suppression).chain(self.logit_scale), parts)

    def _weight(self, scaled: LogitRows) -> Tensor | float:
        if not self.adaptive:
            return self.alpha
        projection = scaled.sparsemax
        is_gold = projection.support.columns == scaled.labels[projection.support.rows]
        gold = projection.support.sum(projection.probabilities.masked_fill(~is_gold, 0), len(scaled))
        return self.alpha * (1 - gold)

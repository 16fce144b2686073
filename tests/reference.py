"""Plain formulas of the objectives, for autograd in float64. Independent of the package: sparsemax is entmax's."""

from collections.abc import Callable

import entmax
import torch
from torch import Tensor

from ts2_lightning.losses import CrossEntropyLoss, TokenLoss, TS2Loss, ValueLoss

Formula = Callable[[Tensor, Tensor], Tensor]


def sparsemax(logits: Tensor) -> Tensor:
    """[n, K] by a full sort. Shifted: entmax's own threshold loses digits at large logits."""
    return entmax.sparsemax(logits - logits.amax(-1, keepdim=True), dim=-1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[n] -log p_y."""
    return -logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]


def sparsemax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """[n] -z_y + 1/2 sum_S (z_j^2 - tau^2) + 1/2, by its definition; the support is held constant."""
    support = sparsemax(logits.detach()) > 0
    size = support.sum(-1)
    tau = ((logits * support).sum(-1) - 1) / size
    squares = (logits.square() * support).sum(-1) - size * tau.square()
    return -logits.gather(-1, labels[:, None])[:, 0] + squares / 2 + 0.5


def support_mask(logits: Tensor, labels: Tensor, top_k: int | None) -> Tensor:
    """[n, K] bool, the kept tokens and the gold one."""
    if top_k is None:
        mask = sparsemax(logits.detach()) > 0
    else:
        columns = logits.detach().topk(min(top_k, logits.shape[-1])).indices
        mask = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, columns, True)
    return mask.scatter(-1, labels[:, None], True)


def ts2(
    alpha: float, logit_scale: float = 1.0, top_k: int | None = None, adaptive: bool = False, cap: float | None = None
) -> Formula:
    """Equation 4 of TS2 with the constant 1/2, and the options of its public code."""

    def formula(logits: Tensor, labels: Tensor) -> Tensor:
        z = logits * logit_scale
        mask = support_mask(z, labels, top_k)
        tail = (z.softmax(-1) * ~mask).sum(-1)
        if cap is None:
            suppression = z.logsumexp(-1) - z.masked_fill(~mask, -torch.inf).logsumexp(-1)
        else:
            suppression = -torch.log(1 - tail.clamp(max=cap))
        gold = sparsemax(z.detach()).gather(-1, labels[:, None])[:, 0]
        weight = alpha * (1 - gold) if adaptive else alpha
        return sparsemax_loss(z, labels) + weight * suppression

    return formula


class PlainFocal(ValueLoss):
    """A loss that has only a value, as a user would write it."""

    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        return -((1 - log_p.exp()) ** 2) * log_p


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """[n] focal loss with gamma 2."""
    p = logits.softmax(-1).gather(-1, labels[:, None])[:, 0]
    return -((1 - p) ** 2) * p.log()


OBJECTIVES: dict[str, tuple[TokenLoss, Formula]] = {
    "cross_entropy": (CrossEntropyLoss(), cross_entropy),
    "ts2": (TS2Loss(), ts2(0.25)),
    "ts2_sparsemax_only": (TS2Loss(alpha=0), ts2(0)),
    "ts2_strong": (TS2Loss(alpha=5), ts2(5)),
    "ts2_scaled": (TS2Loss(alpha=0.5, logit_scale=2.5), ts2(0.5, logit_scale=2.5)),
    "ts2_top_k": (TS2Loss(alpha=0.5, top_k=3), ts2(0.5, top_k=3)),
    "ts2_adaptive": (TS2Loss(alpha=0.5, adaptive=True), ts2(0.5, adaptive=True)),
    "ts2_capped": (TS2Loss(alpha=0.5, tail_mass_cap=0.6), ts2(0.5, cap=0.6)),
    "ts2_all": (
        TS2Loss(alpha=2, logit_scale=0.7, top_k=5, adaptive=True, tail_mass_cap=0.9),
        ts2(2, logit_scale=0.7, top_k=5, adaptive=True, cap=0.9),
    ),
    "value_only": (PlainFocal(), focal),
}

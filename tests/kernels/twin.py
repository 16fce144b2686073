"""The two row kernels in plain PyTorch, by their definitions: a full sort for the threshold, dense sums, float64.

The reference of the kernels, and what stands in for them where Triton cannot run. No shape depends on a value.
"""

import torch
from torch import Tensor

from ts2_lightning.ops.summary import FIELDS, SummaryRequest


def summarize(logits: Tensor, labels: Tensor, request: SummaryRequest) -> Tensor:
    """[len(FIELDS), n] in the dtype of the logits; `lanes`, and fields that are not asked for, hold zeros."""
    z = logits.double()
    finite = z != -torch.inf
    maximum = z.amax(-1)
    d = z - maximum[:, None]
    gold = z.gather(-1, labels[:, None])
    largest = torch.nn.functional.pad(d, (0, 2), value=-torch.inf).topk(3).values
    e, scaled = d.exp(), (request.softmax_scale * d).exp()
    fields = {
        "maximum": maximum,
        "normalizer": e.sum(-1),
        "weighted": _dot(d, e),
        "scaled_normalizer": scaled.sum(-1),
        "scaled_weighted": request.softmax_scale * _dot(d, scaled),
        "gold_logit": gold[:, 0] - maximum,
        "above": (z > gold).sum(-1).double(),
        "second": largest[:, 1],
        "third": largest[:, 2],
    }
    if request.support_scale is not None:
        threshold = _threshold((request.alpha - 1) * request.support_scale * d, request.alpha)
        p = _probabilities(d, threshold, request)
        kept = (p > 0).scatter(-1, labels[:, None], True)
        fields |= {
            "threshold": threshold,
            "size": (p > 0).sum(-1).double(),
            "expected": request.support_scale * _dot(d, p),
            "powers": p.pow(request.alpha).sum(-1),
            "tail": e.masked_fill(kept, 0).sum(-1),
            "kept": e.masked_fill(~kept, 0).sum(-1),
            "scaled_tail": scaled.masked_fill(kept, 0).sum(-1),
            "scaled_kept": scaled.masked_fill(~kept, 0).sum(-1),
            "gold_in_support": (p.gather(-1, labels[:, None])[:, 0] > 0).double(),
        }
    if request.uniform:
        fields |= {"unmasked": finite.sum(-1).double(), "total": d.where(finite, 0).sum(-1)}
    return torch.stack([fields.get(name, torch.zeros_like(maximum)) for name in FIELDS]).to(logits.dtype)


def write_gradient(
    logits: Tensor,
    labels: Tensor,
    fields: Tensor,
    coefficients: Tensor,
    request: SummaryRequest,
    out: Tensor,
    support: bool,
    slope: bool,
    uniform: bool,
) -> None:
    """Writes the gradient that the coefficients [6, n] describe to `out`, which may be the logits' own memory."""
    outside, inside, slopes, sparse, gold, constant = coefficients.double()[..., None]
    z, values = logits.double(), fields.double()
    finite = z != -torch.inf
    d = z - values[FIELDS.index("maximum")][:, None]
    e = (request.softmax_scale * d).exp()
    kept = torch.zeros_like(finite)
    p = torch.zeros_like(d)
    if support:
        p = _probabilities(d, values[FIELDS.index("threshold")], request)
        kept = p > 0
    kept = kept.scatter(-1, labels[:, None], True)
    factor = torch.where(kept, inside, outside)
    if slope:
        factor = factor + slopes * d.where(finite, 0)
    gradient = e * factor
    if support:
        gradient = gradient + sparse * p
    if uniform:
        gradient = gradient + constant
    gradient = gradient.where(finite, 0).scatter_add(-1, labels[:, None], -gold)
    # A row with a NaN has one in each entry, as its maximum is NaN.
    out.copy_(torch.where(values[0].isnan()[:, None], torch.nan, gradient))


def _dot(d: Tensor, weights: Tensor) -> Tensor:
    """[n] sum of d_j w_j, a masked token's -inf times 0 being 0."""
    return (d.masked_fill(d == -torch.inf, 0) * weights).sum(-1)


def _probabilities(d: Tensor, threshold: Tensor, request: SummaryRequest) -> Tensor:
    """[n, K] alpha-entmax(c z)."""
    assert request.support_scale is not None
    scaled = (request.alpha - 1) * request.support_scale * d
    return (scaled - threshold[:, None]).clamp(min=0).pow(1 / (request.alpha - 1))


def _threshold(scaled: Tensor, alpha: float) -> Tensor:
    """[n] tau with sum_j max(s_j - tau, 0)^(1 / (alpha - 1)) = 1 of s = `scaled`, whose maximum is 0: by a sort."""
    # Entries below -1 have no probability; clamped, a masked token's infinity stays out of the sums.
    falling = scaled.clamp(min=-2).sort(-1, descending=True).values
    count = torch.arange(1, scaled.shape[-1] + 1, device=scaled.device, dtype=scaled.dtype)
    mean = falling.cumsum(-1) / count
    if alpha == 2:
        candidates = mean - 1 / count
    else:
        spread = falling.square().cumsum(-1) - count * mean.square()
        candidates = mean - ((1 - spread) / count).clamp(min=0).sqrt()
    size = (candidates < falling).sum(-1).clamp(min=1)  # those above their own threshold come first
    return candidates.gather(-1, size[:, None] - 1)[:, 0]

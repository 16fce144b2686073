"""Rows of float32 logits of every kind, and gold tokens for them."""

import math

import torch
from torch import Tensor

from ts2_lightning.ops.summary import SummaryRequest

KINDS = ("peaked", "random", "randn", "flat", "very_flat", "equal", "tied", "masked", "spread", "small_tail")

REQUESTS = {
    "softmax": SummaryRequest(),
    "sparsemax": SummaryRequest(support_scale=1.0),
    "two_scales": SummaryRequest(1 / 0.7, 1.0, 2.0, uniform=True),
    "scaled": SummaryRequest(1.7, 1.7, 2.0),
    "entmax": SummaryRequest(1.0, 1.0, 1.5),
    "scaled_entmax": SummaryRequest(0.6, 1.3, 1.5, uniform=True),
}


def rows_of(kind: str, n: int, K: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [n, K], and labels [n]: of the largest logit, the smallest finite one, the second largest, any."""
    generator = torch.Generator().manual_seed(seed + K)
    randn = torch.randn(n, K, generator=generator)
    logits = {
        "peaked": randn * 2 + 5,
        "random": randn * 3 - 20,
        "randn": randn,
        "flat": randn * 0.05,
        "very_flat": randn * 0.002 + 11,
        "equal": torch.full((n, K), 3.7),
        "tied": (randn * 2).round() / 2,
        "masked": randn * 3,
        "spread": randn * 30,
        "small_tail": randn,
    }[kind]
    if kind == "peaked":
        peaks = torch.randint(K, (n, min(3, K)), generator=generator)
        logits.scatter_add_(1, peaks, 10 + torch.randn(peaks.shape, generator=generator))
    if kind == "masked":
        logits[:, max(1, K // 3) : K - K // 4] = -torch.inf
    if kind == "small_tail":
        logits[:, K // 2] = 27.6 + math.log(K)  # all others together have a softmax probability of about 1e-12
    labels = torch.randint(K, (n,), generator=generator)
    falling = logits.argsort(dim=-1, descending=True, stable=True)
    for row, place in zip(range(n), (0, int((logits[0] > -torch.inf).sum()) - 1, min(1, K - 1)), strict=False):
        labels[row] = falling[row, place]
    masked = logits.gather(-1, labels[:, None])[:, 0] == -torch.inf
    return logits, torch.where(masked, falling[:, 0], labels)


def coefficients_of(fields: Tensor, seed: int = 0) -> Tensor:
    """[6, n] of both signs; those of exponentials are of the order of softmax probabilities."""
    generator = torch.Generator().manual_seed(seed)
    coefficients = torch.randn(6, fields.shape[1], generator=generator)
    coefficients[:3] /= fields[1].float()
    return coefficients

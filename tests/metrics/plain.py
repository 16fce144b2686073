"""Plain formulas of the token metrics in float64, token by token, written from the papers; nothing of the package."""

import math
from itertools import combinations

import entmax
import torch
from torch import Tensor

IGNORED = -100


def problem(shape: tuple[int, ...], vocabulary: int, seed: int = 0, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    """Logits [*shape, K] of very different sharpness, and labels [*shape] of which some are -100."""
    generator = torch.Generator().manual_seed(seed)
    sharpness = torch.tensor([0.05, 1.0, 4.0, 12.0])[torch.randint(4, shape, generator=generator)]
    logits = torch.randn(*shape, vocabulary, generator=generator) * sharpness[..., None]
    random = torch.randint(vocabulary, shape, generator=generator)
    # Half of the labels are the most likely token, as in a trained model.
    labels = torch.where(torch.rand(shape, generator=generator) < 0.5, logits.argmax(-1), random)
    return logits, labels.masked_fill(torch.rand(shape, generator=generator) < ignored, IGNORED)


def softmax(z: Tensor) -> list[float]:
    """Of one row [K]."""
    return z.double().softmax(-1).tolist()


def support(z: Tensor, c: float) -> set[int]:
    """Where sparsemax(c z) of one row [K] is positive; the entmax package sorts."""
    shifted = z.double() - z.double().max()
    return set(entmax.sparsemax(c * shifted, dim=-1).nonzero()[:, 0].tolist())


def has_tspd(p: list[float], y: int, m: int, eps_head: float, eps_tail: float) -> bool:
    """TS2, definition 1, by trying every set that can be called Top_m."""
    if m > len(p):
        return False
    verdicts = set()
    for order in (m, m - 1):
        for top in combinations(range(len(p)), order):
            others = [p[j] for j in range(len(p)) if j not in top]
            if others and min(p[j] for j in top) < max(others):
                continue  # not the largest ones
            chosen = set(top) if order == m else {*top, y}
            if len(chosen) != m or y not in chosen or (order < m and _could_be_top(p, chosen)):
                continue
            outside = sum(p[j] for j in range(len(p)) if j not in chosen)
            verdicts.add(min(p[j] for j in chosen) >= eps_head and outside <= eps_tail)
    assert len(verdicts) == 1, "the definition must not depend on how ties are broken"
    return verdicts.pop()


def _could_be_top(p: list[float], chosen: set[int]) -> bool:
    others = [p[j] for j in range(len(p)) if j not in chosen]
    return not others or min(p[j] for j in chosen) >= max(others)


def statistics(z: Tensor, y: int, c: float = 1.0) -> dict[str, float]:
    """All token metrics of one row [K] and its gold token."""
    p, kept = softmax(z), support(z, c)
    top = sorted(p, reverse=True) + [0.0] * 3
    return {
        "cross_entropy": -z.double().log_softmax(-1)[y].item(),
        "entropy": -sum(x * math.log(x) for x in p if x > 0),
        "gold_probability": p[y],
        "gold_rank": 1.0 + sum(x > z[y].item() for x in z.tolist()),
        "gold_in_support": float(y in kept),
        "support_size": float(len(kept)),
        "tail_mass": sum(x for j, x in enumerate(p) if j not in kept),
        "zero_gradient": float(kept == {y}),
        "top1": top[0],
        "top2": top[1],
        "top3": top[2],
    }


def of_all(logits: Tensor, labels: Tensor, c: float = 1.0) -> dict[str, Tensor]:
    """Every statistic as [...] float64, NaN where the label is -100."""
    rows, golds = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).tolist()
    found = [statistics(z, y, c) if y != IGNORED else None for z, y in zip(rows, golds, strict=True)]
    names = statistics(torch.zeros(4), 0)
    columns = {name: [math.nan if row is None else row[name] for row in found] for name in names}
    return {name: torch.tensor(values, dtype=torch.float64).reshape(labels.shape) for name, values in columns.items()}

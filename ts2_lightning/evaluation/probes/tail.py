"""Tail probe: the three most probable tokens, and what sparsemax would cut off. Source: TS2, figure 7."""

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

STATISTICS = ("top1", "top2", "top3", "tail_mass")


def measure(table: Mapping[str, Tensor]) -> dict[str, Any]:
    """Means of the softmax probabilities of the top three, and of the mass outside the sparsemax support.

    The mean over a row's tokens, then over the rows, as in the papers. The decoding does not matter: it is the
    softmax's mass that sparsemax would cut off.

    Args:
        table: from `token_table`.

    Returns:
        `rows`, `tokens`; for each of `STATISTICS` and `support_size` its mean over rows `NAME`, the standard error of
        that mean `NAME/standard_error` (0 for one row), and the mean over all tokens `NAME/of_tokens`.
    """
    out: dict[str, Any] = {"rows": len(table["row"].unique()), "tokens": len(table["row"])}
    for name in (*STATISTICS, "support_size"):
        per_row = row_means(table[name], table["row"]).tolist()
        out[name] = statistics.fmean(per_row)
        spread = statistics.stdev(per_row) if len(per_row) > 1 else 0.0
        out[f"{name}/standard_error"] = spread / len(per_row) ** 0.5
        out[f"{name}/of_tokens"] = table[name].double().mean().item()
    return out


def row_means(values: Tensor, rows: Tensor) -> Tensor:
    """Means of values [N] over the tokens of each row [N], in float64 and in the order of the rows' numbers.

    Example:
        >>> row_means(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([4, 7, 7])).tolist()
        [1.0, 4.0]
    """
    _, place = rows.unique(return_inverse=True)
    counts = place.bincount()
    return torch.zeros(len(counts), dtype=torch.float64).index_add_(0, place, values.double()) / counts

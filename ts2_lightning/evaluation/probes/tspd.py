"""TSPD probe: how many tokens keep a few plausible answers and no tail. Source: TS2, definition 1."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ts2_lightning.evaluation.probes.tokens import TSPD_ORDERS
from ts2_lightning.metrics.functional import check_tspd, count_sizes, quantiles_of_counts
from ts2_lightning.ops import HeadAndTail
from ts2_lightning.types import UserError

EPS_HEAD = (0.01, 0.02, 0.05, 0.1, 0.2)
EPS_TAIL = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
POINTS = 1000
"""Tokens in the scatter, at most; drawn by the seed."""


def measure(table: Mapping[str, Tensor], seed: int = 0) -> dict[str, Any]:
    """Shares of tokens with TSPD, support sizes, and entropy against gold probability; means over all tokens.

    Args:
        table: from `token_table`.
        seed: seed of the draw of the tokens that become points.

    Returns:
        `tokens`; `grid`: objects of `m`, `eps_head`, `eps_tail` and `share`, None where TSPD is not defined;
        `support_sizes`: size -> number of tokens, as text since JSON's keys are; `support_size/mean`, `/median`,
        `/p90`; `zero_gradient`, the share of tokens whose support is the gold token alone (where the sparsemax
        loss has stopped); `entropy` (nats) and `gold_probability`, means; `points`: the same two of
        some tokens.
    """
    size = table["support_size"]
    largest = int(size.max())
    counts = count_sizes(size, largest)
    median, p90 = quantiles_of_counts(counts, [0.5, 0.9]).tolist()
    return {
        "tokens": len(size),
        "grid": [
            {"m": m, "eps_head": head, "eps_tail": tail, "share": _share(table, m, head, tail)}
            for m in TSPD_ORDERS
            for head in EPS_HEAD
            for tail in EPS_TAIL
        ],
        "support_sizes": {str(s): int(counts[s]) for s in range(1, largest + 1) if counts[s]},
        "support_size/mean": size.double().mean().item(),
        "support_size/median": median,
        "support_size/p90": p90,
        "zero_gradient": table["zero_gradient"].double().mean().item(),
        "entropy": table["entropy"].double().mean().item(),
        "gold_probability": table["gold_probability"].double().mean().item(),
        "points": _points(table, seed),
    }


def _share(table: Mapping[str, Tensor], m: int, eps_head: float, eps_tail: float) -> float | None:
    try:
        check_tspd(m, eps_head, eps_tail)
    except UserError:
        return None
    satisfied = HeadAndTail(table[f"head/{m}"], table[f"tail/{m}"]).satisfies(eps_head, eps_tail)
    return satisfied.double().mean().item()


def _points(table: Mapping[str, Tensor], seed: int) -> dict[str, list[float]]:
    chosen = torch.randperm(len(table["row"]), generator=torch.Generator().manual_seed(seed))[:POINTS]
    columns = ("gold_probability", "entropy")
    return {name: [round(value, 5) for value in table[name][chosen].tolist()] for name in columns}

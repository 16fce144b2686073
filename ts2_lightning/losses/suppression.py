"""Tail suppression: push down the softmax mass outside a set of plausible tokens."""

import torch

from ts2_lightning.losses.base import DensePart, Gradient, SparsePart, Term
from ts2_lightning.ops import Entries, LogitRows, Mass


def tail_suppression(rows: LogitRows, plausible: Entries, mass: Mass, tail_mass_cap: float | None = None) -> Term:
    """L = -log sum_{j in A} p_j with p = softmax(z), for a set A that holds the gold token and is held constant.

    Its gradient is p outside A and -p_j t / (1 - t) inside, where t is the mass outside: probability moves
    from the tail to the plausible tokens in proportion to what they have, which leaves their ratios as they are.

    Computed as log1p(t / P_A) with t summed by itself, so that a tail of 1e-12 keeps its digits.

    Source: TS2, section 4 and equation 4 (with A the support of sparsemax and the gold token).

    Args:
        rows: n rows of logits.
        plausible: A, which must list the gold token of every row.
        mass: `rows.mass(plausible)`.
        tail_mass_cap: clamp t at this value, as the public code of TS2 does at 0.99. The gradient of a
            clamped token is zero. Default: no clamp.
    """
    tail = mass.outside
    outside, ratio = 1 / rows.normalizer, tail / mass.inside
    value = torch.log1p(ratio)
    if tail_mass_cap is not None:
        capped = tail >= tail_mass_cap
        value = torch.where(capped, torch.log1p(torch.full_like(tail, -tail_mass_cap)).neg(), value)
        outside, ratio = outside.masked_fill(capped, 0), ratio.masked_fill(capped, 0)
    inside = -rows.probabilities_at(plausible) * ratio[plausible.rows]
    gradient = Gradient(
        dense=(DensePart(outside, rows.exponentials, excluded=plausible),), sparse=(SparsePart(plausible, inside),)
    )
    return Term(value, gradient)


def top_k_and_gold(rows: LogitRows, k: int) -> Entries:
    """The k largest logits of every row, and its gold token (TS2, table 7)."""
    columns = rows.top(k)[1]
    of_row = torch.arange(len(rows), device=columns.device)[:, None].expand_as(columns)
    return Entries(of_row.reshape(-1), columns.reshape(-1)).union(rows.labels)

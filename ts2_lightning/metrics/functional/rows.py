"""From logits of any shape to one value per token, a few rows at a time."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ts2_lightning.ops import LogitRows, Workspace, check_gold, check_logits, rows_per_block
from ts2_lightning.ranges import POSITIVE, check_number
from ts2_lightning.types import IGNORE_INDEX


@torch.no_grad()
def per_token(measure: Callable[[LogitRows], Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    """Measures every supervised token.

    Only a block of rows is copied at a time (in float32 at least: bfloat16 logits get supports wrong), so that no
    second [..., K] comes to be, also where the logits are a view, such as `logits[:, :-1]`.

    Args:
        measure: function from n rows to [n] or [n, k]; see `LogitRows`.
        logits: [..., K] logits of any float dtype. May contain -inf (a masked vocabulary).
        labels: [...] int, token that follows each row of logits (the shift by one is done), or -100 where nothing is to
            be measured.

    Returns:
        [...] or [..., k] in float32, or float64 if the logits are. NaN where the label is -100, and where the logits
        are no distribution: with NaN or +inf among them, or nothing but -inf.

    Raises:
        UserError: shapes or dtypes that do not fit, or a label outside of the vocabulary.
    """
    check_logits(logits, labels)
    *leading, K = logits.unsqueeze(0).shape  # one dimension more, so that a single token [K] has a place too
    places = (labels != IGNORE_INDEX).reshape(-1).nonzero()[:, 0]
    gold = labels.reshape(-1)[places].long()
    check_gold(gold, K)
    block, workspace, parts = rows_per_block(K, logits.device), Workspace(), []
    for chosen, chosen_gold in zip(places.split(block), gold.split(block), strict=True):
        workspace.clear()
        taken = logits.unsqueeze(0)[torch.unravel_index(chosen, leading)]
        parts.append(
            _measure(measure, taken.to(torch.promote_types(logits.dtype, torch.float32)), chosen_gold, workspace)
        )
    values = torch.cat(parts)
    result = values.new_full((math.prod(leading), *values.shape[1:]), torch.nan)
    result[places] = values
    return result.reshape(logits.shape[:-1] + values.shape[1:])


def any_gold(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Labels [...] for a function without gold tokens: those of the caller, or zeros if there are none."""
    return logits.new_zeros(logits.shape[:-1], dtype=torch.long) if labels is None else labels


def check_logit_scale(logit_scale: float) -> float:
    """The factor c of sparsemax(c z), if it is a finite number above 0. Raises UserError otherwise."""
    check_number("logit_scale", logit_scale, POSITIVE)
    return logit_scale


def _measure(measure: Callable[[LogitRows], Tensor], logits: Tensor, gold: Tensor, workspace: Workspace) -> Tensor:
    """A block of rows [n, K], NaN for those that are no distribution."""
    with torch.autocast(logits.device.type, enabled=False):  # it would turn products to bfloat16
        rows = LogitRows(logits.contiguous(), gold, workspace=workspace)
        values = measure(rows)
    bad = ~rows.maximum.isfinite()
    return values.masked_fill(bad.reshape(-1, *[1] * (values.dim() - 1)), torch.nan)

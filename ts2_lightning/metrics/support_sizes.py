"""Histogram and quantiles of support sizes, exact over pieces and ranks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ts2_lightning.metrics import functional
from ts2_lightning.metrics.functional.rows import check_logit_scale
from ts2_lightning.metrics.functional.sizes import check_shares
from ts2_lightning.ranges import COUNT, check_number
from ts2_lightning.types import IGNORE_INDEX


class SupportSizes(Metric):
    """Histogram and quantiles of |S|, the support size of sparsemax(c z), over all supervised tokens.

    `compute` gives `counts` [largest + 2] (see `functional.count_sizes`) and `quantile_Q` for each Q of `quantiles`
    (see `functional.quantiles_of_counts`).

    Args:
        quantiles: shares from 0 to 1.
        logit_scale: factor c > 0 on the logits.
        largest: largest size with a count of its own; a quantile above it is inf.
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Raises:
        UserError: a setting out of its range.

    Example:
        >>> metric = SupportSizes(quantiles=(0.5, 0.9), largest=4)
        >>> metric.update(torch.tensor([[2.0, 1.5, -1.0], [3.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
        >>> result = metric.compute()
        >>> result["counts"].tolist(), result["quantile_0.5"].item(), result["quantile_0.9"].item()
        ([0, 1, 1, 1, 0, 0], 2.0, 3.0)
    """

    is_differentiable = False
    full_state_update = False

    def __init__(
        self, quantiles: Sequence[float] = (0.5, 0.9), logit_scale: float = 1.0, largest: int = 1024, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_number("SupportSizes: largest", largest, COUNT)
        self.quantiles = check_shares(quantiles)
        self.logit_scale = check_logit_scale(logit_scale)
        self.largest = largest
        # Named after the settings, see `ExactMean`; the quantiles are no part of the state.
        self._counts = f"counts of support_size({logit_scale=!r}) up to {largest}"
        self.add_state(self._counts, torch.zeros(largest + 2, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor | None = None) -> None:
        """Adds the tokens of a batch, see `TokenMean.update`."""
        sizes = functional.support_size(logits, self.logit_scale, labels)
        kept = sizes if labels is None else sizes[labels != IGNORE_INDEX]
        setattr(self, self._counts, getattr(self, self._counts) + functional.count_sizes(kept, self.largest))

    def compute(self) -> dict[str, Tensor]:
        """The counts and the quantiles."""
        counts = getattr(self, self._counts)
        values = functional.quantiles_of_counts(counts, self.quantiles)
        return {"counts": counts} | {f"quantile_{q:g}": value for q, value in zip(self.quantiles, values, strict=True)}

"""The metrics' common ground: exact means over pieces and ranks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ts2_lightning.types import IGNORE_INDEX


class ExactMean(Metric):
    """The mean of all values since the last reset, on all ranks: a sum and a count, never a mean of means.

    NaN without a value. Sums are float64; for a device that has none (mps), call `set_dtype(torch.float32)` first.

    Args:
        name: name of the measured quantity, with all settings. The states are named after it: a `MetricCollection`
            treats metrics whose states are equal after the first batch as one, and from then on updates only one.
        shape: shape of one value.
        kwargs: keyword arguments of `torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, name: str, shape: tuple[int, ...] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sum, self._count = f"sum of {name}", f"count of {name}"
        self.add_state(self._sum, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state(self._count, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def compute(self) -> Any:
        """The mean, of the shape of one value, in float64."""
        return getattr(self, self._sum) / getattr(self, self._count)

    def _add(self, values: Tensor) -> None:
        """Adds values, [..., *shape]."""
        total = getattr(self, self._sum)
        values = values.reshape(-1, *total.shape)
        setattr(self, self._sum, total + values.sum(0, dtype=total.dtype))
        setattr(self, self._count, getattr(self, self._count) + len(values))


class TokenMean(ExactMean):
    """The mean of a function of the logits over all supervised tokens.

    Args:
        measure: function from `(logits [..., K], labels=[...], **settings)` to [..., *shape].
        settings: settings of the function; they belong to the metric's name.
        shape: shape of one token's value.
        kwargs: keyword arguments of `torchmetrics.Metric`.
    """

    def __init__(
        self, measure: Callable[..., Tensor], settings: dict[str, Any], shape: tuple[int, ...] = (), **kwargs: Any
    ) -> None:
        listed = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        super().__init__(f"{measure.__name__}({listed})", shape, **kwargs)
        self._measure = measure
        self._settings = settings

    def update(self, logits: Tensor, labels: Tensor | None = None) -> None:
        """Adds the tokens of a batch.

        Args:
            logits: [..., K] logits of any float dtype.
            labels: [...] token that follows each row of logits (the shift by one is done); -100 for tokens to leave
                out. None takes all tokens, for a function that needs no gold token.

        Raises:
            UserError: shapes or dtypes that do not fit, or a label outside of the vocabulary.
        """
        values = self._measure(logits, labels=labels, **self._settings)
        self._add(values if labels is None else values[labels != IGNORE_INDEX])

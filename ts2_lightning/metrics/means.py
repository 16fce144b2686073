"""Exact means over pieces and ranks, and accumulators by the sets of an evaluation."""

from collections.abc import Callable, ItemsView, Mapping
from typing import Any, Generic, TypeVar

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


T = TypeVar("T")


class BySet(Generic[T]):
    """One accumulator for all rows of an evaluation, and one more for each set that has a name.

    Args:
        stage: stage of the evaluation: `val` or `test`.
        loaders: loaders of the evaluation, as a trainer has them: a mapping from the sets' names, or anything else.
        make: function that makes an empty accumulator.

    Example:
        >>> lists = BySet("val", {"chat": "a loader", "math": "another"}, list)
        >>> for batches in lists.of(1):
        ...     batches.append("a batch")
        >>> dict(lists.items())
        {'val': ['a batch'], 'val/chat': [], 'val/math': ['a batch']}
    """

    def __init__(self, stage: str, loaders: object, make: Callable[[], T]) -> None:
        names = loaders if isinstance(loaders, Mapping) else ()
        self._made = {stage: make(), **{f"{stage}/{name}": make() for name in names}}

    def of(self, dataloader_idx: int) -> list[T]:
        """The accumulators of a batch, by the number of its loader."""
        whole, *named = self._made.values()
        return [whole, *named[dataloader_idx : dataloader_idx + 1]]

    def items(self) -> ItemsView[str, T]:
        """Each accumulator, under the beginning of its logged names."""
        return self._made.items()

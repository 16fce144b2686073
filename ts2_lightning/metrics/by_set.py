"""Accumulators over all rows of an evaluation, and over the rows of each of its sets."""

from collections.abc import Callable, ItemsView, Mapping
from typing import Generic, TypeVar

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

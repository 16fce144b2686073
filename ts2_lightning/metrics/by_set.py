"""What is added up over the rows of an evaluation, and over those of each of its sets."""

from collections.abc import Callable, ItemsView, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class BySet(Generic[T]):
    """One accumulator for all rows of an evaluation, and one more for each set that has a name.

    Args:
        stage: `val` or `test`.
        loaders: of the evaluation, as a trainer has them: a mapping from the sets' names, or anything without names.
        make: makes an empty accumulator.

    Example:
        >>> lists = BySet("val", {"chat": "a loader", "math": "another"}, list)
        >>> for found in lists.of(1):
        ...     found.append("a batch")
        >>> dict(lists.items())
        {'val': ['a batch'], 'val/chat': [], 'val/math': ['a batch']}
    """

    def __init__(self, stage: str, loaders: object, make: Callable[[], T]) -> None:
        names = loaders if isinstance(loaders, Mapping) else ()
        self._made = {stage: make(), **{f"{stage}/{name}": make() for name in names}}

    def of(self, dataloader_idx: int) -> list[T]:
        """Those to which a batch belongs, by the number of its loader."""
        whole, *named = self._made.values()
        return [whole, *named[dataloader_idx : dataloader_idx + 1]]

    def items(self) -> ItemsView[str, T]:
        """Each by what its logged names begin with."""
        return self._made.items()

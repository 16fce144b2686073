"""The part of a training's changes that an export rounds away.

A bfloat16 weight of 0.02 has neighbours at a distance of 1e-4: short trainings, and gentle ones, change it by less. So
the export's rounding can be as large as the whole update, though no single weight looks wrong.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 2**20
"""Numbers of a weight that are compared at a time: differences of a whole embedding would be several of it."""

TOLERATED = 0.05
"""Norm of the rounding over norm of the update, above which there is a warning."""


class ExportedWeight(NamedTuple):
    """A weight that is to be exported.

    Attributes:
        name: name of the weight in the model.
        value: exact value after training.
        dtype: dtype in which it is written if the user names none.
        start: function that returns the value before training; None if unknown.
    """

    name: str
    value: Tensor
    dtype: torch.dtype
    start: Callable[[], Tensor | None] = lambda: None


class Rounding:
    """Adds up rounding and update over all weights that are written in a narrower dtype than they have.

    Example:
        >>> rounding = Rounding()
        >>> exact = torch.tensor([1.0 + 2**-10, 1.0 + 2**-7])
        >>> rounding.add(ExportedWeight("w", exact, torch.bfloat16, lambda: torch.ones(2)), exact.bfloat16())
        >>> round(rounding.share, 3)
        0.124
    """

    def __init__(self) -> None:
        self._rounding = self._update = 0.0
        self._dtypes: set[torch.dtype] = set()

    def add(self, weight: ExportedWeight, written: Tensor) -> None:
        """Add one weight.

        Args:
            weight: weight with its exact value.
            written: value that is written.
        """
        if written.dtype == weight.value.dtype or not written.is_floating_point():
            return
        start = weight.start()
        if start is None or start.shape != weight.value.shape:
            return
        self._dtypes.add(written.dtype)
        tensors = (written, weight.value.detach(), start)
        for rounded, exact, before in zip(*(tensor.reshape(-1).split(BLOCK) for tensor in tensors), strict=True):
            exact = exact.cpu()
            self._rounding += _squares(rounded, exact)
            self._update += _squares(exact, before.cpu())

    @property
    def share(self) -> float:
        """Norm of the rounding over norm of the update; 0 where nothing is rounded, or nothing was learnt."""
        return 0.0 if self._update == 0 else (self._rounding / self._update) ** 0.5

    @property
    def complaint(self) -> str | None:
        """One line for the user, if too much is lost."""
        if self.share <= TOLERATED:
            return None
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in self._dtypes))
        return (
            f"the export is rounded to {names}, by {self.share:.0%} of what training has changed (norm of the rounding "
            "over norm of the update): export --dtype float32, or ExportHuggingFace(dtype: float32) in fit, keeps all"
        )


def _squares(one: Tensor, other: Tensor) -> float:
    difference = one.to(torch.promote_types(one.dtype, torch.float32)) - other
    return float(difference.square().sum(dtype=torch.float64))

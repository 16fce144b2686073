"""Runs the code of a GPU on the CPU: sets of tokens are padded lists and masks, no shape depends on a value, and matrix
products of bfloat16 are asked for in float32 (which a CPU cannot do with real numbers).
"""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor


class Flags:
    """Stands for the one place where a GPU's host waits for a value, and counts how often it does.

    Args:
        answers: what flags say that have no value, in turn and again from the start. None: they have one.

    Attributes:
        told: what the flags have said.
    """

    def __init__(self, answers: Sequence[bool] | None) -> None:
        self._answers = None if answers is None else itertools.cycle(answers)
        self.told: list[bool] = []

    def __call__(self, flag: Tensor) -> bool:
        assert flag.shape == ()
        assert flag.dtype == torch.bool
        self.told.append(bool(flag) if self._answers is None else next(self._answers))
        return self.told[-1]


def as_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, products: bool = False, answers: Sequence[bool] | None = None
) -> Flags:
    """From here to the end of the test.

    Args:
        monkeypatch: of the test.
        products: the matrix products too, for tensors without data.
        answers: whether a list is too short for a support, see `Flags`. Default: as the values say.
    """
    flags = Flags(answers)
    monkeypatch.setattr("ts2_lightning.ops.sparse.sizes_may_depend_on_data", lambda device: False)
    monkeypatch.setattr("ts2_lightning.ops.sparse.told", flags)
    if products:
        monkeypatch.setattr("ts2_lightning.engines.linear.sums_in_float32", lambda device: True)
    return flags

"""Writes of a checkpoint that are done later, of copies that training does not change."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.utils._pytree import tree_leaves


class DeferredWrites:
    """Functions that write the parts of one checkpoint, each with a copy of what it writes.

    Args:
        group: ranks that write together, for functions that communicate: other collectives may run at the same time in
            other groups. None where there is one rank.

    Attributes:
        size: number of bytes of the copies, about: tensors that share memory count each, and are copied once.

    Example:
        >>> written, state = [], {"weight": torch.ones(2)}
        >>> writes = DeferredWrites()
        >>> writes.add(written.append, state)
        >>> _ = state["weight"].zero_()
        >>> writes.run()
        >>> written
        [{'weight': tensor([1., 1.])}]
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        self.group = group
        self.size = 0
        self._writes: list[Callable[[], object]] = []

    def add(self, write: Callable[[Any], object], state: Any) -> None:
        """Copy a state into the host's memory, to be written later.

        Args:
            write: function that is called with the copy.
            state: tensors, sharded ones too, and plain values, as a checkpoint has them.
        """
        # Neither pinned, nor shared, nor copied while training goes on: these need a GPU, or keep the memory.
        stager = DefaultStager(StagingOptions(False, False, False, False))
        copy = stager.stage(state)
        stager.close()
        self.size += sum(map(_own_bytes, tree_leaves(copy)))
        self._writes.append(partial(write, copy))

    def run(self) -> None:
        """Write all parts in their order; the copy of each is freed when it is written."""
        while self._writes:
            self._writes.pop(0)()


def write_file(path: Any, content: Any) -> None:
    """Writes one file of `torch.save`, a tensor at a time."""
    with open(path, "wb") as file:
        torch.save(content, file)


def _own_bytes(value: Any) -> int:
    """Bytes of a tensor, or of the part of it that this rank holds; 0 for all else."""
    if not isinstance(value, Tensor):
        return 0
    local: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return local.nbytes

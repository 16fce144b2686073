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
    """Functions that write the parts of one checkpoint after the other, each with a copy of what it writes.

    The memory of the copies is kept for those of the next checkpoint: to get as much from the system takes longer than
    to copy into it. So the writes of one have to be done before the first of the next is added.

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
        # Neither pinned, nor shared, nor copied while training goes on: the copy is whole when `add` returns.
        self._stager = DefaultStager(StagingOptions(False, False, False, False))

    def clear(self) -> None:
        """Leave out what was added and not written, for another checkpoint."""
        self._writes = []
        self.size = 0

    def close(self) -> None:
        """Give back the memory of the copies; nothing can be added any more."""
        self.clear()
        self._stager.close()

    def add(self, write: Callable[[Any], object], state: Any) -> None:
        """Copy a state into the host's memory, to be written later.

        Args:
            write: function that is called with the copy.
            state: tensors, sharded ones too, and plain values, as a checkpoint has them.
        """
        copy = self._stager.stage(state)
        self.size += sum(map(_own_bytes, tree_leaves(copy)))
        self._writes.append(partial(write, copy))

    def run(self) -> None:
        """Write all parts in their order."""
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

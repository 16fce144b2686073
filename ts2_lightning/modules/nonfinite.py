"""Losses, gradients and weights that are not finite: how all ranks come to know, and what can be told of them.

The norm of a step's gradient is the one flag. Every strategy sums it over all ranks anyway, so all ranks see the same;
a loss that is not finite makes its gradient so, so that the norm tells of it too. Nothing is sent and no device is
waited for but once per step, when the norm is looked at.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import Tensor

_SHOWN = 8  # rows of a rank in a message


def spreading(total: Tensor) -> Tensor:
    """The loss itself, whose gradient is not finite where the loss is not.

    The gradient of a loss can be finite where its value is not: it has a formula of its own.

    Args:
        total: [] loss.

    Example:
        >>> total = torch.tensor(torch.inf, requires_grad=True)
        >>> spreading(total).backward()
        >>> total.grad
        tensor(nan)
    """
    value = total.detach()
    return total * (1 + (value - value))  # zero, or NaN if it is not finite


def first_nonfinite(named_tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The first of some tensors that holds a NaN or an infinite number, and how many do, in words; None if none does.

    Nothing as large as a tensor is allocated. Of a tensor that is sharded over ranks, this rank's part is looked at;
    whole numbers, and tensors on meta, are finite.

    Args:
        named_tensors: such as `model.named_parameters()`; read to its end.

    Example:
        >>> good, bad = torch.ones(3), torch.tensor([1.0, torch.nan, -torch.inf])
        >>> first_nonfinite([("embeddings", good), ("norm", bad), ("head", bad)])
        'norm (2 of its 3 numbers, and 1 tensor more)'
        >>> first_nonfinite([("embeddings", good)]) is None
        True
    """
    first, more = "", 0
    for name, tensor in named_tensors:
        part = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        part = part.float() if part.is_floating_point() and part.itemsize == 1 else part  # torch has no more for float8
        if _is_finite(part):
            continue
        if first:
            more += 1
        else:
            count = int((~part.isfinite()).sum())
            first = f"{name} ({count:,} of its {part.numel():,} numbers"
    others = f", and {more:,} tensor{'s' if more > 1 else ''} more" if more else ""
    return f"{first}{others})" if first else None


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = tensor.aminmax()  # of a NaN both are one
    return bool(low.isfinite() & high.isfinite())


class StepWatch:
    """Remembers the micro-batches of this rank's step, in case something is to be told of them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Starts the next step."""
        self._seen: list[tuple[Tensor, Tensor]] = []

    def add(self, row_index: Tensor, total: Tensor) -> None:
        """A micro-batch: [R] its rows' indices (-1 for a filler), and [] its loss."""
        self._seen.append((row_index, total.detach()))

    def trouble(self, norm: float) -> str:
        """What is not finite, on which rank and among which rows. Every rank must call; all get the same answer.

        Args:
            norm: norm of the step's gradient.

        Example:
            >>> watch = StepWatch()
            >>> watch.add(torch.tensor([4, 7]), torch.tensor(1.0))
            >>> watch.add(torch.tensor([9, -1]), torch.tensor(torch.nan))
            >>> watch.trouble(torch.nan)
            'the loss is not finite among rows 9 on rank 0'
            >>> watch.reset()
            >>> watch.add(torch.tensor([4, 7]), torch.tensor(1.0))
            >>> watch.trouble(torch.inf)
            'the gradient norm is inf, though all losses are finite (rows 4, 7 on rank 0)'
        """
        mine = [(rows.tolist(), bool(total.isfinite())) for rows, total in self._seen]
        ranks = _gathered(mine)
        if all(finite for rank in ranks for _, finite in rank):
            return f"the gradient norm is {norm}, though all losses are finite ({_places(ranks)})"
        bad: list[_Seen] = [[(rows, finite) for rows, finite in rank if not finite] for rank in ranks]
        return f"the loss is not finite among {_places(bad)}"


_Seen = list[tuple[list[int], bool]]
"""The rows of each micro-batch, and whether their loss is finite."""


def _gathered(mine: _Seen) -> list[_Seen]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    ranks: list[_Seen] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(ranks, mine)
    return ranks


def _places(ranks: list[_Seen]) -> str:
    """`rows 3, 5 on rank 1; rows 8 on rank 2`; ranks without rows are left out."""
    told = []
    for rank, batches in enumerate(ranks):
        rows = [row for batch, _ in batches for row in batch if row >= 0]
        if rows:
            more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
            told.append(f"rows {', '.join(map(str, rows[:_SHOWN]))}{more} on rank {rank}")
    return "; ".join(told)


def way_on(trainer: Trainer) -> str:
    """How to go on from the newest checkpoint: what was saved was good, as a bad step is refused before its update."""
    written = [
        Path(path)
        for callback in trainer.checkpoint_callbacks
        for path in (getattr(callback, "last_model_path", ""), getattr(callback, "best_model_path", ""))
        if path
    ]
    there = [path for path in written if path.exists()]
    if not there:
        return "No checkpoint has been written yet: lower the learning rate or look at these rows"
    newest = max(there, key=lambda path: path.stat().st_mtime)
    return f"Go on from the newest checkpoint with --ckpt_path {newest}"

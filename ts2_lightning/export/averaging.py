"""The mean of several checkpoints of a run, a tensor at a time.

Source: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization",
https://arxiv.org/abs/1803.05407.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ts2_lightning.checkpoint_files.reading import StoredTensor
from ts2_lightning.types import UserError

Stored = Mapping[str, StoredTensor]
"""The weights of a checkpoint by their names."""


def averaged(checkpoints: Mapping[Path, Stored], rank: int | None = None) -> dict[str, StoredTensor]:
    """The mean of the weights of several checkpoints, in float32 at least; integers are those of the first.

    The mean of products is not the product of means: adapters become one whose product is the mean of theirs, and whose
    rank is the sum of theirs.

    Args:
        checkpoints: weights of each checkpoint, by its path.
        rank: rank of the adapters; None where there are none.

    Raises:
        UserError: if one has other weights than the first.

    Example:
        >>> ones, threes = ({"w": StoredTensor.of(torch.full((2,), value))} for value in (1.0, 3.0))
        >>> averaged({Path("step-1.ckpt"): ones, Path("step-2.ckpt"): threes})["w"].read()
        tensor([2., 2.])
    """
    first, *others = checkpoints
    for other in others:
        _check_alike(first, checkpoints[first], other, checkpoints[other])
    return {name: _joined(name, [stored[name] for stored in checkpoints.values()], rank) for name in checkpoints[first]}


def _check_alike(first: Path, weights: Stored, other: Path, others: Stored) -> None:
    names = sorted(weights.keys() ^ others.keys()) or [n for n in weights if weights[n].shape != others[n].shape]
    if names:
        raise UserError(
            f"{other} and {first} cannot be averaged: they differ in {names[0]} ({len(names)} such weights), so they "
            "are of different models"
        )


def _joined(name: str, tensors: Sequence[StoredTensor], rank: int | None) -> StoredTensor:
    shape, dtype = tensors[0].shape, tensors[0].dtype
    if rank is not None and ".lora_A." in name:
        return StoredTensor(torch.Size([len(tensors) * shape[0], shape[1]]), dtype, partial(_beside, tensors, 0, rank))
    if rank is not None and ".lora_B." in name:
        return StoredTensor(torch.Size([shape[0], len(tensors) * shape[1]]), dtype, partial(_beside, tensors, 1, rank))
    return StoredTensor(shape, dtype, partial(_mean, tensors)) if dtype.is_floating_point else tensors[0]


def _mean(tensors: Sequence[StoredTensor]) -> Tensor:
    """Not rounded to the dtype of the weights: who writes it rounds it, once."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    total = torch.zeros(tensors[0].shape, dtype=dtype)
    for tensor in tensors:
        total += tensor.read()
    return total.div_(len(tensors))


def _beside(tensors: Sequence[StoredTensor], side: int, rank: int) -> Tensor:
    """Factors of adapters beside each other: A's as they are, B's divided by their number.

    Of E experts, A is [E rank, inputs], and B is [outputs, rank E]: the columns of B count experts fastest.
    """
    parts = [tensor.read() for tensor in tensors]
    if side == 0:
        return torch.cat([a.view(-1, rank, a.shape[1]) for a in parts], 1).flatten(0, 1)
    dtype = parts[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    return torch.cat([(b.to(wide) / len(parts)).view(b.shape[0], rank, -1) for b in parts], 1).flatten(1).to(dtype)

"""Safetensors files of bounded size, written a tensor at a time."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ts2_lightning.export.tensor_file import TensorFile
from ts2_lightning.modules.nonfinite import first_nonfinite
from ts2_lightning.types import UserError

SHARD_BYTES = 5_000_000_000
"""A file is not larger, unless a single tensor is; as the hub recommends."""

_BAR_BYTES = 1_000_000_000  # below, a progress bar would only flicker


def write_shards(tensors: Iterable[tuple[str, Tensor]], directory: Path, expected: int, shard_bytes: int) -> None:
    """Writes `model.safetensors`, or several files and their index. One tensor is in memory at a time.

    Args:
        tensors: names and tensors on the CPU; they may be memory-mapped.
        directory: directory to write to; it exists.
        expected: number of bytes of all tensors, about; for the progress bar, and the room for the files' headers.
        shard_bytes: largest number of bytes of a file.
    """
    files: list[dict[str, int]] = []  # names and bytes of each
    remaining = iter(tensors)
    following = next(remaining, None)
    hidden = None if expected >= _BAR_BYTES else True  # None: shown on a terminal only
    with tqdm(total=expected, unit="B", unit_scale=True, desc="Export", disable=hidden, leave=False) as bar:
        while following is not None or not files:
            sizes: dict[str, int] = {}
            with TensorFile(directory / str(len(files)), min(expected, shard_bytes)) as file:
                while following is not None and (not sizes or file.size + _bytes(following[1]) <= shard_bytes):
                    file.add(*following)
                    sizes[following[0]] = _bytes(following[1])
                    bar.update(_bytes(following[1]))
                    following = next(remaining, None)
            files.append(sizes)
    _name(files, directory)


def _name(files: list[dict[str, int]], directory: Path) -> None:
    """Gives the files their names, which say how many there are, and writes the index if there are several."""
    if len(files) == 1:
        (directory / "0").rename(directory / SAFE_WEIGHTS_NAME)
        return
    places: dict[str, str] = {}
    for number, names in enumerate(files):
        file = SAFE_WEIGHTS_NAME.replace(".", f"-{number + 1:05d}-of-{len(files):05d}.")
        (directory / str(number)).rename(directory / file)
        places |= dict.fromkeys(names, file)
    total = sum(size for names in files for size in names.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def as_written(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A weight on the CPU and in the dtype of the export.

    Args:
        name: name of the weight, for messages.
        tensor: value of the weight.
        dtype: dtype of a floating-point weight; None leaves it as it is.

    Raises:
        UserError: if it has a nan or an infinity: a model with such a weight writes nothing, without an error.

    Example:
        >>> as_written("head", torch.tensor([1e5]), torch.float16)
        Traceback (most recent call last):
        ts2_lightning.types.UserError: cannot export in torch.float16, into which weights do not fit: head (1 of its 1 \
numbers); choose another
    """
    written = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
    weight = first_nonfinite([(name, written)])
    if weight is None:
        return written
    if first_nonfinite([(name, tensor)]) is None:
        raise UserError(f"cannot export in {written.dtype}, into which weights do not fit: {weight}; choose another")
    raise UserError(f"cannot export NaN or infinite weights: {weight}; export an earlier checkpoint")

"""A safetensors file that is written a tensor at a time; the library's own writer needs all of them in memory.

The format begins with a header that says where each tensor lies, and any number of spaces may end it. So room is left
for it, the tensors follow as they come, and the header is written last.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

BLOCK = 2**20
"""Numbers of a tensor that are serialised at a time."""

_ALIGNMENT = 8  # of the header, in bytes
_LEAST_ROOM, _MOST_ROOM = 2**13, 2**20  # bytes of a header; one of a thousandth of the tensors is long enough
_COPIED = 2**22  # bytes at a time


class _Entry(NamedTuple):
    """A tensor in the file: the bytes that it takes, where they begin after the header, and those of one number."""

    dtype: str
    shape: list[int]
    start: int
    size: int
    item_size: int


class TensorFile:
    """A safetensors file as a context in which tensors are added; it is a whole file once the context is left.

    In memory there is the tensor that is added, and a few MB. The tensors lie in the file in the order in which they
    come. Only if one would not lie at a multiple of its numbers' size, or if the header has no room, the file is
    written a second time, in the library's order.

    Args:
        path: file to write.
        expected: number of bytes of all tensors, about, by which room is left for the header.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import load_file
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with TensorFile(Path(directory, "model.safetensors"), expected=12) as file:
        ...         file.add("weight", torch.tensor([1.0, 2.0]))
        ...         file.add("mask", torch.tensor([True]))
        ...     load_file(Path(directory, "model.safetensors"))["weight"]
        tensor([1., 2.])
    """

    def __init__(self, path: Path, expected: int) -> None:
        self._path = path
        self._room = min(max(expected // 1000, _LEAST_ROOM), _MOST_ROOM) // _ALIGNMENT * _ALIGNMENT
        self._entries: dict[str, _Entry] = {}
        self._size = 0

    def __enter__(self) -> "TensorFile":
        self._file = self._path.open("wb+")
        self._file.seek(8 + self._room)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._file:
            if kind is not None:  # without a header it is no file of this format
                return
            header = _header(self._entries)
            fits = len(header) <= self._room
            if fits and all(entry.start % entry.item_size == 0 for entry in self._entries.values()):
                self._file.seek(0)
                self._file.write(_framed(header, self._room))
            else:
                self._write_again()

    @property
    def size(self) -> int:
        """The number of bytes of the tensors that were added."""
        return self._size

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor.

        Args:
            name: name of the tensor, which no other in the file has.
            tensor: tensor on the CPU; it may be memory-mapped, and need not be contiguous.
        """
        start = self._size
        for block in tensor.detach().reshape(-1).split(BLOCK):
            self._size += self._file.write(_bytes(block))
        dtype = _serialized(tensor.new_empty(0))[0]["dtype"]
        self._entries[name] = _Entry(dtype, [*tensor.shape], start, self._size - start, tensor.element_size())

    def _write_again(self) -> None:
        """Write the file anew with a header of the right length, and the tensors of the widest numbers first."""
        ordered = sorted(self._entries.items(), key=lambda item: (-item[1].item_size, item[0]))
        moved, size = {}, 0
        for name, entry in ordered:
            moved[name] = entry._replace(start=size)
            size += entry.size
        header = _header(moved)
        beside = self._path.with_name(f".{self._path.name}.ordered")
        with beside.open("wb") as file:
            file.write(_framed(header, -(-len(header) // _ALIGNMENT) * _ALIGNMENT))
            for _, entry in ordered:
                self._file.seek(8 + self._room + entry.start)
                for start in range(0, entry.size, _COPIED):
                    file.write(self._file.read(min(_COPIED, entry.size - start)))
        os.replace(beside, self._path)


def _serialized(tensor: Tensor) -> tuple[dict[str, Any], memoryview]:
    """What the library's header says of a tensor, and its bytes."""
    serialized = memoryview(save({"": tensor}))
    end = 8 + int.from_bytes(serialized[:8], "little")
    return json.loads(bytes(serialized[8:end]))[""], serialized[end:]


def _bytes(block: Tensor) -> memoryview:
    """The bytes of a few numbers in the format's order, which is that of most machines: nothing is copied there."""
    if sys.byteorder == "big":
        return _serialized(block)[1]
    return block.contiguous().view(torch.uint8).numpy().data


def _header(entries: dict[str, _Entry]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, entry in entries.items():
        places = [entry.start, entry.start + entry.size]
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": places}
    return json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()


def _framed(header: bytes, room: int) -> bytes:
    """A header after its length, both as the file has them."""
    return room.to_bytes(8, "little") + header.ljust(room)

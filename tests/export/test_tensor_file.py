"""Safetensors files that are written a tensor at a time, read back by the library, and beside its own."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ts2_lightning.export import tensor_file
from ts2_lightning.export.tensor_file import TensorFile

TENSORS: dict[str, Tensor] = {
    "rows": torch.randn(7, 5, generator=torch.Generator().manual_seed(0)),
    "number": torch.tensor(3.5, dtype=torch.float64),
    "none": torch.empty(0, 4),
    "transposed": torch.arange(12).view(3, 4).t(),
    "brain": torch.tensor([1.5, -2.25, 3e38], dtype=torch.bfloat16),
    "half": torch.tensor([[6e4]], dtype=torch.float16),
    "eight": torch.tensor([0.5, -448.0, 2**-9], dtype=torch.float8_e4m3fn),
    "mask": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "pairs": torch.tensor([1 + 2j]),
    "part": torch.arange(100.0)[3:8],
}


def write(path: Path, tensors: dict[str, Tensor], expected: int = 0) -> Path:
    with TensorFile(path, expected) as file:
        for name, tensor in tensors.items():
            file.add(name, tensor)
    assert file.size == sum(tensor.nbytes for tensor in tensors.values())
    return path


def header(path: Path) -> tuple[int, dict[str, Any]]:
    """Bytes before the tensors, and what is said of each."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return 8 + length, json.loads(content[8 : 8 + length])


def assert_same(path: Path, tensors: dict[str, Tensor]) -> None:
    stored = load_file(path)
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (stored[name].dtype, stored[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(stored[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name
    start, entries = header(path)
    assert start % 8 == 0
    assert entries.pop("__metadata__") == {"format": "pt"}
    for name, entry in entries.items():
        assert (start + entry["data_offsets"][0]) % tensors[name].element_size() == 0, f"{name} is aligned"


@pytest.mark.parametrize(("block", "order"), [(3, "little"), (2**20, "little"), (3, "big")])
def test_every_dtype_and_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, order: str) -> None:
    """Where a machine has the other order of bytes, the library turns them round (on this one it need not)."""
    monkeypatch.setattr(tensor_file, "BLOCK", block)
    monkeypatch.setattr(tensor_file, "sys", SimpleNamespace(byteorder=order))
    assert_same(write(tmp_path / "file", TENSORS), TENSORS)


def test_a_file_in_another_order_is_the_librarys_own(tmp_path: Path) -> None:
    """Three bytes before what is of four: the tensors are put into the library's order."""
    tensors = {name: TENSORS[name].contiguous() for name in ("mask", "rows", "brain", "none", "number")}
    save_file(tensors, tmp_path / "librarys", metadata={"format": "pt"})
    assert write(tmp_path / "file", tensors).read_bytes() == (tmp_path / "librarys").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "librarys"]


def test_tensors_stay_in_their_order_where_they_can(tmp_path: Path) -> None:
    tensors = {"z": torch.ones(3), "a": torch.zeros(2, 2)}
    path = write(tmp_path / "file", tensors)
    assert_same(path, tensors)
    assert [*header(path)[1]] == ["__metadata__", "z", "a"]


@pytest.mark.parametrize("expected", [0, 10**8])
def test_more_names_than_there_is_room_for(tmp_path: Path, expected: int) -> None:
    """A thousandth of what is expected is room for them all, or the header is written anew."""
    tensors = {f"model.layers.{n}.mlp.experts.weight": torch.full((2,), float(n)) for n in range(200)}
    path = write(tmp_path / "file", tensors, expected)
    assert_same(path, tensors)
    assert ([*header(path)[1]][1:] == [*tensors]) == (expected > 0), "else they are sorted"


def test_a_file_that_was_broken_off_is_none(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="meta"):
        write(tmp_path / "file", {"rows": TENSORS["rows"], "nowhere": torch.empty(2, device="meta")})
    with pytest.raises(SafetensorError):
        load_file(tmp_path / "file")

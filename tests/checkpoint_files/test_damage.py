"""Bytes that changed after they were written are noticed, wherever they lie."""

import os
import random
from pathlib import Path

import pytest
import torch

from ts2_lightning import checkpoint_files as files
from ts2_lightning.checkpoint_files import damage


def write_file(path: Path) -> Path:
    """What `torch.save` writes: weights, and Adam's moments."""
    state = {"exp_avg": torch.randn(300, 70), "step": torch.tensor(3.0), "exp_avg_sq": torch.rand(5000)}
    torch.save({"state_dict": {"w": torch.randn(1000)}, "optimizer_states": [state], "loops": {"a": [1, 2]}}, path)
    return path


def write_directory(path: Path, ranks: int = 2) -> Path:
    """Files as FSDP2 and DeepSpeed name them, with the manifest that all ranks make together."""
    (path / "checkpoint").mkdir(parents=True)
    (path / "latest").write_text("checkpoint")
    for rank in range(ranks):
        (path / f"__{rank}_0.distcp").write_bytes(random.Random(rank).randbytes(1000 + rank))
        (path / "checkpoint" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(b"x" * rank)
    sums = [files.block_checksums(path, rank, ranks) for rank in range(ranks)]
    files.write_manifest(path, ranks, {name: values for rank in sums for name, values in rank.items()})
    return path


def flip(file: Path, position: int, bytes_: int = 64) -> None:
    with file.open("r+b") as stream:
        stream.seek(position)
        before = stream.read(bytes_)
        stream.seek(position)
        stream.write(bytes(255 - byte for byte in before))


def content_of(file: Path) -> object:
    """What torch reads of it, as something that can be compared; None if it cannot be read."""
    try:
        return str(torch.load(file, weights_only=True))
    except Exception:  # whatever a broken file makes torch say
        return None


def test_every_flipped_byte_of_a_file_that_torch_reads(tmp_path: Path) -> None:
    """Bytes that are filled in between the entries, and times of day, may be what they like."""
    file = tmp_path / "a.ckpt"
    torch.save({"w": torch.arange(20.0), "optimizer": {"step": torch.tensor(3.0), "lr": 0.1}}, file)
    torch.set_printoptions(profile="full")
    whole, content = content_of(file), file.read_bytes()
    noticed = harmless = 0
    for position in range(0, len(content), 3):
        flip(file, position, 1)
        if files.is_complete(file) and files.damage_of(file) is None:
            assert content_of(file) == whole, position
            harmless += 1
        else:
            noticed += 1
        file.write_bytes(content)
    assert noticed > len(content) / 12
    assert harmless


@pytest.mark.parametrize("shares", [1, 3])
def test_ranks_look_at_a_file_together(tmp_path: Path, shares: int) -> None:
    file = write_file(tmp_path / "a.ckpt")
    assert [files.damage_of(file, share, shares) for share in range(shares)] == [None] * shares
    flip(file, file.stat().st_size // 2)
    told = [line for share in range(shares) if (line := files.damage_of(file, share, shares))]
    assert len(told) == 1
    assert told[0].startswith("a.ckpt is not as it was written (between bytes ")


def test_a_table_of_contents_that_changed(tmp_path: Path) -> None:
    file = write_file(tmp_path / "a.ckpt")
    content = file.read_bytes()
    start = content.rindex(b"PK\x01\x02")  # of the last entry in the table
    for offset in (0, 16, 24, 42, 46):  # signature, checksum, length, place, name
        flip(file, start + offset, 2)
        assert files.damage_of(file) is not None or not files.is_complete(file), offset
        file.write_bytes(content)


@pytest.mark.parametrize("block", [64, 1000, damage.BLOCK])
def test_a_flipped_byte_of_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(damage, "BLOCK", block)
    directory = write_directory(tmp_path / "a.ckpt")
    assert files.is_complete(directory)
    assert files.damage_of(directory) is None
    names = sorted(files.read_manifest(directory)["xxh3_64"])  # type: ignore[index]
    assert names == sorted(files.read_manifest(directory)["files"])  # type: ignore[index]
    for name in names:
        file = directory / name
        content = file.read_bytes()
        for position in {0, len(content) // 2, len(content) - 1} if content else ():
            flip(file, position, 1)
            assert files.is_complete(directory), "its sizes are right"
            told = [files.damage_of(directory, share, 2) for share in range(2)]
            assert sum(line is not None for line in told) == 1
            assert file.name in next(filter(None, told))
            file.write_bytes(content)
    assert files.damage_of(directory) is None


def test_each_rank_sums_up_what_it_has_written(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "a.ckpt", ranks=3)
    assert sorted(files.block_checksums(directory, 2, 3)) == [
        "__2_0.distcp",
        "checkpoint/zero_pp_rank_2_mp_rank_00_optim_states.pt",
    ]
    assert "latest" in files.block_checksums(directory, 0, 3)
    assert files.block_checksums(write_file(tmp_path / "b.ckpt")) == {}


def test_a_directory_without_checksums_passes(tmp_path: Path) -> None:
    """An older one, or another program's."""
    directory = write_directory(tmp_path / "a.ckpt")
    files.write_manifest(directory, 2, {})
    assert files.is_complete(directory)
    assert files.damage_of(directory) is None
    (directory / files.MANIFEST).unlink()
    assert files.damage_of(directory) is None


def test_what_cannot_be_read_is_damaged(tmp_path: Path) -> None:
    file = write_file(tmp_path / "a.ckpt")
    part = damage.FilePart(tmp_path / "absent", 0, 10, 0, damage._xxh3)
    assert part.damage() == "absent cannot be read (No such file or directory)"
    os.truncate(file, file.stat().st_size - 100)
    assert "table of contents" in str(files.damage_of(file))

"""What counts as a complete checkpoint, and that there is one at every moment."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ts2_lightning import checkpoint_files as files


class Killed(BaseException):
    """The process ends here."""


def make(place: Path, step: int, directory: bool) -> Path:
    partial = files.hidden(place / f"step-{step:06d}.ckpt", "partial")
    if not directory:
        torch.save({"step": step}, partial)
        return partial
    (partial / "checkpoint").mkdir(parents=True)
    for rank in range(2):
        (partial / "checkpoint" / f"rank-{rank}").write_bytes(b"x" * (step + rank))
    files.write_manifest(partial, 2, files.block_checksums(partial))
    return partial


def save(place: Path, step: int, directory: bool) -> None:
    """As a run does."""
    partial = make(place, step, directory)
    target = place / f"step-{step:06d}.ckpt"
    files.sync(partial)
    files.publish(partial, target)
    files.link(place / "last.ckpt", target)
    for older in sorted(place.glob("step-*.ckpt"))[:-1]:
        files.remove(older)


def kill_before(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Makes the n-th change of the file system the last; the list of those that were made."""
    made: list[str] = []

    def counted(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            if len(made) == number:
                raise Killed
            return change(*args, **kwargs)

        return wrapper

    for name in ("rename", "replace", "symlink", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    return made


@pytest.mark.parametrize("directory", [False, True], ids=["file", "directory"])
def test_there_is_a_complete_one_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: bool
) -> None:
    for number in range(1, 1000):
        place = tmp_path / str(number)
        place.mkdir()
        save(place, 1, directory)
        with monkeypatch.context() as patched:
            made = kill_before(patched, number)
            try:
                save(place, 2, directory)
                break
            except Killed:
                pass
        complete = sorted(path.name for path in place.glob("*.ckpt") if files.is_complete(path))
        assert "last.ckpt" in complete, made
        assert complete[-1].startswith("step-"), made
        files.remove_remains(place)
        save(place, 3, directory)  # the next start is not disturbed by what is left
        assert sorted(path.name for path in place.iterdir()) in (
            ["last.ckpt", "step-000003.ckpt"],
            ["last.ckpt", "step-000002.ckpt", "step-000003.ckpt"],
        )
    assert number > 4, "the save changes the file system more often than that"


def test_a_file_that_was_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    assert not files.is_complete(file)
    torch.save({"a": torch.zeros(1000)}, file)
    assert files.is_complete(file)
    os.truncate(file, file.stat().st_size - 30)
    assert not files.is_complete(file)


def test_a_directory_has_what_its_manifest_lists(tmp_path: Path) -> None:
    directory = make(tmp_path, 5, directory=True)
    assert files.is_complete(directory)
    assert files.read_manifest(directory)["world_size"] == 2  # type: ignore[index]
    shard = directory / "checkpoint" / "rank-1"
    os.truncate(shard, 3)
    assert not files.is_complete(directory)
    shard.unlink()
    assert not files.is_complete(directory)
    shard.write_bytes(b"x" * 6)
    assert files.is_complete(directory)
    os.truncate(directory / files.MANIFEST, 20)
    assert not files.is_complete(directory)


def test_a_directory_of_torch_distributed_that_is_not_ours(tmp_path: Path) -> None:
    for name in (".metadata", "__0_0.distcp", "meta.pt"):
        assert not files.is_complete(tmp_path)
        (tmp_path / name).write_text("x")
    assert files.is_complete(tmp_path)
    assert files.is_distributed(tmp_path)
    assert not files.is_deepspeed(tmp_path)


def test_a_directory_of_deepspeed_that_is_not_ours(tmp_path: Path) -> None:
    states = tmp_path / "checkpoint"
    states.mkdir()
    for rank in (0, 2):
        (states / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    (states / "mp_rank_00_model_states.pt").touch()
    assert not files.is_complete(tmp_path), "without `latest`"
    (tmp_path / "latest").write_text("checkpoint")
    assert not files.is_complete(tmp_path), "without rank 1"
    (states / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").touch()
    assert files.is_complete(tmp_path)
    assert files.is_deepspeed(tmp_path)

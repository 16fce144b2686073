"""A directory that appears when it is complete: whatever happens, the earlier one is there, whole."""

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from ts2_lightning.export.output_directory import check_place, check_room, replacing
from ts2_lightning.types import UserError


def write(directory: Path, content: str) -> None:
    (directory / "config.json").write_text(content)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """With an earlier export."""
    place = tmp_path / "below" / "out"
    with replacing(place) as directory:
        write(directory, "first")
    return place


def fail(out: Path, error: BaseException | type[BaseException]) -> None:
    with replacing(out) as directory:
        write(directory, "half")
        raise error


def content(out: Path) -> str:
    assert os.listdir(out.parent) == ["out"]
    return (out / "config.json").read_text()


def test_replaced_when_complete(out: Path) -> None:
    with replacing(out) as directory:
        write(directory, "second")
        assert (out / "config.json").read_text() == "first"
    assert content(out) == "second"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, RuntimeError, UserError])
def test_anything_that_stops_it_leaves_the_earlier_one(out: Path, stop: type[BaseException]) -> None:
    with pytest.raises(stop):
        fail(out, stop)
    assert content(out) == "first"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "no space left on the disk; the earlier export there is kept",
        ),
        (
            SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
            "no space left on the disk",
        ),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; the earlier export there is kept"),
    ],
)
def test_errors_of_the_disk_are_told_in_a_line(out: Path, error: Exception, said: str) -> None:
    with pytest.raises(UserError, match=f"export to .*out: .*{said}"):
        fail(out, error)
    assert content(out) == "first"


def test_first_export_onto_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no space left on the disk$"):
        fail(tmp_path / "out", OSError(errno.ENOSPC, "No space left on device"))
    assert os.listdir(tmp_path) == []


def test_remains_of_a_killed_export_do_no_harm(out: Path) -> None:
    partial, old = out.with_name(".out.partial"), out.with_name(".out.old")
    partial.mkdir()
    write(partial, "half")
    out.rename(old)  # killed between its two renames
    with pytest.raises(KeyboardInterrupt):
        fail(out, KeyboardInterrupt)
    assert content(out) == "first"
    with replacing(out) as directory:
        assert os.listdir(directory) == []
        write(directory, "second")
    assert content(out) == "second"


def test_room_is_checked_before(tmp_path: Path) -> None:
    check_room(tmp_path, 1)
    with pytest.raises(UserError, match=r"export needs 1000000000\.00 GB, and \d+\.\d\d GB are free"):
        check_room(tmp_path, 10**18)


def test_only_what_an_export_has_is_replaced(tmp_path: Path) -> None:
    patterns = ["*.json", "model*.safetensors"]
    out = tmp_path / "out"
    check_place(out, [tmp_path / "base"], patterns)
    out.mkdir()
    (out / "config.json").touch()
    check_place(out, [tmp_path / "base", None], patterns)
    (out / "notes.md").touch()
    with pytest.raises(UserError, match=r"not an export \(notes.md\)"):
        check_place(out, [], patterns)
    (out / "notes.md").unlink()
    (out / "sub.json").mkdir()
    with pytest.raises(UserError, match=r"not an export \(sub.json\)"):
        check_place(out, [], patterns)
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(UserError, match="is the model's own source"):
        check_place(tmp_path / "link", [out], patterns)

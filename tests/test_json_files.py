"""A JSON file from elsewhere: an object, or one line that names the file."""

import errno
from pathlib import Path

import pytest

from ts2_lightning.json_files import read_json, read_object
from ts2_lightning.runs.writing import write_whole
from ts2_lightning.types import UserError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "FILE: is not JSON (Expecting property name"),
        (b"[]", "FILE: must hold an object, got list; fetch or write it again"),
        (b"null", "FILE: must hold an object, got NoneType"),
        (b"[" * 100_000, "FILE: is not JSON ("),
        (b"\xff{}", "FILE: is not JSON ("),
        (b"", "FILE: is not JSON ("),
        (None, "FILE: cannot be read (No such file or directory)"),
    ],
)
def test_what_is_no_object_is_told_in_one_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_json(file)
    assert str(raised.value).startswith(message.replace("FILE", str(file)))
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"its a\.json") as part:
        read_object(file, "its a.json")
    assert not isinstance(part.value, UserError), "who names the whole has to tell it"
    assert str(part.value).startswith(message.replace("FILE:", "its a.json"))


def test_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"é": [1, null]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"é": [1, None]}


@pytest.mark.parametrize("name", [None, "elsewhere"])
def test_an_error_of_the_disk_names_the_file_that_was_to_be_written(name: str | None, tmp_path: Path) -> None:
    """A full disk is told without a name by what writes, which then is no use to anybody."""

    def fails(beside: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", name)

    with pytest.raises(OSError, match="No space left") as error:
        write_whole(tmp_path / "a.json", fails)
    assert error.value.filename == (name or str(tmp_path / "a.json"))
    assert not list(tmp_path.iterdir())

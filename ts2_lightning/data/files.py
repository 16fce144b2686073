"""Files that users name, and one-line errors about them.

Existence is checked with `os.path`: the methods of `Path` raise if a name is too long, or if a parent folder may not be
entered.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError


def expanded(name: str, setting: str) -> Path:
    """The path of a name in which `~` stands for a home directory.

    Args:
        name: name of a file or folder, as the user wrote it.
        setting: setting that holds the name, for the error.

    Raises:
        UserError: if it begins with the home directory of a user who does not exist.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"{setting}: there is no home directory for {name}; write the path out") from None


def reason_of(error: BaseException) -> str:
    """The message of an error, in one short line.

    >>> reason_of(OSError(13, "Permission denied", "rows.jsonl")), reason_of(MemoryError())
    ('Permission denied', 'MemoryError')
    """
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return (f"{text[:297]}..." if len(text) > 300 else text) or type(error).__name__


@contextmanager
def readable(path: Path, kind: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn errors of reading a file into one line that names the file.

    Args:
        path: file that is read.
        kind: kind of file that it should be, for the error.
        errors: further exceptions of the reader, besides those of the system.

    Raises:
        UserError: instead of such an exception.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, EOFError, MemoryError, *errors)):
            raise
        mend = "" if isinstance(error, PermissionError | IsADirectoryError) else "; fetch or write it again"
        raise UserError(f"{path}: not a readable {kind} file ({reason_of(error)}){mend}") from None


@contextmanager
def writable(path: Path, mend: str) -> Iterator[None]:
    """Turn errors of writing into one line that names the file.

    Args:
        path: file or folder that is written.
        mend: advice to the user, the end of the message.

    Raises:
        UserError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({reason_of(error)}); {mend}") from None


def why_missing(path: Path) -> str:
    """The reason why there is no such file, a text to follow "no file NAME"."""
    if os.path.islink(path):
        return f": it is a link to {os.readlink(path)}, which is not there"
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _nearest(path)
    except (OSError, ValueError) as error:
        return f" ({reason_of(error)})"
    return f": it is {'a folder' if os.path.isdir(path) else 'neither a file nor a folder'}"


def _nearest(path: Path) -> str:
    folder = path.parent
    if os.path.isdir(folder):
        return did_you_mean(path.name, _inside(folder))
    while not os.path.isdir(folder):
        path, folder = folder, folder.parent
    if os.path.exists(path):
        return f": {path} is a file, not a folder"
    folders = [name for name in _inside(folder) if os.path.isdir(folder / name)]
    return f": there is no folder {path}{did_you_mean(path.name, folders)}"


def _inside(folder: Path) -> list[str]:
    """The names in a folder, for a suggestion; none if it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []

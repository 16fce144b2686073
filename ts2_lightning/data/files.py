"""Files that people name: what is the matter with one, in one line that names it.

Whether there is something is asked with `os.path`: the methods of `Path` raise where a name is too long, or a folder on
the way may not be entered.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError


def expanded(name: str, what: str) -> Path:
    """The path that was named, with `~` for a home directory.

    Args:
        name: as it was given.
        what: what it is the name of, for the error.

    Raises:
        UserError: if it begins with the home directory of nobody.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"{what}: there is no home directory for {name}; write the path out") from None


def reason_of(error: BaseException) -> str:
    """What an error says, in one short line.

    >>> reason_of(OSError(13, "Permission denied", "rows.jsonl")), reason_of(MemoryError())
    ('Permission denied', 'MemoryError')
    """
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return (f"{text[:297]}..." if len(text) > 300 else text) or type(error).__name__


@contextmanager
def readable(path: Path, what: str, *errors: type[Exception]) -> Iterator[None]:
    """Say in one line which file cannot be read, is no such file, or ends too early.

    Args:
        path: the file.
        what: the kind of file that it should be.
        errors: what else a reader of such files raises.

    Raises:
        UserError: in place of these.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, EOFError, MemoryError, *errors)):
            raise
        mend = "" if isinstance(error, PermissionError | IsADirectoryError) else "; fetch or write it again"
        raise UserError(f"{path}: not a readable {what} file ({reason_of(error)}){mend}") from None


@contextmanager
def writable(path: Path, mend: str) -> Iterator[None]:
    """Say in one line what cannot be written.

    Args:
        path: the file or folder.
        mend: what to do about it.

    Raises:
        UserError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({reason_of(error)}); {mend}") from None


def why_missing(path: Path) -> str:
    """Why nothing can be read under a name: to follow "no file NAME"."""
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
    """The names in a folder; none if it cannot be read, since they are only for a suggestion."""
    try:
        return os.listdir(folder)
    except OSError:
        return []

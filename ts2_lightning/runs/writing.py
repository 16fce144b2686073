"""Writing of files that are never seen half-written, even if the writer is killed."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` write a file beside `path`, and renames it: a writer that is killed leaves `path` as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")  # two processes may write the same file
    try:
        with naming(path):
            write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def append_lines(descriptor: int, text: bytes) -> None:
    """Appends whole lines with one call of the system. Raises OSError if a full disk has taken only some of them."""
    if os.write(descriptor, text) < len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets an error of the file system name this file where it names none, as that of a full disk does."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_json(path: Path, value: object) -> Path:
    """Writes plain values as JSON; the file appears when it is whole."""
    text = as_json(value) + "\n"
    return write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def as_json(value: object, margin: str = "") -> str:
    """Plain values as JSON of which every entry of an object has a line, and a list, which may be long, only one.

    Example:
        >>> print(as_json({"n": 2, "models": {"CE": {"p": [0.5, 0.25]}}}))
        {
         "n": 2,
         "models": {
          "CE": {
           "p": [0.5, 0.25]
          }
         }
        }
    """
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    lines = [f"{margin} {json.dumps(str(key))}: {as_json(item, margin + ' ')}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{margin}}}"

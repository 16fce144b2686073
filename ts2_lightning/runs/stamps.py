"""Whether things are still what they were: files, without reading them, and plain values."""

import hashlib
import json
from pathlib import Path
from typing import Any


def file_stamps(place: str | Path) -> list[list[str | int]]:
    """What tells whether files are still the same: name, size and time of the last change.

    Args:
        place: a file, or a directory with the files in it, not those in its directories (the files that a checkpoint
            of several levels gets last are in the first). A name on the hub gives an empty list.
    """
    root = Path(place)
    found = [root] if root.is_file() else sorted(path for path in root.glob("*") if path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in found]


def digest(plain: Any) -> str:
    """A hash of plain values, in hexadecimal digits.

    Example:
        >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

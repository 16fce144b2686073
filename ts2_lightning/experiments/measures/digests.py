"""Hashes of plain values."""

import hashlib
import json
from typing import Any


def digest(plain: Any) -> str:
    """A hash of plain values.

    Example:
        >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

"""Stamps of files, digests of plain values and the revision of code, which show whether these have changed."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

CARD_MARK = "<!-- written by ts2_lightning"
"""Beginning of the line that a model card ends with. A card says what a model is, and is no part of it."""

_OF_CARDS = ("README.md", "training.png")


def file_stamps(place: str | Path) -> list[list[str | int]]:
    """The stamps of files: name, size and time of the last change.

    Args:
        place: file, or a directory with the files in it, not those in its directories (the files that a checkpoint
            of several levels gets last are in the first), and not the model card of an export, which may be edited at
            any time. A name on the hub gives an empty list.
    """
    root = Path(place)
    files = [root] if root.is_file() else sorted(path for path in root.glob("*") if path.is_file())
    if _has_our_card(root):
        files = [path for path in files if path.name not in _OF_CARDS]
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _has_our_card(directory: Path) -> bool:
    card = directory / _OF_CARDS[0]
    return card.is_file() and CARD_MARK in card.read_text(encoding="utf-8", errors="replace")


def digest(plain: Any) -> str:
    """A hash of plain values, in hexadecimal digits.

    Example:
        >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def revision(directory: Path, leave_out: str | None = None) -> dict[str, Any] | None:
    """The git commit of a directory and whether tracked files were changed since; None outside of a checkout.

    Args:
        directory: Directory of the checkout.
        leave_out: Path below it whose changes do not count, such as that of results which a program is writing.
    """
    but = [] if leave_out is None else ["--", ".", f":(exclude){leave_out}"]
    try:
        commit = _git(directory, "rev-parse", "HEAD")
        changed = _git(directory, "status", "--porcelain", "--untracked-files=no", *but)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changed)}


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()

"""The user's way to call the command line, for messages that name the next command; the directory of the cache."""

import os
import sys
from pathlib import Path

_STARTED_AS = next(iter(sys.argv), "")  # a command that runs another has its own in its place


def program() -> str:
    """The user's way to call the command line: `python cli.py`, or `ts2` where it is installed."""
    return "python cli.py" if "cli.py" in (Path(sys.argv[0]).name, Path(_STARTED_AS).name) else "ts2"


def cache_setting() -> str:
    """Directory of the package's cache, as it is set: TS2_CACHE_DIR, else `~/.cache/ts2_lightning`."""
    return os.environ.get("TS2_CACHE_DIR") or "~/.cache/ts2_lightning"

"""The user's way to call the command line, for messages that name the next command."""

import sys
from pathlib import Path

_STARTED_AS = next(iter(sys.argv), "")  # a command that runs another has its own in its place


def program() -> str:
    """The user's way to call the command line: `python cli.py`, or `ts2` where it is installed."""
    return "python cli.py" if "cli.py" in (Path(sys.argv[0]).name, Path(_STARTED_AS).name) else "ts2"

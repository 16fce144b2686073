"""How the user calls the command line, for lines that say what to type next."""

import sys
from pathlib import Path

_STARTED_AS = next(iter(sys.argv), "")  # a command that runs another has its own in its place


def program() -> str:
    """How the user calls the command line: `python cli.py`, or `ts2` where it is installed."""
    return "python cli.py" if "cli.py" in (Path(sys.argv[0]).name, Path(_STARTED_AS).name) else "ts2"

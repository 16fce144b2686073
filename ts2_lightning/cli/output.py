"""Text on the screen, and into a pipe."""

import os
import shutil
import sys

_WIDTHS = (60, 100)  # of the text, whatever the terminal's
_PIPED = 80


def page_width() -> int:
    """Columns of the text: the terminal's, within reason; 80 where the output goes to a file or a pipe."""
    columns = shutil.get_terminal_size((_PIPED, 24)).columns if sys.stdout.isatty() else _PIPED
    return min(max(columns, _WIDTHS[0]), _WIDTHS[1])


def in_colour() -> bool:
    """Whether the text may have colours: on a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def put(text: str) -> None:
    """Print; a reader that has seen enough, as in `losses | head`, is no error, and no character is one either."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""The option of commands whose page shows responses token by token."""

from typing import Any

from ts2_lightning.cli.terminal import OptionParser
from ts2_lightning.ranges import NULL, Range, check_number, whole_number

USUAL = 3
"""Questions whose tokens are looked into, unless the user says how many."""


def add_explore(parser: OptionParser, what: str) -> None:
    """Adds `--explore`.

    Args:
        parser: parser of a command.
        what: what so many are taken of, for the help.
    """
    parser.add_argument(
        "--explore",
        metavar="N",
        help=f"{what} whose responses the page shows token by token, as each model sees them; models are loaded once "
        f"more for it (default: {USUAL} of models that are loaded anyway; 0 for none)",
    )


def explored(options: Any) -> tuple[int, bool]:
    """How many, and whether the user said so, so that models may be loaded for this alone.

    Raises:
        UserError: it is no whole number, or a negative one.
    """
    count: Any = whole_number(options.explore)
    check_number("--explore", count, Range(least=0, whole=True), NULL)
    return (USUAL, False) if count is None else (count, True)

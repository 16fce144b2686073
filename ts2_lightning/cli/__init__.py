"""The command line: a file for each command (`commands` lists them), and errors in one line (`errors`).

In: what a user types; out: what is printed, and an exit status. It may import every room, and nothing heavy before a
command runs, so that `--help` answers at once. Not here: anything that a user of the package without commands needs.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ts2_lightning import __version__
from ts2_lightning.cli.commands import COMMANDS, Command
from ts2_lightning.program import program
from ts2_lightning.suggestions import did_you_mean

__all__ = ["COMMANDS", "Command", "main", "program"]

USAGE = """usage: {program} COMMAND [options]

{about}

commands:
{commands}

options:
  -h, --help  this help; {program} COMMAND --help for the options of one command
  --version   the installed version
  --debug     show the traceback of every error (or set TS2_DEBUG=1)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status.

    Args:
        argv: the command and its options; `sys.argv[1:]` by default.

    Returns:
        0 if all went well, 2 after an error that the user can mend (told in one line on stderr), 1 after an unexpected
        one (a line too, that says what was being done and where the traceback was saved), 128 + the number of the
        signal that stopped it (130 for Ctrl-C).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("TS2_DEBUG", "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    first = arguments[0] if arguments else ""
    if first in ("-h", "--help", "help"):
        print(usage())
        return 0
    if first == "--version":
        print(f"ts2_lightning {__version__}")
        return 0
    if first not in COMMANDS:
        print(f"error: {no_such_command(first)}", file=sys.stderr)
        return 2

    from ts2_lightning.cli.errors.guard import guarded

    with importable_working_directory(), relaunchable(None if argv is None else list(argv)):
        return guarded(lambda: COMMANDS[first].run(first, arguments[1:]), debug, first)


def usage() -> str:
    """The text of `--help`: every command with one line."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    about = "Fine-tune large language models without losing their diversity, and see why."
    return USAGE.format(program=program(), about=about, commands="\n".join(lines)).rstrip()


def no_such_command(word: str) -> str:
    """What to say to a first word that is no command."""
    if not word:
        return f"which command? One of {', '.join(COMMANDS)}; {program()} --help says more"
    if word.startswith("-"):
        return f"{word} came before the command; put one of {', '.join(COMMANDS)} first"
    hint = did_you_mean(word, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
    return f"no command {word!r}{hint}"


@contextmanager
def importable_working_directory() -> Iterator[None]:
    """Lets `--model.loss my_losses.MyLoss` find `my_losses.py` in the directory where the command was given.

    That directory comes last: a `datasets.py` or `tokenizers.py` in it must not hide a library that transformers needs.
    """
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


@contextmanager
def relaunchable(argv: list[str] | None) -> Iterator[None]:
    """Makes `sys.argv` the command that runs, because Lightning starts the other local ranks from it."""
    if argv is None:
        yield
        return
    before = sys.argv
    sys.argv = [str(Path(__file__).with_name("__main__.py")), *argv]
    try:
        yield
    finally:
        sys.argv = before

"""The parser of the commands that are not of Lightning."""

import argparse
from typing import NoReturn

from ts2_lightning.cli import program
from ts2_lightning.cli.guard import CommandLineError


class OptionParser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line.

    Args:
        command: the name of the command.
        about: what it does.
    """

    def __init__(self, command: str, about: str) -> None:
        super().__init__(prog=f"{program()} {command}", description=about, allow_abbrev=False)
        self._command = command

    def error(self, message: str) -> NoReturn:
        """Leaves, with a message that names the command."""
        raise CommandLineError(f"{self._command}: {message}")

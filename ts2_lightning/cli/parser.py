"""The argument parser: Lightning's, but it hands over what is wrong instead of printing the usage."""

from enum import Enum
from typing import Any, NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser

# An argument that takes a str or an enum, and whose default is the enum's member (Lightning's Timer has one), is left
# as it is by jsonargparse, and PyYAML cannot write it: the run's configuration could not be saved.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


class ParserMessage(SystemExit):
    """What the parser has to say; a `SystemExit`, because the parser is left through code that catches ValueError."""

    def __init__(self, message: str, parser: "Parser") -> None:
        super().__init__(2)
        self.message = message
        self.parser = parser


class Parser(LightningArgumentParser):
    """Raises `ParserMessage` where jsonargparse would print about sixty lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)  # `--trainer.max_epoch` is a typing error, not an abbreviation
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Leaves the parser with its complaint.

        Args:
            message: what is wrong, in jsonargparse's words.
            ex: the exception that said so.
        """
        if not self.exit_on_error:  # a parser inside another one: its complaint becomes part of the outer one's
            super().error(message, ex)
        raise ParserMessage(message, getattr(ex, "subcommand_parser", None) or self) from ex

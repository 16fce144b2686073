"""The argument parser: Lightning's, but it hands over what is wrong instead of printing the usage, and a class that
takes the place of another starts from its own defaults.
"""

from enum import Enum
from importlib import import_module
from typing import Any, NoReturn

import jsonargparse._typehints
import yaml
from lightning.pytorch.cli import LightningArgumentParser

# An argument that takes a str or an enum, and whose default is the enum's member (Lightning's Timer has one), is left
# as it is by jsonargparse, and PyYAML cannot write it: the run's configuration could not be saved.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


def _forget_settings_of_another_class(parser_or_action: Any, previous: Any, value: Any) -> None:
    """Drops the settings of a class that another one replaces.

    jsonargparse would keep those that the other one has too: TS2's alpha, a weight, would become entmax's order.
    """
    if previous and "init_args" in previous and _imported(previous["class_path"]) != _imported(value["class_path"]):
        settings = previous["init_args"]
        for name in list(settings.keys()):
            del settings[name]


def _imported(path: str | None) -> Any:
    """The class at an import path; the path itself where there is none, which is complained about elsewhere."""
    if path is None:  # of a data class
        return None
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return path


assert hasattr(jsonargparse._typehints, "discard_init_args_on_class_path_change"), "jsonargparse has moved it"
jsonargparse._typehints.discard_init_args_on_class_path_change = _forget_settings_of_another_class


_parse_value_or_config = jsonargparse._typehints.parse_value_or_config


def _parse_value_or_fragment(value: Any, enable_path: bool = True, simple_types: bool = False) -> tuple[Any, Any]:
    """Takes the name of a file for the file's content only if it is YAML.

    jsonargparse would read `--data.validation rows.jsonl` too, and take its row, if it has one only, for the setting.
    """
    name = getattr(value, "val", value)
    is_fragment = isinstance(name, str) and name.endswith((".yaml", ".yml"))
    return _parse_value_or_config(value, enable_path and is_fragment, simple_types)


jsonargparse._typehints.parse_value_or_config = _parse_value_or_fragment


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

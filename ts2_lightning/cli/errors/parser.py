"""The argument parser: Lightning's, but it hands over what is wrong instead of printing the usage.

This is the one file that reaches into jsonargparse: three of its functions are replaced, the arguments of a parser,
which it keeps to itself, are read, and its messages, which carry no data, are taken apart.
`tests/cli/test_jsonargparse.py` holds it to every one of these, and says in words what jsonargparse no longer does.
"""

import argparse
from enum import Enum
from importlib import import_module
from typing import Any, NoReturn

import jsonargparse._actions
import jsonargparse._typehints
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from ts2_lightning.shipped_configs import meant_config

# An argument that takes a str or an enum, and whose default is the enum's member (Lightning's Timer has one), is left
# as it is by jsonargparse, and PyYAML cannot write it: the run's configuration could not be saved.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


# Paths in `${...}` begin where the file begins that has them, not at the command that is in front of all settings.
jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)


class ParserMessage(SystemExit):
    """What is wrong with a command line, in the parser's words.

    It is a `SystemExit`, because the parser is left through code that catches ValueError.

    Args:
        message: jsonargparse's message, usually several lines.
    """

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class Parser(LightningArgumentParser):
    """Argument parser that raises `ParserMessage` where jsonargparse would print about sixty lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)  # `--trainer.max_epoch` is a typing error, not an abbreviation
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Leaves the parser.

        Args:
            message: What is wrong, in jsonargparse's words.
            ex: Exception that said so.

        Raises:
            ParserMessage: always, but for a parser inside another one, whose message becomes part of the outer one's.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        raise ParserMessage(message) from ex


# Arguments ------------------------------------------------------------------------------------------------------


def arguments_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a parser, in their order."""
    return list(parser._actions)


def annotation_of(argument: argparse.Action | None) -> Any:
    """The annotation that an argument was made from; None where it has none."""
    return getattr(argument, "_typehint", None)


def require_nothing(parser: argparse.ArgumentParser) -> None:
    """Makes every argument of a parser optional."""
    for argument in arguments_of(parser):
        argument.required = False


# Messages -------------------------------------------------------------------------------------------------------

_CLASS = r"Problem with given class_path '(?P<path>[^']*)':"
KEY = r'Parser key "([\w.+-]+)"'
"""Part of a message that names the setting; a setting inside another one has its own, further down."""

MESSAGES: dict[str, str] = {
    "unrecognized": r"(?s)unrecognized arguments: (?P<rest>.+)",
    "unknown parameter": rf"{_CLASS}\s+Option '(?P<parameter>[\w.]+)' is not accepted",
    "missing parameter": rf"{_CLASS}\s+the following arguments are required: (?P<names>.+)",
    "unknown key": r"(?:(?:Subcommand '\w+'|Group '(?P<group>[\w.]+)') does not accept option"
    r"|Option(?= '[\w.+]+' is not accepted)) '(?P<key>[\w.+]+)'",
    "no import path": r"Expected a dot import path string: (?P<word>.+)",
    "null for a class": r"Not a valid subclass of \w+\. Got value: None",
    "wrong class": r"Import path (?P<path>\S+) does not correspond to a subclass of (?P<base>\S+)",
    "abstract class": r"Expected an instantiatable class",
    "failed import": rf"{_CLASS}\s+(?P<reason>(?:No module named|module '|cannot import name).+)",
    "required": r"the following arguments are required: (?P<names>.+)",
    "no such fragment": r"Unable to load config \"(?P<value>.+)\"",
    "wrong value": r"Expected an? (?P<type>[^\n]+)\. Got value: (?P<value>.*)",
    "none of a union": r"(?s).*Subtypes: \[(?P<type>[^\n]+)\]\n.*?Given value: (?P<value>[^\n]+)",
    "needs a value": r"argument (?P<option>\S+): (?P<reason>.+)",
}
"""Name -> pattern of every message that is taken apart; the first one that matches counts."""

SUBTYPES = r"Subtypes: \[<class '(?:\w+\.)*(\w+)'>"
"""Part of a message about a union: its first class."""


# Replaced functions ---------------------------------------------------------------------------------------------


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


def _parse_value_or_fragment(value: Any, enable_path: bool = True, simple_types: bool = False) -> tuple[Any, Any]:
    """Takes the name of a file for the file's content only if it is YAML.

    jsonargparse would read `--data.validation rows.jsonl` too, and take its row, if it has one only, for the setting.
    """
    name = getattr(value, "val", value)
    is_fragment = isinstance(name, str) and name.endswith((".yaml", ".yml"))
    return _parse_value_or_shipped(value, enable_path and is_fragment, simple_types)


def _parse_value_or_shipped(value: Any, enable_path: bool = True, simple_types: bool = False) -> tuple[Any, Any]:
    """Takes the name of a file that is not there for the package's file of that name, if it has one."""
    parsed, path = _PARSE_VALUE_OR_CONFIG(value, enable_path, simple_types)
    if path is not None or not enable_path or not isinstance(value, str) or (shipped := meant_config(value)) is None:
        return parsed, path
    return _PARSE_VALUE_OR_CONFIG(str(shipped), enable_path, simple_types)


_REPLACED = ("discard_init_args_on_class_path_change", "parse_value_or_config")
assert all(hasattr(jsonargparse._typehints, name) for name in _REPLACED), f"jsonargparse has moved one of {_REPLACED}"
assert hasattr(jsonargparse._actions, "parse_value_or_config"), "jsonargparse has moved parse_value_or_config"
_PARSE_VALUE_OR_CONFIG = jsonargparse._typehints.parse_value_or_config
jsonargparse._typehints.discard_init_args_on_class_path_change = _forget_settings_of_another_class
jsonargparse._typehints.parse_value_or_config = _parse_value_or_fragment
jsonargparse._actions.parse_value_or_config = _parse_value_or_shipped  # of groups, such as `data`

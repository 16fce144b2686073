"""Where each setting comes from: the option or the line of a configuration file that gave it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from ts2_lightning.cli.errors.guard import CommandLineError
from ts2_lightning.config_files import check_config, compose_config, named_file, no_such_file
from ts2_lightning.types import UserError

CONFIG_OPTIONS = ("-c", "--config")
_ELIDED = ("init_args", "dict_kwargs")
_ITEM = "[]"
_NAMED_SETTING = r"(?P<setting>\w+(\.\w+)+(?=:? )|\w+(?=: \w+ must be )|\w+(?= must be ))(: (?P<argument>\w+))?"


@dataclass(frozen=True)
class Origin:
    """One place that gives a value to a key.

    Attributes:
        key: Dotted name without `init_args` and list positions, such as `model.loss.alpha`.
        file: Configuration file, or None for the command line.
        line: Line in that file, from 1.
        option: Option as it was typed, for the command line.
    """

    key: str
    file: str | None = None
    line: int = 0
    option: str = ""

    def describe(self, key: str) -> str:
        """The beginning of an error message about `key`."""
        return f"{self.file}:{self.line}: {key}" if self.file else f"--{key}"


def option_values(arguments: Sequence[str], *names: str) -> list[str]:
    """The values that were given to an option, in order; both `--name value` and `--name=value` count."""
    values = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names and equals:
            values.append(value)
        elif argument in names and position + 1 < len(arguments):
            values.append(arguments[position + 1])
    return values


def config_files(arguments: Sequence[str]) -> list[str]:
    """The configuration files named by `-c` and `--config`, in order; text given in place of a file is left out."""
    return [value for value in option_values(arguments, *CONFIG_OPTIONS) if not is_text(value)]


def origins(arguments: Sequence[str]) -> list[Origin]:
    """Every place that gives a value, in the order in which they are applied (the last one wins)."""
    places: list[Origin] = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in CONFIG_OPTIONS:
            value = value if equals else next(iter(arguments[position + 1 : position + 2]), "")
            if value and not is_text(value):
                places.extend(_file_origins(value))
        elif name.startswith("--"):
            places.append(Origin(plain(name[2:]), option=argument))
    return places


def find_origin(key: str, arguments: Sequence[str], *aliases: str) -> Origin | None:
    """The place that decided `key`: the last one that names it, else the last that names what it is part of.

    Args:
        key: Dotted name of the setting.
        arguments: Command line after the command.
        *aliases: Other names of the same setting.
    """
    places = origins(arguments)
    named = [place for place in places if place.key in (plain(key), *aliases)]
    if named:
        return named[-1]
    for candidate in _ancestors(plain(key)):
        matching = [place for place in places if place.key == candidate]
        if matching:
            return matching[-1]
    return None


def place_of(message: str, settings: Namespace, arguments: Sequence[str]) -> str:
    """The file and line of the setting that a message begins with.

    Args:
        message: Message that begins with a setting (`model.optimizer.lr must be ...`, `data.template: ...`) or with a
            class and the name of one of its settings (`TS2Loss: alpha must be ...`).
        settings: Settings that the command line was read as.
        arguments: Command line after the command.

    Returns:
        `FILE:LINE: `, or nothing where it was typed, is a default, or cannot be told from others of its name.
    """
    begins = re.match(_NAMED_SETTING, message)
    if begins is None:
        return ""
    setting, argument = begins["setting"], begins["argument"]
    places = origins(arguments)
    if "." in setting:  # what follows a colon may be one of its settings, or the beginning of a sentence
        inner = f"{setting}.{argument}"
        keys = {inner if any(place.key == inner for place in places) else setting}
    else:
        keys = {f"{key}.{argument}" for key in _keys_of_class(settings, setting)} if argument else {setting}
    named = [place for place in places if any(place.key == key.replace(_ITEM, "") for key in keys)]
    in_a_list = any(_ITEM in key for key in keys)  # whose items share the names of their settings
    if not named or named[-1].file is None or (in_a_list and len(named) > 1):
        return ""
    return f"{named[-1].file}:{named[-1].line}: "


def _keys_of_class(value: Any, name: str, key: str = "") -> Iterator[str]:
    """The settings that are objects of a class."""
    if isinstance(value, list):
        for item in value:
            yield from _keys_of_class(item, name, key + _ITEM)
    elif isinstance(value, Namespace):
        if str(value.get("class_path")).rpartition(".")[2] == name:
            yield key
        for part, inner in vars(value).items():
            yield from _keys_of_class(inner, name, key if part in _ELIDED else f"{key}.{part}".strip("."))


def check_options(arguments: Sequence[str], classes: Iterable[str]) -> None:
    """Checks the configuration files and the order of the options, before the parser sees the command line.

    Args:
        arguments: Command line after the command.
        classes: Settings that name a class, such as `model.loss`.

    Raises:
        CommandLineError: see `check_config_files` and `check_order`.
    """
    check_config_files(arguments)
    check_order(arguments, classes)


def check_config_files(arguments: Sequence[str]) -> None:
    """Reads every configuration file once, so that what is wrong with a file is told with its name and line.

    Raises:
        CommandLineError: for a missing file, bad YAML, anything but keys at the top level, or a key given twice.
    """
    for file in config_files(arguments):
        if "://" in file:
            raise CommandLineError(f"-c {file}: is an address; fetch the file, and give its path")
        if not Path(file).is_file():
            raise CommandLineError(f"-c {no_such_file(file)}")
        try:
            check_config(file)
        except UserError as error:
            raise CommandLineError(str(error)) from None


def check_order(arguments: Sequence[str], classes: Iterable[str]) -> None:
    """Refuses an option that has no effect, because something later on the command line wins over it.

    A class must be named before its settings, since it starts from its own defaults, and a file before the options
    that set what it sets too.

    Args:
        arguments: Command line after the command.
        classes: Settings that name a class, such as `model.loss`.

    Raises:
        CommandLineError: naming both options.
    """
    typed: dict[str, str] = {}
    for place in origins(arguments):
        if place.file is None:
            typed[place.key] = place.option.partition("=")[0]
        elif place.key in typed and place.key not in CONFIG_OPTIONS:
            raise CommandLineError(
                f"{typed[place.key]} comes before {place.file}, which sets it too (line {place.line}) and would win; "
                "give -c first"
            )
    names = [argument.partition("=")[0].removeprefix("--") for argument in arguments if argument.startswith("--")]
    for key in classes:
        if key in names:
            early = next((name for name in names[: names.index(key)] if name.startswith(f"{key}.")), None)
            if early:
                raise CommandLineError(f"--{early} comes before --{key}, which would reset it; give --{key} first")


def is_text(value: str) -> bool:
    """Whether the value of `-c` is YAML text itself rather than a path."""
    return "\n" in value or value.lstrip().startswith("{") or ": " in value


def _file_origins(file: str) -> Iterator[Origin]:
    if not Path(file).is_file():
        return
    root = compose_config(file)
    if root is not None:
        yield from _node_origins(root, "", file)


def _node_origins(node: yaml.Node, prefix: str, file: str) -> Iterator[Origin]:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _node_origins(item, prefix, file)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = str(key.value).rstrip("+")
        full = prefix if name in _ELIDED else f"{prefix}.{name}".strip(".")
        if full != prefix:
            yield Origin(full, file, key.start_mark.line + 1)
        named = named_file(value, file)
        inner = compose_config(named) if named else value
        if inner is not None:
            yield from _node_origins(inner, full, file if inner is value else str(named))


def plain(key: str) -> str:
    """A setting without what only its place in a file of settings needs: `model.loss.init_args.alpha`."""
    return ".".join(part for part in key.rstrip("+").split(".") if part not in _ELIDED)


def _ancestors(key: str) -> Iterator[str]:
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        yield ".".join(parts[:length])

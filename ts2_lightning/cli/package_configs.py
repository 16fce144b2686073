"""Configuration files that are not where a command line names them, and that the package brings."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from ts2_lightning.cli.errors.origins import CONFIG_OPTIONS, is_text
from ts2_lightning.cli.launch import is_rank_zero
from ts2_lightning.config_files import Taken, find_config, named_file, taken_from_package


def with_package_configs(options: Sequence[str]) -> list[str]:
    """A command line whose `-c` name the package's files where there are none of the user's.

    Example:
        >>> from ts2_lightning.shipped_configs import shipped_config
        >>> _, file = with_package_configs(["-c", "experiment/chat.yaml"])
        >>> file == str(shipped_config("experiment/chat.yaml"))
        True
    """
    words = list(options)
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name not in CONFIG_OPTIONS:
            continue
        if equals:
            words[place] = f"{name}={_there(value)}"
        elif place + 1 < len(words):
            words[place + 1] = _there(words[place + 1])
    return words


def tell_package_configs(typed: Sequence[str]) -> None:
    """Says in a line each which files of a command line, or of its files, are the package's; on the first rank alone.

    Args:
        typed: command line after the command as it was typed, whose files have been checked.
    """
    if not is_rank_zero():
        return
    taken: list[Taken] = []
    for place, word in enumerate(typed):
        name, equals, value = word.partition("=")
        value = value if equals else next(iter(typed[place + 1 : place + 2]), "")
        if name in CONFIG_OPTIONS:
            taken += of_config(value)
        elif name.startswith("--"):
            named = named_file(yaml.ScalarNode("tag:yaml.org,2002:str", value), "")
            if named is not None and not Path(value).is_file():
                taken.append(Taken(value, named))
    tell(taken)


def of_config(name: str) -> list[Taken]:
    """The package's files among a configuration and those that it names.

    Args:
        name: path of the configuration, as it was typed.
    """
    there = None if is_text(name) else find_config(name)
    if there is None:
        return []
    return [Taken(name, there)] if not Path(name).is_file() else taken_from_package(there)


def tell(taken: Iterable[Taken]) -> None:
    """Says on the standard error, in a line each, which files are the package's."""
    for line in dict.fromkeys(map(str, taken)):
        print(line, file=sys.stderr, flush=True)


def _there(value: str) -> str:
    return value if is_text(value) else find_config(value) or value

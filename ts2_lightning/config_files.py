"""Users' configuration files, in which every key comes once, and the files of settings that they name.

A file that is not where it was named may be one that the package brings (`shipped_configs`): a user's file always
comes first, and what was taken from the package is said (`taken_from_package`).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from ts2_lightning.shipped_configs import meant_config, nearest_config
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import compose_yaml, yaml_complaint


def check_config(file: str) -> yaml.MappingNode | None:
    """Reads and checks a configuration file; errors name the file and the line.

    Args:
        file: path of the file.

    Returns:
        The nodes of the file, with their lines; None if it is empty.

    Raises:
        UserError: if there is no such file, it is no YAML, has anything but keys at the top level, or has a key twice,
            itself or in a file of settings that it names.
    """
    root = compose_config(file)
    if root is None:
        return None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{file}: expected `key: value` lines at the top level")
    _check_keys(root, file)
    return root


def compose_config(file: str) -> yaml.Node | None:
    """The nodes of a configuration file; None if it is empty.

    Raises:
        UserError: if there is no such file, or it is not YAML.
    """
    try:
        return compose_yaml(Path(file).read_text(encoding="utf-8"), file)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(no_such_file(file)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(yaml_complaint(error, file)) from None


def named_file(value: yaml.Node, file: str) -> str | None:
    """The file of settings that a value names (`lm: ../model/llama.yaml`), relative to the file that names it."""
    if not isinstance(value, yaml.ScalarNode) or not str(value.value).endswith((".yaml", ".yml")):
        return None
    named = os.path.normpath(Path(file).parent / str(value.value))
    return find_config(str(value.value), named)


def find_config(name: str, path: str | None = None) -> str | None:
    """The path of a configuration file: the user's, else the package's of that name; None if there is neither.

    Args:
        name: name as it was written.
        path: path at which the user's file would be; None where that is the name itself.
    """
    path = name if path is None else path
    if Path(path).is_file():
        return path
    shipped = meant_config(name)
    return None if shipped is None else str(shipped)


class Taken(NamedTuple):
    """A file that a configuration names, which is the package's, as there is none where it was named.

    Attributes:
        name: name as it was written.
        path: path of the package's file.
        file: file that names it; None for the command line.
        line: line of that file.
    """

    name: str
    path: str
    file: str | None = None
    line: int = 0

    def __str__(self) -> str:
        """One line for the user."""
        where = f"{self.file}:{self.line}: " if self.file else ""
        return f"{where}{self.name} is no file there; taken from the package: {self.path}"


def taken_from_package(file: str) -> list[Taken]:
    """The package's files that a user's configuration names, and that the files that it names do, in their order.

    Args:
        file: path of the configuration, which has been checked.
    """
    return list(_taken(compose_config(file), file, {file}))


def _taken(node: yaml.Node | None, file: str, seen: set[str]) -> Iterator[Taken]:
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _taken(value, file, seen)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _taken(value, file, seen)
    elif node is not None and (named := named_file(node, file)) is not None:
        if named != os.path.normpath(Path(file).parent / str(node.value)):
            yield Taken(str(node.value), named, file, node.start_mark.line + 1)
        elif named not in seen:
            yield from _taken(compose_config(named), named, seen | {named})


def no_such_file(path: str) -> str:
    """One line for a file that is not there, with the nearest one that is, in the package too."""
    line = _not_there(path)
    if "; did you mean " in line or Path(path).is_dir() or (near := nearest_config(path)) is None:
        return line
    return f"{line}, and none of that name in the package; did you mean {near}?"


def _not_there(path: str) -> str:
    missing_file = Path(path)
    parent = missing_file.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    if parent != missing_file.parent:
        inside = [str(p) for p in parent.iterdir() if p.is_dir()]
        missing_folder = missing_file.parents[list(missing_file.parents).index(parent) - 1]
        return f"{path}: no directory {missing_folder}{did_you_mean(str(missing_folder), inside)}"
    kind = "is a directory, not a file" if missing_file.is_dir() else "no such file"
    return f"{path}: {kind}{did_you_mean(path, (str(p) for p in parent.iterdir() if p.is_file()))}"


def _check_keys(node: yaml.Node, file: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, file)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines and name != "<<":
            raise UserError(f"{file}:{line}: {name} was given before, on line {lines[name]}; keep one")
        lines[name] = line
        named = named_file(value, file)
        inner = compose_config(named) if named else value
        if inner is not None:
            _check_keys(inner, named or file)

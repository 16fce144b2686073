"""Users' configuration files, in which every key comes once, and the files of settings that they name."""

import os
from pathlib import Path

import yaml

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
    return named if Path(named).is_file() else None


def no_such_file(path: str) -> str:
    """One line for a file that is not there, with the nearest one that is."""
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

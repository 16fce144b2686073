"""Which LightningModule a command trains: the package's, unless a configuration or the command line names another.

A configuration says `model: {class_path: my_file.MyModule, ...}`, the command line `--model my_file.MyModule`. The
settings of the class stand beside it (`model.lm`, `model.loss`, ...), so that the fragments for the package's own
module go with it, and a configuration that names no class is read as ever.
"""

import inspect
import re
from collections.abc import Sequence
from importlib import import_module

import yaml
from lightning.pytorch import LightningModule

from ts2_lightning.cli.errors.guard import CommandLineError, one_line
from ts2_lightning.cli.errors.origins import CONFIG_OPTIONS, find_origin
from ts2_lightning.config_files import compose_config, named_file

SETTING = "model.class_path"
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def with_module_class(options: Sequence[str]) -> list[str]:
    """A command line with `--model my_file.MyModule` written as what it is short for, `--model.class_path ...`.

    `--model FILE.yaml`, a fragment, stays as it is.

    Example:
        >>> with_module_class(["--model", "mine.Module", "--model=model.yaml"])
        ['--model.class_path', 'mine.Module', '--model=model.yaml']
    """
    words = list(options)
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--model":
            value = value if equals else next(iter(words[place + 1 : place + 2]), "")
            if _IMPORT_PATH.fullmatch(value) and not value.endswith((".yaml", ".yml", ".json")):
                words[place] = f"--{SETTING}{word.removeprefix('--model')}"
    return words


def chosen_module(options: Sequence[str], default: type[LightningModule]) -> type[LightningModule]:
    """The class that a command line and its configuration files name, or the default where they name none.

    Args:
        options: The command line after the command, see `with_module_class`.
        default: The class where none is named.

    Raises:
        CommandLineError: it cannot be imported, or is no LightningModule.
    """
    path = named_module(options)
    return default if path is None else _imported(path, options)


def named_module(options: Sequence[str]) -> str | None:
    """The import path that a command line and its configuration files give last, or None.

    Raises:
        CommandLineError: a file gives the settings of the module as `init_args`.
    """
    path = None
    for place, word in enumerate(options):
        name, equals, value = word.partition("=")
        value = value if equals else next(iter(options[place + 1 : place + 2]), "")
        if name == f"--{SETTING}":
            path = value
        elif name in CONFIG_OPTIONS and value.endswith((".yaml", ".yml")):
            path = _named_in(value) or path
    return path


def _named_in(file: str) -> str | None:
    """The class that a configuration file names, or the file of its settings `model`."""
    root = compose_config(file)
    for value, where in _values(root, "model", file):
        inner = compose_config(named) if (named := named_file(value, where)) else value
        where = named or where
        for key in ("init_args", "dict_kwargs"):
            if list(_values(inner, key, where)):
                raise CommandLineError(
                    f"{where}: model.{key}: write the settings of the module beside class_path, as model.lm and "
                    "model.loss are"
                )
        for class_path, _ in _values(inner, "class_path", where):
            return str(class_path.value)
    return None


def _values(node: yaml.Node | None, key: str, file: str) -> list[tuple[yaml.Node, str]]:
    if not isinstance(node, yaml.MappingNode):
        return []
    return [(value, file) for name, value in node.value if name.value == key]


def _imported(path: str, options: Sequence[str]) -> type[LightningModule]:
    origin = find_origin(SETTING, options)
    beginning = origin.describe(SETTING) if origin else SETTING
    module, _, name = path.rpartition(".")
    try:
        chosen = getattr(import_module(module or "ts2_lightning.modules"), name)
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        reason = f"it ends with {error!r}" if isinstance(error, SystemExit) else one_line(str(error))
        raise CommandLineError(f"{beginning}: cannot import {path}: {reason}") from error
    if not (inspect.isclass(chosen) and issubclass(chosen, LightningModule)):
        raise CommandLineError(f"{beginning}: {path} is no LightningModule; name a class that is one, or take it out")
    return chosen

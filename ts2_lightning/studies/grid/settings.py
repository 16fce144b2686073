"""What the grid, a choice, a condition or a seed sets: configuration files, settings of `fit`, measures."""

import glob
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated, Any, NamedTuple

from ts2_lightning.config_files import find_config, no_such_file
from ts2_lightning.data.sources import HUB, Source, resolve_source
from ts2_lightning.plugins import source_scheme
from ts2_lightning.studies.grid.entries import Entry
from ts2_lightning.types import UserError

SEED = "{seed}"
"""What stands for the number of a seed."""


class Argument(NamedTuple):
    """Value of a setting as it stands on a command line, and where the grid file has it (None: nowhere)."""

    text: str
    entry: Entry | None = None


def _configs(entry: Entry) -> tuple[str, ...]:
    """Configuration files, named relative to the grid file, as paths from the working directory."""
    items = entry.one_or_more("a configuration file or a list of them")
    return tuple(map(_config, items))


def _config(entry: Entry) -> str:
    path = entry.beside(entry.text)
    there = find_config(entry.text, path)
    if there is None:
        raise entry.error(no_such_file(path))
    return there


def _overrides(entry: Entry) -> dict[str, Argument]:
    """Settings with their values."""
    values = entry.mapping("`setting: value` lines")
    for value in values.values():
        if SEED in argument_of(value).text:
            raise value.error(f"{SEED} stands only in values of seeded")
    return {setting: argument_of(value) for setting, value in values.items()}


def argument_of(entry: Entry) -> Argument:
    """A value as it stands on a command line: a scalar as it is written, all else as JSON.

    The name of a .yaml file beside the grid becomes its path.

    Raises:
        UserError: it is no value that a setting can have.
    """
    if entry.scalar is None:
        try:
            return Argument(json.dumps(entry.value, ensure_ascii=False), entry)
        except TypeError as error:
            raise entry.error(f"not a value that a setting can have ({error})") from None
    if entry.value is None:
        return Argument("null", entry)
    if isinstance(entry.value, str) and entry.value.endswith((".yaml", ".yml")):
        return Argument(find_config(entry.value, entry.beside(entry.value)) or entry.text, entry)
    return Argument(entry.text, entry)


def measure_of(entry: Entry) -> dict[str, Any]:
    """Measures with their settings.

    Raises:
        UserError: a file is not there. What else may be wrong with them, `check_spec` knows.
    """
    measures = entry.mapping("measures with their settings, such as {validation: {}}", empty=True)
    return {name: _measure_settings(settings) for name, settings in measures.items()}


def _measure_settings(entry: Entry) -> Any:
    if not isinstance(entry.value, dict):
        return entry.value
    readers: dict[str, Callable[[Entry], Any]] = {
        **dict.fromkeys(("rows", "prompts"), _sources),
        "sentence_bert": _embedder,
        "reader": _directory,
    }
    parts = entry.mapping(empty=True)
    return {name: readers[name](value) if name in readers else value.value for name, value in parts.items()}


def _sources(entry: Entry) -> Any:
    """Sources of rows: one, a list, or several of them by name; each a path or a mapping that has one."""
    if isinstance(entry.value, list):
        return [_sources(item) for item in entry.items("a list")]
    if not isinstance(entry.value, dict):
        return _rows(entry)
    parts = entry.mapping(empty=True)
    if "path" in parts:
        return {**entry.value, "path": _rows(parts["path"])}
    return {name: _sources(inner) for name, inner in parts.items()}


def _rows(entry: Entry) -> Any:
    """The path of rows, which is looked for beside the grid file, then in the working directory."""
    name = entry.value
    if not isinstance(name, str) or name.startswith(HUB):
        return name
    try:
        if (scheme := source_scheme(name)) is not None:
            scheme.check(name)
            return name
        path = name if _exists(name) and not _exists(entry.beside(name)) else entry.beside(name)
        if not os.path.isdir(path):  # of which the split may be named
            resolve_source(Source(path))
    except UserError as error:
        raise entry.error(str(error)) from None
    return path


def _exists(path: str) -> bool:
    whole = os.path.expanduser(path)
    return os.path.exists(whole) or bool(glob.glob(whole, recursive=True))


def _embedder(entry: Entry) -> Any:
    """The embedding model: a directory, or a name on the hub."""
    if isinstance(entry.value, str) and find_spec("sentence_transformers") is None:
        raise entry.error("needs sentence-transformers: pip install 'ts2-lightning[sentence-bert]'")
    return _directory(entry)


def _directory(entry: Entry) -> Any:
    """A model: a directory, beside the file if it is there, or a name on the hub."""
    if not isinstance(entry.value, str):
        return entry.value
    directory = entry.beside(entry.value)
    return directory if os.path.isdir(directory) else entry.value


Configs = Annotated[tuple[str, ...], _configs]
Overrides = Annotated[Mapping[str, Argument], _overrides]
Measures = Annotated[Mapping[str, Any], measure_of]


@dataclass(frozen=True)
class Settings:
    """What the grid, a choice, a condition or a seed sets.

    Attributes:
        config: configuration files.
        set: values by setting, `model.loss.alpha`.
        measure: specification of measures, merged into that of the layers before.
    """

    config: Configs = ()
    set: Overrides = field(default_factory=dict)
    measure: Measures = field(default_factory=dict)

"""What a grid file measures. The files that it names are looked for beside it, then in the working directory."""

import glob
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import yaml

from ts2_lightning.data.sources import HUB, TOYWORLD, Source, resolve_source
from ts2_lightning.data.toyworld.cache import parse_source
from ts2_lightning.experiments.grid.entries import Entry
from ts2_lightning.experiments.grid.paths import beside
from ts2_lightning.types import UserError


def read_measure(entry: Entry) -> dict[str, Any]:
    """The specification of measures; an empty mapping measures nothing. What else is wrong, `check_spec` knows.

    Raises:
        UserError: if it is no mapping, or names what is not there.
    """
    if not isinstance(entry.value, dict):
        raise entry.error(f"expected measures with their settings, such as {{toyworld: {{}}}}, got {entry.kind}")
    return {name: _settings(inner) for name, inner in _parts(entry).items()}


def _settings(entry: Entry) -> Any:
    """The settings of a measure."""
    if not isinstance(entry.value, dict):
        return entry.value
    return {name: _READERS[name](inner) if name in _READERS else inner.value for name, inner in _parts(entry).items()}


def _parts(entry: Entry) -> dict[str, Entry]:
    return {} if entry.is_empty_mapping else entry.mapping()


def _sources(entry: Entry) -> Any:
    """Sources of rows: one, a list, or several of them by name."""
    if isinstance(entry.node, yaml.MappingNode):
        return {name: _sources(inner) for name, inner in _parts(entry).items()}
    return [_source(item) for item in entry.items()] if entry.is_list else _source(entry)


def _source(entry: Entry) -> Any:
    """One source: its path, or a mapping that has it."""
    parts = _parts(entry) if isinstance(entry.node, yaml.MappingNode) else {}
    return {**entry.value, "path": _rows(parts["path"])} if "path" in parts else _rows(entry)


def _rows(entry: Entry) -> Any:
    """The path of rows, as it is from the working directory."""
    name = entry.value
    if not isinstance(name, str) or name.startswith(HUB):
        return name
    try:
        if name.startswith(TOYWORLD):
            parse_source(name)
            return name
        here = beside(entry.file, name)
        found = name if _is_there(name) and not _is_there(here) else here
        if not os.path.isdir(found):  # of which the split may be named
            resolve_source(Source(found))
    except UserError as error:
        raise entry.error(str(error)) from None
    return found


def _is_there(path: str) -> bool:
    whole = os.path.expanduser(path)
    return os.path.exists(whole) or bool(glob.glob(whole, recursive=True))


def _embedder(entry: Entry) -> Any:
    """The embedding model: a directory, or a name on the hub."""
    name = entry.value
    if not isinstance(name, str):
        return name
    if find_spec("sentence_transformers") is None:
        raise entry.error("needs sentence-transformers: pip install 'ts2-lightning[sentence-bert]'")
    here = beside(entry.file, name)
    return here if os.path.isdir(here) else name


_READERS: dict[str, Callable[[Entry], Any]] = {"rows": _sources, "prompts": _sources, "sentence_bert": _embedder}
"""Setting of a measure -> how it is read; the others are plain values."""

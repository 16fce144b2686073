"""Small files of the base model, from its directory or the hub's cache."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ts2_lightning.json_files import read_json


def base_file(base: str, name: str, revision: str | None, fetch: bool = True) -> Path | None:
    """A file of the base model; None if there is none.

    Args:
        base: directory or hub name of the base model.
        name: name of the file.
        revision: revision on the hub; None is the newest.
        fetch: whether to fetch it from the hub if it is not in the cache.
    """
    if Path(base).is_dir():
        return Path(base, name) if Path(base, name).is_file() else None
    try:
        path = cached_file(
            base, name, revision=revision, local_files_only=not fetch, _raise_exceptions_for_missing_entries=False
        )
    except OSError:  # no such repository: a name that was never one, or no connection and not in the cache
        return None
    return None if path is None else Path(path)


class BaseWeights:
    """The weights of a base model, read from its files one at a time, where they are on this machine.

    Args:
        base: directory or hub name of the base model; None if there is none.
        revision: revision on the hub; None is the newest.
    """

    def __init__(self, base: str | None, revision: str | None) -> None:
        self._base, self._revision = base, revision

    def reading(self, name: str) -> Callable[[], Tensor | None]:
        """A function that returns a weight, mapped into memory; None if there is none of that name."""

        def read() -> Tensor | None:
            file = self._files.get(name)
            if file is None:
                return None
            with safe_open(file, "pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
            return tensor

        return read

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The file of each weight."""
        if self._base is None:
            return {}
        index = base_file(self._base, SAFE_WEIGHTS_INDEX_NAME, self._revision, fetch=False)
        names = [SAFE_WEIGHTS_NAME]
        if index is not None:
            names = sorted(set(read_json(index)["weight_map"].values()))
        files = [base_file(self._base, name, self._revision, fetch=False) for name in names]
        places: dict[str, Path] = {}
        for file in filter(None, files):
            with safe_open(file, "pt") as opened:
                places |= dict.fromkeys(opened.keys(), file)
        return places


def base_json(base: str | None, name: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of the base model; empty if there is none."""
    path = None if base is None else base_file(base, name, revision)
    return {} if path is None else read_json(path)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON file in the form of the hub's: indented, keys in the order of the dict."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

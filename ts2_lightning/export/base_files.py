"""Small files of the base model, from its directory or the hub's cache."""

import json
from pathlib import Path
from typing import Any

from transformers.utils import cached_file


def base_file(base: str, name: str, revision: str | None, fetch: bool = True) -> Path | None:
    """A file of the base model; None if there is none.

    Args:
        base: a directory, or a name on the hub.
        name: of the file.
        revision: on the hub.
        fetch: from the hub, if it is not in the cache.
    """
    if Path(base).is_dir():
        return Path(base, name) if Path(base, name).is_file() else None
    try:
        found = cached_file(
            base, name, revision=revision, local_files_only=not fetch, _raise_exceptions_for_missing_entries=False
        )
    except OSError:  # no such repository: a name that was never one, or no connection and not in the cache
        return None
    return None if found is None else Path(found)


def base_json(base: str | None, name: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of the base model; empty if there is none."""
    path = None if base is None else base_file(base, name, revision)
    content: dict[str, Any] = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    return content


def write_json(path: Path, value: dict[str, Any]) -> None:
    """As the hub's files are: indented, in the order given."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

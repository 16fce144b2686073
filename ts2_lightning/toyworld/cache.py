"""Where the toy world's files and its base model lie: a cache that can be deleted at any time.

    $TS2_CACHE_DIR or ~/.cache/ts2_lightning
        toyworld/HASH/train-seed0.jsonl ...      HASH: the world's word lists and the code that draws from them
        toyworld/HASH/base-seed0-HASH/           HASH: how the base model was trained

Everything is written beside its place and moved there when it is whole, so processes that start together
do not disturb each other and a killed one leaves nothing half-made.
"""

import hashlib
import importlib.resources
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ts2_lightning.data.cache import cache_directory
from ts2_lightning.data.files import writable
from ts2_lightning.ranges import SEED, check_number, whole_number
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.toyworld.rows import pretraining_rows, test_rows, train_rows, validation_rows
from ts2_lightning.toyworld.world import load_world
from ts2_lightning.types import UserError

SCHEME = "toyworld:"
SEEDED_SPLITS = ("train", "pretrain")
SPLITS = ("train", "validation", "test", "pretrain")
COMPLETE = "complete.json"
"""The marker of a finished base model: its files and their sizes."""

_MEND = "set TS2_CACHE_DIR to a directory that can be written"
_MOVED = {
    "ts2_lightning.toyworld.exact": "ts2_lightning.evaluation.toyworld",
    "ts2_lightning.toyworld": "ts2_lightning.data.toyworld",
}
"""Modules and their names when the first worlds were written: a world that only moved is the same world."""

_CONTENT_FILES = ("world.yaml", "draws.py", "world.py", "rows.py", "tokenizer.py")


@lru_cache(maxsize=1)
def world_hash() -> str:
    """16 hexadecimal digits that change with the word lists and with the code that draws from them."""
    package = importlib.resources.files(__package__)
    digest = hashlib.sha256()
    for name in _CONTENT_FILES:
        text = package.joinpath(name).read_text(encoding="utf-8")
        for now, before in _MOVED.items():
            text = text.replace(now, before)
        digest.update(text.encode())
    return digest.hexdigest()[:16]


def world_directory() -> Path:
    """Where this version of the world keeps its files."""
    return cache_directory() / "toyworld" / world_hash()


def resolve_source(uri: str) -> Path:
    """The file that a `toyworld:` data source stands for; it is written on first use.

    Args:
        uri: `toyworld:train?seed=0`, `toyworld:validation`, `toyworld:test` (rows with `messages`), or
            `toyworld:pretrain?seed=0` (rows with `input_ids`). The seed is 0 where it is left out. What is in which
            split: see `ts2_lightning.toyworld.rows`.

    Returns:
        An existing .jsonl file, whose content depends on nothing but the URI and the version of the world.

    Raises:
        UserError: an unknown split or parameter, or a seed that cannot be one.
    """
    split, seed = parse_source(uri)
    name = f"{split}-seed{seed}.jsonl" if split in SEEDED_SPLITS else f"{split}.jsonl"
    path = world_directory() / name
    if not os.path.exists(path):
        _write_rows(path, _rows(split, seed))
    return path


def parse_source(uri: str) -> tuple[str, int]:
    """Split and seed of a `toyworld:` URI.

    Example:
        >>> parse_source("toyworld:train?seed=3")
        ('train', 3)

    Raises:
        UserError: as `resolve_source`.
    """
    if not uri.startswith(SCHEME):
        raise UserError(f"data source {uri!r}: expected it to begin with {SCHEME!r}")
    split, _, query = uri[len(SCHEME) :].partition("?")
    if split not in SPLITS:
        hint = did_you_mean(split, SPLITS, SCHEME) or f"; there are {', '.join(SPLITS)}"
        raise UserError(f"data source {uri!r}: the toy world has no split {split!r}{hint}")
    if not query:
        return split, 0
    if split not in SEEDED_SPLITS:
        raise UserError(f"data source {uri!r}: {split!r} takes no parameters; remove '?{query}'")
    return split, seed_of(query, f"data source {uri!r}")


def seed_of(query: str, place: str) -> int:
    """The seed of a URI's query, such as `seed=3`.

    Args:
        query: what stands behind the `?`.
        place: begins messages.

    Raises:
        UserError: something else is asked for, or the seed cannot be one.
    """
    name, _, value = query.partition("=")
    if name != "seed":
        raise UserError(f"{place}: expected '?seed=' and a whole number, got '?{query}'")
    check_number(f"{place}: seed", whole_number(value), SEED)
    return int(value)


def _rows(split: str, seed: int) -> Iterator[dict[str, Any]]:
    world = load_world()
    makers: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "train": lambda: train_rows(world, seed),
        "validation": lambda: validation_rows(world),
        "test": lambda: test_rows(world),
        "pretrain": lambda: pretraining_rows(world, seed),
    }
    return makers[split]()


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a .jsonl file so that it appears whole or not at all; the last of several writers wins."""
    with writable(path, _MEND):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            os.chmod(beside, 0o644)  # mkstemp's files are private; a cache may be shared
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise


def base_directory(seed: int = 0, recipe: Mapping[str, Any] | None = None) -> Path:
    """Where the finished base model of a seed lies, or will lie. Ask `is_complete` before it is read.

    Args:
        seed: seed of the pretraining text and of the model's random weights.
        recipe: how it is trained, as far as `world.yaml` does not say it (JSON values): another recipe
            has another directory.
    """
    text = json.dumps(recipe or {}, sort_keys=True, default=str)
    return world_directory() / f"base-seed{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def is_complete(directory: str | Path) -> bool:
    """Whether a base model was finished here and still has all of its files, with their sizes."""
    directory = Path(directory)
    try:
        sizes: dict[str, int] = json.loads((directory / COMPLETE).read_text(encoding="utf-8"))
        return bool(sizes) and all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def building_directory(directory: str | Path) -> Path:
    """A new private directory beside `directory`, in which a base model can be built. Hand it to `publish`."""
    directory = Path(directory)
    with writable(directory, _MEND):
        directory.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))


def publish(built: str | Path, directory: str | Path) -> Path:
    """Mark a base model as complete and move it to its place.

    Where another process was first, its model stays and this one is thrown away.

    Args:
        built: the finished model, a directory on the same file system, such as `building_directory` gives.
        directory: where it belongs, see `base_directory`.

    Returns:
        `directory`, complete.

    Raises:
        UserError: the place is taken by a directory that cannot be replaced.
    """
    built, directory = Path(built), Path(directory)
    files = [path for path in sorted(built.rglob("*")) if path.is_file() and path.name != COMPLETE]
    sizes = {str(path.relative_to(built)): path.stat().st_size for path in files}
    (built / COMPLETE).write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    built.chmod(0o755)  # mkdtemp's directories are private
    for _ in range(2):
        if is_complete(directory):
            shutil.rmtree(built)
            return directory
        if directory.exists():
            shutil.rmtree(directory, ignore_errors=True)  # half of one, from before the files were moved whole
        try:
            os.rename(built, directory)
            return directory
        except OSError:  # another process came in between: look again
            continue
    raise UserError(f"cannot move the base model to {directory}; remove that directory and try again")

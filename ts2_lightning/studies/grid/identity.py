"""What decides the result of a training, as one digest.

The digest is of the resolved configuration, so that it does not matter whether a value was given in the grid, in a
file or is a default, nor in which order. Left out are `name`, `runs_dir` and `ckpt_path`, which say where things lie,
the rows of `test` and `predict`, which no fit reads unless they are held out of the training rows, and settings that
are null, so that a later version's new settings make no new trainings while they are not used; a null
`data.max_length` is the number that it stands for. Instead of the paths of
local rows, models, tokenizers and templates it has what is in the files: moved data is the same data, and a changed row
makes another training. What lies elsewhere (a model or a data set of the hub) is known by its name and revision.

Not seen is code: that of this package, and losses, formats and callbacks in the user's own files.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ts2_lightning.data.lengths import row_length
from ts2_lightning.data.sources import HUB, Source, file_digest, resolve_source
from ts2_lightning.model_limits import limits_of
from ts2_lightning.modules.model_files import FAILURES, read_architecture
from ts2_lightning.plugins import model_scheme, source_scheme
from ts2_lightning.types import UserError

PLACES = ("name", "runs_dir", "ckpt_path")
"""Settings of `fit` that say where things lie."""

_FITTED = ("train", "validation")
_UNREAD = ("test", "predict")
_BLOCK = 1 << 16
_BLOCKS = 64


def digest_of(config: Mapping[str, Any]) -> str:
    """64 hexadecimal digits that change with everything that decides the result of `fit`.

    Args:
        config: the resolved configuration, plain values.

    Raises:
        UserError: if there is no such file of rows, or one that is needed cannot be read.
    """
    try:
        return _digest_of(config)
    except OSError as error:
        raise UserError(f"{error.filename or 'data or model'}: cannot be read ({error.strerror})") from error


def _digest_of(config: Mapping[str, Any]) -> str:
    decisive = {key: value for key, value in config.items() if key not in PLACES}
    decisive["data"] = _data_identity(config.get("data") or {})
    model = config.get("model") or {}
    if isinstance(lm := model.get("lm"), Mapping):
        decisive["model"] = {**model, "lm": {**lm, "path": path_identity(lm.get("path"))}}
        decisive["data"]["max_length"] = _row_length(decisive["data"].get("max_length"), lm.get("path"))
    text = json.dumps(_without_null(decisive), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _row_length(max_length: int | None, path: Any) -> int | None:
    """Tokens of a row; None, if only a model that is not here could tell."""
    if max_length is not None or not isinstance(path, str):
        return max_length
    if (scheme := model_scheme(path)) is not None:
        return row_length(None, limits_of(scheme.config()))
    place = Path(path).expanduser()
    if not (place / "config.json").is_file():
        return None
    try:
        return row_length(None, limits_of(read_architecture(str(place), pretrained=False)))
    except FAILURES:
        return row_length(None, None)  # a fit says what is wrong with it


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list | tuple) else value


def _data_identity(data: Mapping[str, Any]) -> dict[str, Any]:
    decisive = {key: value for key, value in data.items() if key not in (*_FITTED, *_UNREAD)}
    for split in _FITTED:
        decisive[split] = _rows_identity(data.get(split), bool(data.get("streaming")))
    for split in _UNREAD:
        decisive[split] = _held_out(data.get(split))
    decisive["tokenizer"] = path_identity(data.get("tokenizer"))
    if str(data.get("template")).endswith(".jinja"):
        decisive["template"] = path_identity(data["template"])
    return decisive


def _rows_identity(sources: Any, streaming: bool) -> Any:
    """What sources are, in any of their shapes: a path, an object with one, named or listed ones."""
    if isinstance(sources, str):
        return _source_identity(Source(sources), streaming)
    if isinstance(sources, list | tuple):
        return [_rows_identity(item, streaming) for item in sources]
    if not isinstance(sources, Mapping):
        return sources
    if "path" not in sources:
        return {name: _rows_identity(item, streaming) for name, item in sources.items()}
    source = Source(sources["path"], sources.get("split"), sources.get("name"))
    return {**sources, "path": _source_identity(source, streaming)}


def _held_out(split: Any) -> Any:
    """What a split that is not read takes away from the training rows: its fractions, one or by name."""
    if isinstance(split, Mapping):
        return {name: share for name, share in split.items() if isinstance(share, int | float)} or None
    return split if isinstance(split, int | float) else None


def _source_identity(source: Source, streaming: bool) -> Any:
    if source.path.startswith(HUB):
        return source.path
    if (scheme := source_scheme(source.path)) is not None:
        return scheme.identity(source.path)
    files = resolve_source(source)
    if streaming:  # they may be too large to be read whole
        return [[file.name, sampled_digest(file)] for file in files]
    return [_whole_digest(str(file), *_stamp(file)) for file in files]


def path_identity(path: Any) -> Any:
    """What a model, a tokenizer or a template is: of a local one the content, else its name."""
    if not isinstance(path, str):
        return path
    if (scheme := model_scheme(path)) is not None:
        return scheme.identity(path)
    place = Path(path).expanduser()
    if place.is_file():
        return sampled_digest(place)
    return directory_identity(place) if place.is_dir() else path


def directory_identity(directory: Path) -> list[list[str]]:
    """Names and digests of all files below a directory, but for hidden ones."""
    return [[str(name), sampled_digest(directory / name)] for name in _files_below(directory)]


def _files_below(directory: Path) -> list[Path]:
    """Where the files are, from the directory; those of a directory that may not be read are not passed over."""
    files = []
    for place, directories, names in os.walk(directory, onerror=_raise):
        directories[:] = [name for name in directories if not name.startswith(".")]
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(file.relative_to(directory) for file in files if file.is_file())


def _raise(error: OSError) -> None:
    raise error


def sampled_digest(file: Path) -> str:
    """SHA-256 of a file's size and of 64 blocks of 64 KiB spread evenly over it: all of a file of up to 4 MiB.

    Weights are tens of gigabytes, and those of two trainings differ nearly everywhere.
    """
    return _sampled_digest(str(file), *_stamp(file))


def _stamp(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_size, about.st_mtime_ns


@lru_cache(maxsize=4096)
def _sampled_digest(path: str, size: int, modified: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    step = max(_BLOCK, (size - _BLOCK) / (_BLOCKS - 1))
    with open(path, "rb") as file:
        for number in range(_BLOCKS):
            file.seek(round(number * step))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _whole_digest(path: str, size: int, modified: int) -> str:
    return file_digest(Path(path))

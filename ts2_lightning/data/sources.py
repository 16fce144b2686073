"""Rows from files, each with its origin: JSON Lines (also gzipped), JSON, Parquet, and globs of them."""

import glob
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

TOYWORLD = "toyworld:"
"""Sources that start with it (`toyworld:train?seed=0`) are made by the embedded toy world."""


class Row(NamedTuple):
    """One row as it was read."""

    fields: Mapping[str, Any]
    origin: str  # "file:line", 1-based; for Parquet and for JSON lists the row's number instead of the line


def resolve_sources(sources: str | list[str]) -> list[Path]:
    """Find the files that sources name.

    Args:
        sources: a file, a glob (`**` goes into folders), a `toyworld:` source, or a list of them. Files of a
            glob come in the order of their names.

    Returns:
        The files, in the given order.

    Raises:
        UserError: if a source names no file or a file of an unknown kind.
    """
    names = [sources] if isinstance(sources, str) else list(sources)
    return [path for name in names for path in _resolve(name)]


def _resolve(source: str) -> list[Path]:
    if source.startswith(TOYWORLD):
        from ts2_lightning.data.toyworld import resolve_source

        return [Path(resolve_source(source))]
    path = Path(source).expanduser()
    if path.is_file():
        _reader(path)
        return [path]
    if path.is_dir():
        raise UserError(f"{source} is a folder; name its files, for example {path / '*.jsonl'}")
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
    if not found:
        raise UserError(f"no file {source}{_nearest_file(path)}")
    for file in found:
        _reader(file)
    return found


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if folder.is_dir():
        return did_you_mean(path.name, (entry.name for entry in folder.iterdir()))
    while not folder.is_dir():
        path, folder = folder, folder.parent
    folders = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return f": there is no folder {path}{did_you_mean(path.name, folders)}"


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows of one file, one at a time.

    Raises:
        UserError: naming file and line, for malformed JSON, text that is not UTF-8, and rows that are no objects.
    """
    return _reader(path)(path)


def count_rows(path: Path) -> int:
    """The number of rows, for a progress bar; cheap next to tokenising them. Blank lines are counted too."""
    reader = _reader(path)
    if reader is _read_parquet:
        import pyarrow.parquet as parquet

        return int(parquet.read_metadata(path).num_rows)
    if reader is _read_json:
        return sum(1 for _ in reader(path))
    with _open(path) as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def file_digest(path: Path) -> str:
    """SHA-256 of the file as it lies on the disk."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _read_jsonl(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        lines = enumerate(file, start=1)
        while True:
            try:
                number, line = next(lines)
            except StopIteration:
                return
            except (EOFError, gzip.BadGzipFile) as error:
                raise UserError(f"{path}: broken gzip file ({error}); fetch or write it again") from None
            if line.strip():
                origin = f"{path}:{number}"
                yield Row(_object(_parse(line.rstrip(b"\r\n"), origin), origin), origin)


def _read_json(path: Path) -> Iterator[Row]:
    try:
        with _open(path) as file:
            text = file.read()
    except (EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: broken gzip file ({error}); fetch or write it again") from None
    value = _parse(text, str(path))
    if not isinstance(value, list):
        raise UserError(f"{path}: a .json file must be a list of objects, got {_kind(value)}")
    for number, item in enumerate(value, start=1):
        origin = f"{path}, row {number}"
        yield Row(_object(item, origin), origin)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet as parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for item in batch.to_pylist():
                number += 1
                yield Row(item, f"{path}, row {number}")
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable Parquet file ({reason})") from None


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".json": _read_json,
    ".json.gz": _read_json,
    ".parquet": _read_parquet,
}


def _reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    for ending, reader in _READERS.items():
        if path.name.endswith(ending):
            return reader
    raise UserError(f"{path}: rows are read from files that end in {', '.join(_READERS)}")


def _parse(text: bytes, origin: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{origin}: not UTF-8 (byte {error.start + 1}); convert the file") from None
    except RecursionError:
        raise UserError(f"{origin}: malformed JSON (nested too deeply)") from None
    except json.JSONDecodeError as error:
        hint = "; a file of one object a line is named .jsonl" if error.msg == "Extra data" else ""
        place = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise UserError(f"{origin}: malformed JSON ({error.msg} at {place}){hint}") from None


def _object(value: Any, origin: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{origin}: a row must be a JSON object with fields, got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")

"""Rows from files, each with its origin: JSON Lines (also gzipped), JSON, Parquet, Arrow; folders and globs of them,
and data sets of the hub."""

import glob
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow

from ts2_lightning.data.formats import FormatFunction
from ts2_lightning.data.hub import Shard, data_set_files, data_set_shards, is_saved
from ts2_lightning.data.rejects import Reject
from ts2_lightning.ranges import COUNT, NULL, Range, check_numbers
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import RejectKind, RowError, UserError

TOYWORLD = "toyworld:"
"""Sources that start with it (`toyworld:train?seed=0`) are made by the embedded toy world."""

HUB = "hub:"
"""Sources that start with it (`hub:org/name`) are data sets of the Hugging Face hub."""

_TIMES = Range(above=0, most=1e6)  # an epoch holds the numbers of all its rows
_BATCH = 1024  # rows of a table that are turned into objects at once
_GLANCE = 1 << 18  # bytes of a file of texts from which the number of its lines is estimated
_SPLIT_NAMES = {
    "train": re.compile(r"(^|[\W_\d])train(ing)?($|[\W_\d])", re.IGNORECASE),
    "validation": re.compile(r"(^|[\W_\d])(valid(ation)?|val|dev)($|[\W_\d])", re.IGNORECASE),
    "test": re.compile(r"(^|[\W_\d])(test(ing)?|eval(uation)?)($|[\W_\d])", re.IGNORECASE),
}


class Row(NamedTuple):
    """One row as it was read."""

    fields: Mapping[str, Any]
    origin: str  # "file:line", 1-based; for tables and for JSON lists the row's number instead of the line
    format: FormatFunction | None = None  # the source's own; None: as for the other rows


@dataclass(frozen=True)
class Source:
    """Where rows come from, and how they are taken.

    Args:
        path: a file, a folder, a glob (`**` goes into folders), `hub:ORG/NAME`, or a `toyworld:` source.
        split: the split of a data set; a folder with it is read as the hub would read it.
        name: the configuration of a data set that has several.
        revision: commit, tag or branch of a data set on the hub; only a commit will always be the same rows.
        times: how often each of the rows comes in an epoch of training. With 2.5 each comes twice, and half of them,
            drawn anew for every epoch, once more.
        format: of these rows; null takes that of all rows.
        sample: take only so many rows, drawn from those that the format accepts. Which ones follows from their content
            and the seed; null takes all.
    """

    path: str
    split: str | None = None
    name: str | None = None
    revision: str | None = None
    times: float = 1.0
    format: str | None = None
    sample: int | None = None

    def check(self) -> None:
        """Look at what can be known without the files. (Raised on construction, the parser would hide it.)

        Raises:
            UserError: for numbers out of range, and for a split, name or revision where there is none.
        """
        check_numbers(f"{self.path}: ", self, times=_TIMES, sample=(COUNT, NULL))
        if self.revision is not None and not self.path.startswith(HUB):
            raise UserError(f"{self.path}: only a data set of the hub has a revision; write {HUB}ORG/NAME")
        if self.path.startswith(TOYWORLD):
            from ts2_lightning.data.toyworld import parse_source

            parse_source(self.path)
            if self.split or self.name:
                raise UserError(f"{self.path}: a source of the toy world has neither split nor name")


Sources = str | Source | Sequence[str | Source]


def as_sources(sources: Sources) -> list[Source]:
    """The sources as objects, in order.

    Raises:
        UserError: if one of them cannot be right; see `Source.check`.
    """
    listed = [sources] if isinstance(sources, str | Source) else sources
    found = [Source(source) if isinstance(source, str) else source for source in listed]
    for source in found:
        source.check()
    return found


def resolve_sources(sources: Sources) -> list[Path]:
    """Find the files that sources name.

    Args:
        sources: a source or a list of them; a string is the path of one. Files of a glob or a folder come in the order
            of their names; those of a folder at any depth, but for hidden ones.

    Returns:
        The files, in the given order. Those of a data set of the hub are the Arrow files that `datasets` made of it.

    Raises:
        UserError: if a source names no file or a file of an unknown kind, or a folder holds files of several splits.
    """
    return [path for source in as_sources(sources) for path in resolve_source(source)]


def resolve_source(source: Source) -> list[Path]:
    """The files of one source; see `resolve_sources`."""
    if source.path.startswith(TOYWORLD):
        from ts2_lightning.data.toyworld import resolve_source as resolve_toyworld

        return [Path(resolve_toyworld(source.path))]
    if (data_set := _data_set(source)) is not None:
        return data_set_files(data_set, source.name, source.split, source.revision)
    path = Path(source.path).expanduser()
    if source.split or source.name:
        raise UserError(f"{source.path}: a split or a name is of a data set, on the hub or in a folder")
    found = _folder(path) if path.is_dir() else [path] if path.is_file() else _glob(path)
    for file in found:
        _reader(file)
    return found


def stream_source(source: Source) -> list[Path | Shard]:
    """As `resolve_source`, but of a data set come parts that are fetched while they are read; nothing is downloaded."""
    if (data_set := _data_set(source)) is not None:
        return data_set_shards(data_set, source.name, source.split, source.revision)
    return [*resolve_source(source)]


def _data_set(source: Source) -> str | None:
    """What `datasets` knows the source by; None if it is files that we read ourselves."""
    if source.path.startswith(HUB):
        return source.path.removeprefix(HUB)
    path = Path(source.path).expanduser()
    return str(path) if path.is_dir() and (source.split or source.name or is_saved(path)) else None


def _glob(path: Path) -> list[Path]:
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
    if not found:
        raise UserError(f"no file {path}{_nearest_file(path)}")
    return found


def _folder(folder: Path) -> list[Path]:
    inside = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    found = [path for path in inside if _known(path) and not any(part.startswith(".") for part in path.parts)]
    if not found:
        raise UserError(f"{folder}: no file in the folder ends in {', '.join(_READERS)}")
    splits = {split: path for split, name in _SPLIT_NAMES.items() for path in found if name.search(str(path))}
    if len(splits) > 1:
        raise UserError(
            f"{folder}: the folder has files of several splits ({', '.join(map(str, splits.values()))}); name one with "
            "split, or name the files"
        )
    return [folder / path for path in found]


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if folder.is_dir():
        return did_you_mean(path.name, (entry.name for entry in folder.iterdir()))
    while not folder.is_dir():
        path, folder = folder, folder.parent
    folders = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return f": there is no folder {path}{did_you_mean(path.name, folders)}"


def read_rows(file: Path | Shard) -> Iterator[Row | Reject]:
    """Read the rows of one file, one at a time; in place of a row that cannot be read comes what is wrong with it.

    Raises:
        UserError: naming the file, if it cannot be read at all or ends too early.
    """
    if isinstance(file, Shard):
        return (_row(f"{file}, row {number}", fields) for number, fields in enumerate(file.read(), start=1))
    return _reader(file)(file)


def count_rows(path: Path) -> int:
    """The number of rows, for a progress bar; cheap next to tokenising them. Blank lines are counted too."""
    reader = _reader(path)
    if reader is _read_parquet:
        import pyarrow.parquet as parquet

        with _readable(path, "Parquet"):
            return int(parquet.read_metadata(path).num_rows)
    if reader is _read_arrow:
        with _readable(path, "Arrow"):
            return sum(batch.num_rows for batch in _arrow_batches(path))
    if reader is _read_json:
        return sum(1 for _ in reader(path))
    with _readable(path, _text_kind(path)), _open(path) as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def about_rows(file: Path | Shard) -> float | None:
    """About how many rows there are, without reading them all; None if that is not known.

    Tables know it, a list in a `.json` file has to be read whole in any case, and of a text it is estimated from its
    beginning.
    """
    if isinstance(file, Shard):
        return file.rows
    if _reader(file) is not _read_jsonl:
        return count_rows(file)
    with _readable(file, _text_kind(file)), open(file, "rb") as content:
        beginning = content.read(_GLANCE)
        if file.suffix != ".gz":
            lines, used = beginning.count(b"\n"), len(beginning)
        else:
            unpacking = zlib.decompressobj(wbits=31)
            lines = unpacking.decompress(beginning).count(b"\n")
            used = len(beginning) - len(unpacking.unused_data)
    return lines * file.stat().st_size / max(used, 1)


def file_digest(path: Path) -> str:
    """SHA-256 of the file as it lies on the disk."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    """Say in one line which file is no such file, or ends too early."""
    try:
        yield
    except (pyarrow.ArrowException, OSError, EOFError, zlib.error) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: not a readable {what} file ({reason}); fetch or write it again") from None


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _text_kind(path: Path) -> str:
    return "gzip" if path.suffix == ".gz" else "text"


def _read_jsonl(path: Path) -> Iterator[Row | Reject]:
    with _readable(path, _text_kind(path)), _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _row(f"{path}:{number}", _parsed(line.rstrip(b"\r\n")))


def _read_json(path: Path) -> Iterator[Row | Reject]:
    with _readable(path, _text_kind(path)), _open(path) as file:
        value = _parsed(file.read())
    if isinstance(value, RowError):
        raise UserError(f"{path}: {value}")
    if not isinstance(value, list):
        raise UserError(f"{path}: a .json file must be a list of objects, got {_kind(value)}")
    for number, item in enumerate(value, start=1):
        yield _row(f"{path}, row {number}", item)


def _read_parquet(path: Path) -> Iterator[Row | Reject]:
    import pyarrow.parquet as parquet

    with _readable(path, "Parquet"), parquet.ParquetFile(path) as file:
        yield from _table_rows(path, file.iter_batches(batch_size=_BATCH))


def _read_arrow(path: Path) -> Iterator[Row | Reject]:
    with _readable(path, "Arrow"):
        yield from _table_rows(path, _arrow_batches(path))


def _arrow_batches(path: Path) -> Iterator[Any]:
    """The batches of a file of either layout: with contents listed at its end, or a stream, as `datasets` writes."""
    import pyarrow.ipc as ipc

    with pyarrow.memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":
            reader = ipc.open_file(file)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            file.seek(0)
            yield from ipc.open_stream(file)


def _table_rows(path: Path, batches: Iterable[Any]) -> Iterator[Row | Reject]:
    number = 0
    for batch in batches:
        decode = _decoder(batch.schema)
        for start in range(0, batch.num_rows, _BATCH):
            for value in _values(batch.slice(start, _BATCH), decode):
                number += 1
                yield _row(f"{path}, row {number}", value)


def _decoder(schema: Any) -> Callable[[Any], Any]:
    """What undoes the feature `Json` of `datasets`, which keeps objects of varying fields as JSON texts."""
    if b'"Json"' not in (schema.metadata or {}).get(b"huggingface", b""):
        return lambda value: value
    from datasets import Features

    return Features.from_arrow_schema(schema).decode_example


def _values(batch: Any, decode: Callable[[Any], Any]) -> list[Any]:
    """The fields of each row, or the RowError that says what is wrong with it."""
    try:
        return [decode(value) for value in batch.to_pylist()]
    except (ValueError, OverflowError) as error:  # a text that is not UTF-8, a date that Python does not have
        if batch.num_rows > 1:
            return [value for place in range(batch.num_rows) for value in _values(batch.slice(place, 1), decode)]
        kind: RejectKind = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "wrong type"
        return [RowError(" ".join(str(error).split())[:200], kind)]


_READERS: dict[str, Callable[[Path], Iterator[Row | Reject]]] = {
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".json": _read_json,
    ".json.gz": _read_json,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}


def _known(path: Path) -> bool:
    return path.name.endswith(tuple(_READERS))


def _reader(path: Path) -> Callable[[Path], Iterator[Row | Reject]]:
    for ending, reader in _READERS.items():
        if path.name.endswith(ending):
            return reader
    raise UserError(f"{path}: rows are read from files that end in {', '.join(_READERS)}")


def _row(origin: str, value: Any) -> Row | Reject:
    if isinstance(value, RowError):
        return Reject(origin, value.kind, str(value))
    if not isinstance(value, dict):
        return Reject(origin, "not an object", f"a row must be a JSON object with fields, got {_kind(value)}")
    return Row(value, origin)


def _parsed(text: bytes) -> Any:
    """The value of a JSON text, or the RowError that says what is wrong with it."""
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8 (byte {error.start + 1}); convert the file", "not UTF-8")
    except RecursionError:
        return RowError("malformed JSON (nested too deeply)", "malformed JSON")
    except json.JSONDecodeError as error:
        hint = "; a file of one object a line is named .jsonl" if error.msg == "Extra data" else ""
        place = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return RowError(f"malformed JSON ({error.msg} at {place}){hint}", "malformed JSON")
    except ValueError as error:  # an integer of thousands of digits
        return RowError(f"malformed JSON ({error})", "malformed JSON")


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")

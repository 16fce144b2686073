"""The package's cache directory and the token cache in it: rows are encoded once, and read at every later start.

    $TS2_CACHE_DIR or ~/.cache/ts2_lightning
        NAME/...               files of a plug-in, such as rows and a base model
        tokens/KEY.arrow       the encoded rows of one split; KEY: a digest of all that determines them
        tokens/KEY.lock        held by the process that encodes them
        tokens/.KEY.../        what it has written so far
        tokens/KEY.rejects.jsonl   bad rows that were left out, if there is no run directory to list them in

Everything there can be deleted at any time. A file's modification time is that of its last use, so
`find ~/.cache/ts2_lightning/tokens -mtime +30 -delete` removes what no run has needed for a month.

An entry is an Arrow file with one record batch, whose columns are `ids`, `spans`, `weights` and `places`. It is mapped
into memory: processes share its pages, and what a process holds does not grow with the number of rows. While it is
made, each column is appended to a file of its own. The entry appears in its place whole or not at all; a checksum
tells whether it still is.
"""

import contextlib
import hashlib
import importlib.metadata
import inspect
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow
from filelock import FileLock, Timeout
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from ts2_lightning.data.counts import Counts
from ts2_lightning.data.encoded_rows import Columns, EncodedRows, append_chunks, from_columns, join_chunks
from ts2_lightning.data.files import expanded
from ts2_lightning.data.formats import FORMATS, FormatFunction
from ts2_lightning.data.rejects import Reject

_LIBRARIES = ("jinja2", "tokenizers", "transformers")
_ROOM = Path(__file__).parent
_COLUMNS: dict[str, type[np.generic]] = {
    "ids": np.int32, "lengths": np.int64, "spans": np.int32, "turns": np.int64, "weights": np.float32,
    "places": np.int64,
}  # fmt: skip


def cache_directory() -> Path:
    """The package's cache: the environment variable TS2_CACHE_DIR, else ~/.cache/ts2_lightning.

    Raises:
        UserError: if it names the home directory of a user who does not exist.
    """
    return expanded(os.environ.get("TS2_CACHE_DIR") or "~/.cache/ts2_lightning", "TS2_CACHE_DIR")


# What determines the encoded rows -------------------------------------------------------------------------------


def entry_key(template: str | None, formats: Collection[FormatFunction | None], **rest: Any) -> str | None:
    """The key of an entry, which changes with everything that changes the encoded rows.

    Besides the arguments these are the code of this room and the versions of the libraries that render and tokenise. A
    user's format counts with the file in which it is defined; what that file imports or reads is not considered.

    Args:
        template: identity of the chat template, see `ChatTemplate.identity`; None without one.
        formats: formats of the rows; None stands for all registered ones, of which each row has its own.
        rest: all else that changes the rows, as JSON values: the files with their digests, and the options.

    Returns:
        Hexadecimal digits; None if the source code of a format cannot be read, so that there is no safe key.
    """
    functions = [format for format in formats if format is not None]
    if None in formats:
        functions += [registered.function for registered in FORMATS.values()]
    try:
        determinants = [template, [_function_identity(function) for function in functions], rest, _code_digest()]
    except (OSError, TypeError):
        return None
    return hashlib.sha256(json.dumps(determinants, sort_keys=True).encode()).hexdigest()[:32]


def _function_identity(function: FormatFunction) -> tuple[str, str]:
    file = inspect.getsourcefile(inspect.unwrap(function))
    if file is None:
        raise OSError("no source")
    return getattr(function, "__qualname__", ""), hashlib.sha256(Path(file).read_bytes()).hexdigest()


@lru_cache(maxsize=1)
def _code_digest() -> str:
    # All of the room, also what only deals with rows that are encoded: nearly all of the rest reads, selects, renders
    # or encodes rows, and what hands the options from one to the other counts as much. To encode rows once more after
    # a change of the code costs minutes; rows of another code, which nobody notices, cost a run.
    digest = hashlib.sha256()
    for file in sorted(_ROOM.rglob("*.py")):
        digest.update(file.read_bytes())
    for library in _LIBRARIES:
        digest.update(f"{library} {importlib.metadata.version(library)}".encode())
    return digest.hexdigest()


# Reading and making entries -----------------------------------------------------------------------------------


class _UnusableError(Exception):
    """The cache cannot be written; the text says why."""


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise _UnusableError(getattr(error, "strerror", None) or str(error)) from error


class RowsWithNotes(NamedTuple):
    """Rows, and the notes that were kept with them."""

    rows: EncodedRows
    notes: Any


def make_rows(
    key: str | None, make: Callable[[], Iterable[EncodedRows]], notes: Callable[[], Any], label: str
) -> RowsWithNotes:
    """The rows of an entry; if there is none yet, it is made.

    Of several processes that need it together one makes it, and the others wait. Where the cache cannot be written, the
    rows are made in memory, with a warning.

    Args:
        key: key of the entry, see `entry_key`; None makes the rows in memory.
        make: function that yields the rows in chunks, as `encoding.encode_chunks` does; its errors are passed on.
        notes: function that returns JSON values to keep with the rows; called once all chunks have been made.
        label: name of the rows, for messages.

    Returns:
        Rows, whose arrays are read-only memory maps of the entry if there is one, and notes.
    """
    if key is None:
        return RowsWithNotes(join_chunks(make()), notes())
    path = cache_directory() / "tokens" / f"{key}.arrow"
    if (entry := _read(path)) is not None:
        return entry
    try:
        with _writing():
            path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock"), label):
            if (entry := _read(path)) is None:  # nobody else has made it meanwhile
                _write(path, make(), notes)
                entry = _read(path)
            if entry is None:
                raise _UnusableError("what was written does not read back")
            return entry
    except _UnusableError as error:
        rank_zero_warn(
            f"the token cache in {path.parent} cannot be used ({error}), so every process tokenises for itself and "
            "keeps the rows in memory; set TS2_CACHE_DIR to a directory that can be written, or data.cache to false"
        )
    return RowsWithNotes(join_chunks(make()), notes())


@contextlib.contextmanager
def _locked(path: Path, label: str) -> Iterator[None]:
    """Hold a lock that the system releases when its holder dies."""
    lock = FileLock(path)
    with _writing():
        try:
            lock.acquire(blocking=False)
        except Timeout:
            rank_zero_info(f"Data: another process is tokenising {label}; waiting for it ({path})")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read(path: Path) -> RowsWithNotes | None:
    """An entry; None if there is none, or none that is whole."""
    if not os.path.isfile(path):
        return None
    try:
        rows = MappedRows.open(path)
        with contextlib.suppress(OSError):
            os.utime(path)  # for those who clean up
        return RowsWithNotes(rows, rows.notes)
    except (OSError, ValueError, LookupError, TypeError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        rank_zero_warn(f"the token cache {path} is damaged ({reason}); its rows are tokenised again")
        return None


class MappedRows(EncodedRows):
    """Rows in a memory-mapped file; another process that is handed them maps the file too."""

    path: Path
    notes: Any

    @classmethod
    def open(cls, path: Path) -> "MappedRows":
        """Map an entry.

        Raises:
            ValueError: if it is not as it was written; OSError and Arrow's own errors as well.
        """
        batch = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).get_batch(0)
        batch.validate()
        record, checksum = (batch.schema.metadata[name] for name in (b"record", b"checksum"))
        ids, spans = batch.column("ids"), batch.column("spans")
        about = json.loads(record)
        rows = cls(
            ids.values.to_numpy(),
            ids.offsets.to_numpy(),
            spans.values.flatten().to_numpy().reshape(-1, 2),
            spans.offsets.to_numpy(),
            batch.column("weights").to_numpy(),
            batch.column("places").to_numpy(),
            Counts(**about["counts"]),
            tuple(Reject(*reject) for reject in about["rejects"]),
        )
        if int(checksum) != _checksum(rows, record):
            raise ValueError("its checksum is wrong")
        object.__setattr__(rows, "path", path)
        object.__setattr__(rows, "notes", about["notes"])
        return rows

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).open, (self.path,)


def _checksum(rows: EncodedRows, record: bytes) -> int:
    """CRC-32 of the whole entry; at some GB per second it costs little at every start."""
    checksum = zlib.crc32(record)
    for array in (rows.row_edges, rows.span_edges, rows.weights, rows.places, rows.spans, rows.ids):
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return checksum


def _write(path: Path, chunks: Iterable[EncodedRows], notes: Callable[[], Any]) -> None:
    """Write an entry; a writer that fails or is killed leaves none. The caller holds the lock."""
    with _writing():
        for left in path.parent.glob(f".{path.stem}.*"):  # by one that was killed
            shutil.rmtree(left)
        beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.stem}."))
    try:
        rows = _gathered(beside, chunks)
        with _writing():
            _write_arrow(beside / path.name, rows, notes())
            os.replace(beside / path.name, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _gathered(directory: Path, chunks: Iterable[EncodedRows]) -> EncodedRows:
    """All chunks as one, in files: a column is appended to its own."""
    with contextlib.ExitStack() as stack:
        with _writing():
            files: dict[str, IO[bytes]] = {name: stack.enter_context(open(directory / name, "wb")) for name in _COLUMNS}

        def append(name: str, column: NDArray[Any]) -> None:
            with _writing():
                files[name].write(np.ascontiguousarray(column, dtype=_COLUMNS[name]).data)

        counts, rejects = append_chunks(chunks, append)
        with _writing():
            for file in files.values():
                file.flush()
    with _writing():
        columns: Columns = {name: _mapped(directory / name, kind) for name, kind in _COLUMNS.items()}
    return from_columns(columns, counts, rejects)


def _mapped(path: Path, kind: type[np.generic]) -> NDArray[Any]:
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.zeros(0, dtype=kind)


def _write_arrow(path: Path, rows: EncodedRows, notes: Any) -> None:
    """Rows as one record batch, so that each array is one piece of the file."""
    pairs = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.spans.reshape(-1)), 2)
    columns = {
        "ids": pyarrow.LargeListArray.from_arrays(pyarrow.array(rows.row_edges), pyarrow.array(rows.ids)),
        "spans": pyarrow.LargeListArray.from_arrays(pyarrow.array(rows.span_edges), pairs),
        "weights": pyarrow.array(rows.weights),
        "places": pyarrow.array(rows.places),
    }
    record = json.dumps({"counts": asdict(rows.counts), "rejects": rows.rejects, "notes": notes}).encode()
    batch = pyarrow.RecordBatch.from_pydict(columns).replace_schema_metadata(
        {"record": record, "checksum": str(_checksum(rows, record))}
    )
    options = pyarrow.ipc.IpcWriteOptions(allow_64bit=True)  # more than 2**31 tokens
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, batch.schema, options=options) as writer:
        writer.write_batch(batch)

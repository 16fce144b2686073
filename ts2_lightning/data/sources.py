"""Rows from files, each with its origin: JSON Lines (also gzipped), JSON, Parquet, Arrow; folders and globs of them,
and data sets of the hub."""

import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

from ts2_lightning.data.files import expanded, readable, reason_of, why_missing
from ts2_lightning.data.hub import Shard, data_set_files, data_set_shards, is_saved
from ts2_lightning.data.rejects import Reject
from ts2_lightning.data.rows import SourceRow, as_row
from ts2_lightning.data.tables import count_arrow, count_parquet, read_arrow, read_parquet
from ts2_lightning.data.texts import about_lines, count_lines, read_lines, read_list
from ts2_lightning.plugins import source_scheme
from ts2_lightning.ranges import COUNT, NULL, Range, check_numbers
from ts2_lightning.types import UserError

HUB = "hub:"
"""Sources that start with it (`hub:org/name`) are data sets of the Hugging Face hub."""

_TIMES = Range(above=0, most=1e6)  # an epoch holds the numbers of all its rows
_SPLIT_NAMES = {
    "train": re.compile(r"(^|[\W_\d])train(ing)?($|[\W_\d])", re.IGNORECASE),
    "validation": re.compile(r"(^|[\W_\d])(valid(ation)?|val|dev)($|[\W_\d])", re.IGNORECASE),
    "test": re.compile(r"(^|[\W_\d])(test(ing)?|eval(uation)?)($|[\W_\d])", re.IGNORECASE),
}


@dataclass(frozen=True)
class Source:
    """A source of rows, and the choice of rows from it.

    Args:
        path: name of the rows: a file, a folder, a glob (`**` enters folders), `hub:ORG/NAME`, or `NAME:...`
            of a plug-in.
        split: split of a data set; a folder with a split is read as the hub would read it.
        name: configuration of a data set that has several.
        revision: commit, tag or branch of a data set on the hub; only a commit will always be the same rows.
        times: number of times that each row comes in an epoch of training. With 2.5 each comes twice, and half of them,
            drawn anew for every epoch, once more.
        format: format of these rows; null takes that of all rows.
        sample: number of rows to draw from those that the format accepts, by their content and the seed; null takes
            all.
    """

    path: str
    split: str | None = None
    name: str | None = None
    revision: str | None = None
    times: float = 1.0
    format: str | None = None
    sample: int | None = None

    def check(self) -> None:
        """Check what needs no file. (The parser would hide an error that is raised on construction.)

        Raises:
            UserError: for numbers out of range, and for a split, name or revision where there is none.
        """
        check_numbers(f"{self.path}: ", self, times=_TIMES, sample=(COUNT, NULL))
        if self.revision is not None and not self.path.startswith(HUB):
            raise UserError(f"{self.path}: only a data set of the hub has a revision; write {HUB}ORG/NAME")
        if (scheme := source_scheme(self.path)) is not None:
            scheme.check(self.path)
            if self.split or self.name:
                raise UserError(f"{self.path}: a source of {scheme.title} has neither split nor name")


Sources = str | Source | Sequence[str | Source]


def as_sources(sources: Sources) -> list[Source]:
    """The sources as objects, in order.

    Raises:
        UserError: if one of them cannot be right; see `Source.check`.
    """
    listed = [sources] if isinstance(sources, str | Source) else sources
    objects = [Source(source) if isinstance(source, str) else source for source in listed]
    for source in objects:
        source.check()
    return objects


def resolve_sources(sources: Sources) -> list[Path]:
    """Find the files that sources name.

    Args:
        sources: a source or a list of them; a string is the path of one. Files of a glob or a folder come in the order
            of their names; those of a folder at any depth, but for hidden ones.

    Returns:
        The files, in the order of the sources. A data set of the hub gives the Arrow files that `datasets` made of it.

    Raises:
        UserError: if a source names no file or a file of an unknown kind, or a folder holds files of several splits.
    """
    return [path for source in as_sources(sources) for path in resolve_source(source)]


def resolve_source(source: Source) -> list[Path]:
    """The files of one source; see `resolve_sources`."""
    if (scheme := source_scheme(source.path)) is not None:
        return [scheme.resolve(source.path)]
    if (data_set := _data_set(source)) is not None:
        return data_set_files(data_set, source.name, source.split, source.revision)
    path = expanded(source.path, "source")
    if source.split or source.name:
        raise UserError(f"{source.path}: a split or a name is of a data set, on the hub or in a folder")
    files = _folder(path) if os.path.isdir(path) else [path] if os.path.isfile(path) else _glob(path)
    for file in files:
        if not os.path.isfile(file):  # a link to nowhere would be missing in silence, and a pipe never ends
            raise UserError(f"no file {file}{why_missing(file)}")
        _reader(file)
    return files


def stream_source(source: Source) -> list[Path | Shard]:
    """As `resolve_source`, but a data set gives parts that are fetched while they are read; nothing is downloaded."""
    if (data_set := _data_set(source)) is not None:
        return data_set_shards(data_set, source.name, source.split, source.revision)
    return [*resolve_source(source)]


def _data_set(source: Source) -> str | None:
    """The name or folder for `datasets`; None if the source is files that we read ourselves."""
    if source.path.startswith(HUB):
        return source.path.removeprefix(HUB)
    path = expanded(source.path, "source")
    return str(path) if os.path.isdir(path) and (source.split or source.name or is_saved(path)) else None


def _glob(path: Path) -> list[Path]:
    names = sorted(glob.glob(str(path), recursive=True))
    files = [Path(name) for name in names if not os.path.isdir(name)]
    if not files:
        raise UserError(f"no file {path}{why_missing(path)}")
    return files


def _folder(folder: Path) -> list[Path]:
    inside = sorted(path.relative_to(folder) for path in _walked(folder))
    files = [path for path in inside if _is_readable(path) and not any(part.startswith(".") for part in path.parts)]
    if not files:
        raise UserError(f"{folder}: no file in the folder ends in {', '.join(_READERS)}")
    splits = {split: path for split, name in _SPLIT_NAMES.items() for path in files if name.search(str(path))}
    if len(splits) > 1:
        raise UserError(
            f"{folder}: the folder has files of several splits ({', '.join(map(str, splits.values()))}); name one with "
            "split, or name the files"
        )
    return [folder / path for path in files]


def _walked(folder: Path) -> Iterator[Path]:
    """All files below a folder, at any depth; links to folders are followed, once each.

    Raises:
        UserError: if a folder cannot be read, since its files would be missing in silence.
    """

    def stop(error: OSError) -> NoReturn:
        raise UserError(f"{error.filename}: the folder cannot be read ({reason_of(error)})")

    seen = set()
    for place, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        seen.add(os.path.realpath(place))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) not in seen]
        yield from (Path(place, name) for name in names)


def read_rows(file: Path | Shard) -> Iterator[SourceRow | Reject]:
    """Read the rows of one file, one at a time; a row that cannot be read comes as a reject.

    Raises:
        UserError: naming the file, if it cannot be read at all, is damaged or ends too early.
    """
    if isinstance(file, Shard):
        return (as_row(f"{file}, row {number}", fields) for number, fields in enumerate(file.read(), start=1))
    return _reader(file).read(file)


def count_rows(path: Path) -> int:
    """The number of rows, for a progress bar; cheap next to tokenising them. Blank lines are counted too."""
    return _reader(path).count(path)


def about_rows(file: Path | Shard) -> float | None:
    """The number of rows, about, without reading them all; None if unknown.

    Tables state it, a list in a `.json` file has to be read whole in any case, and for a text it is estimated from the
    beginning.
    """
    return file.rows if isinstance(file, Shard) else _reader(file).estimate(file)


def file_digest(path: Path) -> str:
    """SHA-256 of the file as it lies on the disk.

    Raises:
        UserError: naming it, if it cannot be read.
    """
    with readable(path, "data"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _FileReader(NamedTuple):
    """The functions for files of a kind: read the rows, count them exactly, estimate their number."""

    read: Callable[[Path], Iterator[SourceRow | Reject]]
    count: Callable[[Path], int]
    estimate: Callable[[Path], float]


def _count_list(path: Path) -> int:
    return sum(1 for _ in read_list(path))


_LINES = _FileReader(read_lines, count_lines, about_lines)
_LIST = _FileReader(read_list, _count_list, _count_list)
_READERS = {
    ".jsonl": _LINES,
    ".jsonl.gz": _LINES,
    ".json": _LIST,
    ".json.gz": _LIST,
    ".parquet": _FileReader(read_parquet, count_parquet, count_parquet),
    ".arrow": _FileReader(read_arrow, count_arrow, count_arrow),
}


def _is_readable(path: Path) -> bool:
    return path.name.endswith(tuple(_READERS))


def _reader(path: Path) -> _FileReader:
    for ending, reader in _READERS.items():
        if path.name.endswith(ending):
            return reader
    raise UserError(f"{path}: rows are read from files that end in {', '.join(_READERS)}")

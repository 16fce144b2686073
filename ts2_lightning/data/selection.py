"""The selection of a split's rows from its sources. Random choices depend on a row's content.

A number between 0 and 1 follows from each row's content and the seed alone. A fraction held out for validation or test
is the rows whose number is small or large, and a sample is those with the smallest ones. So whether a row is held out
does not depend on any other row: rows may be added, moved or removed elsewhere, and equal rows stay together.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ts2_lightning.data.formats import FormatFunction, detected, get_format, parse
from ts2_lightning.data.hub import Shard
from ts2_lightning.data.rejects import Reject
from ts2_lightning.data.sources import (
    Source,
    SourceRow,
    about_rows,
    count_rows,
    file_digest,
    read_rows,
    resolve_source,
    stream_source,
)
from ts2_lightning.types import UserError


class RowPart(NamedTuple):
    """The rows whose number is at least `low` and below `high`; what could not be read has none."""

    low: float = 0.0
    high: float = 1.0
    unreadable: bool = True  # whether what could not be read is counted here


WHOLE = RowPart()
"""All rows."""


def held_out(fractions: Mapping[str, float]) -> dict[str, RowPart]:
    """The parts that rows are divided into; each row is in exactly one.

    Those for validation lie at the lower end and those for test at the upper one, so neither moves the other.

    Args:
        fractions: fraction that is held out for `validation`, `test`, or several sets of them such as `test.hard`.

    Example:
        >>> held_out({"validation": 0.1, "test": 0.2})["train"]
        RowPart(low=0.1, high=0.8, unreadable=True)
    """
    low, high = 0.0, 1.0
    parts = {}
    for name, fraction in fractions.items():
        if name.startswith("test"):
            parts[name], high = RowPart(high - fraction, high, unreadable=False), high - fraction
        else:
            parts[name], low = RowPart(low, low + fraction, unreadable=False), low + fraction
    return {"train": RowPart(low, high), **parts}


def draw(fields: Mapping[str, Any], seed: int, purpose: str) -> float:
    """A number that follows from a row's content, the seed and the purpose alone, and is spread evenly over [0, 1).

    Neither the order of the fields matters nor a null field, so that a row has the same number in any kind of file.

    Example:
        >>> row = {"prompt": "Hi", "completion": "Hello!"}
        >>> draw(row, seed=0, purpose="hold out") == draw({**row, "id": None}, seed=0, purpose="hold out")
        True
    """
    try:
        content = {key: value for key, value in fields.items() if value is not None}
        text = json.dumps(content, sort_keys=True, default=repr)
    except RecursionError:  # no conversation is nested that deeply: the row will be refused
        text = " ".join(sorted(fields))
    digest = hashlib.blake2b(f"{purpose} {seed} {text}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


@dataclass(frozen=True)
class Selection:
    """The rows of a split, in order.

    Attributes:
        sources: sources of the rows.
        format: format of the rows whose source names none.
        seed: seed of the random choices.
        part: part of the rows of all sources.
        limit: number of rows that are used, the first ones; None uses all.
        streaming: whether rows that are not on the disk are fetched while they are read. The files may be too large to
            be read whole, so a sample cannot be drawn from them.
    """

    sources: tuple[Source, ...]
    format: str = "auto"
    seed: int = 0
    part: RowPart = WHOLE
    limit: int | None = None
    streaming: bool = False

    @cached_property
    def _resolved(self) -> list[Sequence[Path | Shard]]:
        resolve: Callable[[Source], Sequence[Path | Shard]] = stream_source if self.streaming else resolve_source
        return [resolve(source) for source in self.sources]

    @cached_property
    def files(self) -> list[tuple[Source, Path | Shard]]:
        """The files in reading order, each with its source; of a data set that is streamed, its parts.

        Raises:
            UserError: if a source names none.
        """
        return [(source, file) for source, files in zip(self.sources, self._resolved, strict=True) for file in files]

    @property
    def groups(self) -> list[tuple[Source, range]]:
        """Each source, with the places of its files in `files`."""
        ends = itertools.accumulate(len(files) for files in self._resolved)
        resolved = zip(self.sources, self._resolved, ends, strict=True)
        return [(source, range(end - len(files), end)) for source, files, end in resolved]

    @property
    def formats(self) -> list[FormatFunction | None]:
        """The format of each source; None is detected row by row.

        Raises:
            UserError: if there is none of a name.
        """
        return [get_format(source.format or self.format) for source in self.sources]

    def read(self) -> Iterator[tuple[int, SourceRow | Reject]]:
        """The rows, each with the place of its file in `files`.

        Raises:
            UserError: if a file cannot be read, or has fewer rows than are to be sampled.
        """
        return itertools.islice(self._rows(), self.limit)

    def read_file(self, place: int) -> Iterator[SourceRow | Reject]:
        """The rows of one of the `files`; for a source that is not sampled, and without a limit.

        Raises:
            UserError: if the file cannot be read.
        """
        return self._of_file(place, itertools.repeat(True))

    def count(self) -> int:
        """About how many rows there are, for a progress bar."""
        counted: Callable[[Any], float | None] = about_rows if self.streaming else count_rows
        counts = [
            source.sample or sum(counted(self.files[place][1]) or 0 for place in places)
            for source, places in self.groups
        ]
        share = round(sum(counts) * (self.part.high - self.part.low))
        return share if self.limit is None else min(share, self.limit)

    def named(self) -> str:
        """The files, for a message."""
        return ", ".join(str(file) for _, file in self.files)

    def identity(self) -> dict[str, Any]:
        """The plain values that determine the rows: the files, their contents, and the choice of rows from them.

        The number of times that a source comes is not among them: it changes no row. Not for files that are streamed,
        which may be too large to be read whole.
        """
        drawn = self.part != WHOLE or any(source.sample is not None for source in self.sources)
        return {
            "files": [
                [str(file), file_digest(file), source.format or self.format, source.sample]
                for source, file in self.files
                if isinstance(file, Path)
            ],
            "part": list(self.part),
            "limit": self.limit,
            "seed": self.seed if drawn else None,
        }

    def times(self, places: NDArray[np.int64], counts: list[int]) -> NDArray[np.float64] | None:
        """[R] number of times that each row comes in an epoch; None if each comes once.

        Args:
            places: [R] numbers of rows in the order of `read`.
            counts: number of rows of each file, in the order of `files`.
        """
        times = np.array([source.times for source, _ in self.files])
        if (times == 1).all():
            return None
        return times[np.searchsorted(np.cumsum(counts), places, side="right")]

    def _rows(self) -> Iterator[tuple[int, SourceRow | Reject]]:
        for source, places in self.groups:
            taken = itertools.repeat(True) if source.sample is None else iter(~self._passed_over(source, places))
            for place in places:
                yield from ((place, row) for row in self._of_file(place, taken))

    def _of_file(self, place: int, taken: Iterator[bool]) -> Iterator[SourceRow | Reject]:
        """The rows of a file that are taken and in the part; `taken` advances by one item for each row of the file."""
        source, file = self.files[place]
        function = get_format(source.format or self.format)
        for row in filter(self._is_in_part, itertools.compress(read_rows(file), taken)):
            if isinstance(row, SourceRow) and source.format is not None:
                yield row._replace(format=function or detected)
            else:
                yield row

    def _is_in_part(self, row: SourceRow | Reject) -> bool:
        if self.part == WHOLE:
            return True
        if isinstance(row, Reject):
            return self.part.unreadable
        return self.part.low <= draw(row.fields, self.seed, "hold out") < self.part.high

    def _passed_over(self, source: Source, places: range) -> NDArray[np.bool_]:
        """[rows of the source] whether the format accepts a row, but it is not in the sample."""
        assert source.sample is not None
        function = get_format(source.format or self.format)
        rows = itertools.chain.from_iterable(read_rows(self.files[place][1]) for place in places)
        numbers = np.array([self._sampling_number(row, function) for row in rows])
        accepted = np.flatnonzero(numbers < 1)
        if len(accepted) < source.sample:
            raise UserError(f"{source.path}: sample is {source.sample}, but only {len(accepted)} rows can be sampled")
        sampled = accepted[np.argsort(numbers[accepted], kind="stable")[: source.sample]]
        passed_over = numbers < 1
        passed_over[sampled] = False
        return passed_over

    def _sampling_number(self, row: SourceRow | Reject, function: FormatFunction | None) -> float:
        """1 for a row that cannot be sampled."""
        if isinstance(row, Reject):
            return 1.0
        number = draw(row.fields, self.seed, "sample")
        try:
            parse(row.fields, function)
        except UserError:
            return 1.0
        return number

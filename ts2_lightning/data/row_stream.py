"""The order in which streamed rows come: a stream for each epoch, which follows from the sources, the seed and it."""

import itertools
import math
import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ts2_lightning.data.rejects import Reject
from ts2_lightning.data.resume import digest
from ts2_lightning.data.selection import Selection
from ts2_lightning.data.sources import Source, SourceRow, about_rows

_LANES = 8  # files of a source that are read at the same time

T = TypeVar("T")
Numbered = tuple[int, SourceRow | Reject]
"""A row, after the place of its file."""


@dataclass(frozen=True)
class Stream:
    """The rows of the epochs, in their orders.

    Of each source at most eight files are open: its files are dealt to as many lanes, which have about equally many
    rows and are read at the same time. Which lane gives the next row is drawn, with a chance that is proportional to
    its number of rows, so that all lanes end together. The rows then pass through a buffer, out of which one is drawn
    whenever another comes in. A source that comes several `times` has its files in the lanes as often; the fraction of
    a time is drawn row by row.

    Attributes:
        selection: selection of the rows, without an order.
        seed: seed of the order.
        buffer: number of rows from which the next one is drawn. Each process that reads holds them in memory.
        rows: estimated number of rows of each file; see `estimated`.
    """

    selection: Selection
    seed: int
    buffer: int
    rows: tuple[float, ...]

    @classmethod
    def of(cls, selection: Selection, seed: int, buffer: int) -> "Stream":
        """The stream of a selection, with the estimated numbers of rows.

        Raises:
            UserError: if a source names no file, or a file cannot be read.
        """
        return cls(selection, seed, buffer, estimated([about_rows(file) for _, file in selection.files]))

    def describe(self) -> dict[str, Any]:
        """The files, with estimated numbers of rows, as plain values for the record of a run."""
        files = [
            {"path": str(file), "rows_estimated": round(rows)}
            for (_, file), rows in zip(self.selection.files, self.rows, strict=True)
        ]
        return {"streamed": True, "shuffle_buffer": self.buffer, "files": files}

    def identity(self) -> dict[str, Any]:
        """The plain values that determine the rows of the epochs and their orders, for a checkpoint.

        Files count by their names and estimated numbers of rows, since they may be moved.
        """
        files = [
            [getattr(file, "name", str(file)), rows, source.times, source.format or self.selection.format]
            for (source, file), rows in zip(self.selection.files, self.rows, strict=True)
        ]
        return {
            "streamed files": digest(files),
            "part of the rows": list(self.selection.part[:2]),
            "seed": self.seed,
            "shuffle_buffer": self.buffer,
        }

    def read(self, epoch: int) -> Iterator[Numbered]:
        """The rows of an epoch.

        Raises:
            UserError: while it is iterated, if a file cannot be read.
        """
        generator = random.Random(f"{self.seed} {epoch}")
        lanes = [lane for source, files in self.selection.groups for lane in self._lanes(source, files, generator)]
        rows = [self._read_lane(lane, generator) for lane in lanes]
        return shuffled(interleaved(rows, [lane.rows for lane in lanes], generator), self.buffer, generator)

    def steps(self, epoch: int, batch_size: int) -> Iterator[list[Numbered]]:
        """The rows of each step of an epoch; the last may have fewer."""
        rows = self.read(epoch)
        return iter(lambda: list(itertools.islice(rows, batch_size)), [])

    def _lanes(self, source: Source, files: range, generator: random.Random) -> list["Lane"]:
        """Deal the files of one source to lanes: each to the one that has the fewest rows so far."""
        shares = [1.0] * math.floor(source.times) + ([source.times % 1] if source.times % 1 else [])
        passes = [(number, share) for share in shares for number in files]
        generator.shuffle(passes)
        lanes = [Lane() for _ in range(min(_LANES, len(passes)))]
        for number, share in passes:
            lane = min(lanes, key=lambda lane: lane.rows)
            lane.passes.append((number, share))
            lane.rows += self.rows[number] * share
        return lanes

    def _read_lane(self, lane: "Lane", generator: random.Random) -> Iterator[Numbered]:
        for number, share in lane.passes:
            for row in self.selection.read_file(number):
                if share == 1 or generator.random() < share:
                    yield number, row


@dataclass
class Lane:
    """Files that are read one after another: their places, and the share that is taken of the rows of each."""

    passes: list[tuple[int, float]] = field(default_factory=list)
    rows: float = 0.0  # about how many are taken


def estimated(rows: Sequence[float | None]) -> tuple[float, ...]:
    """Numbers of rows, in which the mean of the others takes the place of unknown ones.

    Example:
        >>> estimated([10, None, 30]), estimated([None, 0])
        ((10.0, 20.0, 30.0), (1.0, 1.0))
    """
    certain = [number for number in rows if number is not None]
    mean = sum(certain) / max(len(certain), 1)
    return tuple(max(float(mean if number is None else number), 1.0) for number in rows)


def interleaved(lanes: Sequence[Iterator[T]], weights: Sequence[float], generator: random.Random) -> Iterator[T]:
    """All that the lanes hold; which of them gives the next one is drawn by their weights, which are above 0."""
    left, chances = list(lanes), list(weights)
    edges = list(itertools.accumulate(chances))
    while left:
        place = bisect(edges, generator.random() * edges[-1], hi=len(left) - 1)
        try:
            item = next(left[place])
        except StopIteration:
            del left[place], chances[place]
            edges = list(itertools.accumulate(chances))
        else:
            yield item


def shuffled(items: Iterator[T], size: int, generator: random.Random) -> Iterator[T]:
    """The items in another order: each next one is drawn out of `size`, of which the one drawn is then replaced.

    Example:
        >>> items = list(shuffled(iter(range(100)), 10, random.Random(0)))
        >>> sorted(items) == list(range(100)), all(item < place + 10 for place, item in enumerate(items))
        (True, True)
    """
    buffer = list(itertools.islice(items, size))
    for item in items:
        place = generator.randrange(size)
        drawn, buffer[place] = buffer[place], item
        yield drawn
    generator.shuffle(buffer)
    while buffer:
        yield buffer.pop()

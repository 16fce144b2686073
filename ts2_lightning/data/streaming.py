"""Training rows that are read while they are trained on: for data that fits neither on the disk nor into memory.

The rows of an epoch come as a stream whose order follows from the sources, the seed and the epoch alone. Optimizer
step k is the rows k * B to (k + 1) * B of it, B rows a step, good and bad. Every rank reads all of it, and tokenises
only its own part of each step. So neither ranks nor workers, micro-batches or packing change what a step consists of,
and a resumed run reads on from the very next one.

Each rank knows the number of supervised tokens of its own part of a step only. So a report travels with its
micro-batches, and the ranks exchange their reports when the step begins (see `Ledger`): numbers of tokens and rows, bad
rows, and errors. So all ranks also stop together, with the same message.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import distributed
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ts2_lightning.data.batch_plan import StepShape, split_step
from ts2_lightning.data.collate import collate
from ts2_lightning.data.counts import Counts
from ts2_lightning.data.encoded_rows import EncodedRows
from ts2_lightning.data.encoding import encode_rows
from ts2_lightning.data.loader import outlive_one_sigterm
from ts2_lightning.data.reading import Encoder, warn_of
from ts2_lightning.data.rejects import Rejects
from ts2_lightning.data.resume import StreamPosition
from ts2_lightning.data.row_stream import Numbered, Stream
from ts2_lightning.types import UserError

REPORT = "report"
"""The key under which a micro-batch has the `StepReport` of its step, until `SFTData` takes it out."""

T = TypeVar("T")


# A rank's part of a step --------------------------------------------------------------------------------------------


class StepReport:
    """The report of a rank on its part of a step. (Neither a tuple nor a dataclass: Lightning would look for tensors.)

    Attributes:
        replica: number of this rank among those that hold different rows.
        epoch: number of the epoch, from 0.
        step: number of the step in its epoch, from 0.
        last: whether it is the epoch's last step.
        counts: numbers of rows and tokens.
        rejects: bad rows.
        error: message for the user if training cannot go on; None if it can.
    """

    def __init__(
        self, replica: int, epoch: int, step: int, last: bool, rows: EncodedRows, error: str | None = None
    ) -> None:
        self.replica, self.epoch, self.step, self.last = replica, epoch, step, last
        self.counts, self.rejects, self.error = rows.counts, rows.rejects, error


class Step(NamedTuple):
    """A rank's part of a step, as a worker hands it over.

    Attributes:
        report: report on the step.
        rows: encoded rows that are trained on.
        places: [rows] number of each row in the epoch's stream.
        micro_batches: rows of each micro-batch; every rank has equally many micro-batches.
    """

    report: StepReport
    rows: EncodedRows
    places: list[int]
    micro_batches: list[tuple[int, ...]]


@dataclass(frozen=True)
class Steps(IterableDataset[Step]):
    """A rank's part of the steps of an epoch. A DataLoader's workers take turns, a whole step each.

    Attributes:
        stream: rows in their order.
        encoder: settings with which rows become tokens.
        shape: division of steps into micro-batches and ranks.
        replica: number of this rank among those that hold different rows.
        epoch: number of the epoch, from 0.
        first: number of steps that are done already: their rows are read, but not tokenised.
        end: largest number of steps in the epoch; None ends with the rows.
    """

    stream: Stream
    encoder: Encoder
    shape: StepShape
    replica: int = 0
    epoch: int = 0
    first: int = 0
    end: int | None = None

    def __iter__(self) -> Iterator[Step]:
        worker = get_worker_info()
        turn, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if worker is not None:
            # The tokenizer's threads did not come along into this process: it would wait for them for ever.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        number = self.first + turn
        try:
            raw = itertools.islice(self.stream.steps(self.epoch, self.shape.batch_size), self.end)
            for rows, last in itertools.islice(_with_last(raw), number, None, workers):
                yield self._step(number, rows, last)
                number += workers
        except UserError as error:  # a worker's exception would come out with a traceback, and on this rank alone
            nothing = encode_rows([], None)
            report = StepReport(self.replica, self.epoch, number, False, nothing, str(error))
            yield Step(report, nothing, [], [()] * self.shape.accumulation)

    def _step(self, step: int, rows: list[Numbered], last: bool) -> Step:
        ranks = self.shape.world_size
        encoded = self.encoder.encode([row for _, row in rows[self.replica :: ranks]])
        own = StepShape(-(-self.shape.batch_size // ranks), self.shape.micro_batch_size, packed=self.shape.packed)
        parts = split_step(np.arange(len(encoded)), encoded.lengths, own)
        first = step * self.shape.batch_size + self.replica
        return Step(
            StepReport(self.replica, self.epoch, step, last, encoded),
            encoded,
            [first + ranks * place for place in encoded.places.tolist()],
            [part for (part,) in parts],
        )


def _with_last(items: Iterator[T]) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last.

    >>> list(_with_last(iter("ab")))
    [('a', False), ('b', True)]
    """
    for item, following in itertools.pairwise(itertools.chain(items, [None])):
        assert item is not None
        yield item, following is None


def _identity(step: Any) -> Any:
    return step


class StreamLoader:
    """Yields a rank's micro-batches from the step that the trainer stands at to the end of its epoch.

    Each has under `REPORT` the report of its step, and as divisor the rank's own number of supervised tokens of it.
    Without a length, Lightning fetches one micro-batch ahead, and so knows which is the last.

    Args:
        steps: steps of the first epoch from its beginning.
        position: position of the training; the loader notes in it where an epoch ends.
        trainer: trainer whose progress is followed; None always starts at the first epoch.
        pad_id: token id of the padding.
        num_workers: processes that read and tokenise, each of which reads all rows.
        capacity: tokens of a sequence, at most, for packing (see `collate`); None does not pack.
    """

    steps_per_epoch = math.inf
    """Optimizer steps in an epoch, for the learning rate's schedule: unknown, so infinite."""

    def __init__(
        self,
        steps: Steps,
        position: StreamPosition,
        trainer: Trainer | None = None,
        pad_id: int = 0,
        num_workers: int = 0,
        capacity: float | None = None,
    ) -> None:
        self._steps = steps
        self._position = position
        self._trainer = trainer
        self._pad_id = pad_id
        self._num_workers = num_workers
        self._capacity = capacity
        self._iterator: Any = None  # under this name Lightning looks for worker processes to stop after a run

    @property
    def position(self) -> tuple[int, int]:
        """The epoch and the step within it that come next."""
        return self._position.at(0 if self._trainer is None else self._trainer.global_step)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, first = self.position
        steps = replace(self._steps, epoch=epoch, first=first)
        # A generator of its own: each iteration draws a seed, and the training's generator has to stay as it is.
        seeds = torch.Generator()
        loader = DataLoader(
            steps,
            batch_size=None,
            collate_fn=_identity,
            num_workers=self._num_workers,
            worker_init_fn=outlive_one_sigterm,
            generator=seeds,
        )
        self._iterator = iter(loader)
        step: Step | None = None
        for step in self._iterator:
            if step.report.last:
                self._position.ends_after(step.report.step)
            yield from self._collated(step)
        if step is None and first == 0:
            raise UserError(f"data.train: no rows in {steps.stream.selection.named()}")
        if step is None:  # the epoch was longer when the training was there
            self._position.ends_after(first - 1)

    def _collated(self, step: Step) -> Iterator[dict[str, Any]]:
        divisor = step.report.counts.supervised_tokens
        for numbers in step.micro_batches:
            rows = [step.rows[number] for number in numbers]
            places = [step.places[number] for number in numbers]
            yield {**collate(rows, places, divisor, self._pad_id, self._capacity), REPORT: step.report}

    def state_dict(self) -> dict[str, Any]:
        """Empty; that the method exists shows Lightning that this loader can be resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignored: the position follows from the trainer's."""


# Reports of all ranks ------------------------------------------------------------------------------------------------


def gathered(report: StepReport) -> list[StepReport]:
    """The reports of all ranks on the same step; ranks that hold the same rows give one together."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [report]
    reports: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(reports, report)
    return list({each.replica: each for each in reports}.values())


class Ledger:
    """Adds up the reports of an epoch's steps, and judges the bad rows as they come; all ranks come to the same end.

    Args:
        max_rejects: share of the rows that may be bad.
        file: file in which bad rows are listed; None for no list.
        files: names of the files of the rows, for messages.
        gather: function that returns the reports of all ranks.
    """

    def __init__(
        self,
        max_rejects: float,
        file: Path | None,
        files: str,
        gather: Callable[[StepReport], Iterable[StepReport]] = gathered,
    ) -> None:
        self._settings = max_rejects, file
        self._files = files
        self._gather = gather
        self._current: StepReport | None = None
        self._divisor = 0
        self._begin(0)

    def _begin(self, step: int) -> None:
        self._first = step
        self._counts = Counts()
        self._rejects = Rejects(*self._settings)

    def divisor(self, report: StepReport) -> int:
        """Supervised tokens of a step over all ranks. The first micro-batch of each makes the ranks exchange reports.

        Raises:
            UserError: on all ranks, if one of them cannot go on, or too many rows are bad.
        """
        if report is not self._current:
            if self._current is None or self._current.last:
                self._begin(report.step)
            self._current = report
            self._divisor = self._add(list(self._gather(report)))
            if report.last:
                self._finish(report)
        return self._divisor

    def _add(self, reports: list[StepReport]) -> int:
        for report in reports:
            if report.error is not None:
                raise UserError(report.error)
        if len({(report.epoch, report.step, report.last) for report in reports}) > 1:
            raise UserError(f"data.train: not all ranks read the same rows; let all of them see the same {self._files}")
        counts = sum((report.counts for report in reports), Counts())
        self._counts += counts
        self._rejects.go_on([bad for report in reports for bad in report.rejects], self._counts.read)
        return counts.supervised_tokens

    def _finish(self, report: StepReport) -> None:
        """Judge the epoch, at the beginning of its last step, with whose reports all are there."""
        self._rejects.judge(self._counts.read)
        if not self._counts.kept:
            raise UserError(f"data.train: {self._counts.why_empty()} in {self._files}")
        self._log(report)

    def close(self) -> None:
        """Log the counts of an epoch that was not finished."""
        if self._current is not None and not self._current.last:
            self._log(self._current)
            self._current = None

    def _log(self, last: StepReport) -> None:
        steps = f"epoch {last.epoch + 1}, steps {self._first + 1} to {last.step + 1}"
        rank_zero_info(f"Data, train, {steps}: {self._counts.summary()}")
        warn_of("train", self._rejects, self._counts.read)

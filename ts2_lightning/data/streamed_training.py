"""The streamed training rows of a datamodule, with the position of training in them and the record of them."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from ts2_lightning.data.batch_plan import StepShape
from ts2_lightning.data.reading import Encoder, Split
from ts2_lightning.data.resume import StreamPosition, check_plan_state, digest
from ts2_lightning.data.row_stream import Stream
from ts2_lightning.data.streaming import REPORT, Ledger, Steps, StreamLoader
from ts2_lightning.data.trainer import check_no_epoch_shares


class StreamedTraining:
    """Streamed training rows, from the first step to the last.

    Args:
        stream: the rows in their order.
        position: position of training in the stream; None is its beginning.
    """

    def __init__(self, stream: Stream, position: StreamPosition | None = None) -> None:
        self.stream = stream
        self.position = position or StreamPosition()
        self._ledger: Ledger | None = None

    def begin(self, trainer: Trainer | None, max_rejects: float, file: Path | None) -> None:
        """Start at the beginning, or where the trainer has come to in an earlier call of `fit`.

        Args:
            trainer: the trainer that asks for the rows; None outside of one.
            max_rejects: share of the rows that may be bad.
            file: file in which bad rows are listed; None for no list.

        Raises:
            UserError: if the trainer would have to know how long an epoch is.
        """
        if trainer is not None:
            check_no_epoch_shares(trainer)
        if trainer is None or trainer.global_step == 0:
            self.position = StreamPosition()
        self._ledger = Ledger(max_rejects, file, self.stream.selection.named())

    def preview(self, encoder: Encoder, rows: int, max_rejects: float) -> Split:
        """The first rows of the first epoch, file by file, read and encoded.

        Raises:
            UserError: if more of them are bad than `max_rejects` allows, or none is left.
        """
        first = sorted(itertools.islice(self.stream.read(0), rows), key=lambda numbered: numbered[0])
        counts = np.bincount([file for file, _ in first], minlength=len(self.stream.rows)).tolist()
        split = Split("train", self.stream.selection, encoder.encode(row for _, row in first), counts)
        split.judge(max_rejects, None)
        split.check(encoder)
        return split

    def loader(
        self, encoder: Encoder, shape: StepShape, rank: int, trainer: Trainer | None, **collation: Any
    ) -> StreamLoader:
        """The micro-batches of one rank; `collation` are the remaining arguments of `StreamLoader`."""
        limit: Any = 1.0 if trainer is None else trainer.limit_train_batches
        end = -(-limit // shape.accumulation) if isinstance(limit, int) else None
        return StreamLoader(Steps(self.stream, encoder, shape, rank, end=end), self.position, trainer, **collation)

    def set_divisor(self, batch: Any) -> None:
        """Give a micro-batch the divisor of its step, which all ranks add up from their reports."""
        if self._ledger is not None and (report := batch.pop(REPORT, None)) is not None:
            batch["divisor"] = torch.full_like(batch["divisor"], self._ledger.divisor(report))

    def state(self, encoder: Encoder, batch_size: int, trainer: Trainer | None) -> dict[str, Any]:
        """The plain values that determine the rows and their tokens, and the position in them, for a checkpoint."""
        done = 0 if trainer is None else trainer.global_step
        return {**self._identity(encoder, batch_size), "position": self.position.state(done)}

    def restore(self, state: dict[str, Any], encoder: Encoder, batch_size: int) -> None:
        """Go to the position of a checkpoint.

        Raises:
            UserError: if the checkpoint's rows are not these; it names what changed.
        """
        check_plan_state(state, self._identity(encoder, batch_size))
        self.position = StreamPosition(**state["position"])

    def _identity(self, encoder: Encoder, batch_size: int) -> dict[str, Any]:
        return {**self.stream.identity(), "batch_size": batch_size, "encoding": digest(encoder.identity())}

    def close(self) -> None:
        """Log the counts of an epoch that training did not finish."""
        if self._ledger is not None:
            self._ledger.close()

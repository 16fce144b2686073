"""How a checkpoint is written: by which strategy, by all ranks together, now or later."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import CheckpointException

from ts2_lightning.checkpoint_files.deferred import DeferredWrites, write_file
from ts2_lightning.strategies import FSDP2, DeepSpeed
from ts2_lightning.types import UserError

FAILURES = (Exception, CheckpointException)  # the latter is not an `Exception`
_WAIT = timedelta(days=1)  # of ranks for one that writes a large file


class StraightToFile(TorchCheckpointIO):
    """Writes a checkpoint where it belongs: Lightning collects it in memory, and then in the temporary directory.

    Attributes:
        deferred: where writes are left to be done later; None: they are done.
    """

    deferred: DeferredWrites | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the file."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if self.deferred is None:
            write_file(path, checkpoint)
        else:
            self.deferred.add(partial(write_file, path), checkpoint)


def check_asynchronous(strategy: Strategy) -> None:
    """Refuses strategies and plugins that write by themselves, so that nothing can be copied and written later.

    Raises:
        UserError: if the strategy, or its `checkpoint_io`, is one of these.
    """
    name = type(strategy).__name__
    own = type(strategy).save_checkpoint is not Strategy.save_checkpoint
    if own and not isinstance(strategy, FSDP2 | DeepSpeed):
        raise UserError(
            f"Checkpoints(asynchronous): {name} writes its checkpoints by itself; take ts2_lightning.strategies.FSDP2 "
            "(configs/strategy/fsdp2.yaml), or set asynchronous to false"
        )
    if not isinstance(strategy, DeepSpeed) and not isinstance(strategy.checkpoint_io, StraightToFile):
        raise UserError(
            f"Checkpoints(asynchronous): the trainer's plugin {type(strategy.checkpoint_io).__name__} writes "
            "checkpoints by itself; leave it out of trainer.plugins, or set asynchronous to false"
        )


class Ranks(NamedTuple):
    """The ranks that write a checkpoint together, as one of them sees them.

    Attributes:
        rank: number of this rank.
        local_rank: number of this rank on its node.
        size: number of ranks.
        group: group in which they communicate; None: the one of the training.
    """

    rank: int
    local_rank: int
    size: int
    group: ProcessGroup | None = None

    @classmethod
    def of(cls, trainer: Trainer, group: ProcessGroup | None = None) -> "Ranks":
        """The ranks of a training."""
        return cls(trainer.global_rank, trainer.local_rank, trainer.world_size, group)

    def together(self, action: Callable[[], None]) -> str | None:
        """Run a rank's part of a common action, and learn whether the others failed: nobody waits for one that has.

        Returns:
            The reason of a failure that the disk has caused; None if all went well.

        Raises:
            Exception: another error, in the rank that has met it; a `RuntimeError` in the others.
        """
        error: BaseException | None = None
        try:
            action()
        except FAILURES as caught:
            error = caught
        reports = self.gathered(None if error is None else _report(error, self.rank))
        failed = [report for report in reports if report is not None]
        serious = [(rank, reason) for rank, of_the_disk, reason in failed if not of_the_disk]
        if serious and error is not None:
            raise error
        if serious:
            raise RuntimeError("rank {} could not save the checkpoint: {}".format(*serious[0]))
        return f"{failed[0][2]} (rank {failed[0][0]})" if failed else None

    def first(self, action: Callable[[], None]) -> str | None:
        """Run an action on the first rank; all learn whether it failed, see `together`."""
        return self.together(action if self.rank == 0 else _nothing)

    def gathered(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        values = [value]
        if self.size > 1:
            values = [None] * self.size
            torch.distributed.all_gather_object(values, value, group=self.group)
        return values


def _nothing() -> None:
    """What other ranks do meanwhile."""


def group_of_writers() -> ProcessGroup | None:
    """A group of all ranks in which they can communicate while training does so too; None without other ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return torch.distributed.new_group(timeout=_WAIT, backend="gloo")


def _report(error: BaseException, rank: int) -> tuple[int, bool, str]:
    """The rank of an error, whether the disk has caused it, and its message."""
    if isinstance(error, CheckpointException):  # of torch.distributed.checkpoint, which tells all ranks of the first
        rank, error = next((rank, failure[0]) for rank, failure in error.failures.items())
    cause = error if isinstance(error, OSError) else error.__context__
    reason = (isinstance(cause, OSError) and cause.strerror) or " ".join(str(error).split())
    # Torch's writer of zip archives, which is of C++, raises an error of its own.
    return rank, isinstance(error, OSError) or "inline_container.cc" in str(error), reason


@contextmanager
def deferring(writes: DeferredWrites, strategy: Any) -> Iterator[None]:
    """Have a strategy that `check_asynchronous` has passed leave copies to be written later."""
    if isinstance(strategy, DeepSpeedStrategy):
        with _deepspeed_saves(strategy, lambda write, state, path: writes.add(lambda copy: write(copy, path), state)):
            yield
        return
    places: list[Any] = [strategy, strategy.checkpoint_io] if isinstance(strategy, FSDP2) else [strategy.checkpoint_io]
    for place in places:
        place.deferred = writes
    try:
        yield
    finally:
        for place in places:
            place.deferred = None


@contextmanager
def errors_at_the_end(strategy: Any) -> Iterator[None]:
    """Raise a rank's write error only after all ranks have written, since DeepSpeed's ranks wait for each other."""
    if not isinstance(strategy, DeepSpeedStrategy):
        yield
        return
    errors: list[Exception] = []

    def save(write: Callable[..., None], state: Any, path: str) -> None:
        try:
            write(state, path)
        except Exception as error:
            errors.append(error)

    with _deepspeed_saves(strategy, save):
        yield
    if errors:
        raise errors[0]


@contextmanager
def _deepspeed_saves(strategy: DeepSpeedStrategy, save: Callable[..., None]) -> Iterator[None]:
    """Have `save(write, state, path)` called in place of `write(state, path)`, which is DeepSpeed's own."""
    writer = strategy.deepspeed_engine.checkpoint_engine
    write = writer.save
    writer.save = lambda state_dict, path: save(write, state_dict, path)
    try:
        yield
    finally:
        del writer.save  # of the instance; the class has its own

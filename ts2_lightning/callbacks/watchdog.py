"""A run that hangs ends, and says where it hung."""

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import ts2_lightning
from ts2_lightning.ranges import Range, check_numbers

STATUS = 124
"""Exit status of a process that hung, as that of `timeout`."""

_TIMEOUTS = Range(above=0, most=1e9)  # no lock can wait longer
_FIRST = 4  # times longer for the first step, in which kernels are compiled and communicators are made
_OURS = Path(str(ts2_lightning.__file__)).parent
_PACKAGES = {_OURS, *(Path(str(package.__file__)).parent for package in (torch, lightning))}


class Watchdog(Callback):
    """Ends this process when no micro-batch of training or validation has been completed for a long time.

    A collective operation that one rank does not take part in, a worker that loads no more data, or a file system that
    does not answer would otherwise hold the machines until someone looks. Each rank writes the stacks of all its
    threads to `hang-rank-R.txt`, says in one line in which step it was and at which line of code, and ends with status
    124.

    Args:
        timeout: seconds without progress; the first step may take four times as long. The default is shorter than the
            half hour after which torch.distributed gives up, which does not say where.
        directory: of the file; null: the trainer's `default_root_dir`.

    Raises:
        UserError: if `timeout` is out of its range.
    """

    def __init__(self, timeout: float = 1500.0, directory: str | None = None) -> None:
        self.timeout = timeout
        check_numbers("Watchdog: ", self, timeout=_TIMEOUTS)
        self.directory = directory
        self._over = threading.Event()
        self._deadline = 0.0
        self._place = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to watch."""
        self._progress(trainer, "training", _FIRST)
        directory = Path(self.directory or trainer.default_root_dir)
        self._over = threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(self._over, trainer.global_rank, directory), name="watchdog", daemon=True
        )
        watch.start()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """A micro-batch is done."""
        self._progress(trainer, "training")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation begins, of which the first batch may take longer too."""
        self._progress(trainer, "validation", _FIRST)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """A validation batch is done."""
        self._progress(trainer, "validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on."""
        self._progress(trainer, "training")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop to watch."""
        self._over.set()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop to watch."""
        self._over.set()

    def _progress(self, trainer: Trainer, phase: str, times: int = 1) -> None:
        self._place = f"step {trainer.global_step + (phase == 'training')} ({phase})"
        self._deadline = time.monotonic() + times * self.timeout

    def _watch(self, over: threading.Event, rank: int, directory: Path) -> None:
        while not over.wait(max(0.0, self._deadline - time.monotonic())):
            if time.monotonic() >= self._deadline:
                break
        else:
            return
        report_hang(rank, self._place, directory / f"hang-rank-{rank}.txt")
        os._exit(STATUS)


def report_hang(rank: int, place: str, file: Path) -> None:
    """Writes the stacks of all threads to a file, and one line to stderr."""
    with file.open("w", encoding="utf-8") as stream:
        faulthandler.dump_traceback(stream, all_threads=True)
    main = threading.main_thread().ident
    where = describe(sys._current_frames().get(main)) if main is not None else ""
    line = f"[rank {rank}] error: no progress in {place}{where}; the stacks of all threads are in {file}"
    os.write(2, f"{line}\n".encode())  # the main thread may hold the lock of sys.stderr


def describe(frame: FrameType | None) -> str:
    """Where a thread stands: the innermost line of ours, torch's or Lightning's, and the innermost of ours above it."""
    innermost = _innermost(frame, _PACKAGES)
    ours = _innermost(frame, {_OURS})
    if innermost is None:
        return ""
    above = f", called from {_line(ours)}" if ours is not None and ours is not innermost else ""
    return f": stands at {_line(innermost)}{above}"


def _innermost(frame: FrameType | None, packages: set[Path]) -> FrameType | None:
    while frame is not None and not any(Path(frame.f_code.co_filename).is_relative_to(p) for p in packages):
        frame = frame.f_back
    return frame


def _line(frame: FrameType) -> str:
    file = Path(frame.f_code.co_filename)
    root = next(package.parent for package in _PACKAGES if file.is_relative_to(package))
    return f"{file.relative_to(root)}:{frame.f_lineno} in {frame.f_code.co_name}"

"""A run that hangs ends, and reports where it hung."""

import faulthandler
import math
import os
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import ts2_lightning
from ts2_lightning.ranges import Range, check_numbers

STATUS = 124
"""Exit status of a process that hung, as that of `timeout`."""

_TIMEOUTS = Range(above=0, most=1e9)  # no lock can wait longer
_LONG = 4  # times longer for what is rare and large: loading, first steps, in which kernels are compiled, checkpoints
_TICK = 1.0  # seconds between two checks, at most
_PATIENCE = 30.0  # seconds for the report of a hang, which a file system that does not answer may block
_OURS = Path(str(ts2_lightning.__file__)).parent
_DISTRIBUTED = Path(str(torch.__file__)).parent / "distributed"
_PACKAGES = {_OURS, *(Path(str(package.__file__)).parent for package in (torch, lightning))}


class Phase(NamedTuple):
    """The activity of a run since its last sign of progress.

    Attributes:
        name: name of the phase, for a message that begins with "no progress".
        seconds: seconds that it may last.
        since: start of the phase, by the monotonic clock.
    """

    name: str
    seconds: float
    since: float


class Watchdog(Callback):
    """Ends this process when it has made no progress for a long time, from the first contact with other ranks on.

    A collective operation that one rank does not take part in, because it hangs or has died, a worker that loads no
    more data, or a file system that does not answer would otherwise hold the machines until someone looks. Each rank
    writes the stacks of all its threads to `hang-rank-R.txt`, says in one line what it was at and at which line of
    code, and ends with status 124.

    Progress is a micro-batch of training or validation. What is rare and large may take four times as long: to load the
    model, to read a checkpoint or to write one, the first step, the first batch of a validation, the export. To prepare
    the data may take any time, as rank 0 may have to tokenise for hours while the others wait; only what they do in
    torch.distributed is watched there. If rank 0 dies meanwhile, its connections close, and the others end with an
    error.

    Time in which the process is stopped (Ctrl-Z, a job that SLURM has suspended) does not count.

    Args:
        timeout: seconds without progress. The default is shorter than the half hour after which torch.distributed gives
            up without a place.
        directory: directory of the file; null: the trainer's `default_root_dir`.

    Raises:
        UserError: if `timeout` is out of its range.
    """

    def __init__(self, timeout: float = 1500.0, directory: str | None = None) -> None:
        self.timeout = timeout
        check_numbers("Watchdog: ", self, timeout=_TIMEOUTS)
        self.directory = directory
        self._over: threading.Event | None = None
        self._phase = Phase("", math.inf, 0.0)

    # Phases ---------------------------------------------------------------------------------------------------------

    def begin(self, trainer: Trainer) -> None:
        """Start watching, if that has not been done.

        To be called before `fit` if possible: there the ranks meet and the data are prepared before any callback runs.
        """
        if self._over is not None:
            return
        self._phase = Phase("while the data are prepared", math.inf, time.monotonic())
        self._over = threading.Event()
        directory = Path(self.directory or trainer.default_root_dir)
        settings = (self._over, trainer.global_rank, directory)
        threading.Thread(target=self._watch, args=settings, name="watchdog", daemon=True).start()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The data are there, and the model is loaded next."""
        if stage == "fit":
            self.begin(trainer)
            self._phase = self._long("while the model is loaded")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The model is loaded; a checkpoint may be."""
        self._phase = self._long("before the first step (a checkpoint is loaded, if there is one)")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training begins; the first step may take longer."""
        self._progress(trainer, "training", _LONG)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """A micro-batch is done."""
        self._progress(trainer, "training")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation begins, of which the first batch may take longer too."""
        self._progress(trainer, "validation", _LONG)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """A validation batch is done."""
        self._progress(trainer, "validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on."""
        self._progress(trainer, "training")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is written next, by all ranks."""
        self._phase = self._long(f"since the checkpoint of step {trainer.global_step} was begun")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is left is to end in good order, for which ranks wait for each other."""
        self._phase = self._long("after the last step")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All ranks have come this far, and the first one exports the model."""
        self._phase = self._long("while the model is exported")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching: from here on no rank needs another."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching."""
        self._stop()

    def expect_long(self, name: str) -> None:
        """Give what comes next more time; for callbacks that wait for something rare and large.

        Args:
            name: what the process is at, for the message.
        """
        if self._over is not None:
            self._phase = self._long(name)

    def _progress(self, trainer: Trainer, activity: str, times: int = 1) -> None:
        step = trainer.global_step + (activity == "training")
        self._phase = Phase(f"in step {step} ({activity})", times * self.timeout, time.monotonic())

    def _long(self, name: str) -> Phase:
        return Phase(name, _LONG * self.timeout, time.monotonic())

    def _stop(self) -> None:
        if self._over is not None:
            self._over.set()
            self._over = None

    # Watching -------------------------------------------------------------------------------------------------------

    def _watch(self, over: threading.Event, rank: int, directory: Path) -> None:
        """Check often. Where far more time passes between two checks than planned, the process was stopped."""
        tick, last = min(_TICK, self.timeout / 10), time.monotonic()
        meeting = Phase("while the ranks find each other", self.timeout, last)
        phase, spent = self._phase, 0.0
        while spent < phase.seconds:
            if over.wait(min(tick, phase.seconds - spent)):
                return
            before, phase = phase, self._phase
            if math.isinf(phase.seconds) and _waits_for_ranks():
                phase = meeting
            now = time.monotonic()
            spent = (spent if phase is before else 0.0) + min(now - max(last, phase.since), 2 * tick)
            last = now
        file = directory / f"hang-rank-{rank}.txt"
        report = threading.Thread(target=report_hang, args=(rank, phase.name, file), daemon=True)
        report.start()
        report.join(_PATIENCE)
        os._exit(STATUS)


def _waits_for_ranks() -> bool:
    """Whether the main thread is in torch.distributed; Lightning's barrier around `prepare_data` is in gloo itself."""
    frame = _innermost(_main_frame(), _PACKAGES)
    return frame is not None and Path(frame.f_code.co_filename).is_relative_to(_DISTRIBUTED)


def _main_frame() -> FrameType | None:
    main = threading.main_thread().ident
    return None if main is None else sys._current_frames().get(main)


def report_hang(rank: int, phase: str, file: Path) -> None:
    """Writes the stacks of all threads to a file, or to stderr if that cannot be, and one line to stderr."""
    where = describe(_main_frame())
    try:
        with file.open("w", encoding="utf-8") as stream:
            faulthandler.dump_traceback(stream, all_threads=True)
        stacks = f"the stacks of all threads are in {file}"
    except OSError as error:
        faulthandler.dump_traceback(2, all_threads=True)
        stacks = f"the stacks of all threads are above, as {file} cannot be written ({error.strerror})"
    line = f"[rank {rank}] error: no progress {phase}{where}; {stacks}"
    os.write(2, f"{line}\n".encode())  # the main thread may hold the lock of sys.stderr


def describe(frame: FrameType | None) -> str:
    """The place of a thread: the innermost line of ours, torch's or Lightning's, and the innermost of ours above it."""
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

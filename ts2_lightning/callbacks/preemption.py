"""A run that is told to end saves where it is, and ends."""

import os
import re
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ts2_lightning.callbacks.checkpoints import Checkpoints, is_between_steps

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """The run ends because a signal said so. Lightning treats it as Ctrl-C: it ends its other processes too.

    Attributes:
        signal: which signal; the largest, if ranks got different ones.
        requeued: SLURM will start the job again.
    """

    def __init__(self, number: int, requeued: bool = False) -> None:
        self.signal = signal.Signals(number)
        self.requeued = requeued
        super().__init__(f"stopped by {self.signal.name}")


class Preemption(Callback):
    """Ends training in good order when SIGTERM, SLURM's warning SIGUSR1, or Ctrl-C asks for it.

    A signal only sets a flag. Before each optimizer step and each validation batch the ranks agree whether any of them
    was asked: one number is reduced, which is nothing beside the gradients. If so, a checkpoint of the step is written
    and every rank raises `Stopped`. A second Ctrl-C ends at once, and so does any of the signals while there is nothing
    to save: before the first step and after the last.

    After SIGUSR1 in a SLURM job, which `sbatch --signal=USR1@120` sends 120 s before the time is over, the job is put
    into the queue again (`scontrol requeue`). SIGTERM is not a reason to: SLURM requeues the jobs that it preempts
    itself, and `scancel` means it.

    Lightning's own handlers are left out: they save, requeue and communicate inside of the handler, while a step runs.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._training = False
        self._ending = False
        self._process = 0
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the signals from Lightning."""
        if stage != "fit" or threading.current_thread() is not threading.main_thread():
            return
        _silence_lightning(trainer)
        self._asked, self._training, self._ending, self._process = 0, False, False, os.getpid()
        self._handlers = {number: signal.signal(number, self._hear) for number in SIGNALS}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to save."""
        self._training = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop between two steps."""
        if is_between_steps(trainer, batch_idx):
            self._stop_if_asked(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Stop within a validation; the resumed run does it again."""
        if self._training:
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is nothing to save."""
        self._training = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back, unless this process is about to end: it should not be disturbed."""
        if not isinstance(exception, Stopped):
            self._give_back()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            _hear_in_a_child(number)
        elif not self._training or (number == self._asked == signal.SIGINT):
            if not self._ending:
                self._ending = True
                raise Stopped(number)
        else:
            self._asked = number
            if number == signal.SIGINT:
                note = b"\nCtrl-C: saves a checkpoint when this step is done, then stops; once more to stop at once\n"
                os.write(2, note)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        number = self._agreed(trainer)
        if not number:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                callback.save(trainer)
        self._training, self._ending = False, True
        requeued = number == signal.SIGUSR1 and trainer.is_global_zero and requeue()
        trainer.strategy.barrier("requeue")  # a rank that ends may take the others with it
        raise Stopped(number, requeued)

    def _agreed(self, trainer: Trainer) -> int:
        if trainer.world_size == 1:
            return self._asked
        asked = torch.tensor(self._asked, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        return int(asked)


def requeue() -> bool:
    """Puts this SLURM job into the queue again.

    Returns:
        Whether SLURM has said yes; False outside of a job.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    if not re.fullmatch(r"\d+(_\d+)?", job):
        return False
    try:
        return subprocess.run(["scontrol", "requeue", job], timeout=30, stdout=subprocess.DEVNULL).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _hear_in_a_child(number: int) -> None:
    """In a process that loads data, and which has inherited the handler.

    Ctrl-C, and SLURM's signals, reach it too: if it ended, the step could not be ended. SIGTERM is how its parent ends
    it (where torch has not set a handler of its own).
    """
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _silence_lightning(trainer: Trainer) -> None:
    """Keeps Lightning from setting its handlers, and from a broadcast before each micro-batch that serves them."""
    connector: Any = trainer._signal_connector
    loop: Any = trainer.fit_loop.epoch_loop
    assert hasattr(connector, "register_signal_handlers")
    assert hasattr(loop, "_broadcast_sigterm_tensor")
    connector.register_signal_handlers = loop._broadcast_sigterm_tensor = lambda: None

"""A run that gets a signal to end saves a checkpoint, and ends."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ts2_lightning.callbacks.checkpoints import Checkpoints, is_between_steps
from ts2_lightning.callbacks.requeue import requeue

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""The signals at which a run saves and ends: Ctrl-C; a preemption, or a kill; a terminal that closes; a time limit that
is near, as SLURM and other schedulers announce it; a limit of processor time."""


class Stopped(KeyboardInterrupt):
    """The run ends because of a signal. Lightning treats it as Ctrl-C: it ends its other processes too.

    Attributes:
        signal: signal that ended the run; the largest, if ranks got different ones.
        requeued: whether SLURM will start the job again.
        at_once: whether nothing is waited for, not even a checkpoint that is being written: Ctrl-C came twice.
    """

    def __init__(self, number: int, requeued: bool = False, at_once: bool = False) -> None:
        self.signal = signal.Signals(number)
        self.requeued = requeued
        self.at_once = at_once
        super().__init__(f"stopped by {self.signal.name}")


class Preemption(Callback):
    """Ends training in good order when one of `SIGNALS` asks for it.

    A signal only sets a flag. Before each optimizer step and each validation batch the ranks agree whether any of them
    got one: one number is reduced, which is nothing beside the gradients. If so, a checkpoint of the step is written
    and every rank raises `Stopped`. More signals change nothing, as SLURM sends some of them twice, but for a second
    Ctrl-C, which ends at once. So does any of the signals while there is nothing to save: before the first step and
    after the last.

    A signal that is ignored when the run begins stays so: under `nohup` a terminal may close.

    A SLURM job that was warned (`sbatch --signal=USR1@300`) or is preempted is put into the queue again, one that was
    cancelled is not; see `ts2_lightning.callbacks.requeue`.

    Lightning's own handlers are left out: they save, requeue and communicate inside of the handler, while a step runs.
    """

    def __init__(self) -> None:
        self._received = 0
        self._interrupted = False
        self._training = False
        self._ending = False
        self._process = 0
        self._handlers: dict[int, Any] = {}
        self._terminals: list[int] = []

    def begin(self, trainer: Trainer) -> None:
        """Take over the signals.

        To be called before `fit` if possible: there the ranks meet and the data are prepared before any callback runs.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        _silence_lightning(trainer)
        self._received, self._interrupted, self._training, self._ending = 0, False, False, False
        self._process = os.getpid()
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        if not self._handlers:
            before = {number: signal.getsignal(number) for number in SIGNALS}
            # A handler that is not of Python (None) could not be restored.
            self._handlers = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}
        for number in self._handlers:
            signal.signal(number, self._hear)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the signals."""
        if stage == "fit":
            self.begin(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to save."""
        self._training = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop between two steps."""
        if is_between_steps(trainer, batch_idx):
            self._stop_if_requested(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Stop within a validation; the resumed run does it again."""
        if self._training:
            self._stop_if_requested(trainer)

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
            return
        if number == signal.SIGHUP:
            self._leave_closed_terminals()
        again = number == signal.SIGINT and self._interrupted
        if not self._training or again:
            if not self._ending:
                self._ending = True
                raise Stopped(number, at_once=again)
        else:
            self._received = self._received or number  # a warning stays one when SIGTERM comes before the step is done
            if number == signal.SIGINT:
                self._interrupted = True
                note = b"\nCtrl-C: saves a checkpoint when this step is done, then stops; once more to stop at once\n"
                os.write(2, note)

    def _leave_closed_terminals(self) -> None:
        """Redirect the output of a closed terminal to nowhere: a failing write would interrupt the checkpoint."""
        for stream in self._terminals:
            if not os.isatty(stream):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)

    def _stop_if_requested(self, trainer: Trainer) -> None:
        number = self._agreed(trainer)
        if not number:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                callback.save(trainer, wait=True)
        self._training, self._ending = False, True
        requeued = trainer.is_global_zero and requeue(number)
        trainer.strategy.barrier("requeue")  # a rank that ends may take the others with it
        raise Stopped(number, requeued)

    def _agreed(self, trainer: Trainer) -> int:
        if trainer.world_size == 1:
            return self._received
        received = torch.tensor(self._received, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        return int(received)


def _hear_in_a_child(number: int) -> None:
    """In a process that loads data, and which has inherited the handler.

    Ctrl-C, a terminal that closes, and a scheduler's signals reach it too: if it ended, the step could not be ended.
    SIGTERM is how its parent ends it (where neither torch nor the loader has set a handler of its own).
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

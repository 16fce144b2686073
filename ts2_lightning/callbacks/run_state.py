"""The progress of a run, in a small file for those who watch it."""

import logging
import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ts2_lightning.runs.state import STATE, State, write_state

_LOG = logging.getLogger("lightning.pytorch")


class RunState(Callback):
    """Keeps `state.json` in the run's directory up to date: at most once a second, after each validation, at the end.

    The file has `state`, `step` and `steps` (optimizer steps done, and of the whole run; null where it has no known
    length), `epoch`, `seconds` (of training, validations and checkpoints included, over all starts of the run up to
    this step), the latest `objective` and `val_cross_entropy`, and `updated`, the Unix time. The states:

    - `running`: it trains, or it was killed; `updated` and the process tell which;
    - `finished`: nothing is left to do: checkpoints, export and logs are on disk;
    - `stopped`: a signal has ended it, and it can be resumed;
    - `failed`: an error has ended it.

    Rank 0 writes it, from values that are on the host already: the cross-entropy is fetched once for each validation. A
    run that ends before its first step writes nothing. That a state cannot be written ends no training, but for the
    last: a run that is not called finished would be taken up again.

    Args:
        directory: directory of the file; null: the trainer's `default_root_dir`.
    """

    SECONDS = 1.0
    """Shortest time between two writings of a step."""

    def __init__(self, directory: str | None = None) -> None:
        self.directory = directory
        self._seconds = 0.0  # of earlier starts, then of this one too when it is over
        self._began: float | None = None
        self._written = 0.0
        self._step = 0
        self._steps: int | None = None
        self._objective: float | None = None
        self._cross_entropy: float | None = None
        self._warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        steps = trainer.estimated_stepping_batches  # -1 or inf where the epochs have no length
        self._steps = int(steps) if 0 <= steps < math.inf else None
        self._began, self._step = time.monotonic(), trainer.global_step
        self._write_running(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Write the step that was done, if the last writing is long enough ago."""
        if trainer.global_step != self._step and time.monotonic() - self._written >= self.SECONDS:
            self._write_running(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation's cross-entropy."""
        if self._began is not None:
            self._cross_entropy = _latest(trainer, "val/cross_entropy")
            self._write_running(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop counting: the export follows."""
        self._seconds, self._began = self.seconds, None
        self._write_running(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """All has been done; Lightning comes here after a fit without errors only."""
        if stage == "fit":
            if trainer.is_global_zero:
                for logger in trainer.loggers:
                    logger.save()
            self._write(trainer, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write how it ended, if it has begun, from values on the host: after an error the GPU may not answer."""
        if self._written:
            self._try(trainer, "stopped" if isinstance(exception, KeyboardInterrupt) else "failed")

    def state_dict(self) -> dict[str, Any]:
        """The seconds of training that led to this checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run goes on counting."""
        self._seconds = state_dict["seconds"]

    @property
    def seconds(self) -> float:
        """Training time over all starts."""
        return self._seconds + (0.0 if self._began is None else time.monotonic() - self._began)

    def _write_running(self, trainer: Trainer) -> None:
        """Write that the run goes on."""
        self._objective = _latest(trainer, "train/objective")
        self._try(trainer, "running")

    def _try(self, trainer: Trainer, state: State) -> None:
        """Write a state that the run can do without: a disk may be full for a while."""
        try:
            self._write(trainer, state)
        except OSError as error:
            if not self._warned:
                _LOG.warning(f"{STATE}: cannot be written ({error}); how far the run is, is not seen")
            self._warned = True

    def _write(self, trainer: Trainer, state: State) -> None:
        self._written, self._step = time.monotonic(), trainer.global_step
        if not trainer.is_global_zero:
            return
        content = {
            "state": state,
            "step": trainer.global_step,
            "steps": self._steps,
            "epoch": trainer.current_epoch,
            "seconds": round(self.seconds, 3),
            "objective": self._objective,
            "val_cross_entropy": self._cross_entropy,
            "updated": round(time.time(), 3),
        }
        write_state(Path(self.directory or trainer.default_root_dir), content)


def _latest(trainer: Trainer, name: str) -> float | None:
    value = trainer.callback_metrics.get(name)
    return float(value) if value is not None and math.isfinite(value) else None

"""A progress bar of optimizer steps that also reads well in a log file."""

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm, convert_inf
from torch.optim import Optimizer

from ts2_lightning.ops.statistics import TOKEN_VALUES
from ts2_lightning.ranges import NOT_NEGATIVE, check_numbers
from ts2_lightning.values import Value, by_name

_SHOWN = (
    *("train/objective", "train/cross_entropy", "train/learning_rate"),
    *("train/support_size", "train/tail_mass", "train/entropy", "val/cross_entropy"),
)
"""Logged names that the bar shows, in this order."""
_OF_STEP = (Value("objective", "objective"), Value("learning_rate", "learning rate", short="lr"))
_DESCRIBED = by_name((*TOKEN_VALUES, *_OF_STEP))

TERMINAL = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
LINE = "{l_bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class LineTqdm(Tqdm):
    """A bar for files: whole lines, one per tenth of the way, and at least every half minute at first.

    A line's distance in time grows with the run (a twentieth of the time so far), so that a day's log stays
    short.
    """

    SECONDS = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._tenth, self._shown_at = -1, time.monotonic()
        super().__init__(*args, **{**kwargs, "bar_format": LINE, "dynamic_ncols": False})

    def is_due(self, n: float) -> bool:
        """Whether a line is to be written once n is done."""
        if n == self.initial:
            return False
        elapsed = self._time() - self.start_t  # type: ignore[attr-defined]  # as tqdm measures it
        patience = max(self.SECONDS, elapsed / 20)
        return self._tenth_of(n) != self._tenth or time.monotonic() - self._shown_at >= patience

    def _tenth_of(self, n: float) -> int:
        return int(10 * n / self.total) if self.total else 0

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line if one is due."""
        if not self.is_due(self.n):
            return
        self._tenth, self._shown_at = self._tenth_of(self.n), time.monotonic()
        self.fp.write(f"{self}\n")
        self.fp.flush()

    def clear(self, *args: Any, **kwargs: Any) -> None:
        """There is nothing to wipe out in a file."""

    def close(self) -> None:
        """Finish without the terminal's control characters."""
        if not self.disable:
            self.disable = True
            type(self)._decr_instances(self)  # type: ignore[attr-defined]


class StepProgress(TQDMProgressBar):
    """Counts the optimizer steps of the whole run, with the time left, the objective, CE and learning rate.

    In a terminal it is tqdm's bar, redrawn at most ten times a second. In a file or a pipe it writes a line
    every tenth of the way (or half minute). After each validation it writes a line with the validation's CE.

    Args:
        refresh_seconds: shortest time between two drawings of the bar in a terminal.

    Raises:
        UserError: if `refresh_seconds` is out of its range.
    """

    def __init__(self, refresh_seconds: float = 0.1) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds
        check_numbers("StepProgress: ", self, refresh_seconds=NOT_NEGATIVE)
        self._drawn_at = 0.0
        self._drawn_step = 0
        self._learning_rate: float | None = None

    def on_train_start(self, *args: Any) -> None:
        """Start the run's one bar; a resumed run goes on where it stopped."""
        trainer: Trainer = args[0]
        steps = trainer.estimated_stepping_batches  # -1 where the epochs have no length, and nothing else ends the run
        total = None if steps < 0 else convert_inf(steps)
        self._drawn_step = trainer.global_step
        self.train_progress_bar = self._bar(
            _label(trainer), leave=True, total=total, initial=trainer.global_step, unit="step", smoothing=0
        )

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """The bar is the run's, not the epoch's: only its label changes."""
        self.train_progress_bar.set_description(_label(trainer), refresh=False)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Keep the learning rate of the step that begins: at its end the schedule has set the next one's."""
        self._learning_rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move to the optimizer step that was done, if it is time to draw."""
        bar, now, step = self.train_progress_bar, time.monotonic(), trainer.global_step
        if bar.disable or step == self._drawn_step:
            return
        if step != bar.total and now - self._drawn_at < self.refresh_seconds:
            return
        if isinstance(bar, LineTqdm) and not bar.is_due(step):
            return
        self._drawn_at, self._drawn_step = now, step
        self._draw(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing ends but the epoch."""

    def on_train_end(self, *args: Any) -> None:
        """Show the last step and leave the bar on the screen."""
        trainer, pl_module = args[0], args[1]
        if not self.train_progress_bar.disable and trainer.global_step != self.train_progress_bar.n:
            self._draw(trainer, pl_module)
        self.train_progress_bar.close()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation's CE on a line of its own, and that of each of its sets."""
        super().on_validation_end(trainer, pl_module)
        metrics, sets = trainer.callback_metrics, trainer.val_dataloaders
        if trainer.state.fn == "fit" and not trainer.sanity_checking and "val/cross_entropy" in metrics:
            keys = {name: f"val/{name}/cross_entropy" for name in (sets if isinstance(sets, Mapping) else ())}
            each = ", ".join(f"{name} {float(metrics[key]):.4f}" for name, key in keys.items() if key in metrics)
            line = f"Step {trainer.global_step}: validation cross-entropy {float(metrics['val/cross_entropy']):.4f}"
            self.print(f"{line} ({each})" if each else line)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The few that fit on a line (see `_SHOWN`), and what else has been logged for the bar."""
        logged: dict[str, Any] = {**trainer.callback_metrics, **trainer.progress_bar_metrics}
        if self._learning_rate is not None:
            logged["train/learning_rate"] = self._learning_rate
        names = dict.fromkeys((*_SHOWN, *trainer.progress_bar_metrics))
        return {_short(name): f"{float(logged[name]):.4g}" for name in names if name in logged}

    def init_sanity_tqdm(self) -> Tqdm:
        """The bar of the validation before training."""
        return self._bar(self.sanity_check_description, leave=False, hidden=not _is_terminal())

    def init_train_tqdm(self) -> Tqdm:
        """The bar of training; `on_train_start` fills in its length."""
        return self._bar("Training", leave=True, smoothing=0)

    def init_validation_tqdm(self) -> Tqdm:
        """The bar of a validation; in a log, validations within `fit` have no lines but their result."""
        within_fit = self.trainer.state.fn != "validate"
        return self._bar(
            self.validation_description,
            leave=not within_fit,
            position=int(within_fit),
            hidden=within_fit and not _is_terminal(),
        )

    def init_test_tqdm(self) -> Tqdm:
        """The bar of a test."""
        return self._bar("Testing", leave=True)

    def init_predict_tqdm(self) -> Tqdm:
        """The bar of a prediction."""
        return self._bar(self.predict_description, leave=True, smoothing=0)

    def _bar(self, description: str, *, hidden: bool = False, **settings: Any) -> Tqdm:
        kind = Tqdm if _is_terminal() else LineTqdm
        return kind(
            desc=description,
            disable=self.is_disabled or hidden,
            dynamic_ncols=True,
            file=sys.stdout,
            bar_format=TERMINAL,
            **settings,
        )

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.train_progress_bar.n = trainer.global_step
        self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))  # refreshes


def _label(trainer: Trainer) -> str:
    """The epoch; a run that goes on in the middle of one hears of no epoch's start."""
    epochs = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    return f"Epoch {trainer.current_epoch + 1}{epochs}"


def _short(name: str) -> str:
    """What a logged name is called on the bar.

    Example:
        >>> _short("train/tail_mass"), _short("val/cross_entropy"), _short("mine/own")
        ('tail', 'val CE', 'mine/own')
    """
    if name not in _SHOWN:
        return name
    stage, _, leaf = name.partition("/")
    short = _DESCRIBED[leaf].short or _DESCRIBED[leaf].title
    return short if stage == "train" else f"{stage} {short}"


def _is_terminal() -> bool:
    """Whether a bar can be redrawn in place; some containers give a terminal without columns, which cannot."""
    if not sys.stdout.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns > 0
    except (OSError, ValueError):  # a replacement of the standard output, which has no file behind it
        return True

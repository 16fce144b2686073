"""Means of what the loss engine measured at every supervised token, exact over the optimizer step."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ts2_lightning.metrics import TokenMeans
from ts2_lightning.types import UserError

LOGGED_BY_MODULE = ("objective",)
"""What the module logs itself, in every step, as `train/objective`."""

ON_PROGRESS_BAR = ("objective", "cross_entropy", "support_size", "tail_mass", "entropy")
"""The means that progress bars show; they are in `trainer.callback_metrics` too."""


class DistributionMonitor(Callback):
    """Logs the mean over all supervised tokens of the optimizer step of everything the step published.

    `training_step` publishes `outputs["tokens"]`: one `[N]` tensor per statistic, for the N supervised tokens
    of a micro-batch. For each key the callback keeps the float64 sum over all micro-batches of the optimizer
    step, adds the sums and the number of tokens over ranks with one all-reduce at the step's end, and
    divides:

        train/KEY = sum over the step's tokens of tokens[KEY] / number of the step's tokens

    so a micro-batch or rank with few tokens weighs little: never a mean of means. Nothing is computed from
    the logits again. Every logger gets one row per logged step, at `step = trainer.global_step` (the number
    of optimizer steps done). Lightning's own `log` would give the last micro-batch's mean instead, at a step
    counted from 0.

    Keys are those of `types.TOKEN_STATISTICS` (but for `LOGGED_BY_MODULE`), and `objective/PART` for each
    part of a composite loss. A step without any supervised token logs nothing.

    The statistics are measured because this callback asks for them; without it, or in steps that it does not log, the
    loss engine leaves them out.

    Args:
        every_n_steps: measure and log optimizer steps whose number is a multiple of this; the others cost nothing.
            Steps must be multiples of the trainer's `log_every_n_steps` too (0 there switches all logging off).

    Raises:
        UserError: if `every_n_steps` is smaller than 1.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise UserError(f"DistributionMonitor(every_n_steps) must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.latest: dict[str, float] = {}
        """The means of the last logged step, the objective included, under their logging names."""
        self._last_step = 0
        self._means = TokenMeans()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with empty sums; a checkpoint is only ever written between two optimizer steps."""
        self._last_step = trainer.global_step
        self._means, self.latest = TokenMeans(), {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ask for statistics in the micro-batches of a step that will be logged."""
        if self._is_due(trainer, self._last_step + 1):
            pl_module.request_statistics()  # type: ignore[operator]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a micro-batch's sums; at the end of the optimizer step reduce, divide and log."""
        due = self._is_due(trainer, self._last_step + 1)
        if due and isinstance(outputs, Mapping):
            self._means.update(outputs.get("tokens") or {})
        # The counter moves on the window's last micro-batch only, also when the epoch's last window is a
        # short one.
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        if due:
            self._publish(trainer)

    def _is_due(self, trainer: Trainer, step: int) -> bool:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and step % every == 0 and step % self.every_n_steps == 0

    def _publish(self, trainer: Trainer) -> None:
        means = self._means.compute(trainer.strategy)
        self._means.reset()
        if not means:
            return
        self.latest = {f"train/{name}": value for name, value in means.items()}
        logged = {f"train/{name}": value for name, value in means.items() if name not in LOGGED_BY_MODULE}
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(logged, step=trainer.global_step)
        bar = {f"train/{name}": means[name] for name in ON_PROGRESS_BAR if name in means}
        # Not `pl_module.log_dict`, which would cost several milliseconds in every step, to reach the same two places.
        trainer.progress_bar_metrics.update(bar)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in bar.items()})

"""The settings of a training in every logger, and what it came to in TensorBoard's table of them."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ts2_lightning.callbacks.monitor import ON_PROGRESS_BAR
from ts2_lightning.callbacks.tensorboard_tabs import HyperparameterValue, write_final_values, write_hyperparameters
from ts2_lightning.types import UserError

FINAL_VALUES = ON_PROGRESS_BAR
"""The values of the last validation that are columns of TensorBoard's table: as many as it shows by itself."""

_MOST_REFUSED = 12  # after so many refusals a logger is not asked further: it may take seconds to say no
_MLFLOW_LENGTH = 250  # characters of a value; Lightning cuts off the rest


class Hyperparameters(Callback):
    """Hands the settings of a training to every logger when it starts, and its final values when it ends.

    Loggers get them as hyper-parameters: W&B's config, MLflow's parameters, `hparams.yaml` beside the CSV. TensorBoard
    gets a row in its tab HParams. The columns of that table are the settings in which the runs that it shows differ,
    and the values of the last validation under `final/NAME`, of all rows: `FINAL_VALUES`, or all that stand under
    `val/` where the module measures none of these. Other loggers have the last value of everything anyway.

    A run that is resumed has one row as before. TensorBoard and MLflow keep the settings with which it began; a line
    says which of them have changed. A logger that refuses a value gets the others, and a line says which it lacks.

    Args:
        settings: Hyper-parameters by their names: texts, numbers and truth values.

    Raises:
        UserError: a value is something else.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Hyperparameters({"model.loss": "TS2Loss", "model.loss.alpha": 0.5})])
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        for name, value in settings.items():
            if not isinstance(value, HyperparameterValue):
                raise UserError(
                    f"Hyperparameters: settings[{name!r}] must be a text, a number, true or false, got {value!r}; give "
                    "what is nested under names of its own"
                )
        self.settings: dict[str, HyperparameterValue] = dict(settings)
        self._final: dict[str, Tensor] = {}
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand them over, once loggers have forgotten what a resumed run does again."""
        self._final = {}
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                self._log(logger)

    def _log(self, logger: Logger) -> None:
        name = type(logger).__name__
        if isinstance(logger, TensorBoardLogger):
            changed = write_hyperparameters(logger, self.settings)
            if changed:
                rank_zero_warn(f"TensorBoard's table keeps what the run began with of {_listed(changed)}")
            return
        refused, reason = log_settings(logger, self.settings)
        if refused:
            rank_zero_warn(
                f"{name} has {len(self.settings) - len(refused)} of {len(self.settings)} hyper-parameters; it refuses "
                f"{_listed(refused)}: {reason}"
            )
        long = [key for key, value in self.settings.items() if len(str(value)) > _MLFLOW_LENGTH]
        if isinstance(logger, MLFlowLogger) and long:
            rank_zero_warn(f"{name}: only the first {_MLFLOW_LENGTH} characters are kept of {_listed(long)}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what was measured, where it is."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        measured = {
            name.removeprefix("val/"): value
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        self._final = {name: measured[name] for name in FINAL_VALUES if name in measured} or measured
        self._step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final values."""
        if trainer.is_global_zero:
            values = {name: float(value) for name, value in self._final.items()}
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    write_final_values(logger, values, self._step)


def log_settings(logger: Logger, settings: Mapping[str, HyperparameterValue]) -> tuple[list[str], str]:
    """Hands settings to a logger; of what it refuses as a whole, the parts that it takes.

    Args:
        logger: Any of Lightning's loggers.
        settings: Hyper-parameters by their names.

    Returns:
        Names of those that it refuses, and the first line of what it says of the first of them.
    """
    refused: list[str] = []
    reasons: list[str] = []

    def hand_over(part: dict[str, Any]) -> None:
        if not part:
            return
        if len(refused) >= _MOST_REFUSED:
            refused.extend(part)
            return
        try:
            logger.log_hyperparams(part)
        except Exception as error:  # whatever a server or its client may raise
            if len(part) > 1:
                names = list(part)
                for half in (names[: len(part) // 2], names[len(part) // 2 :]):
                    hand_over({name: part[name] for name in half})
                return
            refused.extend(part)
            reasons.append((str(error).strip() or type(error).__name__).splitlines()[0])

    hand_over(dict(settings))
    return refused, next(iter(reasons), "")


def _listed(names: list[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more

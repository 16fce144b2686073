"""The loggers that every run has: TensorBoard and CSV, in the run's own directory; the user's join them."""

import csv
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.logger import _convert_params
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ts2_lightning.cli.errors.guard import one_line
from ts2_lightning.cli.trainer_settings import built
from ts2_lightning.json_files import read_json
from ts2_lightning.runs.writing import write_whole
from ts2_lightning.types import UserError


class _KeepingWriter(ExperimentWriter):
    """Goes on with an existing `metrics.csv`, which Lightning's own writer deletes; one row per step.

    The row of the newest step waits in memory for what is still added to it. It may be on disk at the same time.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._newest_on_disk: dict[str, Any] | None = None

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Adds to the row of the step, whoever began it, and writes the rows before it."""
        super().log_metrics(metrics_dict, step)
        if len(self.metrics) > 1 and self.metrics[-1]["step"] == self.metrics[-2]["step"]:
            addition = self.metrics.pop()
            self.metrics[-1] |= addition
        if len(self.metrics) > 1:
            newest = self.metrics.pop()
            self.save()
            self.metrics, self._newest_on_disk = [newest], None

    def _append(self) -> None:
        """Adds the rows to the file, which Lightning's own writer looks for and opens by way of a file system."""
        rows = self.metrics
        if self._record_new_keys() and Path(self.metrics_file_path).is_file():
            self._rewrite(self._rows())
        with open(self.metrics_file_path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            if not file.tell():
                writer.writeheader()
            writer.writerows(rows)

    def save(self) -> None:
        """Writes every row, that of the newest step included, and brings the file to the disk."""
        newest = dict(self.metrics[-1]) if self.metrics else None
        if newest is None or newest == self._newest_on_disk:
            return
        kept = self.metrics[-1]
        if self._newest_on_disk is not None:  # something was added to it since
            self._record_new_keys()
            self._rewrite([*self._rows()[:-1], newest])
        else:
            self._append()
        self.metrics, self._newest_on_disk = [kept], newest

    def rewind(self, step: int) -> None:
        """Drops the rows after a step: a resumed run writes them again. What is logged at the step adds to its row.

        A last line that was cut short, as a killed process may leave it, is of a step after its newest checkpoint.
        """
        if not Path(self.metrics_file_path).is_file():
            return
        rows = [row for row in self._rows() if int(row["step"]) <= step]
        self._rewrite(rows)
        if rows and int(rows[-1]["step"]) == step:
            newest = {**{key: value for key, value in rows[-1].items() if value}, "step": step}
            self.metrics, self._newest_on_disk = [newest], dict(newest)

    def _rows(self) -> list[dict[str, Any]]:
        text = Path(self.metrics_file_path).read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        return list(csv.DictReader(line for line in lines if line.endswith("\n")))

    def _check_log_dir_exists(self) -> None:
        file = Path(self.metrics_file_path)
        if file.is_file() and file.stat().st_size:
            self.metrics_keys = list(next(csv.reader(file.open(newline="", encoding="utf-8")), []))
            self._rewrite(self._rows())

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._rewrite(self._rows())

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Writes a new file beside the old one: a run killed in between loses no row."""
        beside = Path(f"{self.metrics_file_path}.new")
        with beside.open("w", newline="", encoding="utf-8") as new:
            writer = csv.DictWriter(new, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(beside, self.metrics_file_path)


class RunCSVLogger(CSVLogger):
    """Lightning's CSV logger, but a step has one row, and a resumed run adds to the rows that are there.

    >>> logger = RunCSVLogger("runs/ts2/1", name="csv", version="")  # writes runs/ts2/1/csv/metrics.csv
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> _KeepingWriter:
        """The writer behind the logger."""
        if self._experiment is None:
            self._experiment = _KeepingWriter(log_dir=self.log_dir)
        return self._experiment  # type: ignore[return-value]

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Adds to the row of the step."""
        self.experiment.log_metrics(metrics, step)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Forgets what was logged after a step, to which the run has gone back."""
        self.experiment.rewind(step)


class RunTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger; a resumed run hides what was logged after the step that it goes on from."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Writes the numbers of a step as one event: one event each, as Lightning writes them, cost a millisecond."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # no command but a training needs it

        if self._prefix or not all(isinstance(value, int | float) for value in metrics.values()):
            super().log_metrics(metrics, step)
            return
        summary = Summary()
        for name, value in metrics.items():
            summary.value.add(tag=name, simple_value=value)
        self.experiment._get_file_writer().add_summary(summary, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: dict[str, Any] | None = None, step: int | None = None) -> None:
        """Keeps them for the one row of the run, see `Hyperparameters`; Lightning's own would begin it without metrics.

        What comes with metrics of its own is written as Lightning writes it.
        """
        if metrics is None:
            self.hparams = {**self.hparams, **_convert_params(params)}
        else:
            super().log_hyperparams(params, metrics, step)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Begins a new file, which tells TensorBoard to forget what was logged after a step."""
        writer = self.experiment
        writer.close()
        writer.purge_step = step + 1

    @rank_zero_only
    def save(self) -> None:
        """Brings what was logged to the disk."""
        super().save()
        self.experiment.flush()


def join_defaults(users: Logger | Iterable[Logger] | bool | None, run: Path) -> list[Logger] | bool:
    """TensorBoard in `run/tensorboard`, CSV in `run/csv/metrics.csv`, and the user's loggers.

    Args:
        users: The user's loggers. One that writes for TensorBoard, or CSV, takes the place of ours that does; False
            stands for no logger at all.
        run: Directory of the run.
    """
    if users is False:
        return False
    loggers = [users] if isinstance(users, Logger) else [] if users is None or users is True else list(users)
    ours: list[Logger] = [
        RunTensorBoardLogger(save_dir=str(run), name="tensorboard", version=""),
        RunCSVLogger(save_dir=str(run), name="csv", version=""),
    ]
    kinds = (TensorBoardLogger, CSVLogger)
    taken = tuple(kind for kind in kinds if any(isinstance(logger, kind) for logger in loggers))
    return [*(own for own in ours if not isinstance(own, taken)), *loggers]


# A run that others know too -------------------------------------------------------------------------------------------

LOGGED_RUNS = "loggers.json"
"""Class of a logger -> what the run is called there, in the run's directory."""


class _Arguments(NamedTuple):
    """Arguments of a logger's class.

    Attributes:
        name: Name of a run for people.
        id: Run to go on with.
    """

    name: str
    id: str


_ARGUMENTS = {"WandbLogger": _Arguments("name", "id"), "MLFlowLogger": _Arguments("run_name", "run_id")}


def knowing_run(users: Any, settings: Any, run: Path, runs: Path) -> Any:
    """The user's loggers, of which W&B's and MLflow's call the run by its name and go on with it when it does.

    Their own names are random, and each start would be another run. What the user has named keeps its name.

    Args:
        users: Loggers as they were built from the settings.
        settings: Settings of a logger, or a list of them; anything else has no such logger.
        run: Directory of the run.
        runs: Directory of all runs.
    """
    entries = settings if isinstance(settings, list) else [settings]
    loggers = users if isinstance(users, list) else [users]
    ids = _logged_runs(run)
    name = str(run.relative_to(runs)) if run.is_relative_to(runs) else run.name
    changed = [
        _renewed(logger, entry, name, ids) if isinstance(entry, Namespace) else logger
        for logger, entry in zip(loggers, entries, strict=False)
    ]
    return changed if isinstance(users, list) else changed[0]


def _renewed(logger: Logger, settings: Namespace, name: str, ids: Mapping[str, Any]) -> Logger:
    """The same logger; built anew if it can be told what the run is called."""
    kind = _kind(logger)
    if kind is None:
        return logger
    stated = settings.get("init_args") or Namespace()
    told = {_ARGUMENTS[kind].name: name, _ARGUMENTS[kind].id: ids.get(kind)}
    new = {key: value for key, value in told.items() if value is not None and stated.get(key) is None}
    if kind == "WandbLogger" and stated.get("version") is not None:
        new.pop("id", None)  # another word for it
    if not new:
        return logger
    return built(Namespace(class_path=settings.class_path, init_args=Namespace(**{**vars(stated), **new})), Logger, "")


def _kind(logger: Logger) -> str | None:
    return next((one.__name__ for one in type(logger).__mro__ if one.__name__ in _ARGUMENTS), None)


def begin_logged_runs(loggers: Iterable[Logger], run: Path) -> None:
    """Has W&B and MLflow begin, and writes down what they call the run, so that it is one to them when it goes on.

    For rank 0, before the trainer, which would begin them without a word of which logger it is.

    Args:
        loggers: All loggers of the run.
        run: Directory of the run.

    Raises:
        UserError: one of them cannot begin: it finds no server, or nobody has logged in.
    """
    ids: dict[str, Any] = {}
    for logger in loggers:
        kind = _kind(logger)
        if kind is None or kind in ids:
            continue
        try:
            _ = logger.experiment  # type: ignore[attr-defined]
            ids[kind] = logger.version
        except Exception as error:  # whatever its client may raise
            reason = one_line(str(error)) or type(error).__name__
            raise UserError(f"trainer.logger: {type(logger).__name__} cannot begin: {reason}") from error
    if ids:
        text = json.dumps({**_logged_runs(run), **ids}, indent=2) + "\n"
        write_whole(run / LOGGED_RUNS, lambda beside: beside.write_text(text, encoding="utf-8"))


def _logged_runs(run: Path) -> dict[str, Any]:
    file = run / LOGGED_RUNS
    return read_json(file) if file.is_file() else {}

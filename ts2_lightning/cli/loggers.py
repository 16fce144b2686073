"""The loggers that every run has: TensorBoard and CSV, in the run's own directory; the user's join them."""

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only


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

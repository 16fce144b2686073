"""The loggers that every run has: TensorBoard and CSV, in the run's own directory."""

import csv
import os
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class _KeepingWriter(ExperimentWriter):
    """Goes on with an existing `metrics.csv`, which Lightning's own writer deletes; one row per step."""

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Adds to the row of the step, whoever began it."""
        super().log_metrics(metrics_dict, step)
        if len(self.metrics) > 1 and self.metrics[-1]["step"] == self.metrics[-2]["step"]:
            addition = self.metrics.pop()
            self.metrics[-1] |= addition

    def save(self) -> None:
        """Writes every row but that of the newest step, to which something may still be added."""
        newest = self.metrics[-1:]
        self.metrics = self.metrics[:-1]
        super().save()
        self.metrics = newest

    def finish(self) -> None:
        """Writes every row."""
        super().save()

    def _check_log_dir_exists(self) -> None:
        file = Path(self.metrics_file_path)
        if file.is_file() and file.stat().st_size:
            with file.open(newline="", encoding="utf-8") as stream:
                self.metrics_keys = next(csv.reader(stream), [])
            _end_last_line(file)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Writes the new file beside the old one: a run killed in between loses no row."""
        file, beside = Path(self.metrics_file_path), Path(f"{self.metrics_file_path}.new")
        with file.open(newline="", encoding="utf-8") as old, beside.open("w", newline="", encoding="utf-8") as new:
            writer = csv.DictWriter(new, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(csv.DictReader(old))
        os.replace(beside, file)


class RunCSVLogger(CSVLogger):
    """Lightning's CSV logger, but a step has one row, and a resumed run adds to the rows that are there.

    >>> logger = RunCSVLogger("runs/ts2/1", name="csv", version="")  # writes runs/ts2/1/csv/metrics.csv
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer behind the logger."""
        if self._experiment is None:
            self._experiment = _KeepingWriter(log_dir=self.log_dir)
        return self._experiment  # type: ignore[return-value]

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes what is still held back, however the run ended."""
        if isinstance(self._experiment, _KeepingWriter):
            self._experiment.finish()
        super().finalize(status)


def default_loggers(run: Path) -> list[Logger]:
    """TensorBoard in `run/tensorboard`, CSV in `run/csv/metrics.csv`."""
    return [
        TensorBoardLogger(save_dir=str(run), name="tensorboard", version=""),
        RunCSVLogger(save_dir=str(run), name="csv", version="", flush_logs_every_n_steps=1),
    ]


def _end_last_line(file: Path) -> None:
    """A run that was killed while it wrote may have left half a row: rows added later must not join it."""
    with file.open("rb+") as stream:
        stream.seek(-1, 2)
        if stream.read(1) != b"\n":
            stream.write(b"\r\n")

"""The loggers that every run has: TensorBoard and CSV, in the run's own directory."""

import csv
import os
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class _KeepingWriter(ExperimentWriter):
    """Goes on with an existing `metrics.csv`, which Lightning's own writer deletes."""

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
    """Lightning's CSV logger, but a resumed run adds to the rows that are there.

    >>> logger = RunCSVLogger("runs/ts2/1", name="csv", version="")  # writes runs/ts2/1/csv/metrics.csv
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer behind the logger."""
        if self._experiment is None:
            self._experiment = _KeepingWriter(log_dir=self.log_dir)
        return self._experiment  # type: ignore[return-value]


def default_loggers(run: Path) -> list[Logger]:
    """TensorBoard in `run/tensorboard`, CSV in `run/csv/metrics.csv`."""
    return [
        TensorBoardLogger(save_dir=str(run), name="tensorboard", version=""),
        RunCSVLogger(save_dir=str(run), name="csv", version=""),
    ]


def _end_last_line(file: Path) -> None:
    """A run that was killed while it wrote may have left half a row: rows added later must not join it."""
    with file.open("rb+") as stream:
        stream.seek(-1, 2)
        if stream.read(1) != b"\n":
            stream.write(b"\r\n")

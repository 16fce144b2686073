"""One CSV row per step, nothing lost however the run ends."""

import csv
from pathlib import Path

from ts2_lightning.cli.loggers import RunCSVLogger


def rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "csv" / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def logger(directory: Path) -> RunCSVLogger:
    return RunCSVLogger(str(directory), name="csv", version="", flush_logs_every_n_steps=1)


def test_what_is_logged_at_one_step_is_one_row(tmp_path: Path) -> None:
    log = logger(tmp_path)
    for step in (1, 2):
        log.log_metrics({"a": step}, step=step)
        log.log_metrics({"b": 10 * step}, step=step)
    log.log_metrics({"val": 7.0}, step=2)
    log.finalize("success")
    assert rows(tmp_path) == [
        {"a": "1", "b": "10", "step": "1", "val": ""},
        {"a": "2", "b": "20", "step": "2", "val": "7.0"},
    ]


def test_a_killed_run_keeps_all_but_the_newest_step(tmp_path: Path) -> None:
    log = logger(tmp_path)
    for step in range(1, 6):
        log.log_metrics({"a": step}, step=step)  # and never finalized
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4"]


def test_a_resumed_run_adds_rows_and_columns(tmp_path: Path) -> None:
    first = logger(tmp_path)
    first.log_metrics({"a": 1}, step=1)
    first.finalize("failed")
    second = logger(tmp_path)
    second.log_metrics({"a": 2, "b": 3}, step=2)
    second.finalize("success")
    assert rows(tmp_path) == [{"a": "1", "b": "", "step": "1"}, {"a": "2", "b": "3", "step": "2"}]

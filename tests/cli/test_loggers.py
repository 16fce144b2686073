"""One CSV row per step, nothing lost however the run ends."""

import csv
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from ts2_lightning.cli.loggers import RunCSVLogger, RunTensorBoardLogger


def rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "csv" / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def logger(directory: Path) -> RunCSVLogger:
    return RunCSVLogger(str(directory), name="csv", version="")


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


def test_saving_writes_the_newest_step_too_and_it_can_still_grow(tmp_path: Path) -> None:
    log = logger(tmp_path)
    log.log_metrics({"a": 1}, step=1)
    log.log_metrics({"a": 2}, step=2)
    log.save()
    assert [row["a"] for row in rows(tmp_path)] == ["1", "2"]
    log.log_metrics({"val": 7.0}, step=2)
    log.save()
    log.save()
    assert rows(tmp_path) == [{"a": "1", "step": "1", "val": ""}, {"a": "2", "step": "2", "val": "7.0"}]
    log.log_metrics({"a": 3}, step=3)
    log.finalize("success")
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3"]


def test_a_run_that_goes_back_has_each_step_once(tmp_path: Path) -> None:
    first = logger(tmp_path)
    for step in range(1, 6):
        first.log_metrics({"a": step}, step=step)
    first.save()
    with (tmp_path / "csv" / "metrics.csv").open("a") as stream:
        stream.write("6,")  # and killed
    second = logger(tmp_path)
    second.rewind(3)
    second.log_metrics({"val": 0.5}, step=3)  # of the validation that was cut off
    for step in (4, 5):
        second.log_metrics({"a": 10 * step}, step=step)
    second.finalize("success")
    assert [(row["step"], row["a"], row["val"]) for row in rows(tmp_path)] == [
        ("1", "1", ""), ("2", "2", ""), ("3", "3", "0.5"), ("4", "40", ""), ("5", "50", ""),
    ]  # fmt: skip


def test_going_back_before_anything_was_logged(tmp_path: Path) -> None:
    log = logger(tmp_path)
    log.rewind(0)
    log.log_metrics({"a": 1}, step=1)
    log.finalize("success")
    again = logger(tmp_path)
    again.rewind(0)
    again.log_metrics({"a": 2}, step=1)
    again.finalize("success")
    assert [row["a"] for row in rows(tmp_path)] == ["2"]


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    first = RunTensorBoardLogger(str(tmp_path), name="tensorboard", version="")
    for step in range(1, 6):
        first.log_metrics({"a": step}, step=step)
    first.save()
    second = RunTensorBoardLogger(str(tmp_path), name="tensorboard", version="")
    second.rewind(3)
    for step in (4, 5, 6):
        second.log_metrics({"a": 10 * step}, step=step)
    second.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 40),
        (5, 50),
        (6, 60),
    ]


METRICS = {"train/a": 1, "train/b": 0.1, "val/c": math.inf, "val/d": math.nan, "e f": -1e300}


def test_tensorboard_gets_the_numbers_of_a_step_as_one_event(tmp_path: Path) -> None:
    """And shows what it shows of Lightning's own logger, which writes one each."""
    values, events = [], []
    for kind in (TensorBoardLogger, RunTensorBoardLogger):
        log = kind(str(tmp_path), name=kind.__name__, version="")
        for step in (1, 2, 2):
            log.log_metrics(METRICS, step=step)
        log.finalize("success")
        shown = EventAccumulator(log.log_dir).Reload()
        tags = shown.Tags()["scalars"]
        values.append({tag: [(event.step, repr(event.value)) for event in shown.Scalars(tag)] for tag in tags})
        (file,) = Path(log.log_dir).glob("events*")
        events.append(sum(event.HasField("summary") for event in EventFileLoader(str(file)).Load()))
    assert values[0] == values[1]
    assert values[1].keys() == METRICS.keys()
    assert events == [15, 3]


def test_what_is_no_plain_number_reaches_tensorboard_as_lightning_writes_it(tmp_path: Path) -> None:
    log = RunTensorBoardLogger(str(tmp_path), name="tensorboard", version="")
    log.log_metrics({"a": 1.0, "b": torch.tensor(2.0)}, step=1)
    with pytest.raises(ValueError, match="not supported"):
        log.log_metrics({"a": "many"}, step=2)
    log.finalize("success")
    shown = EventAccumulator(log.log_dir).Reload()
    assert [shown.Scalars(tag)[0].value for tag in ("a", "b")] == [1, 2]


def test_a_prefix_stands_before_every_name(tmp_path: Path) -> None:
    log = RunTensorBoardLogger(str(tmp_path), name="tensorboard", version="", prefix="mine")
    log.log_metrics({"a": 1.0}, step=1)
    log.finalize("success")
    assert EventAccumulator(log.log_dir).Reload().Tags()["scalars"] == ["mine-a"]

"""A run that is killed at many moments, inside of saves too, and resumed, is the run that was never killed."""

import csv
import itertools
import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.e2e.command_line import QUICKSTART, column, empty_working_directory, play

ROWS = "--data.limit_train=48"
STEPS = 36  # three epochs of twelve, with a validation in the middle and at the end of each
MEASURED = {"train/supervised_tokens_per_second", "train/peak_memory_gb"}  # what is not the same twice
OPTIONS = (
    *("--model.lm.init=random", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=3"),
    *("--data.limit_train=40", "--data.limit_validation=6", "--data.batch_size=4", "--data.micro_batch_size=1"),
    *("--trainer.callbacks+=Checkpoints", "--trainer.callbacks.every_n_steps=1"),
)

ASYNCHRONOUS = ("--trainer.callbacks.asynchronous=true",)

RUNS = {"at-once": (), "in-a-thread": ASYNCHRONOUS}
"""Runs that are killed, and the options of each."""


@pytest.fixture(scope="module")
def dropping(blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that draws random numbers in training."""
    directory = tmp_path_factory.mktemp("models") / "dropping"
    directory.mkdir()
    for file in blank.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    config = json.loads((blank / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.2}))
    return directory


def command(model: Path, name: str, *options: str) -> list[str]:
    """A fit with a checkpoint after each step; `options` may name more files, and settings that come last."""
    files = [option for option in options if option == "-c" or option.endswith(".yaml")]
    rest = [option for option in options if option not in files]
    return ["fit", "-c", str(QUICKSTART), *files, f"--model.lm.path={model}", f"--name={name}", *OPTIONS, *rest]


def printed() -> str:
    return Path("printed.txt").read_text()[-4000:]


def assert_same_metrics(name: str, wanted: str) -> None:
    header = (Path(f"runs/{wanted}/1/csv/metrics.csv")).read_text().splitlines()[0].split(",")
    for metric in set(header) - MEASURED - {"step"}:
        assert column(f"runs/{name}/1", metric) == column(f"runs/{wanted}/1", metric), metric
    steps = [line["step"] for line in rows(name)]
    assert steps == [str(step) for step in range(1, STEPS + 1)], "each step has one row"
    events = EventAccumulator(f"runs/{name}/1/tensorboard")
    events.Reload()
    assert [event.step for event in events.Scalars("train/objective")] == list(range(1, STEPS + 1))


def rows(name: str) -> list[dict[str, str]]:
    with Path(f"runs/{name}/1/csv/metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def assert_same_tensors(found: Any, wanted: Any, place: str = "") -> None:
    """Exactly the same, wherever tensors are."""
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted), place
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), place
        for key in wanted:
            assert_same_tensors(found[key], wanted[key], f"{place}.{key}")
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted), place
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_same_tensors(one, other, f"{place}.{number}")
    else:
        assert found == wanted, place


def last(name: str) -> dict[str, Any]:
    return torch.load(f"runs/{name}/1/checkpoints/last.ckpt", weights_only=True)


KILLS = 23


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, cache: Path, dropping: Path) -> Iterator[dict[str, list[int]]]:
    """Runs that are killed, each with the statuses of its starts, and one that is not, in one launch."""
    draw = random.Random(0)
    events = [{"at": "event", "number": draw.randint(5, 30)} for _ in range(12)]
    writes = [{"at": "write", "number": draw.randint(1, 3)} for _ in range(5)]
    times = [{"at": "time", "part": draw.uniform(0.1, 0.3)} for _ in range(5)]
    kills = [{"at": "event", "number": 60}, *draw.sample([*events, *writes, *times], KILLS - 1)]
    starts: list[dict[str, Any]] = [{"argv": command(dropping, "unbroken", ROWS)}]
    for name, options in RUNS.items():
        resume = ("--ckpt_path=last", *options)
        starts.append({"argv": command(dropping, name, ROWS, *options), "trouble": kills[0]})
        starts += [{"argv": command(dropping, name, ROWS, *resume), "trouble": kill} for kill in kills[1:]]
        starts.append({"argv": command(dropping, name, ROWS, *resume)})
    with empty_working_directory(tmp_path_factory.mktemp("played"), cache):
        statuses = iter([status for (status,) in play(starts, timeout=900)])
        assert next(statuses) == 0, printed()
        yield {name: list(itertools.islice(statuses, KILLS + 1)) for name in RUNS}


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", RUNS)
def test_killed_at_many_moments(played: dict[str, list[int]], name: str) -> None:
    """The run that was never killed writes its checkpoints at once, whichever way the other does."""
    statuses = played[name]
    assert {*statuses} == {0, -signal.SIGKILL}, printed()
    assert statuses[-1] == 0, printed()
    assert statuses.count(-signal.SIGKILL) >= KILLS - 3, f"the last may come when the training is over: {statuses}"
    assert_same_metrics(name, "unbroken")
    found, wanted = last(name), last("unbroken")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same_tensors(found[part], wanted[part], part)
    assert os.path.realpath(f"runs/{name}/1/checkpoints/best.ckpt").endswith(
        os.path.basename(os.path.realpath("runs/unbroken/1/checkpoints/best.ckpt"))
    )
    hidden = [path.name for path in Path(f"runs/{name}/1/checkpoints").iterdir() if path.name.startswith(".")]
    assert hidden == []

"""The warning while a model flattens: when it comes, that it comes once, and at the same step in a resumed run."""

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from tests.callbacks.publisher import Publisher, loader, make_rows
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints, DistributionMonitor, FlatteningRule
from ts2_lightning.callbacks.flattening import FlatteningWatch, LoggedStep
from ts2_lightning.types import UserError

W, DEFAULT = 20, FlatteningRule()


def spoken(tail_mass: list[float], rule: FlatteningRule = DEFAULT, every: int = 1) -> dict[int, str]:
    """The lines of a series, by their steps."""
    watch = FlatteningWatch(rule)
    lines = {every * i: watch.add(LoggedStep(every * i, mass, 2 + mass)) for i, mass in enumerate(tail_mass, 1)}
    return {step: line for step, line in lines.items() if line is not None}


def noise(n: int, deviation: float, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(0, deviation) for _ in range(n)]


def test_a_rise_is_told_once_and_in_one_line() -> None:
    series = [0.39] * W + [0.45] * W + [0.51] * 3 * W
    lines = spoken(series, every=10)
    assert list(lines) == [600]
    (line,) = lines.values()
    assert "\n" not in line
    assert line.startswith("train/tail_mass has risen from 0.39 (steps 10 to 200) to 0.51 (steps 410 to 600)")
    assert "train/entropy from 2.39 to 2.51 nats" in line
    assert "## When training flattens" in (Path(__file__).parents[2] / "docs/objectives.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("rise", "step"), [(0.0499, None), (0.0501, 3 * W), (-0.3, None)])
def test_the_smallest_rise(rise: float, step: int | None) -> None:
    lines = spoken([0.4] * W + [0.4 + rise] * 3 * W)
    assert list(lines) == ([] if step is None else [step])


def test_a_late_rise_is_told_when_it_comes() -> None:
    """The mean of the last 20 is 0.06 higher when 12 of them are 0.1 higher."""
    assert list(spoken([0.4] * 100 + [0.5] * 100, FlatteningRule(least_rise=0.059))) == [112]


def test_a_rise_has_to_stand_out_of_the_noise() -> None:
    """The same rise of 0.06, of steps that hardly differ and of steps that differ by much."""
    for deviation, told in ((0.01, True), (0.15, False)):
        series = [0.4 + 0.06 * (i >= W) + x for i, x in enumerate(noise(3 * W, deviation))]
        assert bool(spoken(series)) is told
    series = [0.4 + 0.06 * (i >= W) + x for i, x in enumerate(noise(3 * W, 0.15))]
    assert spoken(series, FlatteningRule(standard_errors=0))


def test_chance_alone_is_mostly_silent() -> None:
    """500 steps each, of means that differ by 0.05."""
    assert sum(bool(spoken([0.4 + x for x in noise(500, 0.05, seed)])) for seed in range(50)) <= 2


def test_what_is_not_finite_is_left_out() -> None:
    series = [0.4] * W + [float("nan")] * 30 + [0.5] * 2 * W
    assert list(spoken(series)) == [90]


def test_a_state_says_the_same_at_the_same_step() -> None:
    """At every place where the run may have been cut, and not a second time."""
    steps = [LoggedStep(i, 0.3 + 0.01 * i, 2.0) for i in range(1, 20)]
    rule = FlatteningRule(window=4)
    whole = FlatteningWatch(rule)
    wanted = [whole.add(step) for step in steps]
    assert sum(line is not None for line in wanted) == 1
    for cut in range(len(steps)):
        before, after = FlatteningWatch(rule), FlatteningWatch(rule)
        lines = [before.add(step) for step in steps[:cut]]
        after.load_state_dict(before.state_dict())
        assert lines + [after.add(step) for step in steps[cut:]] == wanted
    another = FlatteningWatch(FlatteningRule(window=5))
    another.load_state_dict(whole.state_dict())
    assert another.state_dict() == FlatteningWatch(FlatteningRule(window=5)).state_dict()


def rising(n: int) -> list[dict[str, torch.Tensor]]:
    rows = make_rows([3] * n)
    for i, row in enumerate(rows):
        row["tail_mass"] = torch.full((3,), 0.3 + 0.02 * i)
    return rows


def warned(tmp_path: Path, rows: Any, ckpt: Path | None = None, **settings: Any) -> list[str]:
    """The warnings about it of a fit."""
    monitor = DistributionMonitor(flattening=FlatteningRule(window=3))
    callbacks = [monitor, Checkpoints(str(tmp_path / "checkpoints"))]
    trainer = make_trainer(
        tmp_path, callbacks=callbacks, logger=CSVLogger(tmp_path), enable_checkpointing=True, **settings
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Publisher(), loader(rows), ckpt_path=ckpt)
    assert not any("flatten" in name for name in trainer.logged_metrics)
    return [str(w.message) for w in caught if "has risen from" in str(w.message)]


@pytest.mark.parametrize("cut", [1, 5, 8, 9, 10])
def test_a_run_that_goes_on(tmp_path: Path, cut: int) -> None:
    rows = rising(12)
    whole = warned(tmp_path / "whole", rows)
    assert len(whole) == 1
    first = warned(tmp_path, rows, max_steps=cut)
    second = warned(
        tmp_path, rows[cut:] + rows[:cut], tmp_path / "checkpoints" / "last.ckpt", max_steps=12, max_epochs=-1
    )
    assert first + second == whole
    assert bool(first) is (cut >= 9)


def test_another_fit_with_the_same_callback_begins_anew(tmp_path: Path) -> None:
    monitor = DistributionMonitor(flattening=FlatteningRule(window=3))
    for _ in range(2):
        with pytest.warns(match="train/tail_mass has risen from"):
            make_trainer(tmp_path, callbacks=[monitor]).fit(Publisher(), loader(rising(12)))


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    monitor = DistributionMonitor(flattening=None)
    assert monitor.state_dict() == {}
    monitor.load_state_dict(DistributionMonitor().state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*(dataloader|num_workers|does not have many workers).*")
        make_trainer(tmp_path, callbacks=[monitor]).fit(Publisher(), loader(rising(70)))


def test_a_window_of_one_step_has_no_standard_error() -> None:
    with pytest.raises(UserError, match=r"^FlatteningRule: window must be .* got 1; a standard error takes two steps"):
        FlatteningRule(window=1)

"""DistributionMonitor against sums that are done token by token."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.callbacks.publisher import KEYS, Publisher, brute_force, loader, make_rows
from tests.support.ranks import launch
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints, DistributionMonitor, TSPDSetting
from ts2_lightning.types import TOKEN_STATISTICS, UserError

TSPD = TSPDSetting(2, 0.3, 0.4)
LOGGED = [*(key for key in KEYS if key != "objective"), "zero_gradient", "support_size_p50", "support_size_p90"]


class Recorder(CSVLogger):
    """Keeps what it was given."""

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory), name="csv", version="")
        self.calls: list[tuple[int | None, dict[str, Any]]] = []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.calls.append((step, dict(metrics)))
        super().log_metrics(metrics, step)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """CSV needs nothing."""


def run(tmp_path: Path, counts: list[int], every: int = 1, **settings: Any) -> Recorder:
    recorder = Recorder(tmp_path)
    trainer = make_trainer(tmp_path, callbacks=[DistributionMonitor(every)], logger=recorder, **settings)
    trainer.fit(Publisher(), loader(make_rows(counts)))
    return recorder


def check(recorder: Recorder, windows: dict[int, list[dict[str, torch.Tensor]]]) -> None:
    assert [step for step, _ in recorder.calls] == list(windows)
    for step, metrics in recorder.calls:
        assert set(metrics) == {f"train/{key}" for key in LOGGED}
        for key in LOGGED:
            assert metrics[f"train/{key}"] == pytest.approx(brute_force(windows[step], key), rel=1e-12)


def test_mean_over_all_tokens_of_the_step(tmp_path: Path) -> None:
    """Micro-batches of 7 and 1 tokens: the mean of the two means would be far off."""
    counts = [7, 1, 0, 5]
    rows = make_rows(counts)
    recorder = run(tmp_path, counts, accumulate_grad_batches=2)
    check(recorder, {1: rows[:2], 2: rows[2:]})
    means = [brute_force(rows[i : i + 1], "entropy") for i in (0, 1)]
    assert recorder.calls[0][1]["train/entropy"] != pytest.approx(sum(means) / 2, rel=0.01)


def test_short_last_window_and_next_epoch(tmp_path: Path) -> None:
    counts = [3, 4, 2, 6, 1]
    rows = make_rows(counts)
    recorder = run(tmp_path, counts, accumulate_grad_batches=2, max_epochs=2)
    windows = [rows[:2], rows[2:4], rows[4:]] * 2
    check(recorder, dict(enumerate(windows, start=1)))


@pytest.mark.parametrize(("every", "log_every", "steps"), [(2, 1, [2, 4, 6]), (2, 3, [6]), (1, 4, [4]), (1, 0, [])])
def test_thinned(tmp_path: Path, every: int, log_every: int, steps: list[int]) -> None:
    """A logged step is that step's mean, not the mean of the steps since the last logged one."""
    counts = [3, 4, 2, 6, 1, 5, 2, 2, 9, 1, 1, 3]
    rows = make_rows(counts)
    recorder = run(tmp_path, counts, every, accumulate_grad_batches=2, log_every_n_steps=log_every)
    check(recorder, {step: rows[2 * step - 2 : 2 * step] for step in steps})


def test_step_without_tokens_is_skipped(tmp_path: Path) -> None:
    counts = [2, 0, 0, 3]
    rows = make_rows(counts)
    recorder = run(tmp_path, counts)
    check(recorder, {1: rows[:1], 4: rows[3:]})


def test_empty_micro_batch_may_lack_the_parts(tmp_path: Path) -> None:
    """An engine without a token cannot know the parts of a composite loss."""
    rows = make_rows([0, 3])
    rows[0].pop("objective/sparsemax")
    recorder = Recorder(tmp_path)
    trainer = make_trainer(tmp_path, callbacks=[DistributionMonitor()], logger=recorder, accumulate_grad_batches=2)
    trainer.fit(Publisher(), loader(rows))
    check(recorder, {1: rows[1:]})


def test_changing_keys_are_an_error(tmp_path: Path) -> None:
    rows = make_rows([2, 3])
    rows[1].pop("entropy")
    trainer = make_trainer(tmp_path, callbacks=[DistributionMonitor()])
    with pytest.raises(ValueError, match=r"statistics came or went: \['entropy'\]"):
        trainer.fit(Publisher(), loader(rows))


def test_sums_do_not_lose_digits(tmp_path: Path) -> None:
    """Large values and small ones together: sums in float32 lose the small ones."""
    rows = make_rows([1, 100_000])
    rows[0]["entropy"] = torch.tensor([2.0**26])
    rows[1]["entropy"] = torch.ones(100_000)
    recorder = Recorder(tmp_path)
    trainer = make_trainer(tmp_path, callbacks=[DistributionMonitor()], logger=recorder, accumulate_grad_batches=2)
    trainer.fit(Publisher(), loader(rows))
    assert recorder.calls[0][1]["train/entropy"] == (2.0**26 + 100_000) / 100_001


def test_loggers_hold_one_value_per_step(tmp_path: Path) -> None:
    counts = [3, 4, 2, 6, 1]
    rows = make_rows(counts)
    loggers = [CSVLogger(tmp_path, name="csv", version=""), TensorBoardLogger(tmp_path, name="tb", version="")]
    trainer = make_trainer(tmp_path, callbacks=[DistributionMonitor()], logger=loggers, accumulate_grad_batches=2)
    trainer.fit(Publisher(), loader(rows))
    with open(tmp_path / "csv" / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["step"] for row in table] == ["1", "2", "3"]
    expected = [brute_force(rows[i : i + 2], "objective/sparsemax") for i in (0, 2, 4)]
    assert [float(row["train/objective/sparsemax"]) for row in table] == pytest.approx(expected, rel=1e-12)
    events = EventAccumulator(str(tmp_path / "tb")).Reload().Scalars("train/objective/sparsemax")
    assert [event.step for event in events] == [1, 2, 3]
    assert [event.value for event in events] == pytest.approx(expected, rel=1e-6)


def test_bar_and_callback_metrics(tmp_path: Path) -> None:
    rows = make_rows([2, 3])
    trainer = make_trainer(tmp_path, callbacks=[monitor := DistributionMonitor()], accumulate_grad_batches=2)
    trainer.fit(Publisher(), loader(rows))
    assert set(monitor.latest) == {f"train/{key}" for key in ("objective", *LOGGED)}
    for name in ("train/support_size", "train/tail_mass", "train/entropy"):
        expected = brute_force(rows, name.removeprefix("train/"))
        assert float(trainer.progress_bar_metrics[name]) == pytest.approx(expected, rel=1e-6)
        assert float(trainer.callback_metrics[name]) == pytest.approx(expected, rel=1e-6)


def test_resume_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """Steps 1 to 2, a new process's state, then 3 to 4: the rows an unbroken run would log."""
    counts = [3, 4, 2, 6, 1, 5, 2, 2]
    rows = make_rows(counts)
    settings = {"accumulate_grad_batches": 2, "enable_checkpointing": True}
    first = Recorder(tmp_path / "first")
    callbacks = [DistributionMonitor(), Checkpoints(str(tmp_path / "checkpoints"))]
    make_trainer(tmp_path, callbacks=callbacks, logger=first, max_steps=2, **settings).fit(Publisher(), loader(rows))
    check(first, {1: rows[:2], 2: rows[2:4]})
    second = Recorder(tmp_path / "second")
    callbacks = [DistributionMonitor(), Checkpoints(str(tmp_path / "checkpoints"))]
    trainer = make_trainer(tmp_path, callbacks=callbacks, logger=second, max_steps=4, max_epochs=-1, **settings)
    # This loader keeps no position and begins anew, so what is left of the epoch is put first.
    trainer.fit(Publisher(), loader(rows[4:] + rows[:4]), ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    check(second, {3: rows[4:6], 4: rows[6:]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positions": (2, 5)}, r"positions.* rise from 1 on, got \[2, 5\]"),
        ({"positions": (1, 5, 5)}, r"positions.* rise from 1 on"),
        ({"positions": ()}, r"positions.* rise from 1 on"),
        ({"split_by": ["class"]}, r"split_by.* position and token_class, got 'class'"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DistributionMonitor(**settings)


def test_token_classes_need_a_tokenizer(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[DistributionMonitor(split_by=["token_class"])])
    with pytest.raises(UserError, match=r"token_class needs a tokenizer"):
        trainer.fit(Publisher(), loader(make_rows([2])))


def test_only_what_is_asked_for_is_requested() -> None:
    assert DistributionMonitor().statistics == list(TOKEN_STATISTICS)
    several = [TSPDSetting(4, 0.1, 0.2), TSPDSetting(2, 0.1, 0.2), TSPDSetting(4, 0.2, 0.1)]
    added = set(DistributionMonitor(tspd=several).statistics) - set(TOKEN_STATISTICS)
    assert added == {"tspd_head_2", "tspd_tail_2", "tspd_head_4", "tspd_tail_4"}


def test_quantiles_of_ranks_and_of_sizes_are_each_their_own(tmp_path: Path) -> None:
    rows = make_rows([4, 5])
    for row in rows:
        row["gold_rank"] = 2 * row["support_size"] + 1
    trainer = make_trainer(tmp_path, callbacks=[monitor := DistributionMonitor()], accumulate_grad_batches=2)
    trainer.fit(Publisher(), loader(rows))
    names = [f"{name}_{ending}" for name in ("support_size", "gold_rank") for ending in ("p50", "p90")]
    assert [monitor.latest[f"train/{name}"] for name in names] == [brute_force(rows, name) for name in names]


def test_histograms_in_tensorboard_and_in_a_file(tmp_path: Path) -> None:
    """In every second step; sizes beyond what is counted by itself too."""
    rows = make_rows([3, 4, 2, 6])
    rows[2]["support_size"] = torch.tensor([2.0, 5000.0])
    trainer = make_trainer(
        tmp_path, callbacks=[DistributionMonitor(histogram_every_n_steps=2)], accumulate_grad_batches=1,
        logger=TensorBoardLogger(tmp_path, name="tb", version=""),
    )  # fmt: skip
    trainer.fit(Publisher(), loader([*rows[:2], *rows[3:], rows[2]]))
    lines = [json.loads(line) for line in (tmp_path / "histograms.jsonl").read_text().splitlines()]
    shown = EventAccumulator(str(tmp_path / "tb"), {"histograms": 0}).Reload().Histograms("train/support_size")
    assert [line["step"] for line in lines] == [event.step for event in shown] == [2, 4]
    expected = Counter(str(int(size)) for size in rows[1]["support_size"].tolist())
    assert lines[0] == {
        "step": 2,
        "name": "train/support_size",
        "counts": dict(sorted(expected.items(), key=lambda x: int(x[0]))),
    }
    assert lines[1]["counts"] == {"2": 1, "4097": 1}
    value = shown[0].histogram_value
    sizes = rows[1]["support_size"]
    assert (value.num, value.min, value.max) == (4, sizes.min(), sizes.max())
    assert (value.sum, value.sum_squares) == (sizes.sum(), sizes.square().sum())
    assert sum(value.bucket) == 4
    assert trainer.callback_metrics["train/support_size"] > 1000
    events = EventAccumulator(str(tmp_path / "tb")).Reload().Scalars("train/support_size_p90")
    assert events[-1].value == float("inf")


def test_a_resumed_run_writes_its_histograms_again(tmp_path: Path) -> None:
    file = tmp_path / "histograms.jsonl"
    file.write_text('{"step": 0, "name": "a"}\n{"step": 7, "name": "train/support_size"}\n{"step": 0, "na')
    callbacks = [DistributionMonitor(histogram_every_n_steps=1)]
    make_trainer(tmp_path, callbacks=callbacks).fit(Publisher(), loader(make_rows([2])))
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [0, 1]


def test_two_ranks_with_uneven_tokens(tmp_path: Path) -> None:
    """Rank 1 has no token in the first step, and so no names; step 2 is empty on both ranks."""
    counts = [[5, 0, 0, 0, 2, 1, 1, 1], [0, 0, 0, 0, 0, 3, 9, 0]]
    launch("tests.callbacks.two_ranks", tmp_path, json.dumps(counts))
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    ranks = [make_rows(of_rank, seed=rank) for rank, of_rank in enumerate(counts)]
    with open(tmp_path / "csv" / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["step"] for row in table] == ["1", "3", "4"]
    for row, window in zip(table, (slice(0, 2), slice(4, 6), slice(6, 8)), strict=True):
        rows = [*ranks[0][window], *ranks[1][window]]
        for key in (*LOGGED, TSPD.name):
            assert float(row[f"train/{key}"]) == pytest.approx(brute_force(rows, key), rel=1e-12)
        first, later = ([cut(batch, part) for batch in rows] for part in (slice(0, 1), slice(1, None)))
        for name, group in {"1": first, "2-": later}.items():
            if not any(len(batch["entropy"]) for batch in group):
                assert row[f"train_by_position/entropy/{name}"] == ""
                continue
            for key in ("entropy", "zero_gradient", "objective/sparsemax", TSPD.name):
                found = float(row[f"train_by_position/{key}/{name}"])
                assert found == pytest.approx(brute_force(group, key), rel=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "histograms.jsonl").read_text().splitlines()]
    for line, window in zip(lines, (slice(0, 2), slice(4, 6), slice(6, 8)), strict=True):
        sizes = torch.cat([batch["support_size"] for of_rank in ranks for batch in of_rank[window]])
        assert line["counts"] == dict(Counter(str(int(size)) for size in sizes))


def cut(batch: dict[str, torch.Tensor], part: slice) -> dict[str, torch.Tensor]:
    return {name: values[part] for name, values in batch.items()}

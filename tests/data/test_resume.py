"""A run that was stopped and resumed sees exactly the batches that the unbroken run sees."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from data_helpers import rank_of, token_rows, write_jsonl
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.support.errors import refused
from tests.support.training import make_trainer
from ts2_lightning.data import SFTData
from ts2_lightning.data.sources import Source
from ts2_lightning.types import UserError

ROWS, BATCH, MICRO = 22, 6, 4  # four steps an epoch, the last short; two micro-batches a step
EPOCHS = 3


class Recorder(LightningModule):
    """Sums the rows' indices into a gradient, and writes down which rows came at which optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, tuple[int, ...]]] = []
        self.epochs: list[int] = []

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.trainer.global_step, tuple(batch["row_index"].tolist())))
        self.epochs.append(self.trainer.current_epoch)
        total = (self.weight * batch["labels"].sum() / batch["divisor"]).sum()
        return total * self.trainer.accumulate_grad_batches  # Lightning divides by it

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAfter(Callback):
    """Saves a checkpoint after so many micro-batches, also in the middle of a step, and stops the run there."""

    def __init__(self, micro_batches: int, path: Path) -> None:
        self.left = micro_batches
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("rows")
    lengths = [2 + (7 * index) % 11 for index in range(ROWS)]
    rows = {"train": token_rows(lengths), "validation": token_rows([3, 4, 5])}
    return {split: write_jsonl(directory / f"{split}.jsonl", values) for split, values in rows.items()}


def fit(
    files: dict[str, str],
    workers: int = 0,
    micro: int = MICRO,
    ckpt: Path | None = None,
    packing: Any = "none",
    **options,
) -> Recorder:
    data = SFTData(
        **files, format="tokens", batch_size=BATCH, micro_batch_size=micro, num_workers=workers, seed=5,
        packing=packing, max_length=15,
    )  # fmt: skip
    return train(Recorder(), data, ckpt, **{"max_epochs": EPOCHS, **options})


def train(module: Any, data: SFTData, ckpt: Path | None = None, **options: Any) -> Any:
    """The module, after a training that may be stopped, and of which everything can be gone on with."""
    trainer = make_trainer(**options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            trainer.fit(module, data, ckpt_path=ckpt)
        except (KeyboardInterrupt, SystemExit):
            assert "callbacks" in options
    return module


@pytest.fixture(scope="module")
def unbroken(files: dict[str, str]) -> Recorder:
    return fit(files)


def test_the_unbroken_run(unbroken: Recorder) -> None:
    steps = [step for step, _ in unbroken.seen]
    assert steps == sorted(list(range(4 * EPOCHS)) * 2)
    orders = []
    for epoch in range(EPOCHS):
        order = [row for step, rows in unbroken.seen if step // 4 == epoch for row in rows]
        assert sorted(order) == list(range(ROWS))
        orders.append(tuple(order))
    assert len(set(orders)) == EPOCHS
    assert unbroken.epochs == sorted(list(range(EPOCHS)) * 8)


@pytest.mark.parametrize("end", [{"max_epochs": EPOCHS}, {"max_steps": 4 * EPOCHS, "max_epochs": -1}])
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 8, 11])
def test_stopped_after_a_step(stop: int, end: dict, files: dict[str, str], unbroken: Recorder, tmp_path: Path) -> None:
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    first = fit(files, max_steps=stop, callbacks=[checkpoints])
    second = fit(files, ckpt=tmp_path / "last.ckpt", **end)
    assert first.seen + second.seen == unbroken.seen
    assert first.epochs + second.epochs == unbroken.epochs
    assert torch.equal(second.weight, unbroken.weight)


@pytest.mark.parametrize("workers", [1, 2])
def test_with_workers(workers: int, files: dict[str, str], unbroken: Recorder, tmp_path: Path) -> None:
    assert fit(files, workers).seen == unbroken.seen
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    first = fit(files, workers, max_steps=5, callbacks=[checkpoints])
    second = fit(files, workers, ckpt=tmp_path / "last.ckpt")
    assert first.seen + second.seen == unbroken.seen


@pytest.mark.parametrize("end", [{"max_epochs": EPOCHS}, {"max_steps": 4 * EPOCHS, "max_epochs": -1}])
@pytest.mark.parametrize("at_end", [True, False])
def test_stopped_at_the_end_of_an_epoch(
    at_end: bool, end: dict, files: dict[str, str], unbroken: Recorder, tmp_path: Path
) -> None:
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=at_end)
    first = fit(files, max_epochs=1, callbacks=[checkpoints])
    second = fit(files, ckpt=tmp_path / "last.ckpt", **end)
    assert first.seen + second.seen == unbroken.seen
    assert first.epochs + second.epochs == unbroken.epochs


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_broken_off_by_max_steps_and_then_saved(
    stop: int, files: dict[str, str], unbroken: Recorder, tmp_path: Path
) -> None:
    """Lightning then runs its hooks for the end of the epoch, and would count the epoch as done."""
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=True)
    first = fit(files, max_steps=stop, callbacks=[checkpoints])
    first.trainer.save_checkpoint(tmp_path / "afterwards.ckpt")
    for name in ("last.ckpt", "afterwards.ckpt"):
        second = fit(files, ckpt=tmp_path / name)
        assert first.seen + second.seen == unbroken.seen
        assert first.epochs + second.epochs == unbroken.epochs


def test_saved_at_a_validation_in_mid_epoch(files: dict[str, str], unbroken: Recorder, tmp_path: Path) -> None:
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=False)
    first = fit(files, max_steps=5, val_check_interval=2, callbacks=[checkpoints])
    second = fit(files, ckpt=tmp_path / "last.ckpt", val_check_interval=2)
    assert first.seen + second.seen == unbroken.seen
    assert torch.equal(second.weight, unbroken.weight)


@pytest.mark.parametrize("micro_batches", [1, 5, 9, 15])
def test_stopped_in_the_middle_of_a_step(
    micro_batches: int, files: dict[str, str], unbroken: Recorder, tmp_path: Path
) -> None:
    """The step's gradients are lost, so it is done again as a whole."""
    fit(files, callbacks=[SaveAfter(micro_batches, tmp_path / "x.ckpt")])
    second = fit(files, ckpt=tmp_path / "x.ckpt")
    done = micro_batches // 2
    assert second.seen == [entry for entry in unbroken.seen if entry[0] >= done]
    assert second.epochs == unbroken.epochs[2 * done :]
    assert torch.equal(second.weight, unbroken.weight)


def by_step(seen: list[tuple[int, tuple[int, ...]]]) -> dict[int, list[int]]:
    steps: dict[int, list[int]] = {}
    for step, rows in seen:
        steps[step] = sorted([*steps.get(step, []), *(row for row in rows if row >= 0)])
    return steps


@pytest.mark.parametrize("micro", [1, 3, 100])
@pytest.mark.parametrize("stop", [3, 4, 6])
def test_another_micro_batch_size_afterwards(
    micro: int, stop: int, files: dict[str, str], unbroken: Recorder, tmp_path: Path
) -> None:
    """The same as another number of ranks: other splits, the same steps."""
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    first = fit(files, max_steps=stop, callbacks=[checkpoints])
    second = fit(files, micro=micro, ckpt=tmp_path / "last.ckpt")
    assert by_step(first.seen) | by_step(second.seen) == by_step(unbroken.seen)
    assert {step for step, _ in second.seen} == set(range(stop, 4 * EPOCHS))
    assert torch.allclose(second.weight, unbroken.weight)


@pytest.mark.parametrize(
    ("before", "after"), [("none", "packed"), ("packed", "padding_free"), ("padding_free", "none")]
)
@pytest.mark.parametrize(("stop", "workers"), [(3, 0), (6, 2)])
def test_another_packing_afterwards(
    before: str, after: str, stop: int, workers: int, files: dict[str, str], unbroken: Recorder, tmp_path: Path
) -> None:
    """Other micro-batches, and as many of them; the same steps."""
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    first = fit(files, packing=before, max_steps=stop, callbacks=[checkpoints])
    second = fit(files, workers, packing=after, ckpt=tmp_path / "last.ckpt")
    assert by_step(first.seen) | by_step(second.seen) == by_step(unbroken.seen)
    assert [step for step, _ in first.seen + second.seen] == [step for step, _ in unbroken.seen]
    assert torch.allclose(second.weight, unbroken.weight)


@pytest.mark.parametrize("packing", ["none", "packed", "padding_free"])
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_more_ranks_afterwards(
    packing: str, world_size: int, workers: int, files: dict[str, str], unbroken: Recorder
) -> None:
    """Where the ranks' loaders go on after five steps, and what they hold together until the epoch ends."""
    wanted = {step: rows for step, rows in by_step(unbroken.seen).items() if step in (5, 6, 7)}
    found: dict[int, list[int]] = {step: [] for step in wanted}
    for rank in range(world_size):
        data = SFTData(
            **files, format="tokens", batch_size=BATCH, micro_batch_size=1, num_workers=workers, seed=5, packing=packing
        )
        data.trainer = rank_of(world_size, rank, global_step=5)
        data.setup("fit")
        batches = list(data.train_dataloader())
        assert len(batches) == 3 * data.shape.accumulation
        for place, batch in enumerate(batches):
            found[5 + place // data.shape.accumulation] += [row for row in batch["row_index"].tolist() if row >= 0]
    assert {step: sorted(rows) for step, rows in found.items()} == wanted


@pytest.mark.parametrize("stop", [2, 4, 5])
def test_rows_that_come_more_or_less_often(stop: int, files: dict[str, str], tmp_path: Path) -> None:
    """Epochs of 22 x 1.5 rows in six steps, each with other rows; also resumed in another packing."""
    train: Any = [Source(files["train"], times=1.5)]
    mixed: Any = {**files, "train": train}
    whole = fit(mixed)
    assert {step for step, _ in whole.seen} == set(range(6 * EPOCHS))
    epochs = [[row for step, rows in whole.seen if step // 6 == epoch for row in rows] for epoch in range(EPOCHS)]
    assert [len(rows) for rows in epochs] == [33] * EPOCHS
    assert len({tuple(sorted(rows)) for rows in epochs}) == EPOCHS
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    first = fit(mixed, max_steps=stop, callbacks=[checkpoints])
    second = fit(mixed, packing="packed", ckpt=tmp_path / "last.ckpt")
    assert by_step(first.seen) | by_step(second.seen) == by_step(whole.seen)
    with pytest.raises(UserError, match="cannot resume: the checkpoint's training data has times of rows "):
        fit(files, ckpt=tmp_path / "last.ckpt")


def test_limited_epochs(files: dict[str, str], tmp_path: Path) -> None:
    """`limit_train_batches` shortens the trainer's epochs; every epoch starts with its own order."""
    whole = fit(files, limit_train_batches=4)
    assert [step for step, _ in whole.seen] == sorted(list(range(2 * EPOCHS)) * 2)
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    first = fit(files, limit_train_batches=4, max_steps=3, callbacks=[checkpoints])
    second = fit(files, limit_train_batches=4, ckpt=tmp_path / "last.ckpt")
    assert first.seen + second.seen == whole.seen


def test_other_data_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    fit(files, max_steps=1, callbacks=[checkpoints])
    with pytest.raises(UserError, match="cannot resume: the checkpoint's training data has rows 22, this run's 3"):
        fit({"train": files["validation"]}, ckpt=tmp_path / "last.ckpt")


@pytest.mark.parametrize("weights", [([1.0] * 8, [1.0] * 7 + [2.0]), ([0.5] * 8, [0.5] * 7 + [1.0]), ([0.5] * 8, None)])
def test_other_weights_are_refused(weights: tuple[list[float], list[float] | None], tmp_path: Path) -> None:
    """The same batches would come, but something else would be learnt from them."""
    files = []
    for number, given in enumerate(weights):
        rows = token_rows([3, 4, 5, 6] * 2)
        rows = rows if given is None else [row | {"weight": w} for row, w in zip(rows, given, strict=True)]
        files.append({"train": write_jsonl(tmp_path / f"{number}.jsonl", rows)})
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    first = fit(files[0], max_steps=1, callbacks=[checkpoints])
    with refused("cannot resume: the checkpoint's training data has weights of rows "):
        fit(files[1], ckpt=tmp_path / "last.ckpt")
    second = fit(files[0], ckpt=tmp_path / "last.ckpt")
    assert first.seen + second.seen == fit(files[0]).seen


def test_a_checkpoint_from_before_weights_goes_on(files: dict[str, str], tmp_path: Path) -> None:
    """It holds nothing about weights; rows that have none fit to it."""
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    fit(files, max_steps=1, callbacks=[checkpoints])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["SFTData"].pop("weights of rows")
    torch.save(checkpoint, tmp_path / "old.ckpt")
    assert fit(files, ckpt=tmp_path / "old.ckpt").seen[0][0] == 1

"""Losses and gradients that are not finite, on one device; on two ranks in `tests/contract/test_strategies.py`."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.contract import steps
from tests.contract.steps import BATCH_SIZE, POISONED_CASE, POISONED_ROW, Case
from ts2_lightning.losses import CrossEntropyLoss, LossResult
from ts2_lightning.modules.nonfinite import StepWatch, first_nonfinite
from ts2_lightning.ops import LogitRows


def test_stop_names_the_rows_of_the_micro_batch(world: Path) -> None:
    found = steps.run(POISONED_CASE, world, 4, poisoned=POISONED_ROW)
    assert found["weights"] == []
    message = found["error"]
    assert message.startswith("step 1: the loss is not finite among rows ")
    rows = message.split("among rows ")[1].split(" on rank 0;")[0].split(", ")
    assert str(POISONED_ROW) in rows
    assert len(rows) == 4
    assert "No checkpoint has been written yet" in message
    assert "\n" not in message


def test_stop_names_the_newest_checkpoint(world: Path, tmp_path: Path) -> None:
    """The row to poison is of the second step; a checkpoint is written after the first."""
    late = steps.run(POISONED_CASE, world, BATCH_SIZE)["rows"][1][0]
    keep = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    found = steps.run(POISONED_CASE, world, BATCH_SIZE, poisoned=late, callbacks=[keep])
    assert len(found["weights"]) == 1
    assert found["error"].startswith("step 2: the loss is not finite")
    assert f"Go on from the newest checkpoint with --ckpt_path {tmp_path}/" in found["error"]


def test_ignore_goes_on(world: Path) -> None:
    found = steps.run(POISONED_CASE, world, BATCH_SIZE, nonfinite="ignore", poisoned=POISONED_ROW)
    assert found["error"] == ""
    assert len(found["weights"]) == 2
    assert any(tensor.isnan().any() for tensor in found["weights"][-1].values())


class InfiniteGradient(Callback):
    """An overflow in the backward pass, of which the loss knows nothing."""

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        next(iter(module.parameters())).grad[0, 0] = torch.inf  # type: ignore[index]


def test_a_gradient_alone(world: Path) -> None:
    found = steps.run(POISONED_CASE, world, BATCH_SIZE, poisoned=BATCH_SIZE + 99, callbacks=[InfiniteGradient()])
    assert found["weights"] == []
    assert "step 1: the gradient norm is inf, though all losses are finite (rows " in found["error"]
    assert " and 8 more on rank 0)" in found["error"]


class Overflowing(CrossEntropyLoss):
    """Infinite in value, finite in its gradient."""

    def evaluate(self, rows: LogitRows) -> LossResult:
        result = super().evaluate(rows)
        return result._replace(term=replace(result.term, value=torch.full_like(result.term.value, torch.inf)))


def test_a_loss_alone(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(steps.LOSSES, "ts2", Overflowing)
    found = steps.run(Case("ts2", "tied", "none"), world, BATCH_SIZE, poisoned=BATCH_SIZE + 99)
    assert found["weights"] == []
    assert found["error"].startswith("step 1: the loss is not finite among rows ")
    gone_on = steps.run(Case("ts2", "tied", "none"), world, BATCH_SIZE, nonfinite="ignore")
    assert all(tensor.isfinite().all() for tensor in gone_on["weights"][-1].values())


def test_fillers_are_no_rows() -> None:
    watch, nan = StepWatch(), torch.tensor(torch.nan)
    watch.add(torch.tensor([-1]), torch.tensor(0.0))
    watch.add(torch.tensor([3, -1, 12]), nan)
    assert watch.trouble(torch.nan) == "the loss is not finite among rows 3, 12 on rank 0"


def test_the_watch_forgets_a_step() -> None:
    watch = StepWatch()
    watch.add(torch.tensor([3]), torch.tensor(torch.nan))
    watch.reset()
    watch.add(torch.tensor([4]), torch.tensor(1.0))
    assert "(rows 4 on" in watch.trouble(torch.inf)


FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2]


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        *((dtype, bad) for dtype in FLOATS for bad in (torch.nan, torch.inf, -torch.inf)),
        (torch.float8_e4m3fn, torch.nan),
    ],
)
def test_the_first_weight_that_is_not_finite(dtype: torch.dtype, bad: float) -> None:
    good, wrong = torch.ones(4, 5, dtype=dtype), torch.full((4, 5), 1.0).index_fill(0, torch.tensor([1]), bad).to(dtype)
    assert first_nonfinite([("a", good), ("b", wrong.mT)]) == "b (5 of its 20 numbers)"
    assert first_nonfinite(iter([("a", wrong), ("b", good), ("c", wrong), ("d", wrong)])) == (
        "a (5 of its 20 numbers, and 2 tensors more)"
    )


def test_what_is_always_finite() -> None:
    """The largest numbers too, whose sum is not."""
    largest = torch.full((2000,), torch.finfo(torch.float32).max)
    whole, nothing, meta = torch.tensor([2**62]), torch.empty(0, 3), torch.empty(3, device="meta")
    tensors = {"largest": largest, "whole": whole, "nothing": nothing, "meta": meta, "truth": torch.tensor([True])}
    assert first_nonfinite(tensors.items()) is None
    assert first_nonfinite([]) is None


def test_a_large_number_of_numbers_is_written_as_people_do() -> None:
    many = [(f"weight {i}", torch.full((1200,), torch.nan)) for i in range(1002)]
    assert first_nonfinite(many) == "weight 0 (1,200 of its 1,200 numbers, and 1,001 tensors more)"

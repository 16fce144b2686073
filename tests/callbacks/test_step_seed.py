"""What is random in a step depends on the step, and on nothing that happened before."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything

from tests.callbacks.publisher import Publisher, loader, make_rows
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints, StepSeed
from ts2_lightning.callbacks.step_seed import seed_all

ROWS = make_rows([2] * 4)


class Draws(Publisher):
    """Draws from every generator in each micro-batch; its validations draw too."""

    def __init__(self) -> None:
        super().__init__((1.0, 1.0, 1.0))
        self.drawn: list[tuple[float, ...]] = []

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        self.drawn.append((torch.rand(()).item(), float(np.random.rand()), random.random()))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.rand(3)
        super().validation_step(batch, batch_idx)


def draws(tmp_path: Path, resume: bool = False, **settings: Any) -> list[tuple[float, ...]]:
    callbacks = [StepSeed(), Checkpoints()]
    settings = {"max_epochs": 2, **settings}
    trainer = make_trainer(tmp_path, callbacks=callbacks, **settings)
    module = Draws()
    last = str(tmp_path / "checkpoints" / "last.ckpt") if resume else None
    trainer.fit(module, loader(ROWS), loader(ROWS[:1]), ckpt_path=last)
    return module.drawn


def test_a_resumed_run_draws_the_same(tmp_path: Path) -> None:
    seed_everything(3, verbose=False)
    unbroken = draws(tmp_path / "1")
    assert len({value for drawn in unbroken for value in drawn}) == 3 * 8, "other numbers in each step"
    seed_everything(3, verbose=False)
    first = draws(tmp_path / "2", max_epochs=1)
    torch.rand(5), np.random.rand(5), random.random()
    assert [*first, *draws(tmp_path / "2", resume=True)] == unbroken
    seed_everything(4, verbose=False)
    assert draws(tmp_path / "3")[0] != unbroken[0]


def test_micro_batches_of_a_step_draw_other_numbers(tmp_path: Path) -> None:
    seed_everything(3, verbose=False)
    assert len(set(draws(tmp_path, accumulate_grad_batches=2))) == 8


def test_without_a_seed_the_checkpoint_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(11)
    unbroken = draws(tmp_path / "1")
    torch.manual_seed(11)
    first = draws(tmp_path / "2", max_epochs=1)
    torch.manual_seed(12)
    assert [*first, *draws(tmp_path / "2", resume=True)] == unbroken


def test_ranks_draw_other_numbers() -> None:
    seed_all(0, 1, 0, 0)
    one = torch.rand(4)
    seed_all(0, 1, 0, 1)
    assert not torch.equal(one, torch.rand(4))
    seed_all(0, 1, 0, 0)
    assert torch.equal(one, torch.rand(4))

"""What is random in a step depends on the step, and on nothing that happened before."""

import random
import traceback
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


def test_the_draws_are_those_of_the_seeds_of_all_libraries() -> None:
    """Seeded as they say, not with what else would do: a run goes on with the draws of earlier versions."""
    words = np.random.SeedSequence((3, 1, 4, 1)).generate_state(4)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(int(words[2]))
    random.seed(int(words[3]))
    expected = torch.rand(3).tolist(), torch.randn(3).tolist(), np.random.rand(3).tolist(), random.random()
    seed_all(3, 1, 4, 1)
    assert (torch.rand(3).tolist(), torch.randn(3).tolist(), np.random.rand(3).tolist(), random.random()) == expected


@pytest.fixture
def seeds_of_cuda(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds that the generators of CUDA get, in a process that pretends to use it."""
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    return seeds


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_where_cuda_is_in_use_it_is_seeded_like_the_cpu(device: str, seeds_of_cuda: list[int]) -> None:
    seed_all(0, 1, device=torch.device(device))
    assert seeds_of_cuda == [torch.initial_seed()]


def test_a_process_that_does_not_use_cuda_leaves_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is it asked for anything, nor is a seed kept for it with the text of the stack, which takes long."""

    def unexpected(*_: Any, **__: Any) -> None:
        raise AssertionError("must not be called")

    monkeypatch.setattr(traceback, "format_stack", unexpected)
    for name in ("init", "_lazy_init", "_lazy_call", "manual_seed_all", "device_count", "is_available"):
        monkeypatch.setattr(torch.cuda, name, unexpected)
    seed_all(0, 1)
    assert torch.initial_seed() != 0


def test_devices_of_other_kinds_are_seeded_as_torch_seeds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    seed_all(0, 1, device=torch.device("mps"))
    assert len(seeds) == 1

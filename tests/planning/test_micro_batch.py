"""The search for the largest micro-batch, and what is measured of a step."""

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from ts2_lightning.planning import largest_that_fits, measure_step, micro_batch, micro_batch_sizes
from ts2_lightning.types import Batch

ROWS = 4


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 100])
def test_sizes_are_the_largest_micro_batches_of_each_division(rows: int) -> None:
    sizes = micro_batch_sizes(rows)
    assert sizes == sorted({max(map(len, torch.arange(rows).tensor_split(n))) for n in range(1, rows + 1)})


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_search_finds_the_largest_from_anywhere_and_tries_no_size_twice(count: int) -> None:
    sizes = [3 * place + 1 for place in range(count)]
    for largest in range(-1, count):
        for first in range(count):
            tried: list[int] = []

            def fits(size: int, tried: list[int] = tried, largest: int = largest) -> bool:
                tried.append(size)
                return sizes.index(size) <= largest

            assert largest_that_fits(sizes, first, fits) == (sizes[largest] if largest >= 0 else None)
            assert tried[0] == sizes[first]
            assert len(tried) == len(set(tried))


@pytest.mark.parametrize("largest", [0, 50, 100, 127])
def test_the_search_takes_few_sizes(largest: int) -> None:
    """Strides that double: from one end of 128 sizes to any other, at most twice the digits of 128."""
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= largest

    assert largest_that_fits(range(128), 0, fits) == largest
    assert len(tried) <= 14


class Learner(LightningModule):
    """Learns nothing of use; its micro-batches fail as they are told to, once their steps have begun."""

    def __init__(self, error: Exception | None = None, at: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.error, self.at = error, at
        self.updates = self.micro_batches = self.asked = 0

    def request_statistics(self) -> None:
        self.asked += 1

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.micro_batches += 1
        if self.error is not None and self.micro_batches > self.at:
            raise self.error
        return self.weight.sum() * batch["input_ids"].sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.updates += 1


def make_trainer(trainers: list[Trainer]) -> Callable[[int, Callback], Trainer]:
    def make(accumulation: int, meter: Callback) -> Trainer:
        options: dict[str, Any] = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        trainers.append(
            Trainer(accelerator="cpu", max_steps=3, accumulate_grad_batches=accumulation, callbacks=[meter], **options)
        )
        return trainers[-1]

    return make


BATCH: Batch = {"input_ids": torch.ones(2, 3), "row_spans": torch.tensor([[0, 3], [3, 5]])}  # type: ignore[typeddict-item]


@pytest.mark.parametrize("accumulation", [1, ROWS])
def test_a_step_is_made_twice_and_counted_once(accumulation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, trainers = Learner(), list[Trainer]()
    clock = iter([0.0, 1.0, 0.0, 2.0, 0.0, 4.0, 0.0, 8.0])  # the micro-batches' beginnings and ends
    monkeypatch.setattr(micro_batch, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    cost = measure_step(make_trainer(trainers), module, BATCH, accumulation)
    assert cost is not None
    assert trainers[0].global_step == 2, "the optimizer's moments are there in the second alone"
    assert module.micro_batches == module.asked == 2 * min(accumulation, 2)
    assert cost.tokens == 5 * accumulation
    assert cost.seconds == (2 if accumulation == 1 else 4 * (accumulation - 1) + 8), "the last has the update"
    assert cost.tokens_per_second == cost.tokens / cost.seconds
    assert 1e7 < cost.peak < 1e12
    assert module.weight.grad is None


def test_a_step_without_memory_costs_nothing_and_leaves_nothing() -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("x: can't allocate memory: 8 bytes")):
        module = Learner(error)
        assert measure_step(make_trainer([]), module, BATCH, 3) is None
        assert module.weight.grad is None
        module.error = None
        assert measure_step(make_trainer([]), module, BATCH, 3) is not None, "the next one is as if it had not been"


def test_another_error_is_told() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        measure_step(make_trainer([]), Learner(RuntimeError("shapes")), BATCH, 1)


def test_nothing_of_a_step_is_there_while_the_next_one_is_measured() -> None:
    module, trainers = Learner(), list[Trainer]()
    measure_step(make_trainer(trainers), module, BATCH, 1)
    left = weakref.ref(trainers.pop())
    gc.collect()
    assert left() is None, "it has the optimizer's moments"

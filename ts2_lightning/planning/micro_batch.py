"""The largest micro-batch that fits: the plan says where to look, and real steps on the device decide.

A step is measured twice over: only the second one finds the optimizer's moments and the sums of gradients beside its
activations. Of accumulated micro-batches two are enough, as the others repeat the second.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.memory import garbage_collection_cuda
from torch.utils.data import DataLoader

from ts2_lightning.hardware import is_out_of_memory
from ts2_lightning.modules.cost import peak_memory_gb, reset_peak_memory, wait_for
from ts2_lightning.types import Batch

_STEPS = 2

MakeTrainer = Callable[[int, Callback], Trainer]
"""Makes a trainer that accumulates so many micro-batches and has a callback, from both of them."""


class StepCost(NamedTuple):
    """What an optimizer step took.

    Attributes:
        peak: bytes of the device's tensors at the peak, or of the process on a CPU.
        seconds: time of all its micro-batches and the update.
        tokens: tokens of their rows.
    """

    peak: float
    seconds: float
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Without padding."""
        return self.tokens / self.seconds


def micro_batch_sizes(rows: int) -> list[int]:
    """Sizes of a micro-batch that divide a step of so many rows differently, in order.

    The rows of a step are spread evenly, so that at most 100 of 128 rows are two micro-batches of 64.

    Example:
        >>> micro_batch_sizes(10)
        [1, 2, 3, 4, 5, 10]
    """
    return sorted({-(-rows // count) for count in range(1, rows + 1)})


def largest_that_fits(sizes: Sequence[int], first: int, fits: Callable[[int], bool]) -> int | None:
    """The largest size that fits, if every smaller one does too; None if none does.

    Strides of growing length up or down from the first size enclose it, and bisection finds it.

    Args:
        sizes: sizes in order.
        first: place of the size that is tried first.
        fits: function that tries a size.

    Example:
        >>> tried = []
        >>> largest_that_fits([1, 2, 3, 4, 5, 10], 2, lambda size: tried.append(size) or size <= 4), tried
        (4, [3, 4, 10, 5])
    """
    fitting, failing = -1, len(sizes)  # places
    place, stride = first, 1
    while failing - fitting > 1:
        if fits(sizes[place]):
            fitting = place
        else:
            failing = place
        if fitting < 0:
            place = max(0, failing - stride)
        elif failing == len(sizes):
            place = min(len(sizes) - 1, fitting + stride)
        else:
            place = (fitting + failing) // 2
        stride *= 2
    return sizes[fitting] if fitting >= 0 else None


def measure_step(
    make_trainer: MakeTrainer, module: LightningModule, batch: Batch, accumulation: int
) -> StepCost | None:
    """What an optimizer step of such micro-batches takes; None if memory does not suffice.

    Args:
        make_trainer: makes a trainer of one device that logs and writes nothing.
        module: module that is trained, whose weights change.
        batch: micro-batch.
        accumulation: micro-batches of a step.
    """
    count = min(accumulation, 2)
    meter = _Meter(_STEPS * count)
    trainer = make_trainer(count, meter)
    device = trainer.strategy.root_device
    reset_peak_memory(device)
    loader = DataLoader([batch] * (_STEPS * count), batch_size=None)  # type: ignore[arg-type,var-annotated]
    try:
        trainer.fit(module, loader, loader)  # without rows of a validation, for which there is no time, it would warn
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        is_enough = False
    else:
        is_enough = True
    peak = peak_memory_gb(device) * 1e9
    module.zero_grad(set_to_none=True)
    # Whatever holds the trainer holds the optimizer's moments, which would count with the next size.
    module.trainer = None
    del trainer
    garbage_collection_cuda()
    if not is_enough:
        return None
    last = meter.seconds[-count:]  # the first micro-batch has no update, the last has one
    tokens = int(batch["row_spans"].diff().sum())
    return StepCost(peak, last[0] * (accumulation - 1) + last[-1], tokens * accumulation)


class _Meter(Callback):
    """Times micro-batches, asks for all statistics, as a step that is logged does, and ends the training."""

    def __init__(self, micro_batches: int) -> None:
        self.seconds: list[float] = []
        self._micro_batches = micro_batches
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the clock."""
        if callable(request := getattr(pl_module, "request_statistics", None)):
            request()
        wait_for(pl_module.device)
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops the clock."""
        wait_for(pl_module.device)
        self.seconds.append(time.perf_counter() - self._start)
        # Without this line Lightning would tell the user which limit has ended the training.
        trainer.should_stop = len(self.seconds) == self._micro_batches

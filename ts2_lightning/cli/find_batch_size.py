"""`fit --find-batch-size`: the largest micro-batch that fits, found with the plan and with real steps on the device."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ts2_lightning.callbacks import EMA, NEFTune
from ts2_lightning.cli.base_models import with_rows_for_tokens
from ts2_lightning.cli.errors.guard import one_line
from ts2_lightning.cli.lightning_cli import TS2CLI
from ts2_lightning.cli.plan import check_module, job_of_fit
from ts2_lightning.cli.terminal import put
from ts2_lightning.planning import (
    GAPS,
    GPU,
    Job,
    StepCost,
    device_at_hand,
    largest_that_fits,
    measure_step,
    micro_batch_sizes,
    needed_bytes,
)
from ts2_lightning.program import program
from ts2_lightning.types import Batch, UserError

_GIB = 2**30
_OF_A_STEP = (EMA, NEFTune)
"""Callbacks that take part in a step; what others do is between steps, and most of them write."""

_LIKE_FIT = (
    "accelerator", "devices", "num_nodes", "strategy", "precision", "plugins", "gradient_clip_val",
    "gradient_clip_algorithm", "deterministic", "benchmark", "detect_anomaly", "use_distributed_sampler",
)  # fmt: skip
"""Settings of the trainer that a step depends on."""

_QUIET = {
    "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    "max_steps": 3, "limit_val_batches": 0, "num_sanity_val_steps": 0, "log_every_n_steps": 0,
}  # fmt: skip
"""Nothing is written and nothing printed; one step more than are made, since the end of all steps would be told."""

_COLUMNS = ("micro-batch", "micro-batches", "tokens each", "estimate, GiB", "measured, GiB", "tokens/s")


class BatchSizeCLI(TS2CLI):
    """Reads the settings of `fit`, and measures steps in place of a training."""

    def before_instantiate_classes(self) -> None:
        """As of `fit`, but for what writes or goes on."""
        trainer = self.settings.trainer
        self.settings.ckpt_path, trainer.logger = None, False  # of a run that goes on, the settings count
        super().before_instantiate_classes()
        callbacks = trainer.callbacks or []
        listed = callbacks if isinstance(callbacks, list) else [callbacks]
        trainer.callbacks = [callback for callback in listed if isinstance(callback, _OF_A_STEP)]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer to see where a step would be.

        Raises:
            UserError: on several devices, or under a strategy that divides the model.
        """
        trainer = self._make_trainer(1)
        if trainer.world_size > 1 or not isinstance(trainer.strategy, SingleDeviceStrategy):
            raise UserError(
                f"--find-batch-size: it measures one device by itself, and these settings make {trainer.world_size} "
                f"process{'es' if trainer.world_size > 1 else ''} of {type(trainer.strategy).__name__}; add "
                f"--trainer.devices 1 --trainer.num_nodes 1 --trainer.strategy auto, or see {program()} plan"
            )
        return trainer

    def _make_trainer(self, accumulation: int, *callbacks: Callback) -> Trainer:
        settings = self.config_init[self.command].trainer.as_dict()
        arguments = {name: settings[name] for name in _LIKE_FIT} | _QUIET
        own = copy.deepcopy(settings["callbacks"])  # each training has its own average
        try:
            return self.trainer_class(**arguments, accumulate_grad_batches=accumulation, callbacks=[*own, *callbacks])
        except (MisconfigurationException, ValueError) as error:
            raise UserError(f"trainer: {one_line(str(error))}") from error

    def _run_subcommand(self, subcommand: str) -> None:
        check_module(self.model, "--find-batch-size")
        data, model = self.datamodule, self.model
        model.lm = with_rows_for_tokens(model.lm, data.tokenizer_path or model.lm.path)
        data.limits = model.model_limits()
        data.sets.prepare(data.sets.named("train")[0])
        data.load("train")
        put(Search(self).run())


class Search:
    """The search for the largest micro-batch, which prints what it tries.

    Args:
        cli: what has read the settings, and the rows.
    """

    def __init__(self, cli: BatchSizeCLI) -> None:
        self._cli = cli
        self._data, self._module = cli.datamodule, cli.model
        self._device = device_at_hand(cli.trainer.strategy.root_device)
        self._job = job_of_fit(cli.settings, cli.model, cli.model.lm, self._device)
        self._measured: dict[int, StepCost] = {}

    def run(self) -> str:
        """Tries micro-batches.

        Returns:
            The line that says which one to take.

        Raises:
            UserError: not even one row fits.
        """
        rows = self._job.rows
        longest, room = self._data.largest_batch(1)["input_ids"].shape[1], self._device.memory / _GIB
        put(f"{self._device.name}, {room:,.1f} GiB; {rows:,} rows a step, of at most {longest:,} tokens")
        put(_line(_COLUMNS))
        sizes = micro_batch_sizes(rows)
        size = largest_that_fits(sizes, self._first(sizes), self._fits)
        if size is None:
            raise UserError(
                f"--find-batch-size: not even one row of {longest:,} tokens fits into {room:,.1f} GiB; "
                f"{program()} plan says what would, such as model.lm.gradient_checkpointing, or set data.max_length"
            )
        cost, count = self._measured[size], self._count(size)
        micro_batches = f"{count} micro-batches" if count > 1 else "the whole step at once"
        return (
            f"Take --data.micro_batch_size {size}: {micro_batches}, {cost.peak / _GIB:,.2f} of {room:,.1f} GiB at the "
            f"peak, {cost.tokens_per_second:,.0f} tokens/s with the longest rows."
        )

    def _first(self, sizes: Sequence[int]) -> int:
        """The place of the largest size that fits by the plan, found by bisection; the first where none does."""
        low, high = 0, len(sizes)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._estimate(sizes[middle]) <= self._device.memory else (low, middle)
        return low

    def _fits(self, size: int) -> bool:
        """Measures a size; on a CPU only if the plan lets it: a process that takes too much is killed there."""
        batch, estimate = self._data.largest_batch(size), self._estimate(size)
        on_gpu = isinstance(self._device, GPU)
        cost, said = None, "not tried"
        if on_gpu or estimate <= self._device.memory:
            cost = measure_step(self._cli._make_trainer, self._module, batch, self._count(size))
            said = "out of memory" if cost is None else f"{cost.peak / _GIB:,.2f}"
        speed = "-" if cost is None else f"{cost.tokens_per_second:,.0f}"
        tokens = int(batch["row_spans"].diff().sum())
        put(_line((size, self._count(size), f"{tokens:,}", f"{estimate / _GIB:,.2f}", said, speed)))
        if cost is None:
            return False
        self._measured[size] = cost
        return cost.peak * (1 + GAPS if on_gpu else 1) <= self._device.memory

    def _count(self, size: int) -> int:
        return replace(self._job, micro_batch=size).accumulation

    def _estimate(self, size: int) -> int:
        return needed_bytes(_job_of_batch(self._job, self._data.largest_batch(size)))


def _job_of_batch(job: Job, batch: Batch) -> Job:
    """The same job with micro-batches of the shape of this one."""
    sequences, length = batch["input_ids"].shape
    return replace(job, micro_batch=sequences, max_length=length)


def _line(cells: Sequence[object]) -> str:
    return "  ".join(f"{cell:>{len(title)}}" for cell, title in zip(cells, _COLUMNS, strict=True)).rstrip()

"""The speed of a run, the parts of its time, and the cost of the objective."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from ts2_lightning.hardware import gpu_of_device
from ts2_lightning.ranges import NULL, POSITIVE, check_numbers
from ts2_lightning.types import Batch

PARTS = ("data", "step", "logging")
"""The parts of the time: fetching batches and moving them to the device; forward, backward and update; callbacks and
loggers around them."""


class Throughput(Callback):
    """Logs the speed of the training and, at its end, the cost of the objective.

    Each logged step gets means over the optimizer steps since the one before, validations left out:

    - `throughput/tokens_per_second`: tokens of rows, supervised or not, over all ranks (the module logs
      `train/supervised_tokens_per_second`, `train/padding` and `train/peak_memory_gb`);
    - `throughput/data_seconds`, `throughput/step_seconds`, `throughput/logging_seconds` of an optimizer step, on rank
      0. With several ranks a wait for another one counts as step;
    - `throughput/mfu`: model FLOPs utilisation, the operations that a step needs over those of which the GPUs are
      capable in its time. It is left out on a CPU, and on a GPU without figures.

    At the end of the training a line states the time of the loss head with this objective, and its time with
    cross-entropy: both are timed then, in turns, on the hidden states of the last micro-batch, without statistics.
    All else of a step does not depend on the objective.

    Args:
        peak_flops: dense operations per second of one GPU in the run's precision; null: bfloat16 operations of a GPU in
            `hardware.GPUS`.
        compare: whether to time the loss head in the end, which takes eight micro-batches of it.

    Raises:
        UserError: if `peak_flops` is out of its range.
    """

    def __init__(self, peak_flops: float | None = None, compare: bool = True) -> None:
        super().__init__()
        self.peak_flops = peak_flops
        check_numbers("Throughput: ", self, peak_flops=(POSITIVE, NULL))
        self.compare = compare
        self.latest: dict[str, float] = {}
        """The values that were logged last."""
        self._watch: Stopwatch | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure."""
        self._last_step = self._logged_step = trainer.global_step
        self._batch: Batch | None = None
        self._sums: Tensor | None = None
        self._step_seconds, self._steps = 0.0, 0
        self._watch = Stopwatch(trainer)
        _replace_profiler(trainer, self._watch)  # Lightning tells it when each part begins and ends

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the micro-batch; log if it completed a step that is logged."""
        sums = count(batch)
        self._sums = sums if self._sums is None else self._sums + sums
        self._batch = batch
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            self._publish(trainer, pl_module)

    def _publish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._sums is not None
        assert self._watch is not None
        module: Any = pl_module
        kwargs = trainer.distributed_sampler_kwargs
        copies = 1 if kwargs is None else trainer.world_size // kwargs["num_replicas"]  # ranks that share their rows
        tokens, squares, supervised = (trainer.strategy.reduce(self._sums, reduce_op="sum") / copies).tolist()
        steps = trainer.global_step - self._logged_step
        seconds = self._watch.take()
        whole = max(sum(seconds.values()), 1e-9)
        self._step_seconds, self._steps = self._step_seconds + whole, self._steps + steps
        self._sums, self._logged_step = None, trainer.global_step
        rates = {"tokens_per_second": tokens / whole} | {f"{part}_seconds": seconds[part] / steps for part in PARTS}
        peak = self.peak_flops or peak_flops_of(pl_module.device)
        if peak is not None:
            needed = model_flops(module, tokens, squares, supervised)
            rates["mfu"] = needed / (peak * trainer.world_size * whole)
        self.latest = {f"throughput/{name}": value for name, value in rates.items()}
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(self.latest, step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop measuring; log the cost of the objective."""
        self._stop(trainer)
        module: Any = pl_module
        if self.compare and self._steps and self._batch is not None:
            per_step = trainer.accumulate_grad_batches
            seconds = {name: per_step * value for name, value in module.time_losses(self._batch).items()}
            rank_zero_info(cost_line(seconds, self._step_seconds / self._steps))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop measuring."""
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        if self._watch is not None:
            _replace_profiler(trainer, self._watch.inner)
            self._watch = None


class Stopwatch(Profiler):
    """Adds up the seconds of `PARTS`, and hands everything on to the profiler that was there.

    Args:
        trainer: trainer whose training is measured.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.inner: Profiler = trainer.profiler  # type: ignore[attr-defined]
        self._trainer = trainer
        self._step = trainer.global_step
        self._started: dict[str, float] = {}
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def take(self) -> dict[str, float]:
        """The seconds of each part since the last call."""
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return taken

    def start(self, action_name: str) -> None:
        """See `Profiler`."""
        self.inner.start(action_name)
        if part_of(action_name):
            self._started[action_name] = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """See `Profiler`."""
        if (part := part_of(action_name)) and action_name in self._started:
            self._wait_for_step(part)
            self._seconds[part] += time.perf_counter() - self._started.pop(action_name)
        self.inner.stop(action_name)

    def _wait_for_step(self, part: str) -> None:
        """Wait for the GPU, which works behind the host; the module waits for it anyway when a step is done."""
        if part == "step" and self._trainer.global_step != self._step:
            self._step = self._trainer.global_step
            if self._trainer.strategy.root_device.type == "cuda":
                torch.cuda.synchronize(self._trainer.strategy.root_device)

    def summary(self) -> str:
        """See `Profiler`."""
        return self.inner.summary()

    def describe(self) -> None:
        """See `Profiler`."""
        self.inner.describe()

    def teardown(self, stage: str | None) -> None:
        """See `Profiler`."""
        self.inner.teardown(stage)


def _replace_profiler(trainer: Any, profiler: Profiler) -> None:
    trainer.profiler = profiler


def part_of(action: str) -> str | None:
    """The part of `PARTS` that an action of Lightning belongs to; None if it belongs to none.

    Example:
        >>> part_of("[_TrainingEpochLoop].train_dataloader_next"), part_of("[Callback]Timer.on_train_batch_end")
        ('data', 'logging')
    """
    name = action.rpartition(".")[2]
    parts = {
        "train_dataloader_next": "data",
        "batch_to_device": "data",
        "run_training_batch": "step",
        "on_train_batch_start": "logging",
        "on_train_batch_end": "logging",
    }
    return parts.get(name)


def count(batch: Batch) -> Tensor:
    """Tokens of a micro-batch's rows, the sum of the squares of their lengths, and supervised tokens; [3] float32.

    Example:
        >>> spans, rows = torch.tensor([[0, 3], [4, 6]]), torch.tensor([5, 8])
        >>> count({"row_spans": spans, "row_index": rows, "labels": torch.tensor([1, 1])}).tolist()
        [5.0, 13.0, 2.0]
    """
    lengths = batch["row_spans"].diff()[:, 0].masked_fill(batch["row_index"] < 0, 0).float()
    return torch.stack([lengths.sum(), lengths.square().sum(), lengths.new_tensor(len(batch["labels"]))])


def model_flops(pl_module: Any, tokens: float, squares: float, supervised: float) -> float:
    """Operations that forward and backward pass need, without recomputation.

    4 for each weight of a linear layer and token, 2 more where the weight is trained; 12 d for each pair of tokens of
    a row of which the later one sees the earlier, in each layer, d the width of all heads; the head sees supervised
    tokens only.

    Source: Chowdhery et al. (2022), PaLM, appendix B; Narayanan et al. (2021), appendix.

    Args:
        pl_module: module with a dense `language_model`; a vision tower, which text does not reach, needs no operations.
        tokens: number of tokens of the rows.
        squares: sum of the squares of the rows' lengths.
        supervised: number of supervised tokens.
    """
    model = pl_module.language_model
    head = model.get_output_embeddings()
    linear = [m for m in model.get_decoder().modules() if isinstance(m, nn.Linear) and m is not head]
    config = model.config.get_text_config()
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or 0) or config.hidden_size
    return (
        sum(_flops_per_token(layer) for layer in linear) * tokens
        + 12.0 * width * config.num_hidden_layers * squares / 2
        + _flops_per_token(head) * supervised
    )


def _flops_per_token(layer: Any) -> float:
    trained = any(parameter.requires_grad for parameter in layer.parameters())
    return float(layer.in_features * layer.out_features * (6 if trained else 4))


def peak_flops_of(device: torch.device) -> float | None:
    """Dense bfloat16 operations per second of a device; None if it is not a GPU in `hardware.GPUS`."""
    gpu = gpu_of_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if gpu is None else gpu.flops


def cost_line(seconds: dict[str, float], step: float) -> str:
    """The cost of the objective compared with cross-entropy, in one line.

    Args:
        seconds: seconds of the loss head in an optimizer step, with the objective and with `CrossEntropyLoss`.
        step: seconds of a whole optimizer step with the objective.

    Example:
        >>> cost_line({"TS2Loss": 0.30, "CrossEntropyLoss": 0.25}, step=1.05)
        'A step took 1.050 s, of which TS2Loss took 0.300 s in the loss head. CrossEntropyLoss takes 0.250 s there: a run with it would take 4.8 % less time.'
    """  # noqa: E501
    *own, reference = seconds
    if not own:
        return f"A step took {step:.3f} s, of which {reference} took {seconds[reference]:.3f} s in the loss head."
    less = (seconds[own[0]] - seconds[reference]) / step
    return (
        f"A step took {step:.3f} s, of which {own[0]} took {seconds[own[0]]:.3f} s in the loss head. {reference} takes "
        f"{seconds[reference]:.3f} s there: a run with it would take {abs(less):.1%} {'less' if less >= 0 else 'more'} "
        "time."
    ).replace("%", " %")

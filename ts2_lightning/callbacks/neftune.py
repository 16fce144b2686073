"""NEFTune: noise on the input embeddings while a model is trained."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ts2_lightning.ranges import SEED, Range, check_numbers
from ts2_lightning.types import Batch

_ALPHA = Range(above=0, hint="leave it out for no noise")


class NEFTune(Callback):
    """Adds uniform noise to the input embeddings in training, and only there.

    For a row of T tokens (padding not counted), embedded in d dimensions:

        embeddings + alpha / sqrt(T d) * epsilon,    epsilon uniform in [-1, 1], [T, d]

    so the noise of a whole row has a length of about alpha / sqrt(3), however long the row is.

    The noise of a row follows from `seed`, the optimizer step and the row's index in the data, and from nothing else.
    So it does not matter how the rows of a step are split over ranks and micro-batches or how they are padded or
    packed, and a resumed run, also one with other ranks, sees the noise that the unbroken run would have seen. (A GPU
    draws other numbers than a CPU.) The global random numbers are left alone.

    It is a hook on the embedding module's output, which is there only while a training batch is worked on, and which
    does nothing if the module is in evaluation mode. No weight is read or changed, so it works under sharded strategies
    too, and checkpoints and exports know nothing of it. Of the batch it needs `row_spans` and `row_index`.

    Source: Jain et al., "NEFTune: Noisy Embeddings Improve Instruction Finetuning" (2023), algorithm 1. T is the
    row's own length there; some implementations take the padded length of the batch.

    Args:
        alpha: length of the noise; the paper has 5, 10 and 15.
        seed: seed of the noise.

    Raises:
        UserError: if `alpha` or `seed` is out of its range.

    Example:
        >>> NEFTune(alpha=-1)
        Traceback (most recent call last):
            ...
        ts2_lightning.types.UserError: NEFTune: alpha must be a finite number above 0, got -1; leave it out for no noise
    """

    def __init__(self, alpha: float = 5.0, seed: int = 0) -> None:
        super().__init__()
        self.alpha = alpha
        self.seed = seed
        check_numbers("NEFTune: ", self, alpha=_ALPHA, seed=SEED)
        self._handle: RemovableHandle | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Put the hook in its place, with what decides the batch's noise."""
        self._remove()  # the end of a batch that another callback skipped never came
        spans = batch["row_spans"].tolist()
        seeds = [row_seed(self.seed, trainer.global_step, row) for row in batch["row_index"].tolist()]

        def add_noise(module: nn.Module, args: Any, embeddings: Tensor) -> Tensor | None:
            return embeddings + noise_like(embeddings, spans, seeds, self.alpha) if module.training else None

        model: Any = pl_module
        self._handle = model.language_model.get_input_embeddings().register_forward_hook(add_noise)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the hook away: what follows may be a validation."""
        self._remove()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the hook away, if the last batch was skipped."""
        self._remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hook away."""
        self._remove()

    def _remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def row_seed(seed: int, step: int, row: int) -> int:
    """Seed of the noise of one row at one optimizer step, well mixed.

    Args:
        seed: seed of the run, >= 0.
        step: number of optimizer steps done, >= 0.
        row: index of the row in the data, or -1 for a filler.

    Returns:
        An integer of 64 bits.

    Example:
        >>> row_seed(0, 3, 7) == row_seed(0, 3, 7), row_seed(0, 3, 7) == row_seed(0, 7, 3)
        (True, False)
    """
    return int(np.random.SeedSequence((seed, step, row + 1)).generate_state(1, np.uint64)[0])


def noise_like(embeddings: Tensor, spans: Sequence[Sequence[int]], seeds: Sequence[int], alpha: float) -> Tensor:
    """Noise for a batch: uniform in +-alpha / sqrt(T d) on the T tokens of each row, zero on its padding.

    Drawn in float32, whatever the embeddings' dtype.

    Args:
        embeddings: [B, T_max, d] embeddings, whose shape, device and dtype the noise has.
        spans: [R, 2] start and end of each row in the B x T_max tokens.
        seeds: [R] seed of each row's noise.
        alpha: length of the noise, see `NEFTune`.

    Returns:
        [B, T_max, d], without gradient.

    Example:
        >>> noise = noise_like(torch.zeros(1, 3, 8, dtype=torch.bfloat16), [(0, 2)], seeds=[1], alpha=4.0)
        >>> noise.dtype, noise[0, :2].abs().max().item() <= 1.0, noise[0, 2].any().item()
        (torch.bfloat16, True, False)
    """
    noise = torch.zeros_like(embeddings, requires_grad=False, memory_format=torch.contiguous_format)
    tokens = noise.view(-1, noise.shape[-1])
    generator = torch.Generator(embeddings.device)
    width = embeddings.shape[-1]
    for (start, end), seed in zip(spans, seeds, strict=True):
        generator.manual_seed(seed)
        uniform = torch.rand(end - start, width, generator=generator, dtype=torch.float32, device=embeddings.device)
        tokens[start:end] = (2 * uniform - 1) * (alpha / math.sqrt((end - start) * width))
    return noise

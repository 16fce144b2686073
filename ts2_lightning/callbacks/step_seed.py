"""Randomness that a resumed run repeats."""

import os
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class StepSeed(Callback):
    """Seeds the random generators (torch's on all devices, numpy's, Python's) before each micro-batch.

    What is random in training, such as dropout, then follows from the seed, the optimizer step, the micro-batch in it
    and the rank, and not from what was drawn before. So a run that is resumed at any step draws what it would have
    drawn had it not been stopped, under every strategy, and no state of a generator has to be saved. On another number
    of ranks, or with other micro-batches, other numbers are drawn. Ranks of a tensor-parallel group share their rows,
    and draw the same.

    The seed is that of `seed_everything`, or else one that the run draws for itself; it goes on with a checkpoint.
    """

    def __init__(self) -> None:
        self._seed: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree on the seed, unless a checkpoint has brought it."""
        if self._seed is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed() % 2**32))
            self._seed = trainer.strategy.broadcast(seed)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the micro-batch."""
        assert self._seed is not None
        rank = (trainer.distributed_sampler_kwargs or {"rank": 0})["rank"]
        numbers = (self._seed, trainer.global_step, batch_idx % trainer.accumulate_grad_batches, rank)
        seed_all(*numbers, device=trainer.strategy.root_device)

    def state_dict(self) -> dict[str, Any]:
        """The seed, for a checkpoint."""
        return {"seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the checkpoint's seed."""
        self._seed = state_dict["seed"]


def seed_all(*numbers: int, device: torch.device | None = None) -> None:
    """Seeds every generator from some numbers, such that any other numbers give unrelated draws.

    Args:
        numbers: whole numbers from 0.
        device: device of this process, of whose kind all generators are seeded beside the CPU's; None: the CPU.
    """
    words = np.random.SeedSequence(numbers).generate_state(4)
    _seed_torch(int(words[0]) << 32 | int(words[1]), device)
    np.random.seed(int(words[2]))
    random.seed(int(words[3]))


def _seed_torch(seed: int, device: torch.device | None) -> None:
    """Does what `torch.manual_seed` does, but for kinds of devices that this process does not use.

    For each of those, CUDA included, `torch.manual_seed` keeps the text of the present stack for an error message that
    nobody will see: half a millisecond in every micro-batch.
    """
    if device is not None and device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)

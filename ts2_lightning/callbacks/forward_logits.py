"""Logits of a few fixed rows while a model is trained, read where every strategy has the weights whole."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ts2_lightning.types import Batch

LogitsReader = Callable[[Tensor, Tensor], None]
"""A function of the logits [n, K] of some tokens and their labels [n]."""


def read_logits(trainer: Trainer, pl_module: Any, batches: Iterable[Batch], use: LogitsReader) -> None:
    """Hands the logits of all supervised tokens of some batches to a function on rank 0, in one order.

    The forward pass is that of an evaluation, without a gradient; the modes of the network are as before afterwards.

    Args:
        trainer: Trainer that is attached; every one of its ranks must call, with the same batches.
        pl_module: Module with a `network`, see `modules.SFTModule`.
        batches: Batches on the CPU.
        use: Function that is called on rank 0.
    """

    def read(head: Any, args: tuple[Any, ...]) -> None:
        # Within the call of the loss head, where every strategy has the weights whole.
        if trainer.is_global_zero:
            for part, logits in head.logits(args[0]):
                use(logits, args[1].labels[part])

    network = pl_module.network
    was_training = network.training
    handle = network.loss_head.register_forward_pre_hook(read)
    network.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for batch in batches:
                network(trainer.strategy.batch_to_device(batch), ())
    finally:
        handle.remove()
        network.train(was_training)

"""Two gloo ranks whose weights and moments change while a checkpoint is written: `snapshots.py DIRECTORY STRATEGY...`.

In `STRATEGY/held` is the checkpoint that a thread wrote once all had been changed, in `STRATEGY/plain` the one of the
same step that was written at once. The thread is held until then: nothing here depends on how long anything takes.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from tests.callbacks.held_writes import HeldWrites
from tests.planning.ranks import LENGTH, MICRO_BATCH, ROWS, strategy_of, write_world
from tests.support.ranks import fork_ranks
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints
from ts2_lightning.data import SFTData
from ts2_lightning.losses import CrossEntropyLoss
from ts2_lightning.modules import LanguageModelConfig, ScheduleConfig, SFTModule
from ts2_lightning.strategies import DeepSpeed


class Ruin(Callback):
    """After the first step saves at once, and in a thread, and changes all numbers before the latter writes one."""

    def __init__(self, directory: Path) -> None:
        self.plain = Checkpoints(str(directory / "plain"))
        self.held = Checkpoints(str(directory / "held"), asynchronous=True)
        self.writes = HeldWrites()
        self.writes.install()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != 1 or self.writes.released.is_set():
            return
        self.plain.setup(trainer, module, "fit")
        assert self.plain.save(trainer)
        assert self.held.save(trainer)
        assert not (self.held._directory.place(1)).exists()
        for tensor in numbers_of(trainer, module):
            tensor.fill_(7)
        self.writes.released.set()
        assert self.held.save(trainer, wait=True)
        trainer.should_stop = True


@torch.no_grad()
def numbers_of(trainer: Trainer, module: LightningModule) -> list[Tensor]:
    """All tensors that a step changes, as this rank holds them."""
    optimizer: Any = trainer.optimizers[0]
    held: list[Any] = [getattr(p, "ds_tensor", p) for p in module.parameters()]
    if isinstance(trainer.strategy, DeepSpeed):
        zero: Any = trainer.strategy.deepspeed_engine.optimizer
        held += list(getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_partitioned_groups_flat)
        optimizer = zero.optimizer
    held += tree_leaves(dict(optimizer.state))
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in held)
    return [tensor.detach() for tensor in local if isinstance(tensor, Tensor)]


def rank(number: int, directory: Path, name: str) -> None:
    module = SFTModule(
        LanguageModelConfig(str(directory / "world" / "untied")), CrossEntropyLoss(),
        schedule=ScheduleConfig("constant", 0.0),
    )  # fmt: skip
    data = SFTData(
        train=str(directory / "world" / "rows.jsonl"), tokenizer=module.lm.path, format="tokens", batch_size=ROWS,
        micro_batch_size=MICRO_BATCH, max_length=LENGTH, cache=False,
    )  # fmt: skip
    ruin = Ruin(directory / name)
    trainer = make_trainer(devices=2, strategy=strategy_of(name), callbacks=[ruin, ruin.held])
    trainer.fit(module, data)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    (where / "world").mkdir()
    write_world(where / "world")
    for each in sys.argv[2:]:
        fork_ranks(rank, where, each)

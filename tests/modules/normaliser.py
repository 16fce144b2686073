"""One epoch of two uneven optimizer steps, split in any way; run as a script, on two gloo ranks.

    normaliser.py ROWS MODEL OUT LOSS MICRO_BATCH_SIZE PACKING [LOSS MICRO_BATCH_SIZE PACKING ...]

The script is one for several runs, because imports cost most of the time, and the ranks are forked from it, because
processes that have run autograd cannot fork.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from tests.support.ranks import fork_ranks
from tests.support.training import make_trainer
from ts2_lightning.callbacks import DistributionMonitor
from ts2_lightning.data import SFTData
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.losses import CrossEntropyLoss, TokenLoss, TS2Loss
from ts2_lightning.modules import AdamWConfig, LanguageModelConfig, ScheduleConfig, SFTModule
from ts2_lightning.toyworld import load_world

BATCH_SIZE = 16
MAX_LENGTH = 100  # somewhat above the longest row
VALIDATION = ("many", "few")  # sets of rows, in an order of their own
LOSSES: dict[str, type[TokenLoss]] = {"ce": CrossEntropyLoss, "ts2": TS2Loss}


def conversation(number: int) -> dict[str, Any]:
    """Of one to six turns, each of one to seven words."""
    words = load_world().words
    turns = []
    for turn in range(1 + number * 5 % 6):
        start = 11 * number + 3 * turn
        turns.append({"role": "user", "content": " ".join(words[start : start + 2])})
        turns.append({"role": "assistant", "content": " ".join(words[start + 5 : start + 6 + (number + turn) * 3 % 7])})
    return {"messages": turns}


class Memory(Logger):
    """Keeps what is logged: step -> name -> value."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, dict[str, float]] = {}

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.steps.setdefault(int(step or 0), {}).update(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Watch(Callback):
    """Keeps the rows of every step, its gradients before clipping and the weights after it."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = [[]]
        self.widths: list[list[int]] = [[]]
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.rows[-1] += [row for row in batch["row_index"].tolist() if row >= 0]
        self.widths[-1].append(sum(batch["row_index"] >= 0))

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        named = module.language_model.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step == len(self.gradients) > len(self.weights):
            self.weights.append({name: p.detach().clone() for name, p in module.language_model.named_parameters()})
            self.rows.append([])
            self.widths.append([])


def run(
    rows: str,
    model: str,
    loss: str,
    micro_batch_size: int,
    packing: Any = "none",
    dtype: Any = "float32",
    ranks: int = 1,
) -> dict[str, Any]:
    """Trains two steps, the second of three rows only, and validates; returns what can be compared.

    AdamW with so large an epsilon is nearly plain gradient descent: a wrong scale of the gradient reaches the weights,
    and rounding does not.
    """
    seed_everything(0, verbose=False)
    watch, memory = Watch(), Memory()
    module = SFTModule(
        LanguageModelConfig(model, dtype=dtype),
        LOSSES[loss](),
        ChunkedEngine(chunk_size=13),
        AdamWConfig(lr=1.0, eps=10.0),
        ScheduleConfig("constant", warmup_ratio=0.0),
    )
    data = SFTData(
        train=f"{rows}/train.jsonl", validation={name: f"{rows}/{name}.jsonl" for name in VALIDATION}, tokenizer=model,
        batch_size=BATCH_SIZE, micro_batch_size=micro_batch_size, eval_batch_size=3, packing=packing,
        max_length=MAX_LENGTH,
    )  # fmt: skip
    strategy = DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto"
    callbacks = [DistributionMonitor(), watch]
    trainer = make_trainer(devices=ranks, strategy=strategy, gradient_clip_val=0.5, logger=memory, callbacks=callbacks)
    trainer.fit(module, data)
    return {
        "accumulation": trainer.accumulate_grad_batches,
        "rows": watch.rows[:-1],
        "widths": watch.widths[:-1],
        "gradients": watch.gradients,
        "weights": watch.weights,
        "logged": memory.steps,
        "validation": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")},
    }


def rank(number: int, arguments: list[str]) -> None:
    rows, model, out, *runs = arguments
    triples = zip(runs[0::3], runs[1::3], runs[2::3], strict=True)
    found = [run(rows, model, loss, int(size), packing, ranks=2) for loss, size, packing in triples]
    torch.save(found, Path(out) / f"rank{number}.pt")


if __name__ == "__main__":
    fork_ranks(rank, sys.argv[1:])

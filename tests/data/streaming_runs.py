"""Trainings on streamed rows, each in processes of its own: `streaming_runs.py DIRECTORY`, which has rows and a model.

One script for all of them, because imports cost most of the time. What a rank saw is written to `NAME-RANK.pt`.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch import multiprocessing
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, get_scheduler  # noqa: F401  once for all

from tests.support.ranks import fork_ranks
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints
from ts2_lightning.data import SFTData
from ts2_lightning.losses import CrossEntropyLoss
from ts2_lightning.modules import AdamWConfig, LanguageModelConfig, ScheduleConfig, SFTModule
from ts2_lightning.types import UserError

STEPS = 7  # of four to an epoch, the last short
BATCH = 6
KILLED_AT, SAVED_EVERY = 5, 3
RUNS: dict[str, dict[str, Any]] = {
    "one": {},
    "two": {"ranks": 2, "micro_batch_size": 1, "num_workers": 2},
    "killed": {"kill": KILLED_AT, "num_workers": 2},
    "resumed": {"ranks": 2, "ckpt": "killed", "packing": "packed"},
    "all at once": {"batch_size": 100, "ranks": 2},
    "all at once, not streamed": {"batch_size": 100, "streaming": False},
    "bad": {"ranks": 2, "rows": "bad.jsonl"},
}


class Watch(Callback):
    """Keeps the rows and the loss of every micro-batch, with the divisor that reached the module, and may kill."""

    def __init__(self, kill: int | None) -> None:
        self.kill = kill
        self.seen: list[tuple[int, list[str], int, float]] = []

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ids, spans = batch["input_ids"].flatten(), batch["row_spans"].tolist()
        rows = [
            str(ids[a:b].tolist()) for (a, b), row in zip(spans, batch["row_index"].tolist(), strict=True) if row >= 0
        ]
        objective = outputs["tokens"]["objective"].sum().item()
        self.seen.append((self.step, rows, int(batch["divisor"]), objective))
        if trainer.global_step == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)


def run(directory: Path, name: str, ranks: int = 1, kill: int | None = None, ckpt: str | None = None,
        rows: str = "rows.jsonl", streaming: bool = True, **options: Any) -> dict[str, Any]:  # fmt: skip
    """One training; what was seen, and the weights after it or the error that ended it."""
    seed_everything(0, verbose=False)
    watch = Watch(kill)
    model = str(directory / "model")
    schedule = ScheduleConfig("constant", 0.0)
    module = SFTModule(LanguageModelConfig(model), CrossEntropyLoss(), None, AdamWConfig(lr=1.0, eps=10.0), schedule)
    data = SFTData(
        str(directory / rows), tokenizer=model, max_length=80, streaming=streaming, shuffle_buffer=5,
        **{"batch_size": BATCH, "micro_batch_size": 2, **options},
    )  # fmt: skip
    checkpoints = Checkpoints(str(directory / name), every_n_steps=SAVED_EVERY)
    strategy, callbacks = DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto", [watch, checkpoints]
    steps = {"max_steps": STEPS, "max_epochs": None}
    trainer = make_trainer(directory / name, devices=ranks, strategy=strategy, callbacks=callbacks, **steps)
    error = None
    try:
        trainer.fit(module, data, ckpt_path=directory / ckpt / "last.ckpt" if ckpt else None)
    except UserError as stopped:
        error = str(stopped)
    weights = {key: value.detach().clone() for key, value in module.named_parameters()}
    return {"seen": watch.seen, "weights": weights, "error": error}


def rank(number: int, directory: str, name: str) -> None:
    torch.save(run(Path(directory), name, **RUNS[name]), Path(directory) / f"{name}-{number}.pt")


if __name__ == "__main__":
    for name, options in RUNS.items():
        try:
            fork_ranks(rank, sys.argv[1], name, ranks=options.get("ranks", 1))
        except multiprocessing.ProcessExitedException as killed:
            if "kill" not in options or killed.signal_name != "SIGKILL":
                raise

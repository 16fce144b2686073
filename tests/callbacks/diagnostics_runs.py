"""Two optimizer steps with every diagnostic on, under any strategy; run as a script, on two gloo ranks.

    diagnostics_runs.py WORLD OUT STRATEGY [STRATEGY ...]

One launch runs all strategies, as imports cost most of the time.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor

from tests.contract.steps import rehearsal
from tests.modules.normaliser import Memory
from tests.support.ranks import fork_ranks
from tests.support.training import make_trainer
from ts2_lightning.callbacks import (
    DistributionMonitor,
    NextTokenPicture,
    ReferenceDrift,
    SampleGenerations,
    Throughput,
    TSPDSetting,
)
from ts2_lightning.data import SFTData
from ts2_lightning.generation import Decoder
from ts2_lightning.losses import TS2Loss
from ts2_lightning.modules import AdamWConfig, LanguageModelConfig, ScheduleConfig, SFTModule

TSPD = [TSPDSetting(2, 0.05, 0.5), TSPDSetting(4, 0.01, 0.9)]
POSITIONS = (1, 2, 4)
VALIDATION = ("validation", "train")  # two sets: another one, and the beginning of the training rows
PROMPTS = ["name a fruit", "what is the weather"]


def diagnostics() -> list[Callback]:
    return [
        DistributionMonitor(
            tspd=TSPD, split_by=["position", "token_class"], positions=POSITIONS, histogram_every_n_steps=1
        ),
        Throughput(peak_flops=1e9),
        ReferenceDrift(every_n_steps=1, tokens=40),
        SampleGenerations(PROMPTS, every_n_steps=1, n=2, decoder=Decoder("sparsemax"), max_new_tokens=6, batch_size=3),
        NextTokenPicture(PROMPTS, opening="the answer is", top=3),
    ]


def pictured(trainer: Trainer) -> Tensor:
    """[2, P, K] what is in the two panels of the pictures."""
    [callback] = [callback for callback in trainer.callbacks if isinstance(callback, NextTokenPicture)]  # type: ignore[attr-defined]
    assert callback.start is not None
    assert callback.latest is not None
    return torch.stack([callback.start, callback.latest])


def run(
    world: Path,
    directory: Path,
    strategy: Any = "auto",
    ranks: int = 1,
    more: Sequence[Callback] = (),
    checkpoint: Path | None = None,
    max_steps: int = -1,
) -> tuple[SFTModule, Trainer, Memory]:
    """Trains one epoch of 16 and 3 rows, or what a checkpoint has left of it."""
    seed_everything(0, verbose=False)
    model = str(world / "untied")
    memory = Memory()
    module = SFTModule(
        LanguageModelConfig(model), TS2Loss(), optimizer=AdamWConfig(lr=2e-3, eps=1e-2),
        schedule=ScheduleConfig("constant", warmup_ratio=0.0),
    )  # fmt: skip
    data = SFTData(
        train=str(world / "train.jsonl"), validation={name: str(world / f"{name}.jsonl") for name in VALIDATION},
        tokenizer=model, batch_size=16, micro_batch_size=4, eval_batch_size=3, max_length=100, limit_validation=7,
    )  # fmt: skip
    trainer = make_trainer(
        directory, devices=ranks, strategy=strategy, max_epochs=1, max_steps=max_steps, logger=memory,
        callbacks=[*diagnostics(), *more],
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)
    return module, trainer, memory


def rank(number: int, world: Path, out: Path, names: list[str]) -> None:
    for name in names:
        _, trainer, memory = run(world, out / name, rehearsal(name), ranks=2)
        if number == 0:
            torch.save(memory.steps, out / name / "logged.pt")
            torch.save(pictured(trainer), out / name / "pictured.pt")


if __name__ == "__main__":
    fork_ranks(rank, Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])

"""What the framework around a step costs: a step of `fit` on the toy world beside the same step of a plain loop.

    OMP_NUM_THREADS=1 python -m benchmarks.training_step --out benchmarks/results/training_step_cpu.json
    OMP_NUM_THREADS=1 python -m benchmarks.training_step --profile

The model has 0.44 million parameters, so that what does not grow with a model is most of a step. Subjects:

- plain: a loop that makes the model's own logits, cross-entropy, gradient clipping, AdamW and a schedule
- engine: the same loop with the network that `fit` trains: TS2 and all statistics
- lightning: the plain loop's step as a LightningModule; the rows of our datamodule, no callbacks, no loggers
- fit: all that a run has: TS2, both loggers, the default callbacks, all statistics in every step

In two trainings, of the last two, the loops take their turns between two steps, on the same batch. A step of a training
is all that happens between two turns of the loops: the next batch, the hooks, the loggers, and the work of other
threads. Processor time; ratios are to the plain loop's turn in the same step.
"""

import argparse
import copy
import cProfile
import logging
import pstats
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.nn import functional as F

from benchmarks.record import spread, write
from ts2_lightning.callbacks import default_callbacks
from ts2_lightning.cli.base_models import resolve_model
from ts2_lightning.cli.loggers import join_defaults
from ts2_lightning.data import SFTData
from ts2_lightning.modules import AdamWConfig, LanguageModelConfig, ScheduleConfig, SFTModule
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.modules.optimization import make_optimizer, make_schedule
from ts2_lightning.types import Batch

WARM_UP = 10
TRAININGS = ("lightning", "fit")

Turn = tuple[float, float]
"""Processor seconds of a step, and those of the plain loop's on the same batch."""


def cross_entropy(network: SFTNetwork, batch: Batch) -> torch.Tensor:
    """The mean of a step, as a training script has it."""
    model: Any = network.language_model
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    logits = output.logits.flatten(0, 1).index_select(0, batch["supervised"])
    return F.cross_entropy(logits.float(), batch["labels"], reduction="sum") / batch["divisor"]


class Loop:
    """A training loop without a framework.

    Args:
        network: the network before its training.
        module: module with the settings of optimizer and schedule.
        engine: whether the loss is the network's own; else it is cross-entropy on the model's logits.
        steps: number of steps, for the schedule.
    """

    def __init__(self, network: SFTNetwork, module: SFTModule, engine: bool, steps: int) -> None:
        self._network, self._engine = copy.deepcopy(network), engine
        self._optimizer = make_optimizer(self._network, module.optimizer)
        self._schedule = make_schedule(self._optimizer, module.schedule, steps)

    def step(self, batch: Batch) -> None:
        """One step."""
        loss = self._network(batch).total / batch["divisor"] if self._engine else cross_entropy(self._network, batch)
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        self._optimizer.step()
        self._schedule.step()


class PlainModule(lightning.LightningModule):
    """The plain loop's step as a LightningModule.

    Args:
        module: module whose network is trained, with its optimizer and its schedule.
        steps: number of steps, for the schedule.
    """

    def __init__(self, module: SFTModule, steps: int) -> None:
        super().__init__()
        self.network = module.network
        self._settings, self._steps = (module.optimizer, module.schedule), steps

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The loss."""
        return cross_entropy(self.network, batch)

    def configure_optimizers(self) -> Any:
        """As the loops have them."""
        optimizer = make_optimizer(self.network, self._settings[0])
        schedule = make_schedule(optimizer, self._settings[1], self._steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TakeTurns(Callback):
    """Has the loops make their steps between two steps of a training, and keeps the processor seconds of all.

    Args:
        training: name of the training.
        module: module with the settings of optimizer and schedule.
        steps: number of steps of the training.
        profile: profile of the steps of the training, or None.
    """

    def __init__(self, training: str, module: SFTModule, steps: int, profile: cProfile.Profile | None) -> None:
        self._training, self._module, self._steps, self._profile = training, module, steps, profile
        self._loops: dict[str, Loop] = {}
        self.turns: dict[str, list[Turn]] = {name: [] for name in ("plain", "engine", training)}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Makes the loops, and starts the clock."""
        names = {"plain": False, "engine": True}
        self._loops = {
            name: Loop(pl_module.network, self._module, engine, self._steps) for name, engine in names.items()
        }
        self._started = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Stops the clock, gives the loops their turns, and starts it again."""
        if self._profile is not None:
            self._profile.disable()
        seconds = {self._training: time.process_time() - self._started}
        for name, loop in self._loops.items():
            before = time.process_time()
            loop.step(batch)
            seconds[name] = time.process_time() - before
        if trainer.global_step > WARM_UP:
            for name, spent in seconds.items():
                self.turns[name].append((spent, seconds["plain"]))
        if self._profile is not None and trainer.global_step >= WARM_UP:
            self._profile.enable()
        self._started = time.process_time()


def measure(training: str, model: str, steps: int, profile: cProfile.Profile | None = None) -> dict[str, list[Turn]]:
    """The turns of a training and of the loops beside it.

    Args:
        training: one of `TRAININGS`.
        model: directory of the model.
        steps: number of steps, after `WARM_UP` that are not counted.
        profile: profile of the steps of the training, or None.
    """
    whole = training == "fit"
    module = SFTModule(
        LanguageModelConfig(model), optimizer=AdamWConfig(lr=5e-4), schedule=ScheduleConfig(warmup_ratio=0.1)
    )
    module.configure_model()
    turns = TakeTurns(training, module, WARM_UP + steps, profile)
    with tempfile.TemporaryDirectory() as place:
        data = SFTData(
            "toyworld:train?seed=0", tokenizer=model, batch_size=8, micro_batch_size=8, max_length=128, cache=False
        )
        trainer = Trainer(
            default_root_dir=place, accelerator="cpu", devices=1, max_steps=WARM_UP + steps, gradient_clip_val=1.0,
            log_every_n_steps=1, callbacks=[*(default_callbacks(place) if whole else ()), turns],
            logger=join_defaults(None, Path(place)) if whole else False, enable_checkpointing=whole,
            enable_progress_bar=whole, enable_model_summary=False, use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module if whole else PlainModule(module, WARM_UP + steps), datamodule=data)
    return turns.turns


def summary(turns: dict[str, list[Turn]]) -> dict[str, dict[str, float]]:
    """Median milliseconds of each subject, and its ratio to the plain loop: median and quartiles over the steps."""
    table = {}
    for name, of_name in turns.items():
        middle = statistics.median(mine for mine, _ in of_name)
        table[name] = {"processor_ms": round(1000 * middle, 2)}
        table[name] |= spread("to_plain", (mine / plain for mine, plain in of_name))
    return table


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--profile", action="store_true", help="show where the time of a step of fit goes")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    model = resolve_model("toyworld")
    profile = cProfile.Profile(time.thread_time) if options.profile else None
    results: dict[str, dict[str, float]] = {}
    for training in TRAININGS:
        results |= summary(measure(training, model, options.steps, profile if training == "fit" else None))
    for name, row in results.items():
        print(f"{name:10}", *(f"{key} {value:8.3f}" for key, value in row.items()))
    write(options.out, {"steps": options.steps, "results": results})
    if profile is not None:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(100)


if __name__ == "__main__":
    main()

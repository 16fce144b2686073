"""The toy world's base model: pretrained on the world's text on first use, then cached."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng

from ts2_lightning.callbacks import StepProgress
from ts2_lightning.data import SFTData
from ts2_lightning.export import ExportSettings, export_model
from ts2_lightning.losses import CrossEntropyLoss
from ts2_lightning.modules import AdamWConfig, LanguageModelConfig, ScheduleConfig, SFTModule
from ts2_lightning.toyworld import (
    base_directory,
    building_directory,
    is_complete,
    load_world,
    publish,
    write_blank_model,
)


def ensure_base(seed: int = 0) -> Path:
    """The directory of the finished base model; it is made if it is not there.

    About 0.44 million parameters, one epoch of 32,000 windows of the world's text. The same seed gives the same
    weights on the same machine, whatever the state of the random generators, which is left as it was. Processes
    that ask together wait for the first of them.

    Args:
        seed: seed of the text and of the weights.
    """
    recipe = load_world().settings["pretraining"]
    directory = base_directory(seed, recipe)
    if is_complete(directory):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_name(f".{directory.name}.lock")):
        if is_complete(directory):
            return directory
        rank_zero_info(f"Making the toy world's base model (once; then it lies in {directory})")
        building = building_directory(directory)
        try:
            with isolate_rng():
                _pretrain(seed, recipe, building)
            return publish(building, directory)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _pretrain(seed: int, recipe: dict[str, Any], out: Path) -> None:
    """An ordinary fit with cross-entropy on every token, from random weights."""
    seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as blank:
        write_blank_model(blank)
        optimizer, schedule = recipe["optimizer"], recipe["schedule"]
        module = SFTModule(
            LanguageModelConfig(blank, init="random"),
            loss=CrossEntropyLoss(),
            optimizer=AdamWConfig(optimizer["lr"], tuple(optimizer["betas"]), weight_decay=optimizer["weight_decay"]),
            schedule=ScheduleConfig(schedule["name"], warmup_steps=schedule["warmup_steps"]),
        )
        rows = recipe["rows_per_step"]
        source = f"toyworld:pretrain?seed={seed}"
        data = SFTData(
            train=source, tokenizer=blank, format="tokens", batch_size=rows, micro_batch_size=rows, seed=seed
        )
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            gradient_clip_val=recipe["gradient_clip"],
            callbacks=[StepProgress()],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, data)
        export_model(module.language_model, out, ExportSettings(tokenizer_source=blank))

"""Trainings of tests: on the CPU, and without a word."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint


def make_trainer(directory: Path | None = None, **settings: Any) -> Trainer:
    """A quiet trainer of one epoch. Checkpoints are written where one of the callbacks writes them."""
    defaults: dict[str, Any] = {
        "default_root_dir": None if directory is None else str(directory),
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in settings.get("callbacks") or ()),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "max_epochs": 1,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    return Trainer(**{**defaults, **settings})

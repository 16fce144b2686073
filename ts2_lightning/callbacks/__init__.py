"""Callbacks that read the published values of a training step: they log, draw, save, export and guard a run.

In: a trainer and its module; out: files in the run's directory and logged numbers. Only `NEFTune` and `StepSeed` take
part in training. `default_callbacks` are those of every run; a configuration may name each class. The table of rooms in
docs/architecture.md says what they may import. Not here: losses, engines, the model itself, and the command line.
"""

from pathlib import Path

from lightning.pytorch import Callback

from ts2_lightning.callbacks.checkpoints import Checkpoints
from ts2_lightning.callbacks.ema import EMA
from ts2_lightning.callbacks.export_huggingface import ExportHuggingFace
from ts2_lightning.callbacks.flattening import FlatteningRule
from ts2_lightning.callbacks.hyperparameters import Hyperparameters
from ts2_lightning.callbacks.monitor import DistributionMonitor, TSPDSetting
from ts2_lightning.callbacks.neftune import NEFTune
from ts2_lightning.callbacks.next_token_picture import NextTokenPicture
from ts2_lightning.callbacks.preemption import Preemption, Stopped
from ts2_lightning.callbacks.progress import StepProgress
from ts2_lightning.callbacks.reference_drift import ReferenceDrift
from ts2_lightning.callbacks.run_state import RunState
from ts2_lightning.callbacks.sample_generations import SampleGenerations
from ts2_lightning.callbacks.step_seed import StepSeed
from ts2_lightning.callbacks.throughput import Throughput
from ts2_lightning.callbacks.watchdog import Watchdog

__all__ = [
    "EMA",
    "Checkpoints",
    "DistributionMonitor",
    "ExportHuggingFace",
    "FlatteningRule",
    "Hyperparameters",
    "NEFTune",
    "NextTokenPicture",
    "Preemption",
    "ReferenceDrift",
    "RunState",
    "SampleGenerations",
    "StepProgress",
    "StepSeed",
    "Stopped",
    "TSPDSetting",
    "Throughput",
    "Watchdog",
    "default_callbacks",
]


def default_callbacks(run_dir: str | Path) -> list[Callback]:
    """The callbacks of an ordinary run.

    Args:
        run_dir: directory of the run; checkpoints go to `run_dir/checkpoints`, the exported model to
            `run_dir/export`.

    Returns:
        The callbacks in the order in which they act (the bar shows what the monitor has just published; Lightning puts
        checkpoints last in any case).
    """
    run = Path(run_dir)
    return [
        Preemption(),
        Watchdog(directory=str(run)),
        StepSeed(),
        DistributionMonitor(),
        StepProgress(),
        RunState(str(run)),
        ExportHuggingFace(str(run / "export")),
        Checkpoints(str(run / "checkpoints")),
    ]

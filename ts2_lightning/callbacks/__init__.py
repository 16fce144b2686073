"""Callbacks that read what a training step published: log it, keep checkpoints, export the model, show
progress. `NEFTune` alone takes part in the training.

`default_callbacks` is what every run gets; each class can be put into a config by its name as well.
"""

from pathlib import Path

from lightning.pytorch import Callback

from ts2_lightning.callbacks.checkpoints import Checkpoints
from ts2_lightning.callbacks.export import export_model
from ts2_lightning.callbacks.export_huggingface import ExportHuggingFace
from ts2_lightning.callbacks.monitor import DistributionMonitor
from ts2_lightning.callbacks.neftune import NEFTune
from ts2_lightning.callbacks.progress import StepProgress

__all__ = [
    "Checkpoints",
    "DistributionMonitor",
    "ExportHuggingFace",
    "NEFTune",
    "StepProgress",
    "default_callbacks",
    "export_model",
]


def default_callbacks(run_dir: str | Path) -> list[Callback]:
    """The callbacks of an ordinary run.

    Args:
        run_dir: directory of the run; checkpoints go to `run_dir/checkpoints`, the exported model to
            `run_dir/export`.

    Returns:
        `DistributionMonitor`, `StepProgress`, `ExportHuggingFace` and `Checkpoints`, in the order in which
        they act (the bar shows what the monitor has just published; Lightning puts checkpoints last in any
        case).
    """
    run = Path(run_dir)
    return [
        DistributionMonitor(),
        StepProgress(),
        ExportHuggingFace(str(run / "export")),
        Checkpoints(str(run / "checkpoints")),
    ]

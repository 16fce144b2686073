"""A module and rows of known per-token values, so that a callback's numbers can be worked out by hand."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

KEYS = ("objective", "cross_entropy", "entropy", "support_size", "tail_mass", "objective/sparsemax")


def make_rows(counts: list[int], seed: int = 0) -> list[dict[str, Tensor]]:
    """One micro-batch per count, each with that many tokens of random statistics, in very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    return [{key: torch.rand(n, generator=generator) * (1 + 10 * i) for key in KEYS} for i, n in enumerate(counts)]


def brute_force(rows: list[dict[str, Tensor]], key: str) -> float:
    """Mean over all tokens of some micro-batches, token by token, in Python's own floats."""
    values = [float(value) for row in rows for value in row[key]]
    return sum(values) / len(values)


class Publisher(LightningModule):
    """Publishes the batch's tensors as the step's token statistics, if they are asked for; trains one weight."""

    def __init__(self, validation_losses: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.validation_losses = validation_losses
        self.requested = False

    def request_statistics(self) -> None:
        self.requested = True

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        tokens = dict(batch) if self.requested else {"objective": batch["objective"]}
        self.requested = False
        return {"loss": self.weight.square().sum(), "tokens": tokens}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.log("val/cross_entropy", self.validation_losses[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(rows: list[Any]) -> DataLoader:
    """One item of the list per micro-batch, in order."""
    return DataLoader(rows, batch_size=None, shuffle=False)


def make_trainer(tmp_path: Path, **settings: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    defaults: dict[str, Any] = {
        "default_root_dir": str(tmp_path),
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "max_epochs": 1,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    return Trainer(**{**defaults, **settings})

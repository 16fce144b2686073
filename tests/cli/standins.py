"""A module and a datamodule with the signatures of the real ones; they train in milliseconds."""

import json
import os
import signal
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ts2_lightning.types import UserError

FIT = (
    "--model.lm.path=base",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
)
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment() -> dict[str, str]:
    """This process's environment for a child outside of any cluster, with one thread."""
    inherited = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    return {**inherited, "OMP_NUM_THREADS": "1"}


def default_callbacks(run: Path) -> list[Callback]:
    """Lightning's own checkpoints, named like ours."""
    directory = str(run / "checkpoints")
    return [ModelCheckpoint(directory, filename="best", monitor="val/objective", save_last=True)]


class Interrupting(Callback):
    """Presses Ctrl-C in the second epoch."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


class Warned(Callback):
    """Gets a signal in a step, by default SLURM's warning."""

    def __init__(self, step: int, name: str = "SIGUSR1") -> None:
        self.step, self.number = step, signal.Signals[name]

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(self.number)


class Failing(Callback):
    """Raises an error in training: the user's, or a bug."""

    def __init__(self, users: bool = True, step: int = 0) -> None:
        self.users, self.step = users, step

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise (UserError if self.users else RuntimeError)("step went\nwrong")


class FailingRank(Callback):
    """Raises an error in the last rank alone, which the others wait for."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_rank == trainer.world_size - 1:
            raise RuntimeError("this rank alone")


class LineLogger(Logger):
    """A user's logger: appends a line of step and metrics to a file."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = Path(file)

    @property
    def name(self) -> str:
        return "lines"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.file.open("a") as lines:
            lines.write(json.dumps([step, metrics]) + "\n")

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class AbsentLogger(LineLogger):
    """A logger whose package is not installed."""

    def __init__(self) -> None:
        raise ModuleNotFoundError("Requirement 'absent' not met. HINT: Try running\n`pip install absent`")


class WandbLogger(LineLogger):
    """A logger with the arguments of W&B's; each start is a run of its own unless it is told which."""

    def __init__(self, file: str, name: str | None = None, id: str | None = None, refuses: str | None = None) -> None:
        super().__init__(file)
        self.called, self.id, self.refuses = name, id, refuses

    @property
    def experiment(self) -> str:
        if self.refuses is not None:
            raise ConnectionError(self.refuses)
        if self.id is None:
            self.id = f"id-{len(self.file.read_text().splitlines()) if self.file.exists() else 0}"
        return self.id

    @property
    def version(self) -> str | None:  # type: ignore[override]
        return self.id

    def log_hyperparams(self, params: dict[str, Any]) -> None:  # type: ignore[override]
        if "trainer.max_epochs" not in params:  # what the module has saved
            return
        with self.file.open("a") as lines:
            lines.write(json.dumps([self.called, self.id, params["trainer.max_epochs"]]) + "\n")


class StandInLoss(ABC):
    """What every stand-in loss is."""

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor: ...


class SquareLoss(StandInLoss):
    """A loss with one hyper-parameter that it checks."""

    def __init__(self, alpha: float = 0.25, support: Literal["sparsemax", "top-k"] = "sparsemax") -> None:
        if alpha < 0:
            raise UserError(f"SquareLoss: alpha is {alpha}; it must be 0 or more")
        self.alpha = alpha
        self.support = support

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (1.0 + self.alpha) * (logits - labels).square().mean()


class CrossLoss(StandInLoss):
    """A loss without hyper-parameters."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits - labels).abs().mean()


@dataclass
class StandInLanguageModel:
    """Where the model comes from.

    Attributes:
        path: directory, hub name, or "toyworld".
        init: how the weights start.
    """

    path: str
    init: Literal["pretrained", "random"] = "pretrained"


@dataclass
class StandInOptimizer:
    """The optimizer's settings."""

    learning_rate: float = 0.1


class StandInModule(LightningModule):
    """A line fitted to points."""

    def __init__(
        self,
        lm: StandInLanguageModel,
        loss: StandInLoss = SquareLoss(),  # noqa: B008
        optimizer: StandInOptimizer = StandInOptimizer(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["loss"])
        self.lm, self.loss, self.optimizer_config = lm, loss, optimizer
        self.line = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self.line(x).squeeze(-1), y)
        self.log("train/objective", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val/objective", self.loss(self.line(x).squeeze(-1), y))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("test/objective", self.loss(self.line(x).squeeze(-1), y))

    def predict_step(self, batch: Any) -> list[dict[str, Any]]:
        return [{"value": float(v)} for v in self.line(batch[0]).squeeze(-1)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.optimizer_config.learning_rate)


class StandInData(LightningDataModule):
    """Thirty-two points; `train` may name a file that must exist."""

    def __init__(
        self, train: str | list[str] | None = None, tokenizer: str | None = None, batch_size: int = 8, seed: int = 0
    ) -> None:
        super().__init__()
        self.train, self.tokenizer_path, self.batch_size, self.seed = train, tokenizer, batch_size, seed

    def setup(self, stage: str) -> None:
        if isinstance(self.train, str) and not Path(self.train).exists():
            raise UserError(f"data.train: {self.train} does not exist")
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(32, 2, generator=generator)
        self.points = TensorDataset(x, x.sum(-1))

    def describe(self) -> dict[str, Any]:
        return {"rows": len(self.points), "tokenizer": self.tokenizer_path}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.points, batch_size=self.batch_size)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

"""A module and rows of known per-token values, so that a callback's numbers can be worked out by hand."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

KEYS = ("objective", "cross_entropy", "entropy", "support_size", "gold_in_support", "tail_mass", "objective/sparsemax")
TSPD_KEYS = ("tspd_head_2", "tspd_tail_2")


def make_rows(counts: list[int], seed: int = 0) -> list[dict[str, Tensor]]:
    """One micro-batch per count, each with that many tokens of random statistics, in very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i, n in enumerate(counts):
        row = {key: torch.rand(n, generator=generator) * (1 + 10 * i) for key in (*KEYS, *TSPD_KEYS)}
        row["support_size"] = torch.randint(1, 4 + 10 * i, (n,), generator=generator).float()
        row["gold_in_support"] = (row["gold_in_support"] > 0.3).float()
        rows.append(row | {"positions": torch.arange(1, n + 1)})
    return rows


def brute_force(rows: list[dict[str, Tensor]], key: str) -> float:
    """Mean over all tokens of some micro-batches, or a quantile, token by token, in Python's own floats."""
    name, _, percent = key.partition("_p")
    if percent.isdigit():
        ordered = sorted(float(value) for row in rows for value in row[name])
        return ordered[math.ceil(len(ordered) * int(percent) / 100) - 1]
    values = [value for row in rows for value in of_tokens(row, key)]
    return sum(values) / len(values)


def of_tokens(row: dict[str, Tensor], key: str) -> list[float]:
    """What a mean is taken of."""
    if key == "zero_gradient":
        both = zip(row["support_size"].tolist(), row["gold_in_support"].tolist(), strict=True)
        return [float(size == 1 and inside == 1) for size, inside in both]
    if key.startswith("tspd/m2_head"):
        head, tail = map(float, key.removeprefix("tspd/m2_head").split("_tail"))
        both = zip(row["tspd_head_2"].tolist(), row["tspd_tail_2"].tolist(), strict=True)
        return [float(x >= head and y <= tail) for x, y in both]
    return [float(value) for value in row[key]]


class Publisher(LightningModule):
    """Publishes the batch's tensors as the step's token statistics, if they are asked for; trains one weight."""

    def __init__(self, validation_losses: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.validation_losses = validation_losses
        self.requested: set[str] = set()

    def request_statistics(self, names: Collection[str]) -> None:
        self.requested = set(names)

    def add_to_row(self, metrics: Mapping[str, float]) -> None:
        """Writes at once; the objective is the module's own, and is in no row of these tests."""
        row = {name: value for name, value in metrics.items() if name != "train/objective"}
        for logger in self.trainer.loggers:
            logger.log_metrics(row, step=self.trainer.global_step)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        published = {"objective", "objective/sparsemax", *self.requested} if self.requested else {"objective"}
        tokens = {name: values for name, values in batch.items() if name in published}
        self.requested = set()
        return {"loss": self.weight.square().sum(), "tokens": tokens}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.log("val/cross_entropy", self.validation_losses[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(rows: list[Any]) -> DataLoader:
    """One item of the list per micro-batch, in order."""
    return DataLoader(rows, batch_size=None, shuffle=False)

"""A training step measures what somebody asks for, and trains the same whether it does or not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Timer

from tests.modules.normaliser import Memory
from tests.modules.test_normaliser import write_random_model
from tests.support.training import make_trainer
from ts2_lightning.callbacks import DistributionMonitor
from ts2_lightning.data import SFTData
from ts2_lightning.losses import SparsemaxLoss
from ts2_lightning.modules import AdamWConfig, LanguageModelConfig, SFTModule
from ts2_lightning.types import TOKEN_STATISTICS

PARTLESS = {"objective"}


class Published(Callback):
    """Keeps the names that every micro-batch published."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.names.append(set(outputs["tokens"]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_random_model(directory)
    return directory


def fit(model: Path, tmp_path: Path, callback: Callback) -> tuple[Published, Memory, dict[str, torch.Tensor]]:
    """Four optimizer steps of two micro-batches each."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "one", "completion": "two"}\n' * 16)
    seed_everything(0, verbose=False)
    published, memory = Published(), Memory()
    module = SFTModule(LanguageModelConfig(str(model)), SparsemaxLoss(), optimizer=AdamWConfig(lr=1e-2))
    data = SFTData(train=str(rows), tokenizer=str(model), batch_size=4, micro_batch_size=2)
    make_trainer(devices=1, logger=memory, callbacks=[callback, published]).fit(module, data)
    return published, memory, {name: p.detach() for name, p in module.named_parameters()}


def test_only_asked_for_statistics_are_measured(model: Path, tmp_path: Path) -> None:
    everything, _, weights = fit(model, tmp_path, DistributionMonitor())
    assert everything.names == [PARTLESS | set(TOKEN_STATISTICS)] * 8
    thinned, memory, same = fit(model, tmp_path, DistributionMonitor(every_n_steps=2))
    assert thinned.names == [PARTLESS, PARTLESS, *[PARTLESS | set(TOKEN_STATISTICS)] * 2] * 2
    assert ["train/entropy" in memory.steps[step] for step in (1, 2, 3, 4)] == [False, True, False, True]
    assert all("train/objective" in memory.steps[step] for step in (1, 2, 3, 4))
    nothing, memory, again = fit(model, tmp_path, Timer())
    assert nothing.names == [PARTLESS] * 8
    assert not any("train/cross_entropy" in metrics for metrics in memory.steps.values())
    for name, weight in weights.items():
        torch.testing.assert_close(same[name], weight, rtol=0, atol=1e-6)
        torch.testing.assert_close(again[name], weight, rtol=0, atol=1e-6)

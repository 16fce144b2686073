"""The moving average outside of a training; what it is within one, `tests/e2e/test_ema.py` compares with an own one."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tests.support.training import make_trainer
from ts2_lightning.callbacks import EMA
from ts2_lightning.checkpoint_files.reading import EMA as ENTRY


class Learner(LightningModule):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_checkpoint_after_the_training_has_no_average_and_says_so(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[EMA()])
    trainer.fit(Learner(), torch.ones(3, 2))
    with pytest.warns(UserWarning, match="this checkpoint has none, the last one of the training has it"):
        trainer.save_checkpoint(tmp_path / "after.ckpt")
    stored = torch.load(tmp_path / "after.ckpt", weights_only=True)
    assert ENTRY not in stored
    assert list(stored["state_dict"]) == ["layer.weight"]

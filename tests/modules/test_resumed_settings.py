"""Settings that are given anew when a training goes on count from its next step: against AdamW written out by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from tests.modules.normaliser import Watch
from tests.modules.test_nonfinite import Overflowing
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints
from ts2_lightning.data import SFTData
from ts2_lightning.losses import CrossEntropyLoss, TokenLoss
from ts2_lightning.modules import AdamWConfig, LanguageModelConfig, ScheduleConfig, SFTModule
from ts2_lightning.types import UserError

BEFORE = AdamWConfig(lr=1e-2, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
AFTER = AdamWConfig(lr=3e-3, betas=(0.5, 0.8), eps=1e-3, weight_decay=0.4)
FIRST, LAST = 2, 4  # steps of the first start, and of both together


class Whole(Watch):
    """Of a start that goes on, the steps are not counted from 0."""

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.before = {name: p.detach().clone() for name, p in module.language_model.named_parameters()}
        self.first = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step - self.first > len(self.weights):
            self.weights.append({name: p.detach().clone() for name, p in module.language_model.named_parameters()})


def fit(
    world: Path, out: Path, optimizer: AdamWConfig, schedule: ScheduleConfig, last: int, checkpoint: Path | None = None,
    nonfinite: Any = "stop", loss: TokenLoss | None = None, **trainer: Any,
) -> Whole:  # fmt: skip
    seed_everything(0, verbose=False)
    watch = Whole()
    lm = LanguageModelConfig(str(world / "tied"), dtype="float64")
    module = SFTModule(lm, loss or CrossEntropyLoss(), optimizer=optimizer, schedule=schedule, nonfinite=nonfinite)
    data = SFTData(
        train=str(world / "train.jsonl"), tokenizer=str(world / "tied"), batch_size=8, micro_batch_size=8, cache=False
    )
    callbacks = [watch, Checkpoints(str(out), every_n_steps=1, keep_last=9)]
    run = make_trainer(max_steps=last, callbacks=callbacks, **{"max_epochs": None, **trainer})
    run.fit(module, data, ckpt_path=None if checkpoint is None else str(checkpoint))
    return watch


def adamw(weights: dict[str, Tensor], gradients: list[dict[str, Tensor]], settings: list[Any]) -> dict[str, Tensor]:
    """Loshchilov and Hutter 2019, algorithm 2, step by step with the settings and the rate of each."""
    weights = dict(weights)
    first = {name: torch.zeros_like(w) for name, w in weights.items()}
    second = {name: torch.zeros_like(w) for name, w in weights.items()}
    for t, (gradient, (config, rate)) in enumerate(zip(gradients, settings, strict=True), start=1):
        for name, g in gradient.items():
            b1, b2 = config.betas
            first[name] = b1 * first[name] + (1 - b1) * g
            second[name] = b2 * second[name] + (1 - b2) * g**2
            decay = config.weight_decay if g.ndim >= 2 else 0.0
            m, v = first[name] / (1 - b1**t), second[name] / (1 - b2**t)
            weights[name] = weights[name] * (1 - rate * decay) - rate * m / (v.sqrt() + config.eps)
    return weights


def rates(config: AdamWConfig, name: str, total: int) -> list[float]:
    return [
        config.lr * {"constant": 1.0, "linear": 1 - t / total, "cosine": (1 + math.cos(math.pi * t / total)) / 2}[name]
        for t in range(total)
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [(BEFORE, BEFORE), (BEFORE, AFTER), (AFTER, BEFORE)],
    ids=["the same", "smaller rate", "larger rate"],
)
@pytest.mark.parametrize("names", [("linear", "cosine"), ("constant", "constant"), ("cosine", "linear")])
def test_updates_after_a_resume(
    world: Path, tmp_path: Path, before: AdamWConfig, after: AdamWConfig, names: tuple[Any, Any]
) -> None:
    old, new = (ScheduleConfig(name, warmup_ratio=0.0) for name in names)
    first = fit(world, tmp_path, before, old, FIRST)
    then = fit(world, tmp_path, after, new, LAST, tmp_path / "last.ckpt")
    settings = [(before, rate) for rate in rates(before, names[0], FIRST)]
    settings += [(after, rate) for rate in rates(after, names[1], LAST)[FIRST:]]
    wanted = adamw(first.before, first.gradients + then.gradients, settings)
    assert len(settings) == LAST
    for name, weight in then.weights[-1].items():
        torch.testing.assert_close(weight, wanted[name], rtol=1e-9, atol=1e-12)
    assert any(not torch.equal(then.weights[-1][name], first.weights[-1][name]) for name in wanted)


def test_an_update_that_ruins_the_weights_is_no_checkpoint(world: Path, tmp_path: Path) -> None:
    """All that was looked at before the last update was finite."""
    constant = ScheduleConfig("constant", warmup_ratio=0.0)
    fit(world, tmp_path, BEFORE, constant, 1)
    before = sorted(path.name for path in tmp_path.iterdir())
    bad = AdamWConfig()
    bad.lr = float("inf")  # what the settings refuse may still come about, as may an overflow
    with pytest.raises(UserError, match="step 2: the update has left weights that are not finite") as caught:
        fit(world, tmp_path, bad, constant, 2, tmp_path / "last.ckpt")
    assert f"go on from {tmp_path}/last.ckpt with another setting" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "the good one keeps its place"


def test_a_training_whose_every_step_is_left_out_has_failed(world: Path, tmp_path: Path) -> None:
    constant = ScheduleConfig("constant", warmup_ratio=0.0)
    with pytest.raises(UserError, match="each of the 2 steps was left out, as none had a finite gradient"):
        fit(world, tmp_path, BEFORE, constant, 2, nonfinite="skip", loss=Overflowing())

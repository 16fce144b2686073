"""A method in a file of the user's: a module that anchors training to a frozen model, and a loss that does."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.contract import steps
from tests.contract.test_engines_and_losses import ENGINES, assert_close, expected, found, linear, problem
from tests.e2e.command_line import CommandLine, column
from tests.reference import cross_entropy, reference_logits
from ts2_lightning.cli.catalogue import find
from ts2_lightning.losses import TokenLoss

METHOD = '''
"""Two ways to stay near the base model."""

from typing import Any

import torch

from ts2_lightning.losses import (
    CrossEntropyLoss, DensePart, Gradient, LossResult, ReferenceAnchored, Term, TokenLoss, cross_entropy
)
from ts2_lightning.modules import LanguageModelConfig, SFTModule
from ts2_lightning.ops import LogitRows


class Anchored(SFTModule):
    """Anchors whatever objective is set."""

    def __init__(
        self, lm: LanguageModelConfig, loss: TokenLoss | None = None, beta: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(lm, ReferenceAnchored(loss or CrossEntropyLoss(), beta), **kwargs)


class ReverseAnchored(TokenLoss):
    """Cross-entropy plus the reverse divergence, from the model to the reference.

    L = -log p_y + beta sum_j p_j (log p_j - log r_j), r the reference's softmax

    dL/dz = p - e_y + beta p (log p - log r - KL(p || r))
    """

    needs_reference = True

    def __init__(self, beta: float = 0.5) -> None:
        self.beta = beta

    def evaluate(self, rows: LogitRows) -> LossResult:
        log_p, log_r = rows.logits.log_softmax(-1), rows.reference.logits.log_softmax(-1)
        gap, p = log_p - log_r, log_p.exp()
        divergence = (p * gap).sum(-1)
        gradient = Gradient((DensePart(torch.ones_like(divergence), p * (gap - divergence[:, None])),))
        anchor = Term(divergence, gradient).scaled(self.beta)
        return LossResult(cross_entropy(rows) + anchor, {"gold": rows.cross_entropy, "anchor": anchor.value})
'''


@pytest.fixture
def world(ts2: CommandLine) -> str:
    """A model with weights, rows, and the user's file, in the working directory."""
    Path("world").mkdir()
    steps.write_world(Path("world"))
    Path("my_anchored_method.py").write_text(METHOD)
    return "world/tied"


def options(world: str, *more: str) -> list[str]:
    data = ["--data.train", "world/train.jsonl", "--data.batch_size", "4", "--data.micro_batch_size", "2"]
    trainer = [
        "--trainer.accelerator",
        "cpu",
        "--trainer.log_every_n_steps",
        "1",
        "--trainer.enable_progress_bar=false",
    ]
    lm = [
        "--model.lm.path",
        world,
        "--data.tokenizer",
        world,
        "--model.optimizer.lr",
        "0.01",
        "--data.max_length",
        "100",
    ]
    return ["fit", *lm, *data, *trainer, "--name", "run", *more]


def test_a_module_with_a_frozen_reference(ts2: CommandLine, world: str) -> None:
    """Trained, recorded, gone on with from a checkpoint that has no reference; and the plan knows its copy."""
    more = ("--model", "my_anchored_method.Anchored", "--model.loss", "TS2Loss", "--model.beta", "2")
    ts2(*options(world, *more, "--trainer.max_steps", "4")).done()
    anchor, objective = (column("runs/run/1", f"train/objective{part}") for part in ("/reference_divergence", ""))
    assert anchor[1] == 0
    assert all(anchor[step] > 0 for step in (2, 3, 4))
    parts = [column("runs/run/1", f"train/objective/{part}") for part in ("sparsemax", "tail_suppression")]
    assert objective[4] == pytest.approx(anchor[4] + parts[0][4] + parts[1][4])
    ts2("fit", "--ckpt_path", "last", "--name", "run", "--trainer.max_steps", "5").done()
    assert column("runs/run/1", "train/objective/reference_divergence")[5] > 0
    planned = ts2("plan", *options(world, *more)[1:]).done()
    assert "ReferenceAnchored" in planned.out
    assert "frozen reference model" in planned.out


def test_a_loss_with_a_frozen_reference(ts2: CommandLine, world: str) -> None:
    """Exact on every engine, and trained with an adapter, whose reference is the model without it."""
    more = ("--model.loss", "my_anchored_method.ReverseAnchored", "--model.loss.beta", "2", "--trainer.max_steps", "3")
    ts2(*options(world, *more, "--model.lm.adapter.r", "2")).done()
    anchor = column("runs/run/1", "train/objective/anchor")
    assert anchor[1] == pytest.approx(0, abs=1e-6)
    assert anchor[3] > 1e-6
    ts2("losses", "my_anchored_method.ReverseAnchored").done()


def test_a_loss_with_a_frozen_reference_is_exact(ts2: CommandLine, world: str) -> None:
    import my_anchored_method

    loss: TokenLoss = my_anchored_method.ReverseAnchored(0.7)

    def formula(z: Tensor, labels: Tensor) -> Tensor:
        log_p = z.log_softmax(-1)
        gap = log_p - reference_logits(*z.shape).log_softmax(-1)
        return cross_entropy(z, labels) + 0.7 * (log_p.exp() * gap).sum(-1)

    hidden, weight, labels, weights = problem(23, 5, 1031)
    wanted = expected(formula, linear(weight), hidden, labels, weights)
    for engine in ENGINES.values():
        assert_close(found(engine, loss, linear(weight), hidden, labels, weights)[0], wanted, torch.float64)
    assert find("my_anchored_method.ReverseAnchored").formula is not None

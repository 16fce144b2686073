"""Objectives: one file per family, each a formula on rows of logits."""

from ts2_lightning.losses.base import Gradient, LossResult, Term, TokenLoss, ValueLoss
from ts2_lightning.losses.cross_entropy import CrossEntropyLoss, cross_entropy
from ts2_lightning.losses.sparsemax import sparsemax_loss
from ts2_lightning.losses.suppression import tail_suppression
from ts2_lightning.losses.ts2 import TS2Loss

__all__ = [
    "CrossEntropyLoss",
    "Gradient",
    "LossResult",
    "TS2Loss",
    "Term",
    "TokenLoss",
    "ValueLoss",
    "cross_entropy",
    "sparsemax_loss",
    "tail_suppression",
]

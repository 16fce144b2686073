"""Objectives: one file per family, each a formula on rows of logits.

In: rows of logits and what is known of their tokens; out: values of tokens and gradients. It may import only `ops` (and
what every room may). Not here: models, batches, chunks, devices, and means over tokens.
"""

from ts2_lightning.losses.base import DensePart, Gradient, LossResult, SparsePart, Term, TokenLoss, ValueLoss
from ts2_lightning.losses.cross_entropy import CrossEntropyLoss, EntropyBonusLoss, LabelSmoothingLoss, cross_entropy
from ts2_lightning.losses.fenchel_young import EntmaxLoss, FenchelYoungLoss, SparsemaxLoss, entmax_loss, fenchel_young
from ts2_lightning.losses.focal import FocalLoss, LambdaPRLoss, TOFULoss
from ts2_lightning.losses.gem import GEMLoss
from ts2_lightning.losses.inflation import ExponentialInflationLoss, LogarithmicInflationLoss, PowerInflationLoss
from ts2_lightning.losses.reference_anchored import ReferenceAnchored, reference_divergence
from ts2_lightning.losses.reference_suppression import ReferenceSuppression, suppression_outside
from ts2_lightning.losses.suppression import FenchelYoungPlusLoss, SuppressionOnlyLoss, TS2Loss, tail_suppression

__all__ = [
    "CrossEntropyLoss",
    "DensePart",
    "EntmaxLoss",
    "EntropyBonusLoss",
    "ExponentialInflationLoss",
    "FenchelYoungLoss",
    "FenchelYoungPlusLoss",
    "FocalLoss",
    "GEMLoss",
    "Gradient",
    "LabelSmoothingLoss",
    "LambdaPRLoss",
    "LogarithmicInflationLoss",
    "LossResult",
    "PowerInflationLoss",
    "ReferenceAnchored",
    "ReferenceSuppression",
    "SparsePart",
    "SparsemaxLoss",
    "SuppressionOnlyLoss",
    "TOFULoss",
    "TS2Loss",
    "Term",
    "TokenLoss",
    "ValueLoss",
    "cross_entropy",
    "entmax_loss",
    "fenchel_young",
    "reference_divergence",
    "suppression_outside",
    "tail_suppression",
]

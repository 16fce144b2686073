"""Metrics of tokens and of texts, independent of losses and of training.

In: logits and labels, or several texts to one prompt; out: numbers. torchmetrics classes over the pure functions of
`metrics.functional`. It may import only `ops` (and what every room may). Not here: models, trainers, sampling.
"""

from ts2_lightning.metrics import functional
from ts2_lightning.metrics.means import BySet
from ts2_lightning.metrics.texts import Distinct, DiversityVariant, SelfBLEU, SentBERTDiversity, diversity_metrics
from ts2_lightning.metrics.token_means import TokenMeans
from ts2_lightning.metrics.tokens import (
    TSPD,
    GoldInSupport,
    GoldProbability,
    GoldRank,
    MeanSelectedProbability,
    SupportSize,
    SupportSizes,
    TailMass,
    TokenEntropy,
    TokenStatistics,
    TopProbabilities,
    ZeroGradient,
)

__all__ = [
    "TSPD",
    "BySet",
    "Distinct",
    "DiversityVariant",
    "GoldInSupport",
    "GoldProbability",
    "GoldRank",
    "MeanSelectedProbability",
    "SelfBLEU",
    "SentBERTDiversity",
    "SupportSize",
    "SupportSizes",
    "TailMass",
    "TokenEntropy",
    "TokenMeans",
    "TokenStatistics",
    "TopProbabilities",
    "ZeroGradient",
    "diversity_metrics",
    "functional",
]

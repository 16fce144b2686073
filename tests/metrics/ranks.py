"""Two gloo ranks, each with its part of the data, print what every metric makes of the whole: `ranks.py`.

A script of its own, so that the ranks are forked from one fresh interpreter: imports cost most of the time.
"""

import json
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import MetricCollection

from tests.support.ranks import fork_ranks
from ts2_lightning import metrics

SIZES = [(3, 5), (1, 2), (4, 6), (2, 3)]
"""Responses and tokens of each batch."""

OF_RANK = [[0, 1, 2], [3]]
"""Which batches a rank has, and which prompts: unequal numbers, so that a mean of means would be wrong."""

SAMPLES = [
    ["a cat sat", "a cat ran off", "the dog"],
    ["one two three four five", "one two three five four", "so so so"],
    ["plum", "plum", "pear"],
    ["never say never", "a hat on a mat .", "never say never"],
]


def batches() -> list[tuple[Tensor, Tensor]]:
    """The same on every rank and in the test; the last rows are not supervised."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for rows, tokens in SIZES:
        logits = 2 * torch.randn(rows, tokens, 40, generator=generator)
        labels = torch.where(torch.rand(rows, tokens, generator=generator) < 0.5, logits.argmax(-1), 7)
        labels[-1, 1:] = -100
        found.append((logits, labels))
    return found


def lengths(texts: list[str]) -> Tensor:
    """Stands for sentence embeddings."""
    return torch.tensor([[float(len(text)), float(text.count(" "))] for text in texts])


def of_tokens() -> MetricCollection:
    """Every metric on logits and labels; those on other settings too."""
    return MetricCollection(
        {
            "support_size": metrics.SupportSize(),
            "support_size_at_3": metrics.SupportSize(logit_scale=3.0),
            "support_sizes": metrics.SupportSizes(largest=20),
            "tail_mass": metrics.TailMass(),
            "entropy": metrics.TokenEntropy(),
            "gold_probability": metrics.GoldProbability(),
            "gold_rank": metrics.GoldRank(),
            "gold_in_support": metrics.GoldInSupport(),
            "zero_gradient": metrics.ZeroGradient(),
            "top": metrics.TopProbabilities(),
            "tspd_2": metrics.TSPD(2, 0.1, 0.4),
            "tspd_4": metrics.TSPD(4, 0.02, 0.3),
            "statistics": metrics.TokenStatistics(),
            "selected": metrics.MeanSelectedProbability(),
        }
    )


def of_texts() -> MetricCollection:
    """Every metric on samples."""
    return MetricCollection(
        {
            "distinct": metrics.Distinct(),
            "pooled": metrics.Distinct(pooled=True),
            "self_bleu": metrics.SelfBLEU(),
            "first_only": metrics.SelfBLEU(first_only=True),
            "sent_bert": metrics.SentBERTDiversity(lengths),
        }
    )


def rank(number: int) -> None:
    """Both collections on this rank's part; the first prints what they make of all."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    tokens, texts, nothing = of_tokens(), of_texts(), metrics.TokenEntropy()
    for i in OF_RANK[number]:
        tokens.update(*batches()[i])
        texts.update([SAMPLES[i]])
    if number == 1:
        nothing.update(*batches()[0])  # rank 0 has not seen a token
    found = tokens.compute() | texts.compute() | {"entropy_of_rank_1": nothing.compute()}
    if number == 0:
        print(json.dumps({name: value.tolist() for name, value in found.items()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    fork_ranks(rank)

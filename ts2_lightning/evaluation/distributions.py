"""Next-token distributions: what a decoder samples from, and the support that sparsemax keeps."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ts2_lightning.ops import entmax_probabilities


@dataclass(frozen=True)
class Decoder:
    """Temperature, then top-k, then top-p, with the meaning and the order of transformers' `generate`.

    Attributes:
        temperature: divides the logits; > 0.
        top_k: keep the k largest logits, and those that tie with the k-th; 0 keeps all.
        top_p: keep the smallest set of largest probabilities that reaches this mass; 1 keeps all.

    Raises:
        ValueError: a value out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: expected a finite number above 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k: expected 0 (keep all) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number above 0 and at most 1, got {self.top_p}")

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that is sampled from.

        Args:
            logits: [..., K].

        Returns:
            [..., K] log-probabilities, -inf for the tokens that the decoder removes.

        Example:
            >>> logits = torch.tensor([0.5, 0.3, 0.2]).log()
            >>> [round(p, 3) for p in Decoder(top_p=0.7).log_probabilities(logits).exp().tolist()]
            [0.625, 0.375, 0.0]
        """
        scores = logits / self.temperature
        if 0 < self.top_k < scores.shape[-1]:
            smallest = scores.topk(self.top_k).values[..., -1:]
            scores = scores.masked_fill(scores < smallest, -math.inf)
        if self.top_p < 1:
            scores = scores.masked_fill(self._outside_nucleus(scores), -math.inf)
        return scores.log_softmax(-1)

    def _outside_nucleus(self, scores: Tensor) -> Tensor:
        # From the small end, as transformers does it, so that rounding and ties fall the same way too.
        values, order = scores.sort(-1)
        outside = values.softmax(-1).cumsum(-1) <= 1 - self.top_p
        outside[..., -1] = False
        return torch.zeros_like(outside).scatter(-1, order, outside)


PLAIN = Decoder()
"""Sampling at temperature 1 from the whole vocabulary."""

PAPERS = Decoder(temperature=0.6, top_k=50, top_p=0.9)
"""What the TS2 and GEM papers sample with (TS2, section 4)."""


def support_mask(logits: Tensor) -> Tensor:
    """The support of sparsemax(z).

    Args:
        logits: [n, K]; log-probabilities give the same support, since sparsemax ignores a shift of a row.

    Returns:
        [n, K] bool.

    Example:
        >>> support_mask(torch.tensor([[1.0, 0.6, -3.0]])).tolist()
        [[True, True, False]]
    """
    return entmax_probabilities(logits) > 0

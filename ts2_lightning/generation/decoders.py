"""Decoders: the steps from a model's logits to the distribution of the next token, and a draw from it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ts2_lightning.generation.logits_processors import (
    LOGIT_SCALES,
    EntmaxLogitsProcessor,
    SparsemaxLogitsProcessor,
)
from ts2_lightning.ops import ENTMAX_ORDERS
from ts2_lightning.ranges import COUNT_OR_ZERO, POSITIVE, Allowed, Only, Range, check_numbers
from ts2_lightning.types import UserError

SORTED_FIRST = (128, 1024)
"""Numbers of the largest logits of a row that top-p sorts before it sorts the whole row."""

_CLOSE = 1e-5
"""Distance of a sum from top-p within which float32 sums in another order may fall on the other side of it."""

_UNIT = 2**53
"""Probabilities are drawn from as multiples of 1 / _UNIT: sums of whole numbers are exact, in any order."""

DECODING: Mapping[str, tuple[Allowed, ...]] = {
    "temperature": (POSITIVE, Only(0, "the most probable token")),
    "top_k": (COUNT_OR_ZERO,),
    "top_p": (Range(above=0, most=1),),
}
"""Ranges of the settings that change the distribution after its projection."""


@dataclass(frozen=True)
class Decoder:
    """The steps from the logits z to the distribution that a token is drawn from, in this order.

    Attributes:
        projection: distribution over the tokens: `softmax`, `sparsemax` or `entmax` of c z.
        alpha: order of entmax, from 1.001 to 2.
        logit_scale: factor c of sparsemax and entmax; 1 / T for a temperature T before the projection.
        temperature: temperature T of p^(1 / T), renormalised; after the projection. 0 takes the most probable token.
        top_k: number of most probable tokens that are kept; 0 keeps all.
        top_p: sum of probabilities that the fewest kept tokens reach; 1 keeps all.

    Raises:
        UserError: a setting out of its range.

    Example:
        >>> Decoder("sparsemax")(torch.tensor([[1.0, 1.0, -3.0]])).softmax(-1).tolist()
        [[0.5, 0.5, 0.0]]
    """

    projection: Literal["softmax", "sparsemax", "entmax"] = "softmax"
    alpha: float = 1.5
    logit_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_numbers("Decoder: ", self, alpha=ENTMAX_ORDERS, logit_scale=LOGIT_SCALES, **DECODING)
        if self.projection not in ("softmax", "sparsemax", "entmax"):
            raise UserError(f"Decoder: projection must be softmax, sparsemax or entmax, got {self.projection!r}")
        if self.projection == "softmax" and self.logit_scale != 1:
            raise UserError(
                f"Decoder: logit_scale is for sparsemax and entmax, got {self.logit_scale} with softmax; set the "
                "temperature"
            )

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits [B, K] of the distribution to draw from; at temperature 0 the largest counts. `logits`: [B, K]."""
        nothing = torch.empty(len(logits), 0, dtype=torch.long, device=logits.device)  # no processor reads the ids
        for process in self._processors():
            logits = process(nothing, logits)
        return logits

    def _processors(self) -> Iterator[LogitsProcessor]:
        if self.projection == "sparsemax":
            yield SparsemaxLogitsProcessor(self.logit_scale)
        elif self.projection == "entmax":
            yield EntmaxLogitsProcessor(self.alpha, self.logit_scale)
        if self.temperature not in (0, 1):
            yield TemperatureLogitsWarper(float(self.temperature))
        if self.top_k:
            yield TopKLogitsWarper(self.top_k)
        if self.top_p < 1:
            yield _NucleusWarper(self.top_p, (self.top_k,) if self.top_k else SORTED_FIRST)


class _NucleusWarper(LogitsProcessor):
    """transformers' `TopPLogitsWarper`, which sorts the largest logits first and the others only where it has to.

    It keeps the very tokens that transformers keeps. Sums of the largest probabilities say which, unless one of them
    comes close to `top_p`, or the last token that is kept has the logit of the first that is not: such rows are left to
    transformers' sort of the whole row.

    Args:
        top_p: sum of probabilities that the fewest kept tokens reach.
        sorted_first: numbers of the largest logits that are sorted, the next one where the last does not do.

    Example:
        >>> warp = _NucleusWarper(0.7, sorted_first=(2,))
        >>> warp(torch.tensor([[0]]), torch.tensor([[0.2, 0.5, 0.3]]).log()).softmax(-1).tolist()
        [[0.0, 0.625, 0.375]]
    """

    def __init__(self, top_p: float, sorted_first: Sequence[int] = SORTED_FIRST) -> None:
        self._top_p = top_p
        self._sorted_first = sorted_first
        self._whole = TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [B, K], minus infinity for the tokens that are removed. `scores`: [B, K]."""
        if scores.dtype not in (torch.float32, torch.float64):  # transformers sums in the dtype of the logits
            return self._whole(input_ids, scores)
        return self._warped(input_ids, scores, self._sorted_first)

    def _warped(self, input_ids: Tensor, scores: Tensor, sizes: Sequence[int]) -> Tensor:
        if not sizes or (sizes[0] >= scores.shape[-1] and len(sizes) > 1):
            return self._whole(input_ids, scores)
        # One more than may be kept, so that the first that is not is seen too.
        largest = scores.topk(min(sizes[0] + 1, scores.shape[-1]), sorted=True).values
        sums = (largest - scores.logsumexp(-1, keepdim=True)).exp().cumsum(-1)
        kept = (sums < self._top_p).sum(-1) + 1  # the token with which the sum is reached is kept
        at = (kept - 1).clamp(max=largest.shape[-1] - 1)[:, None]
        least, following = largest.gather(-1, at), largest.gather(-1, (at + 1).clamp(max=largest.shape[-1] - 1))
        is_sure = ((sums - self._top_p).abs() > _CLOSE).all(-1) & (kept < largest.shape[-1])
        is_sure &= (following < least)[:, 0]
        warped = scores.masked_fill(scores < least, -torch.inf)
        unsure = (~is_sure).nonzero()[:, 0]
        if len(unsure):
            warped[unsure] = self._warped(input_ids, scores[unsure], sizes[1:])
        return warped


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One token of each row of softmax(z), by inversion: the first whose cumulated probability exceeds the number.

    Args:
        logits: [B, K] logits z.
        uniforms: [B] numbers in [0, 1), in float64 where the device has it.

    Returns:
        [B] int64. A token of probability zero never comes.

    Example:
        >>> draw(torch.tensor([[0.5, 0.25, 0.25]]).log().expand(3, 3), torch.tensor([0.0, 0.6, 0.99])).tolist()
        [0, 1, 2]
    """
    shares = (logits.softmax(-1).to(uniforms.dtype) * _UNIT).long()
    sums = shares.cumsum(-1)
    thresholds = torch.minimum((uniforms * sums[:, -1]).long(), sums[:, -1] - 1)
    return torch.searchsorted(sums, thresholds[:, None], right=True)[:, 0]

"""Rows of logits, with everything that several formulas need of them computed once.

A loss, its parts and the statistics all read the same row: its maximum, its normaliser, its support. `LogitRows`
computes each of these on first use. It is meant for a few rows at a time: an engine cuts its chunk into
blocks whose temporaries stay in the cache.

Shapes: n rows, K columns (the vocabulary).
"""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ts2_lightning.ops.sparse import Entries
from ts2_lightning.ops.sparsemax import BLOCK, Sparsemax, block_maxima, sparsemax


class Mass(NamedTuple):
    """Softmax probability inside and outside a set of tokens.

    The outside is summed by itself: one minus the inside loses all digits of a small tail.

    Attributes:
        inside: [n].
        outside: [n].
    """

    inside: Tensor
    outside: Tensor


class LogitRows:
    """n rows of logits z and their gold tokens y.

    Args:
        logits: [n, K] float32 or float64, contiguous. May contain -inf, not +inf or NaN.
        labels: [n] int64, the gold tokens.
        scratch: [2, >= n, K] of the dtype of the logits, to compute in; it must not be used otherwise while
            the rows live. Default: new memory, which costs more than the arithmetic.

    Example:
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        >>> round(rows.cross_entropy.item(), 4), round(rows.entropy.item(), 4)
        (0.4076, 0.8324)
    """

    def __init__(self, logits: Tensor, labels: Tensor, scratch: Tensor | None = None) -> None:
        self.logits = logits
        self.labels = labels
        self._scratch = logits.new_empty(2, *logits.shape) if scratch is None else scratch[:, : len(logits)]
        self._scaled: dict[float, LogitRows] = {}

    def __len__(self) -> int:
        return self.logits.shape[0]

    def scaled(self, scale: float) -> "LogitRows":
        """The same rows with logits `scale * z`; itself at scale 1."""
        if scale == 1.0:  # not kept in the dict: a cycle would keep every row's temporaries until garbage is collected
            return self
        if scale not in self._scaled:
            self._scaled[scale] = LogitRows(self.logits * scale, self.labels)
        return self._scaled[scale]

    @cached_property
    def gold(self) -> Entries:
        """The n entries (i, y_i)."""
        return Entries(torch.arange(len(self), device=self.labels.device), self.labels)

    @cached_property
    def block_maxima(self) -> Tensor:
        """[n, ceil(K / BLOCK)] maxima of blocks of columns."""
        return block_maxima(self.logits)

    @cached_property
    def maximum(self) -> Tensor:
        """[n] largest logit."""
        return self.block_maxima.amax(-1)

    @cached_property
    def gold_logit(self) -> Tensor:
        """[n] z_y - max(z), never positive."""
        return self.logits[self.gold.index] - self.maximum

    @cached_property
    def _exponentials(self) -> tuple[Tensor, Tensor, Tensor]:
        """exp(z - max) [n, K], its sum [n], and the sum of (z - max) exp(z - max) [n]."""
        shifted = torch.sub(self.logits, self.maximum[:, None], out=self._scratch[0])
        exponentials = torch.exp(shifted, out=self._scratch[1])
        # A masked token has -inf * 0, which is NaN and counts as the zero that it is in the limit.
        weighted = shifted.mul_(exponentials).nansum(-1)
        return exponentials, exponentials.sum(-1), weighted

    @property
    def exponentials(self) -> Tensor:
        """[n, K] exp(z - max(z)): the softmax times `normalizer`. Read only."""
        return self._exponentials[0]

    @property
    def normalizer(self) -> Tensor:
        """[n] sum of `exponentials`, at least 1."""
        return self._exponentials[1]

    @cached_property
    def cross_entropy(self) -> Tensor:
        """[n] -log softmax(z)_y, in nats."""
        return self.normalizer.log() - self.gold_logit

    @cached_property
    def gold_probability(self) -> Tensor:
        """[n] softmax(z)_y."""
        return self.gold_logit.exp() / self.normalizer

    @cached_property
    def entropy(self) -> Tensor:
        """[n] Shannon entropy of softmax(z), in nats."""
        # Rounding can leave a one-hot row a hair below zero.
        return (self.normalizer.log() - self._exponentials[2] / self.normalizer).clamp(min=0)

    @cached_property
    def sparsemax(self) -> Sparsemax:
        """sparsemax(z), see `ops.sparsemax`."""
        return sparsemax(self.logits, self.block_maxima)

    @cached_property
    def gold_in_support(self) -> Tensor:
        """[n] bool, whether y is in the support of sparsemax(z)."""
        return self.sparsemax.support.hits(self.labels)

    @cached_property
    def support_and_gold(self) -> Entries:
        """The support of sparsemax(z), and the gold token of every row."""
        return self.sparsemax.support.union(self.labels)

    @cached_property
    def support_mass(self) -> Mass:
        """Softmax mass inside and outside `support_and_gold`."""
        return self.mass(self.support_and_gold)

    def probabilities_at(self, entries: Entries) -> Tensor:
        """softmax(z) at s listed entries. Returns [s]."""
        return self.exponentials[entries.index] / self.normalizer[entries.rows]

    def mass(self, entries: Entries) -> Mass:
        """Softmax mass inside and outside a set of entries."""
        # Zeroed for the sum and put back: a copy of the row would cost a pass over memory.
        exponentials = self.exponentials
        inside = exponentials[entries.index]
        exponentials[entries.index] = 0
        outside = exponentials.sum(-1)
        exponentials[entries.index] = inside
        return Mass(entries.sum(inside, len(self)) / self.normalizer, outside / self.normalizer)

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The k largest logits of each row and their columns, both [n, min(k, K)], in falling order."""
        n, K = self.logits.shape
        blocks = self.block_maxima.shape[-1]
        if blocks <= 2 * k:
            values, columns = self.logits.topk(min(k, K), dim=-1)
            return values, columns
        # The k largest entries lie in the k blocks with the largest maxima.
        chosen = self.block_maxima.topk(k, dim=-1).indices
        columns = (chosen[..., None] * BLOCK + torch.arange(BLOCK, device=chosen.device)).view(n, -1)
        inside = columns < K
        columns = columns.clamp(max=K - 1)
        candidates = self.logits.gather(-1, columns).masked_fill(~inside, -torch.inf)
        values, order = candidates.topk(k, dim=-1)
        return values, columns.gather(-1, order)

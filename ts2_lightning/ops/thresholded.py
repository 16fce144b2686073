"""Supports that are told by a threshold, as kernels find them: nothing [n, K] is formed until somebody reads it.

Shapes: n rows, K columns (the vocabulary). z are logits, m their maximum.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ts2_lightning.ops.entmax import Entmax
from ts2_lightning.ops.sparse import Entries, Masked, one_per_row
from ts2_lightning.ops.summary import RowSummaries, SummaryRequest


@dataclass(frozen=True)
class Thresholded(Entries):
    """The support of a projection, which follows from its threshold, with or without the gold token.

    A mask is formed when somebody reads matrices at the entries.

    Attributes:
        summaries: the rows.
        request: the projection, by its scale and order.
        with_gold: whether the gold tokens belong to the set.
    """

    summaries: RowSummaries = field(repr=False)
    request: SummaryRequest
    with_gold: bool = False

    def _field(self, name: str) -> Tensor:
        return self.summaries.field(name, self.request)

    def _excess(self, logits: Tensor, maximum: Tensor) -> Tensor:
        """(alpha - 1) c (z - m) - tau, which is positive on the support."""
        scale, threshold = (self.request.alpha - 1) * (self.request.support_scale or 1.0), self._field("threshold")
        return (logits - maximum) * scale - (threshold[:, None] if logits.dim() == 2 else threshold)

    @cached_property
    def mask(self) -> Masked:
        """The set as a mask."""
        excess = self._excess(self.summaries.logits, self._field("maximum")[:, None])
        support = Masked(excess > 0)
        return support.union(self.summaries.labels) if self.with_gold else support

    def probabilities(self) -> Tensor:
        """[n, K] max((alpha - 1) c (z - m) - tau, 0)^(1 / (alpha - 1)), the projection."""
        return self._power(self._excess(self.summaries.logits, self._field("maximum")[:, None]))

    def _power(self, excess: Tensor) -> Tensor:
        return excess.clamp(min=0).pow(1 / (self.request.alpha - 1))

    def probabilities_at_columns(self, columns: Tensor) -> Tensor:
        """The projection at one token of each row. `columns`: [n]. Returns [n]."""
        logits = one_per_row(columns).at(self.summaries.logits)
        return self._power(self._excess(logits, self._field("maximum")))

    def at(self, matrix: Tensor) -> Tensor:
        """See `Entries`."""
        return self.mask.at(matrix)

    def put(self, matrix: Tensor, values: Tensor | float) -> None:
        """See `Entries`."""
        self.mask.put(matrix, values)

    def add(self, matrix: Tensor, values: Tensor) -> None:
        """See `Entries`."""
        self.mask.add(matrix, values)

    def of_rows(self, numbers: Tensor) -> Tensor:
        """See `Entries`."""
        return numbers[:, None]

    def sum(self, values: Tensor) -> Tensor:
        """See `Entries`."""
        return values.sum(-1)

    def count(self) -> Tensor:
        """See `Entries`."""
        size, gold = self._field("size"), self._field("gold_in_support")
        return (size + (1 - gold) if self.with_gold else size).long()

    def pick(self, values: Tensor, columns: Tensor) -> Tensor:
        """See `Entries`."""
        return self.mask.pick(values, columns)

    def contains(self, columns: Tensor) -> Tensor:
        """See `Entries`."""
        if columns is self.summaries.labels:
            return torch.ones_like(columns, dtype=torch.bool) if self.with_gold else self._field("gold_in_support") > 0
        logits = one_per_row(columns).at(self.summaries.logits)
        contained = self._excess(logits, self._field("maximum")) > 0
        return contained | (columns == self.summaries.labels) if self.with_gold else contained

    def union(self, columns: Tensor) -> Entries:
        """See `Entries`."""
        if columns is self.summaries.labels:
            return Thresholded(self.summaries, self.request, with_gold=True)
        return self.mask.union(columns)

    def softmax(self, matrix: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
        """See `Entries`."""
        return self.mask.softmax(matrix, origin)

    def sum_outside(self, matrix: Tensor) -> Tensor:
        """See `Entries`."""
        return self.mask.sum_outside(matrix)


class SummarisedEntmax(Entmax):
    """alpha-entmax of rows that have been summarised: its probabilities are formed when somebody reads them.

    Args:
        support: the support, by its threshold.
    """

    def __init__(self, support: Thresholded) -> None:
        # The parent is frozen, and has the probabilities as a field; here they are a property.
        values = vars(self)
        values["support"] = support
        values["threshold"] = support.summaries.field("threshold", support.request)
        values["size"] = support.count()

    @cached_property
    def probabilities(self) -> Tensor:
        """The probabilities at the entries: [n, K], zero elsewhere."""
        assert isinstance(self.support, Thresholded)
        return self.support.probabilities()

    def at_columns(self, columns: Tensor) -> Tensor:
        """See `Entmax`."""
        assert isinstance(self.support, Thresholded)
        return self.support.probabilities_at_columns(columns)

    def power_sum(self, alpha: float) -> Tensor:
        """See `Entmax`."""
        assert isinstance(self.support, Thresholded)
        if alpha != self.support.request.alpha:
            return super().power_sum(alpha)
        return self.support.summaries.field("powers", self.support.request)

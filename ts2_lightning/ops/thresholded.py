"""Supports that are told by a threshold, as kernels find them: nothing [n, K] is formed until somebody reads it.

Shapes: n rows, K columns (the vocabulary). z are logits, m their maximum.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ts2_lightning.ops.entmax import Entmax
from ts2_lightning.ops.sparse import Entries, one_per_row
from ts2_lightning.ops.summary import RowSummaries, SummaryRequest


@dataclass(frozen=True)
class Thresholded(Entries):
    """The support of a projection, which follows from its threshold, with or without the gold token.

    It is made explicit when somebody reads matrices at the entries.

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

    def _excess(self, logits: Tensor) -> Tensor:
        """(alpha - 1) c (z - m) - tau of one logit of each row, [n], which is positive on the support."""
        scale = (self.request.alpha - 1) * (self.request.support_scale or 1.0)
        return (logits - self._field("maximum")) * scale - self._field("threshold")

    @cached_property
    def explicit(self) -> Entries:
        """The set as torch's operations have it, a padded list or a mask."""
        support = self.projection.support
        return support.union(self.summaries.labels) if self.with_gold else support

    @property
    def projection(self) -> Entmax:
        """The distribution, by torch's operations."""
        return self.summaries.projection(self.request.support_scale or 1.0, self.request.alpha)

    def probabilities_at_columns(self, columns: Tensor) -> Tensor:
        """The projection at one token of each row. `columns`: [n]. Returns [n]."""
        logits = one_per_row(columns).at(self.summaries.logits)
        return self._excess(logits).clamp(min=0).pow(1 / (self.request.alpha - 1))

    def at(self, matrix: Tensor) -> Tensor:
        """See `Entries`."""
        return self.explicit.at(matrix)

    def put(self, matrix: Tensor, values: Tensor | float) -> None:
        """See `Entries`."""
        self.explicit.put(matrix, values)

    def add(self, matrix: Tensor, values: Tensor) -> None:
        """See `Entries`."""
        self.explicit.add(matrix, values)

    def of_rows(self, numbers: Tensor) -> Tensor:
        """See `Entries`."""
        return self.explicit.of_rows(numbers)

    def sum(self, values: Tensor) -> Tensor:
        """See `Entries`."""
        return self.explicit.sum(values)

    def count(self) -> Tensor:
        """See `Entries`."""
        size, gold = self._field("size"), self._field("gold_in_support")
        return (size + (1 - gold) if self.with_gold else size).long()

    def pick(self, values: Tensor, columns: Tensor) -> Tensor:
        """See `Entries`."""
        return self.explicit.pick(values, columns)

    def contains(self, columns: Tensor) -> Tensor:
        """See `Entries`."""
        if columns is self.summaries.labels:
            return torch.ones_like(columns, dtype=torch.bool) if self.with_gold else self._field("gold_in_support") > 0
        logits = one_per_row(columns).at(self.summaries.logits)
        contained = self._excess(logits) > 0
        return contained | (columns == self.summaries.labels) if self.with_gold else contained

    def union(self, columns: Tensor) -> Entries:
        """See `Entries`."""
        if columns is self.summaries.labels:
            return Thresholded(self.summaries, self.request, with_gold=True)
        return self.explicit.union(columns)

    def softmax(self, matrix: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
        """See `Entries`."""
        return self.explicit.softmax(matrix, origin)

    def formed(self) -> Entries:
        """See `Entries`."""
        return self.explicit

    def sum_outside(self, matrix: Tensor) -> Tensor:
        """See `Entries`."""
        return self.explicit.sum_outside(matrix)


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
        """The probabilities at the entries."""
        assert isinstance(self.support, Thresholded)
        return self.support.projection.probabilities

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

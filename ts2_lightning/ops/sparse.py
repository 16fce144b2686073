"""Entries of rows of logits: supports and sparse gradients as lists of (row, column, value).

Shapes: n rows, K columns (the vocabulary), s listed entries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Entries:
    """Distinct positions in an [n, K] matrix.

    Attributes:
        rows: [s] int64.
        columns: [s] int64.
    """

    rows: Tensor
    columns: Tensor

    @property
    def index(self) -> tuple[Tensor, Tensor]:
        """The pair that indexes the matrix: `matrix[entries.index]` is [s]."""
        return (self.rows, self.columns)

    def hits(self, columns: Tensor) -> Tensor:
        """Which rows list their own column. `columns`: [n] int64. Returns [n] bool."""
        found = torch.zeros_like(columns, dtype=torch.bool)
        found[self.rows[self.columns == columns[self.rows]]] = True
        return found

    def union(self, columns: Tensor) -> "Entries":
        """These entries and (i, columns[i]) of every row i, each once. `columns`: [n] int64."""
        missing = (~self.hits(columns)).nonzero()[:, 0]
        return Entries(torch.cat([self.rows, missing]), torch.cat([self.columns, columns[missing]]))

    def sum(self, values: Tensor, n: int) -> Tensor:
        """Sums of [s] values over each of the n rows. Returns [n]."""
        return values.new_zeros(n).index_add_(0, self.rows, values)

    def count(self, n: int) -> Tensor:
        """Number of entries in each of the n rows. Returns [n] int64."""
        return torch.bincount(self.rows, minlength=n)

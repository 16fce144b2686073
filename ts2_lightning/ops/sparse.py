"""Sets of tokens in rows of logits (supports, kept sets, the gold tokens), and values on them.

A set is listed, as (row, column) pairs, or padded, as equally many columns of every row, or a mask. Lists make
supports cheap: a handful of tokens out of 128k. But the length of a list of pairs depends on the data, so that a GPU
would have to tell the host; there, sets whose size depends on the data are padded, and large ones are masks. Formulas
do not see the difference.

Shapes: n rows, K columns (the vocabulary), s listed entries, m columns of a padded list. "Values at the entries" are
one tensor: [s] for a list, [n, m] for a padded one, [n, K] for a mask, the last two with zeros elsewhere.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

LISTED_SHARE = 1 / 16
"""Up to this share of the columns padded lists are cheaper than masks, whose passes over memory are coalesced."""


def sizes_may_depend_on_data(device: torch.device) -> bool:
    """Whether a tensor's shape may follow from another tensor's values: on a GPU the host would have to wait for it."""
    return device.type == "cpu"


def told(flag: Tensor) -> bool:
    """The value of a flag [], for which a GPU's host has to wait. Of a tensor without data, with which memory is
    planned, it is true: sets are then as large as they can be.
    """
    return flag.is_meta or bool(flag)


class Entries(ABC):
    """Distinct positions in an [n, K] matrix."""

    @abstractmethod
    def at(self, matrix: Tensor) -> Tensor:
        """The values of a matrix [n, K] at the entries."""

    @abstractmethod
    def put(self, matrix: Tensor, values: Tensor | float) -> None:
        """Overwrites a matrix [n, K] at the entries."""

    @abstractmethod
    def add(self, matrix: Tensor, values: Tensor) -> None:
        """Adds values at the entries to a matrix [n, K]."""

    @abstractmethod
    def of_rows(self, numbers: Tensor) -> Tensor:
        """Turns one number per row, [n], into something that multiplies or adds to values at the entries."""

    @abstractmethod
    def sum(self, values: Tensor) -> Tensor:
        """Sums of values at the entries over each row. Returns [n]."""

    @abstractmethod
    def count(self) -> Tensor:
        """Number of entries in each row. Returns [n] int64."""

    @abstractmethod
    def pick(self, values: Tensor, columns: Tensor) -> Tensor:
        """The value at (i, columns[i]) of every row i, zero where that is no entry. `columns`: [n]. Returns [n]."""

    @abstractmethod
    def contains(self, columns: Tensor) -> Tensor:
        """Whether each row i has (i, columns[i]) among its entries. `columns`: [n] int64. Returns [n] bool."""

    @abstractmethod
    def union(self, columns: Tensor) -> "Entries":
        """These entries and (i, columns[i]) of every row i. `columns`: [n] int64."""

    @abstractmethod
    def softmax(self, matrix: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax of a matrix [n, K] over the entries of each row alone, whatever the others are.

        Args:
            matrix: [n, K]; every row has an entry at which it is finite.
            origin: [n] subtracted from the rows first, so that an offset of theirs costs no digits.

        Returns:
            The probabilities at the entries, and [n] log of the sum of exp(matrix - origin) over the entries.
        """

    def formed(self) -> "Entries":
        """The same entries, for which nothing needs to be read from the logits any more."""
        return self

    def sum_outside(self, matrix: Tensor) -> Tensor:
        """Sums of a matrix [n, K] over each row, the entries left out. Returns [n]."""
        # Zeroed for the sum and put back: a copy of the rows would cost a pass over memory.
        inside = self.at(matrix)
        self.put(matrix, 0.0)
        outside = matrix.sum(-1)
        self.put(matrix, inside)
        return outside


@dataclass(frozen=True, slots=True)
class Listed(Entries):
    """Entries as a list.

    Attributes:
        rows: [s] int64, row of each entry.
        columns: [s] int64, column of each entry.
        n: number of rows of the matrix.
    """

    rows: Tensor
    columns: Tensor
    n: int

    @property
    def index(self) -> tuple[Tensor, Tensor]:
        """The pair that indexes the matrix: `matrix[entries.index]` is [s]."""
        return (self.rows, self.columns)

    def at(self, matrix: Tensor) -> Tensor:
        """See `Entries`."""
        return matrix[self.index]

    def put(self, matrix: Tensor, values: Tensor | float) -> None:
        """See `Entries`."""
        matrix[self.index] = values

    def add(self, matrix: Tensor, values: Tensor) -> None:
        """See `Entries`."""
        matrix.index_put_(self.index, values.to(matrix.dtype), accumulate=True)

    def of_rows(self, numbers: Tensor) -> Tensor:
        """See `Entries`."""
        return numbers[self.rows]

    def sum(self, values: Tensor) -> Tensor:
        """See `Entries`."""
        return values.new_zeros(self.n).index_add_(0, self.rows, values)

    def count(self) -> Tensor:
        """See `Entries`."""
        return torch.bincount(self.rows, minlength=self.n)

    def pick(self, values: Tensor, columns: Tensor) -> Tensor:
        """See `Entries`."""
        return self.sum(values.masked_fill(self.columns != columns[self.rows], 0))

    def contains(self, columns: Tensor) -> Tensor:
        """See `Entries`."""
        contained = torch.zeros_like(columns, dtype=torch.bool)
        contained[self.rows[self.columns == columns[self.rows]]] = True
        return contained

    def union(self, columns: Tensor) -> "Listed":
        """See `Entries`."""
        missing = (~self.contains(columns)).nonzero()[:, 0]
        return Listed(torch.cat([self.rows, missing]), torch.cat([self.columns, columns[missing]]), self.n)

    def softmax(self, matrix: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
        """See `Entries`."""
        values = self.at(matrix) - origin[self.rows]
        top = torch.full_like(origin, -torch.inf).scatter_reduce_(0, self.rows, values, "amax")
        exponentials = (values - top[self.rows]).exp_()
        total = self.sum(exponentials)
        return exponentials / total[self.rows], top + total.log()


@dataclass(frozen=True, slots=True)
class Padded(Entries):
    """Entries as lists of equal length, one for each row, which other columns fill up.

    Attributes:
        columns: [n, m] int64, distinct in each row; m < K.
        member: [n, m] bool, which of them are entries.
    """

    columns: Tensor
    member: Tensor

    def at(self, matrix: Tensor) -> Tensor:
        """See `Entries`."""
        return torch.where(self.member, matrix.gather(-1, self.columns), 0.0)

    def put(self, matrix: Tensor, values: Tensor | float) -> None:
        """See `Entries`."""
        matrix.scatter_(-1, self.columns, torch.where(self.member, values, matrix.gather(-1, self.columns)))

    def add(self, matrix: Tensor, values: Tensor) -> None:
        """See `Entries`."""
        # Not scatter_add_: the columns are distinct, and atomic additions are slower.
        matrix.scatter_(-1, self.columns, matrix.gather(-1, self.columns) + values.to(matrix.dtype))

    def of_rows(self, numbers: Tensor) -> Tensor:
        """See `Entries`."""
        return numbers[:, None]

    def sum(self, values: Tensor) -> Tensor:
        """See `Entries`."""
        return values.sum(-1)

    def count(self) -> Tensor:
        """See `Entries`."""
        return self.member.sum(-1)

    def pick(self, values: Tensor, columns: Tensor) -> Tensor:
        """See `Entries`."""
        return values.masked_fill(self.columns != columns[:, None], 0).sum(-1)

    def contains(self, columns: Tensor) -> Tensor:
        """See `Entries`."""
        return ((self.columns == columns[:, None]) & self.member).any(-1)

    def union(self, columns: Tensor) -> "Padded":
        """See `Entries`."""
        # One column more, which is none of the others: where the new one is there already, any that is not.
        same = self.columns == columns[:, None]
        there = same.any(-1, keepdim=True)
        added = torch.where(there, self._absent(), columns[:, None])
        member = torch.cat([self.member | same, ~there], -1)
        return Padded(torch.cat([self.columns, added], -1), member)

    def softmax(self, matrix: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
        """See `Entries`."""
        values = (matrix.gather(-1, self.columns) - origin[:, None]).masked_fill_(~self.member, -torch.inf)
        total = values.logsumexp(-1)
        return (values - total[:, None]).exp_(), total

    def _absent(self) -> Tensor:
        """A column for each row that is not among its columns, [n, 1]."""
        n, m = self.columns.shape
        taken = torch.zeros(n, m + 2, dtype=torch.uint8, device=self.columns.device)
        taken.scatter_(-1, self.columns.clamp(max=m + 1), 1)
        return taken[:, : m + 1].argmin(-1, keepdim=True)  # m columns cannot take all of 0 to m


@dataclass(frozen=True, slots=True)
class Masked(Entries):
    """Entries as a mask.

    Attributes:
        mask: [n, K] bool, true at the entries.
    """

    mask: Tensor

    def at(self, matrix: Tensor) -> Tensor:
        """See `Entries`."""
        return torch.where(self.mask, matrix, 0.0)

    def put(self, matrix: Tensor, values: Tensor | float) -> None:
        """See `Entries`."""
        if isinstance(values, Tensor):
            torch.where(self.mask, values, matrix, out=matrix)
        else:
            matrix.masked_fill_(self.mask, values)

    def add(self, matrix: Tensor, values: Tensor) -> None:
        """See `Entries`."""
        matrix += values

    def of_rows(self, numbers: Tensor) -> Tensor:
        """See `Entries`."""
        return numbers[:, None]

    def sum(self, values: Tensor) -> Tensor:
        """See `Entries`."""
        return values.sum(-1)

    def count(self) -> Tensor:
        """See `Entries`."""
        # A GPU adds up halves in float32, exactly; of a bool it would first make an int64.
        return self.mask.bfloat16().sum(-1, dtype=torch.float32).long()

    def pick(self, values: Tensor, columns: Tensor) -> Tensor:
        """See `Entries`."""
        return values.gather(-1, columns[:, None])[:, 0]

    def contains(self, columns: Tensor) -> Tensor:
        """See `Entries`."""
        return self.mask.gather(-1, columns[:, None])[:, 0]

    def union(self, columns: Tensor) -> "Masked":
        """See `Entries`."""
        return Masked(self.mask.scatter(-1, columns[:, None], True))

    def softmax(self, matrix: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
        """See `Entries`."""
        values = (matrix - origin[:, None]).masked_fill_(~self.mask, -torch.inf)
        top = values.amax(-1)
        exponentials = values.sub_(top[:, None]).exp_()
        total = exponentials.sum(-1)
        return exponentials.div_(total[:, None]), top + total.log()

    def sum_outside(self, matrix: Tensor) -> Tensor:
        """See `Entries`."""
        return matrix.masked_fill(self.mask, 0).sum(-1)


def entries_of(mask: Tensor) -> Entries:
    """The entries at which a mask [n, K] is true."""
    if not sizes_may_depend_on_data(mask.device):
        return Masked(mask)
    rows, columns = mask.nonzero(as_tuple=True)
    return Listed(rows, columns, len(mask))


def one_per_row(columns: Tensor) -> Listed:
    """The entries (i, columns[i]) of n rows. `columns`: [n] int64."""
    return Listed(torch.arange(len(columns), device=columns.device), columns, len(columns))


def some_per_row(columns: Tensor, vocabulary: int) -> Entries:
    """The entries (i, columns[i, j]). `columns`: [n, k] int64, distinct in each row; `vocabulary`: K."""
    n, k = columns.shape
    if not sizes_may_depend_on_data(columns.device):
        if k <= LISTED_SHARE * vocabulary:
            return Padded(columns, torch.ones_like(columns, dtype=torch.bool))
        mask = torch.zeros(n, vocabulary, dtype=torch.bool, device=columns.device)
        return Masked(mask.scatter_(-1, columns, True))
    rows = torch.arange(n, device=columns.device)[:, None].expand(n, k)
    return Listed(rows.reshape(-1), columns.reshape(-1), n)

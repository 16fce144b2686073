"""Gradients of rows as six numbers each, which a kernel writes as [n, K].

Shapes: n rows, K columns (the vocabulary).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ts2_lightning.ops.rows import LogitRows, RowMatrix
from ts2_lightning.ops.sparse import Entries
from ts2_lightning.ops.summarised_rows import SummarisedRows
from ts2_lightning.ops.summary import RowSummaries, SummaryRequest
from ts2_lightning.ops.thresholded import SummarisedEntmax, Thresholded


@dataclass(frozen=True)
class RowNumbers:
    """A gradient of rows as six numbers each, which a kernel turns into [n, K].

    g_j = e_j (outside + slope d_j) outside of S and y, e_j = exp(s d_j), and e_j (inside + slope d_j) + sparse p_j
    inside, where p is the projection with support S; more by `uniform` where the logit is finite; g_y less by `gold`.

    Attributes:
        summaries: the rows.
        request: softmax scale s, support scale and order of the projection.
        coefficients: outside, inside, slope, sparse, gold and uniform, each [n], by name; absent ones are zero.
    """

    summaries: RowSummaries
    request: SummaryRequest
    coefficients: dict[str, Tensor]

    NAMES = ("outside", "inside", "slope", "sparse", "gold", "uniform")

    def write_to(self, out: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Writes the gradient, see `Gradient.write_to`."""
        s = self.summaries
        if dtype == torch.bfloat16 and out.dtype == torch.float32:
            out = out.view(torch.bfloat16)[:, : s.logits.shape[-1]]
        zeros = s.logits.new_zeros(len(s.labels))
        coefficients = torch.stack([self.coefficients.get(name, zeros).to(zeros.dtype) for name in self.NAMES])
        needs = self.request._replace(softmax_scale=1.0)
        s.kernels.write_gradient(
            s.logits,
            s.labels,
            s.get(needs)[1],
            coefficients,
            self.request,
            out,
            support=self.request.support_scale is not None,
            slope="slope" in self.coefficients,
            uniform="uniform" in self.coefficients,
        )
        return out


def row_numbers(dense: Sequence[Any], sparse: Sequence[Any]) -> RowNumbers | None:
    """The numbers of a gradient that consists of what a kernel writes, or None.

    Args:
        dense: parts (coefficient, basis, excluded), see `losses.DensePart`.
        sparse: parts (entries, values), see `losses.SparsePart`.
    """
    rows = (part[1].rows for part in dense if isinstance(part[1], RowMatrix))
    summaries = [r.summaries for r in rows if isinstance(r, SummarisedRows)]
    summaries += [part[0].summaries for part in sparse if isinstance(part[0], Thresholded)]
    if not summaries:
        return None
    collector = _Collector(summaries[0])
    taken = all(collector.take_dense(*part) for part in dense) and all(collector.take_sparse(*part) for part in sparse)
    return collector.numbers() if taken else None


class _Collector:
    """Sums parts of a gradient into `RowNumbers`, for as long as they are of one softmax and one support.

    Its methods say whether what they were handed could be added.
    """

    def __init__(self, summaries: RowSummaries) -> None:
        self._summaries = summaries
        self._scales: set[float] = set()
        self._supports: set[SummaryRequest] = set()
        self._coefficients: dict[str, Tensor] = {}

    def numbers(self) -> RowNumbers:
        """The sums."""
        request = next(iter(self._supports), SummaryRequest())
        return RowNumbers(
            self._summaries, request._replace(softmax_scale=next(iter(self._scales), 1.0)), self._coefficients
        )

    def take_dense(self, coefficient: Tensor, basis: Tensor | RowMatrix, excluded: Entries | None) -> bool:
        """Adds a part that touches every column, see `losses.DensePart`."""
        rows = basis.rows if isinstance(basis, RowMatrix) else None
        if not (isinstance(rows, SummarisedRows) and rows.summaries is self._summaries):
            return False
        assert isinstance(basis, RowMatrix)
        if basis.name == "unmasked":
            return excluded is None and self._add("uniform", coefficient)
        if basis.name == "weighted_exponentials":
            return excluded is None and self._same_softmax(rows) and self._add("slope", coefficient * rows.scale)
        everywhere = self._add("inside", coefficient) if excluded is None else self._same_kept(excluded)
        return everywhere and self._same_softmax(rows) and self._add("outside", coefficient)

    def take_sparse(self, entries: Entries, values: Any) -> bool:
        """Adds a part that touches few columns, see `losses.SparsePart`."""
        if isinstance(values, Tensor):
            return entries is self._summaries.gold and self._add("gold", -values)
        coefficient, basis = values
        if isinstance(basis, SummarisedEntmax):
            return entries is basis.support and self._same_support(entries) and self._add("sparse", coefficient)
        if not (isinstance(basis, RowMatrix) and basis.name == "exponentials"):
            return False
        return self._same_softmax(basis.rows) and self._same_kept(entries) and self._add("inside", coefficient)

    def _add(self, name: str, coefficient: Tensor | float) -> bool:
        if not isinstance(coefficient, Tensor):
            coefficient = self._summaries.logits.new_full((len(self._summaries.labels),), coefficient)
        sums = self._coefficients
        sums[name] = sums[name] + coefficient if name in sums else coefficient
        return True

    def _same_softmax(self, rows: LogitRows) -> bool:
        if not (isinstance(rows, SummarisedRows) and rows.summaries is self._summaries):
            return False
        self._scales.add(rows.scale)
        return len(self._scales) == 1

    def _same_support(self, entries: Entries) -> bool:
        if not (isinstance(entries, Thresholded) and entries.summaries is self._summaries):
            return False
        self._supports.add(entries.request)
        return len(self._supports) == 1

    def _same_kept(self, entries: Entries) -> bool:
        """The kernel's set is the support and the gold token."""
        return self._same_support(entries) and isinstance(entries, Thresholded) and entries.with_gold

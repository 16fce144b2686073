"""Rows of logits that a kernel reads once, and once more to write their gradient.

A summary of a row is some twenty numbers, from which the value of every closed-form loss of this field, its gradient
and all statistics of the token follow by arithmetic on vectors [n]. `SummarisedRows` answers what `LogitRows` answers
from summaries; what a summary does not have it computes as `LogitRows` does, on matrices [n, K]. So losses are
written once, and a loss that asks for a matrix costs passes over memory and is right all the same.

Shapes: n rows, K columns (the vocabulary). z are logits, m their maximum, d = z - m, y the gold token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ts2_lightning.ops.entmax import Entmax
from ts2_lightning.ops.rows import LogitRows, Mass, RowMatrix, Workspace
from ts2_lightning.ops.sparse import Entries, Listed, Masked, one_per_row
from ts2_lightning.types import Targets

SUMMARISED_ORDERS = (1.5, 2.0)
"""The alphas of alpha-entmax that kernels project with."""

FIELDS = (
    "maximum",  # m; NaN if a logit of the row is NaN
    "normalizer",  # sum_j e^d_j
    "weighted",  # sum_j d_j e^d_j
    "scaled_normalizer",  # sum_j e^(s d_j), s the softmax scale
    "scaled_weighted",  # sum_j s d_j e^(s d_j)
    "gold_logit",  # z_y - m
    "above",  # number of tokens with z_j > z_y
    "second",  # second largest z_j - m; below -1e29 where there is none
    "third",  # third largest
    "threshold",  # tau of (alpha - 1) c d, c the support scale, in [-1, 0)
    "size",  # number of tokens in the support S
    "expected",  # sum_j p_j c d_j, p = alpha-entmax(c z)
    "powers",  # sum_j p_j^alpha
    "tail",  # sum of e^d_j outside of S and y, by itself
    "kept",  # sum of e^d_j over S and y
    "scaled_tail",  # as `tail`, of e^(s d_j)
    "scaled_kept",  # as `kept`, of e^(s d_j)
    "gold_in_support",  # 1 or 0
    "lanes",  # lanes of the kernel that were read again
    "unmasked",  # number of finite logits
    "total",  # sum of d_j over the finite logits
)
"""The numbers of a summary, in their order."""


class SummaryRequest(NamedTuple):
    """What a summary is to hold besides the softmax of each row.

    Attributes:
        softmax_scale: factor s on the logits of a second softmax.
        support_scale: factor c on the logits of the projection whose support is wanted, or None for no support.
        alpha: order of the projection, 2 (sparsemax) or 1.5.
        uniform: whether number and sum of the finite logits are wanted.
    """

    softmax_scale: float = 1.0
    support_scale: float | None = None
    alpha: float = 2.0
    uniform: bool = False

    def serves(self, other: "SummaryRequest") -> bool:
        """Whether a summary made for this request has what another asks for."""
        return (
            other.softmax_scale in (1.0, self.softmax_scale)
            and (other.support_scale is None or (other.support_scale, other.alpha) == (self.support_scale, self.alpha))
            and self.uniform >= other.uniform
        )


class RowKernels(Protocol):
    """The two kernels. `row_kernels` has them for GPUs."""

    def summarize(self, logits: Tensor, labels: Tensor, request: SummaryRequest) -> Tensor:
        """The fields [len(FIELDS), n] of rows [n, K]; those that the request does not ask for are zeros."""

    def write_gradient(
        self,
        logits: Tensor,
        labels: Tensor,
        fields: Tensor,
        coefficients: Tensor,
        request: SummaryRequest,
        out: Tensor,
        support: bool,
        slope: bool,
        uniform: bool,
    ) -> None:
        """Writes gradients of rows, see `RowNumbers`, over `out`, which may be the memory of the logits."""


class RowSummaries:
    """The summaries of n rows: each is made when it is asked for, and serves all that it can.

    Args:
        logits: [n, K] float32.
        labels: [n] int64, the gold tokens.
        kernels: the kernels that read the rows.
        first: the request of the first summary. It is to serve everything that is expected to be asked.
    """

    def __init__(self, logits: Tensor, labels: Tensor, kernels: RowKernels, first: SummaryRequest) -> None:
        self.logits = logits
        self.labels = labels
        self.kernels = kernels
        self.gold = one_per_row(labels)
        self._first = first
        self._made: list[tuple[SummaryRequest, Tensor]] = []

    def get(self, request: SummaryRequest) -> tuple[SummaryRequest, Tensor]:
        """A summary that has what is requested, and the request that it was made for."""
        for made, fields in self._made:
            if made.serves(request):
                return made, fields
        if not self._made and self._first.serves(request):
            request = self._first
        self._made.append((request, self.kernels.summarize(self.logits, self.labels, request)))
        return self._made[-1]

    def field(self, name: str, request: SummaryRequest) -> Tensor:
        """One field [n] of a summary that has what is requested."""
        return self.get(request)[1][FIELDS.index(name)]


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


class SummarisedRows(LogitRows):
    """Rows of logits that are read by kernels, see `LogitRows`.

    Args:
        logits: [n, K] float32 logits, contiguous.
        targets: what is known of the n tokens; or their gold tokens [n] int64 alone.
        kernels: the kernels that read the rows.
        request: what the first summary is to hold. What is asked beyond it costs another read.
        workspace: memory to compute in, see `LogitRows`.
        reference: logits [n, K] of a reference model, or None.
    """

    def __init__(
        self,
        logits: Tensor,
        targets: Targets | Tensor,
        kernels: RowKernels,
        request: SummaryRequest,
        workspace: Workspace | None = None,
        reference: Tensor | None = None,
    ) -> None:
        super().__init__(logits, targets, workspace, reference)
        self.summaries = RowSummaries(logits, self.labels, kernels, request)
        self.scale = 1.0

    def scaled(self, scale: float) -> LogitRows:
        """See `LogitRows`; the scaled logits are formed when somebody reads them."""
        if scale == 1.0:
            return self
        if scale not in self._scaled:
            self._scaled[scale] = _ScaledRows(self, scale * self.scale)
        return self._scaled[scale]

    def _field(self, name: str) -> Tensor:
        return self.summaries.field(name, SummaryRequest())

    @property
    def gold(self) -> Listed:
        """See `LogitRows`."""
        return self.summaries.gold

    @cached_property
    def maximum(self) -> Tensor:
        """See `LogitRows`."""
        return self._field("maximum")

    @cached_property
    def gold_logit(self) -> Tensor:
        """See `LogitRows`."""
        return self._field("gold_logit") * self.scale

    @cached_property
    def above_gold(self) -> Tensor:
        """See `LogitRows`."""
        return self._field("above")

    def top_logits(self, k: int) -> Tensor:
        """See `LogitRows`."""
        if k > 3:
            return super().top_logits(k)
        largest = torch.stack([torch.zeros_like(self.gold_logit), self._field("second"), self._field("third")], dim=-1)
        return largest[:, : min(k, self.summaries.logits.shape[-1])] * self.scale

    @cached_property
    def unmasked_count(self) -> Tensor:
        """See `LogitRows`."""
        return self.summaries.field("unmasked", SummaryRequest(uniform=True))

    @cached_property
    def mean_logit(self) -> Tensor:
        """See `LogitRows`."""
        return self.summaries.field("total", SummaryRequest(uniform=True)) * self.scale / self.unmasked_count

    @cached_property
    def normalizer(self) -> Tensor:
        """See `LogitRows`."""
        return self._of_softmax("normalizer")

    @cached_property
    def expected_logit(self) -> Tensor:
        """See `LogitRows`."""
        return self._of_softmax("weighted") / self.normalizer

    def _of_softmax(self, name: str, request: SummaryRequest | None = None) -> Tensor:
        """A field of the softmax at these rows' scale."""
        request = (request or SummaryRequest())._replace(softmax_scale=self.scale)
        return self.summaries.field(name if self.scale == 1.0 else f"scaled_{name}", request)

    def mass(self, entries: Entries) -> Mass:
        """See `LogitRows`."""
        if not (isinstance(entries, Thresholded) and entries.summaries is self.summaries and entries.with_gold):
            return super().mass(entries)
        inside, outside = (self._of_softmax(name, entries.request) for name in ("kept", "tail"))
        return Mass(inside / self.normalizer, outside / self.normalizer)

    def entmax(self, alpha: float) -> Entmax:
        """See `LogitRows`."""
        if alpha not in SUMMARISED_ORDERS:
            return super().entmax(alpha)
        if alpha not in self._entmax:
            request = SummaryRequest(support_scale=self.scale, alpha=alpha)
            self._entmax[alpha] = SummarisedEntmax(Thresholded(self.summaries, request))
        return self._entmax[alpha]

    def expected_under(self, projection: Entmax) -> Tensor:
        """See `LogitRows`."""
        support = projection.support
        if not (isinstance(support, Thresholded) and support.summaries is self.summaries):
            return super().expected_under(projection)
        expected = self.summaries.field("expected", support.request)
        return expected * (self.scale / (support.request.support_scale or 1.0))


class _ScaledRows(SummarisedRows):
    """Rows with logits `scale * (z - max(z))`, which are summarised with the rows that they are made of."""

    def __init__(self, rows: SummarisedRows, scale: float) -> None:
        request = SummaryRequest()
        super().__init__(rows.summaries.logits, rows.targets, rows.summaries.kernels, request, rows._workspace)
        self._reference = rows._reference
        self.summaries = rows.summaries
        self.scale = scale
        del self.logits  # formed when somebody reads them

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def logits(self) -> Tensor:  # type: ignore[override]
        """See `LogitRows`."""
        top = self._field("maximum")[:, None]
        return torch.sub(self.summaries.logits, top, out=self.buffer()).mul_(self.scale)

    def buffer(self) -> Tensor:
        """See `LogitRows`."""
        return self._workspace.take(self.summaries.logits)

    @cached_property
    def maximum(self) -> Tensor:
        """See `LogitRows`; zeros, or NaN where a logit is NaN."""
        return self._field("maximum") * 0


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

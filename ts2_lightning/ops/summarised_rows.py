"""Rows of logits that a kernel reads once.

From a summary of a row the value of every closed-form loss of this field follows, its gradient (see `row_numbers`), and
all statistics of the token, by arithmetic on vectors [n]. `SummarisedRows` answers what `LogitRows` answers
from summaries; what a summary does not have it computes as `LogitRows` does, on matrices [n, K]. So losses are
written once, and a loss that asks for a matrix costs passes over memory and is right all the same.

Shapes: n rows, K columns (the vocabulary).
"""

from functools import cached_property

import torch
from torch import Tensor

from ts2_lightning.ops.entmax import Entmax
from ts2_lightning.ops.rows import LogitRows, Mass, Workspace
from ts2_lightning.ops.sparse import Entries, Listed
from ts2_lightning.ops.summary import SUMMARISED_ORDERS, RowKernels, RowSummaries, SummaryRequest
from ts2_lightning.ops.thresholded import SummarisedEntmax, Thresholded
from ts2_lightning.types import Targets


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

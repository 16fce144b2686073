"""Summaries of rows of logits: some twenty numbers each, which a kernel finds by one read of the row.

Shapes: n rows, K columns (the vocabulary). z are logits, m their maximum, d = z - m, y the gold token.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from ts2_lightning.ops.entmax import Entmax, entmax
from ts2_lightning.ops.sparse import one_per_row

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
        self._projections: dict[tuple[float, float], Entmax] = {}

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

    def projection(self, scale: float, alpha: float) -> Entmax:
        """alpha-entmax(scale z) by torch's operations, for whoever reads more of it than a summary has."""
        if (scale, alpha) not in self._projections:
            logits = self.logits
            if scale != 1.0:
                logits = (logits - self.field("maximum", SummaryRequest())[:, None]).mul_(scale)
            self._projections[scale, alpha] = entmax(logits, alpha)
        return self._projections[scale, alpha]

"""The exact sparsemax and alpha-entmax of wide rows, without a sort and mostly without touching the row twice.

alpha-entmax (Peters et al., 2019) is p_j = max(s_j - tau, 0)^q with s = (alpha - 1) z and q = 1 / (alpha - 1), and
tau such that it sums to one; alpha = 2 is sparsemax (Martins and Astudillo, 2016), the Euclidean projection onto the
simplex. Only entries with s_j > max(s) - 1 can have probability, which in a vocabulary of 128k is a handful.

The threshold is the root of || max(s - tau, 0) ||_q = 1, a convex and falling function of tau, so that Newton's
iteration from the left rises to it and never passes it. (At q = 1 that is Michelot's algorithm, which ends after
finitely many steps.) Run on a subset of a row it stays below the row's threshold too. So the maxima of blocks of
columns bound the threshold from below, only blocks whose maximum exceeds the bound can hold support, and the
iteration is finished in float64 on the few entries that they hold. A GPU takes equally many of every row, see
`_of_fixed_size`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ts2_lightning.ops import sparse
from ts2_lightning.ops.precision import widest_float
from ts2_lightning.ops.sparse import Entries, Listed, Masked, Padded
from ts2_lightning.ranges import Range

ENTMAX_ORDERS = Range(least=1.001, most=2, hint="towards 1 it becomes softmax")
"""The permitted alphas: nearer to 1 the factor 1 / (alpha - 1) makes rounding in float32 visible."""

WIDEST_BLOCK = 256
"""Columns per block, at most: 501 blocks for a vocabulary of 128,256."""

DENSE_SHARE = 1 / 16
"""Above this share of blocks that may hold support, iterating over the full width is cheaper than a gather."""

BOUND_STEPS = 50
"""Newton steps towards a lower bound, at most; they mostly end by themselves after 5. Any number gives a bound."""

MARGIN = 1e-5
"""The amount by which a bound is lowered, so that rounding in float32 can never cut an entry of the support."""

EXACT_STEPS = 200
"""Newton steps in float64, at most; they end by themselves."""

MAXIMA_STEPS, FULL_STEPS, SORTED_STEPS = 12, 10, 12
"""Newton steps where the number must not depend on the data: on block maxima, then the full width; on few entries."""

LIST_LENGTHS = (64, 1024)
"""Lengths of padded lists that are tried, one after the other, before a mask is taken."""

LISTED_BLOCKS = 32
"""Number of blocks from which the shorter list is gathered."""


@dataclass(frozen=True)
class Entmax:
    """alpha-entmax of n rows of logits z, or another distribution whose support is a set of entries.

    Attributes:
        support: the entries with positive probability.
        probabilities: the probabilities at those entries.
        threshold: [n] tau - max(s) of s = (alpha - 1) z, in [-1, 0).
        size: [n] int64, number of entries in the support.
    """

    support: Entries
    probabilities: Tensor
    threshold: Tensor
    size: Tensor

    def at(self, entries: Entries) -> Tensor:
        """The probabilities at `entries`, which must be `support` itself."""
        assert entries is self.support
        return self.probabilities

    def at_columns(self, columns: Tensor) -> Tensor:
        """The probability of one token in each row. `columns`: [n] int64. Returns [n]."""
        return self.support.pick(self.probabilities, columns)

    def power_sum(self, alpha: float) -> Tensor:
        """sum_j p_j^alpha of every row, [n]."""
        p = self.probabilities
        return self.support.sum(p.square() if alpha == 2 else p.pow(alpha))


def block_width(vocabulary: int) -> int:
    """The number of columns per block: the power of two below the square root of K, at most `WIDEST_BLOCK`.

    So a row has at least as many blocks as a block has columns. Where it has few, a handful is a large share of them,
    and all rows are iterated on in full; narrower blocks cost more to reduce than they spare.

    Args:
        vocabulary: number K of columns, at least 1.

    Example:
        >>> [block_width(k) for k in (428, 8_192, 32_000, 128_256, 262_144)]
        [16, 64, 128, 256, 256]
    """
    return min(WIDEST_BLOCK, 1 << (math.isqrt(vocabulary).bit_length() - 1))


def block_maxima(logits: Tensor) -> Tensor:
    """Maxima of consecutive blocks of `block_width(K)` columns, the last block possibly shorter.

    Args:
        logits: [n, K] logits, contiguous.

    Returns:
        [n, ceil(K / block_width(K))].
    """
    n, K = logits.shape
    block = block_width(K)
    whole = K - K % block
    maxima = logits[:, :whole].reshape(n, whole // block, block).amax(-1)
    if whole == K:
        return maxima
    return torch.cat([maxima, logits[:, whole:].amax(-1, keepdim=True)], dim=-1)


def entmax(logits: Tensor, alpha: float = 2.0, maxima: Tensor | None = None) -> Entmax:
    """Exact alpha-entmax of every row; sparsemax at alpha = 2.

    Not differentiable: losses bring their own closed-form gradients. The threshold is computed in float64
    whatever the dtype, on logits from which the row maximum has been taken.

    Source: Martins and Astudillo (2016), equation 2; Peters, Niculae and Martins (2019), equation 9; TS2, section 3.

    Args:
        logits: [n, K] logits, float32 or float64. Entries may be -inf, but not all of a row.
        alpha: order, 1 < alpha <= 2. Towards 1 the supports grow, and with them the cost.
        maxima: `block_maxima` of the logits, if they are computed already.

    Returns:
        The support, the probabilities on it, the threshold and the size, see `Entmax`.

    Example:
        >>> result = entmax(torch.tensor([[1.0, 0.6, -3.0]]))
        >>> result.support.columns.tolist(), [round(p, 2) for p in result.probabilities.tolist()]
        ([0, 1], [0.7, 0.3])
    """
    maxima = block_maxima(logits) if maxima is None else maxima
    find = _listed if sparse.sizes_may_depend_on_data(logits.device) else _of_fixed_size
    return find(logits, alpha, maxima)


def entmax_probabilities(logits: Tensor, alpha: float = 2.0) -> Tensor:
    """alpha-entmax as a dense matrix.

    Args:
        logits: [n, K] logits, float32 or float64, see `entmax`.
        alpha: order, 1 < alpha <= 2; 2 is sparsemax.

    Returns:
        [n, K], rows that sum to one.

    Example:
        >>> entmax_probabilities(torch.tensor([[2.0, 1.5, -3.0]])).tolist()
        [[0.75, 0.25, 0.0]]
    """
    projection = entmax(logits.contiguous(), alpha)
    probabilities = torch.zeros_like(logits)
    projection.support.add(probabilities, projection.probabilities)
    return probabilities


def _listed(logits: Tensor, alpha: float, maxima: Tensor) -> Entmax:
    """The support as a list, by as many steps as it takes."""
    scale, q = alpha - 1, 1 / (alpha - 1)
    top = maxima.amax(-1, keepdim=True)
    scaled = (maxima - top) * scale
    bound = _rise(scaled, torch.full_like(top, -1.0), q, BOUND_STEPS, MARGIN / 10) - MARGIN
    hit = scaled > bound
    if int(hit.count_nonzero()) > DENSE_SHARE * hit.numel():
        scaled = (logits - top) * scale
        bound = _rise(scaled, bound, q, BOUND_STEPS, MARGIN / 10) - MARGIN
        rows, columns = (scaled > bound).nonzero(as_tuple=True)
        entries = Listed(rows, columns, len(logits))
    else:
        entries = _block_entries(logits, hit)
    # The bound leaves a few candidates; the threshold itself is exact.
    values = (entries.at(logits).double() - top[entries.rows, 0].double()) * scale
    threshold = _rise_listed(entries, values, bound[:, 0].double(), q)
    support, values = _above(entries, values, threshold)
    if q in (1, 2):  # once the support is fixed the equation is linear or quadratic
        threshold = _closed_form(support, values, q)
        support, values = _above(support, values, threshold)
    probabilities = (values - threshold[support.rows]).pow_(q)
    return Entmax(support, probabilities.to(logits.dtype), threshold.to(logits.dtype), support.count())


def _block_entries(logits: Tensor, hit: Tensor) -> Listed:
    """All entries of the blocks marked in `hit`, a bool for each of `block_maxima`."""
    n, K = logits.shape
    block = block_width(K)
    rows, blocks = hit.nonzero(as_tuple=True)
    columns = blocks[:, None] * block + torch.arange(block, device=logits.device)
    rows = rows[:, None].expand_as(columns)
    inside = columns < K
    if K % block == 0:
        return Listed(rows.reshape(-1), columns.reshape(-1), n)
    return Listed(rows[inside], columns[inside], n)


def _above(entries: Listed, values: Tensor, threshold: Tensor) -> tuple[Listed, Tensor]:
    """The entries whose value exceeds their row's threshold [n], and their values."""
    keep = values > threshold[entries.rows]
    return Listed(entries.rows[keep], entries.columns[keep], entries.n), values[keep]


def _closed_form(support: Listed, values: Tensor, q: float) -> Tensor:
    """The threshold [n] of a fixed support, for q = 1 or 2 (Peters et al., 2019, appendix A)."""
    size = support.count().to(values.dtype)
    mean = support.sum(values) / size
    if q == 1:
        return mean - 1 / size
    spread = support.sum((values - mean[support.rows]).square_())
    return mean - ((1 - spread) / size).sqrt()


def _rise(scaled: Tensor, threshold: Tensor, q: float, steps: int, tolerance: float | None) -> Tensor:
    """Newton's iteration from below on the entries of each row.

    Args:
        scaled: [n, k] entries of s - max(s), the maximum among them.
        threshold: [n, 1] start values, not above the root.
        q: exponent of the projection.
        steps: number of steps, at most.
        tolerance: rise below which to stop, if no row rises by more; None makes all steps, whatever the data.

    Returns:
        [n, 1].
    """
    for _ in range(steps):
        excess = (scaled - threshold).clamp_(min=0)
        rise = _newton_step(excess, q, lambda x: x.sum(-1, keepdim=True))
        threshold = threshold + rise
        if tolerance is not None and bool((rise <= tolerance).all()):
            break
    return threshold


def _rise_listed(entries: Listed, scaled: Tensor, threshold: Tensor, q: float) -> Tensor:
    """Newton's iteration from below on listed entries that hold the support, to the last digit. Returns [n]."""
    for _ in range(EXACT_STEPS):
        excess = (scaled - threshold[entries.rows]).clamp_(min=0)
        rise = _newton_step(excess, q, entries.sum)
        threshold = threshold + rise
        if bool((rise <= 1e-14).all()):
            break
    return threshold


def _newton_step(
    excess: Tensor, q: float, total: Callable[[Tensor], Tensor], count: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """By how much the threshold rises: ||x||_q - 1 over the norm's slope.

    Args:
        excess: x = max(s - tau, 0) of all entries.
        q: exponent of the projection.
        total: function that sums numbers per entry over each row.
        count: function that counts those that are not zero. Default: the sum of ones.
    """
    if q == 1:  # the slope is the number of entries above the threshold
        above = total(excess.sign()) if count is None else count(excess)
        return (total(excess) - 1) / above
    lower = excess if q == 2 else excess.pow(q - 1)
    powers = total(lower * excess)
    return (powers - powers.pow(1 - 1 / q)) / total(lower)


def _of_fixed_size(logits: Tensor, alpha: float, maxima: Tensor) -> Entmax:
    """The support as a padded list or as a mask: no shape follows from a value.

    The largest entries of each row have a threshold of their own, which is never above the row's, and is the row's
    where it is not below any other entry. A flag tells the host whether that holds in all rows.
    """
    scale, q, wide = alpha - 1, 1 / (alpha - 1), widest_float(logits.device)
    top = maxima.amax(-1, keepdim=True)
    for length in LIST_LENGTHS:
        if length > sparse.LISTED_SHARE * logits.shape[-1]:
            break
        values, columns, others = _largest(logits, maxima, length)
        values = (values.to(wide) - top.to(wide)).mul_(scale)
        threshold = _rise_sorted(values, q)
        if sparse.told(((others.to(wide) - top.to(wide)) * scale > threshold).any()):
            continue
        excess = (values - threshold).clamp_(min=0)
        support = Padded(columns, excess > 0)
        probabilities = excess.pow_(q).to(logits.dtype)
        return Entmax(support, probabilities, threshold[:, 0].to(logits.dtype), support.count())
    return _masked(logits, alpha, maxima)


def _largest(logits: Tensor, maxima: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest entries of the blocks with the largest maxima; of a long list, of the whole row.

    Returns:
        Values in falling order and columns, both [n, length], and a bound [n, 1] on all other entries of the row.
    """
    K, width = logits.shape[-1], block_width(logits.shape[-1])
    if length > LIST_LENGTHS[0] or maxima.shape[-1] < 4 * LISTED_BLOCKS:
        values, columns = logits.topk(length, dim=-1)
        return values, columns, values[:, -1:]
    best, blocks = maxima.topk(LISTED_BLOCKS + 1, dim=-1)
    blocks = blocks[:, :-1]
    # The last block may be shorter: it is read from further left, and what it shares with its neighbour is left out.
    starts = (blocks * width).clamp(max=K - width)
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    candidates = logits.unfold(-1, width, 1)[rows, starts]
    if K % width:
        shared = (blocks * width - starts)[..., None]
        candidates.masked_fill_(torch.arange(width, device=logits.device) < shared, -torch.inf)
    values, places = candidates.flatten(1).topk(length, dim=-1)
    columns = starts.gather(-1, places // width) + places % width
    return values, columns, torch.maximum(values[:, -1:], best[:, -1:])


def _rise_sorted(scaled: Tensor, q: float) -> Tensor:
    """The threshold [n, 1] of entries [n, k] of s - max(s) in falling order.

    The first j entries have a threshold that is not above that of all, and the largest of these is it. For q = 1 each
    is known; else it is bounded by that of j entries that are all equal to the j-th, where Newton's iteration begins.
    """
    number = torch.arange(1, scaled.shape[-1] + 1, dtype=scaled.dtype, device=scaled.device)
    if q == 1:
        return ((scaled.cumsum(-1) - 1) / number).amax(-1, keepdim=True)
    bound = (scaled - number.pow(-1 / q)).amax(-1, keepdim=True)
    return _rise(scaled, bound, q, SORTED_STEPS, None)


def _masked(logits: Tensor, alpha: float, maxima: Tensor) -> Entmax:
    """The support as a mask, by a fixed number of steps over the full width.

    The block maxima bring the threshold so near that few steps over the full width remain. These suffice for any row
    of logits met in practice, flat ones included, but not for every conceivable one.
    """
    scale, q = alpha - 1, 1 / (alpha - 1)
    top = maxima.amax(-1, keepdim=True)
    threshold = _rise((maxima - top) * scale, torch.full_like(top, -1.0), q, MAXIMA_STEPS, None) - MARGIN
    scaled = logits - top
    if scale != 1:
        scaled.mul_(scale)
    for _ in range(FULL_STEPS):
        excess = (scaled - threshold).clamp_(min=0)
        rise = _newton_step(excess, q, _sum_of_blocks, lambda x: torch.linalg.vector_norm(x, 0, -1, keepdim=True))
        threshold = (threshold + rise).to(logits.dtype)
    excess = scaled.sub_(threshold).clamp_(min=0)
    support = Masked(excess > 0)
    return Entmax(support, excess.pow_(q) if q != 1 else excess, threshold[:, 0], support.count())


def _sum_of_blocks(numbers: Tensor) -> Tensor:
    """Sums over rows [n, 1]: of blocks in the dtype of the numbers, and of these in float64 where the device has it.

    A GPU that adds up float32 in float64 would first write a copy of all of them.
    """
    K, width = numbers.shape[-1], block_width(numbers.shape[-1])
    whole = K - K % width
    sums = numbers[:, :whole].reshape(len(numbers), whole // width, width).sum(-1)
    wide = widest_float(numbers.device)
    return sums.sum(-1, keepdim=True, dtype=wide) + numbers[:, whole:].sum(-1, keepdim=True, dtype=wide)

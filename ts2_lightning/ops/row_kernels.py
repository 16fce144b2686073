"""Two Triton kernels for the row work of every loss of a softmax, an entmax of order 2 or 1.5, and a gold token.

`summarize` reads each row of logits once and gives the numbers `summary.FIELDS`, from which losses and statistics
follow by arithmetic on vectors [n]. `write_gradient` reads the row once more and writes the gradient that six numbers
a row describe. Nothing waits for a value on the host, and what is computed of a row depends on that row alone.

This module needs Triton, which is not on every platform, and imports it: import it only where it is to be used.
"""

from typing import NamedTuple

import torch
from torch import Tensor, library

from ts2_lightning.ops.row_programs import gradient_program, summary_program
from ts2_lightning.ops.summary import FIELDS, SummaryRequest

COMPILED = {"num_stages": 1, "enable_fp_fusion": True}
"""Options of the compiler, given because versions of Triton differ in them."""

SMALL_VOCABULARY = 65_536
"""Up to this many columns a row is read so soon that what follows counts: programs are small, and more of them run."""

LANES_PER_WARP = 128
"""Lanes of a warp: four for each thread, which a load of 16 bytes reads."""

HELD_PER_WARP = 512
"""Logits that a warp may hold in registers at a time: with twice as many the registers do not suffice."""


class RowLayout(NamedTuple):
    """Sizes of the programs, all of them powers of two.

    Attributes:
        warps: groups of 32 threads in a program.
        lanes: strided groups of columns, `LANES_PER_WARP` for each warp, so that each belongs to one thread.
        strip: columns of a lane that are read at a time; fewer where more sums are wanted.
        held_lanes: lanes that are held in registers; where more may have support, the row is read again.
        depth: columns of a lane, rounded up; at least 4.
        tile: columns of the gradient that are written at a time.
    """

    warps: int
    lanes: int
    strip: int
    held_lanes: int
    depth: int
    tile: int


def layout_for(vocabulary: int, request: SummaryRequest | None = None) -> RowLayout:
    """The layout for rows of K logits.

    Args:
        vocabulary: number K of columns, at least 1.
        request: what a summary is to hold. Default: the least.

    Example:
        >>> layout_for(128_256)
        RowLayout(warps=8, lanes=1024, strip=8, held_lanes=32, depth=128, tile=4096)
    """
    warps, held_lanes = (4, 16) if vocabulary <= SMALL_VOCABULARY else (8, 32)
    lanes = LANES_PER_WARP * warps
    depth = max(4, _power_of_two(-(-vocabulary // lanes)))
    held_lanes = max(1, min(held_lanes, HELD_PER_WARP * warps // depth))
    request = request or SummaryRequest()
    # Found by compiling: with these nothing spills. A 1.5-entmax beside two softmaxes holds fewer lanes; the sums of
    # `uniform` alone are paid for by reading fewer columns at a time.
    strip = 4 if request.uniform else 8
    if request.alpha != 2 and request.softmax_scale != 1:
        held_lanes, strip = max(1, held_lanes // 2), 8
    return RowLayout(warps, lanes, strip=strip, held_lanes=held_lanes, depth=depth, tile=4 * lanes)


def _power_of_two(least: int) -> int:
    """The smallest power of two that is not below `least`, which is at least 1."""
    return 1 << (least - 1).bit_length()


def summarize(logits: Tensor, labels: Tensor, request: SummaryRequest) -> Tensor:
    """The numbers that losses and statistics need of rows of logits z with gold tokens y, in one read.

    Args:
        logits: [n, K] float32 logits, each row contiguous. May contain -inf (a masked vocabulary), not +inf; the gold
            tokens' must be finite. A row with a NaN gets NaN as its maximum, and leaves the others alone.
        labels: [n] int64 gold tokens.
        request: what is wanted.

    Returns:
        [len(FIELDS), n] float32, see `summary.FIELDS`; fields that are not asked for hold zeros.
    """
    assert logits.dtype == torch.float32
    assert logits.stride(1) == 1 or logits.shape[1] == 1
    fields: Tensor = _row_summary(logits, labels, *request)
    return fields


def write_gradient(
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
    """Writes a gradient with respect to the logits, of which each row is described by six numbers.

    With d_j = z_j - max z, e_j = exp(s d_j), p = alpha-entmax(c z) and its support S, it is

        g_j = e_j (outside + slope d_j)              where j is neither in S nor y,
        g_j = e_j (inside + slope d_j) + sparse p_j  where it is,

    plus `uniform` where z_j is finite, less `gold` at y. At -inf it is exactly 0.

    Args:
        logits: [n, K] the logits of `summarize`.
        labels: [n] int64 gold tokens y.
        fields: [len(FIELDS), n] what `summarize` has returned of them for the same request.
        coefficients: [6, n] float32: outside, inside, slope, sparse, gold, uniform.
        request: s, c and alpha.
        out: [n, K] float32 or bfloat16, where the gradient goes. It may be the logits themselves, or memory of theirs
            in bfloat16: `logits.view(torch.bfloat16)[:, :K]`.
        support: whether S counts; without, `inside` is read for y alone and `sparse` not at all.
        slope: whether `slope` can differ from 0; else it is not read.
        uniform: whether `uniform` can; else it is not read.
    """
    assert logits.dtype == coefficients.dtype == fields.dtype == torch.float32
    assert out.shape == logits.shape
    assert all(rows.stride(1) == 1 or rows.shape[1] == 1 for rows in (logits, out))
    assert request.support_scale is not None or not support
    _row_gradient(logits, labels, fields, coefficients, out, *request[:3], support, slope, uniform)


@library.custom_op("ts2_lightning::row_summary", mutates_args=())
def _row_summary(
    logits: Tensor, labels: Tensor, softmax_scale: float, support_scale: float | None, alpha: float, uniform: bool
) -> Tensor:
    n, K = logits.shape
    layout = layout_for(K, SummaryRequest(softmax_scale, support_scale, alpha, uniform))
    fields = logits.new_zeros(len(FIELDS), n)
    lists = labels.new_empty(n, layout.held_lanes, dtype=torch.int32)
    if n:
        with torch.accelerator.device_index(logits.device.index):
            summary_program[(n,)](
                logits, logits.stride(0), labels.contiguous(), fields, lists, n, K, softmax_scale, support_scale or 1.0,
                LANES=layout.lanes, STRIP=layout.strip, HELD=layout.held_lanes, DEPTH=layout.depth, Q=_exponent(alpha),
                SUPPORT=support_scale is not None, SCALED=softmax_scale != 1, UNIFORM=uniform, num_warps=layout.warps,
                **COMPILED,
            )  # fmt: skip
    return fields


@_row_summary.register_fake
def _(
    logits: Tensor, labels: Tensor, softmax_scale: float, support_scale: float | None, alpha: float, uniform: bool
) -> Tensor:
    return logits.new_empty(len(FIELDS), len(logits))


@library.custom_op("ts2_lightning::row_gradient", mutates_args=("out",))
def _row_gradient(
    logits: Tensor, labels: Tensor, fields: Tensor, coefficients: Tensor, out: Tensor, softmax_scale: float,
    support_scale: float | None, alpha: float, support: bool, slope: bool, uniform: bool,
) -> None:  # fmt: skip
    n, K = logits.shape
    layout = layout_for(K)
    overlap = out.dtype != logits.dtype and out.data_ptr() == logits.data_ptr()
    factor = (alpha - 1) * (support_scale or 1.0)
    if n:
        with torch.accelerator.device_index(logits.device.index):
            gradient_program[(n,)](
                logits, logits.stride(0), out, out.stride(0), labels.contiguous(), fields.contiguous(),
                coefficients.contiguous(), n, K, softmax_scale, factor, TILE=layout.tile, Q=_exponent(alpha),
                SUPPORT=support, SLOPE=slope, UNIFORM=uniform, OVERLAP=overlap, num_warps=layout.warps, **COMPILED,
            )  # fmt: skip


@_row_gradient.register_fake
def _(
    logits: Tensor, labels: Tensor, fields: Tensor, coefficients: Tensor, out: Tensor, softmax_scale: float,
    support_scale: float | None, alpha: float, support: bool, slope: bool, uniform: bool,
) -> None:  # fmt: skip
    return None


def _exponent(alpha: float) -> int:
    """q = 1 / (alpha - 1)."""
    assert alpha in (1.5, 2.0), alpha
    return 1 if alpha == 2 else 2

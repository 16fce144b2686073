"""The Triton programs of `ops.row_kernels`: each works on one row of logits.

Columns are taken in strided groups: lane c of C has the columns c, c + C, c + 2 C, ... A lane's maximum and sums are
running values of one thread, so that the loop over the row needs neither an exchange between threads nor memory, and
the maxima of the lanes, on which the search for the threshold starts, are in registers when it ends.

The threshold is found as in `ops.entmax`: Newton's iteration from below on the maxima of the lanes bounds it, only
lanes whose maximum exceeds the bound can hold support, and the iteration ends on their entries. A few lanes are held in
registers; many are read again. The mass outside of the support is summed by itself, never a difference.
"""

# mypy: disallow-untyped-defs=False
# (the arguments of a Triton function are what the compiler makes of them)

import triton
import triton.language as tl

from ts2_lightning.ops.summary import FIELDS

FLOOR = tl.constexpr(-1e30)
"""Stands for -inf where it would be multiplied by 0."""

MASKED = tl.constexpr(float("-inf"))
"""The logit of a masked token, and of what lies beyond the row."""

LOG2E = tl.constexpr(1.4426950408889634)

MARGIN = tl.constexpr(1e-5)
"""The amount by which a bound is lowered, so that rounding in float32 can never cut an entry of the support."""

STEPS = tl.constexpr(100)
"""Newton steps, at most; they end by themselves."""

AGAIN = tl.constexpr(2)
"""Columns of a lane at a time where the row is read again: with more, this rare way would set the registers of all."""

OF_SUPPORT = tl.constexpr(FIELDS.index("threshold"))
OF_UNIFORM = tl.constexpr(FIELDS.index("unmasked"))


# -- the summary: sums of each lane


@triton.jit
def _absorb(z, gold, scale, lanes, SCALED: tl.constexpr, UNIFORM: tl.constexpr):
    """Takes a strip z [R, C] of the row into the running values [C] of the lanes, see `_read`."""
    top, normalizer, weighted, scaled_normalizer, scaled_weighted, above, unmasked, total = lanes
    finite = z > MASKED
    z = tl.maximum(z, FLOOR, propagate_nan=tl.PropagateNan.ALL)  # by default a NaN would turn into a masked token
    new_top = tl.maximum(top, tl.max(z, 0))
    d = z - new_top[None, :]
    fall = top - new_top
    e = tl.exp2(d * LOG2E)
    shrink = tl.exp2(fall * LOG2E)
    weighted = shrink * (weighted + fall * normalizer) + tl.sum(d * e, 0)
    normalizer = shrink * normalizer + tl.sum(e, 0)
    if SCALED:
        e = tl.exp2(d * (scale * LOG2E))
        shrink = tl.exp2(fall * (scale * LOG2E))
        scaled_weighted = shrink * (scaled_weighted + fall * scaled_normalizer) + tl.sum(d * e, 0)
        scaled_normalizer = shrink * scaled_normalizer + tl.sum(e, 0)
    above += tl.sum((z > gold).to(tl.int32), 0)
    if UNIFORM:
        total += fall * unmasked + tl.sum(tl.where(finite, d, 0.0), 0)
        unmasked += tl.sum(finite.to(tl.int32), 0)
    return new_top, normalizer, weighted, scaled_normalizer, scaled_weighted, above, unmasked, total


@triton.jit
def _read(
    logits, gold, K, scale, LANES: tl.constexpr, STRIP: tl.constexpr, SCALED: tl.constexpr, UNIFORM: tl.constexpr
):
    """The one read of a row: values [C] of each lane, the sums relative to the lane's own maximum, in float32.

    They are the maximum, sums of e^d, d e^d, e^(s d) and d e^(s d), the number of logits above the gold one, the number
    of finite ones and their sum.
    """
    zeros = tl.zeros([LANES], tl.float32)
    none = tl.zeros([LANES], tl.int32)
    lanes = (tl.full([LANES], FLOOR, tl.float32), zeros, zeros, zeros, zeros, none, none, zeros)
    columns = tl.arange(0, STRIP)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    whole = K // (STRIP * LANES) * (STRIP * LANES)
    for start in range(0, whole, STRIP * LANES):
        lanes = _absorb(tl.load(logits + start + columns), gold, scale, lanes, SCALED, UNIFORM)
    if whole < K:
        z = tl.load(logits + whole + columns, mask=whole + columns < K, other=MASKED)
        lanes = _absorb(z, gold, scale, lanes, SCALED, UNIFORM)
    return lanes


@triton.jit
def _second_and_third(logits, top, maximum, K, LANES: tl.constexpr, DEPTH: tl.constexpr):
    """The second and third largest logit of a row: the three largest lie in the lanes with the largest maxima [C]."""
    lane = tl.arange(0, LANES)
    first = tl.argmax(top, 0)
    rest = tl.where(lane == first, FLOOR, top)
    second = tl.argmax(rest, 0)
    second_top = tl.max(rest)
    rest = tl.where(lane == second, FLOOR, rest)
    third = tl.argmax(rest, 0)
    third_top = tl.max(rest)
    place = tl.arange(0, 4)
    chosen = tl.where(place == 0, first, tl.where(place == 1, second, third))
    # Where fewer than three lanes hold anything, the argmax of nothing names one of them again.
    tops = tl.where(place == 0, maximum, tl.where(place == 1, second_top, third_top))
    real = (tops > FLOOR) & (place < 3)
    columns = chosen[:, None] + LANES * tl.arange(0, DEPTH)[None, :]
    z = tl.load(logits + columns, mask=(columns < K) & real[:, None], other=FLOOR)
    z = tl.reshape(z, [4 * DEPTH])
    entry = tl.arange(0, 4 * DEPTH)
    z = tl.where(entry == tl.argmax(z, 0), FLOOR, z)
    second_largest = tl.max(z)
    z = tl.where(entry == tl.argmax(z, 0), FLOOR, z)
    return second_largest, tl.max(z)


# -- the summary: the support


@triton.jit
def _powers(excess, Q: tl.constexpr):
    """max(excess, 0)^q and its slope over q, for q = 1 or 2: their sums make a Newton step."""
    positive = tl.maximum(excess, 0.0)
    powers = positive
    slopes = (excess > 0.0).to(tl.float32)
    if Q == 2:
        powers = positive * positive
        slopes = positive
    return powers, slopes


@triton.jit
def _rise(powers, slopes, Q: tl.constexpr):
    """By how much the threshold rises: ||x||_q - 1 over the norm's slope, of the sums of `_powers`."""
    aim = 1.0
    if Q == 2:
        aim = tl.sqrt(powers)
    return (powers - aim) / slopes


@triton.jit
def _continues(rise, slopes, previous, steps, Q: tl.constexpr):
    """Whether another step is needed: at q = 1 until the size of the support stays, which makes the threshold exact."""
    moves = slopes != previous
    if Q == 2:
        moves = tl.abs(rise) > 1e-6
    return moves & (steps < STEPS)


@triton.jit
def _excess(d, factor, threshold):
    """s - tau of s = (alpha - 1) c d: in one rounding, so that its sign says exactly, and everywhere, who is in S."""
    return tl.fma(d, factor, -threshold)


@triton.jit
def _solve(d, factor, threshold, Q: tl.constexpr):
    """The threshold of shifted logits d, which are in registers, from a threshold below it."""
    previous = -1.0
    steps = 0
    go = True
    while go:
        powers, slopes = _powers(_excess(d, factor, threshold), Q)
        powers = tl.sum(powers)
        slopes = tl.sum(slopes)
        rise = _rise(powers, slopes, Q)
        threshold += rise
        steps += 1
        go = _continues(rise, slopes, previous, steps, Q)
        previous = slopes
    return threshold


@triton.jit
def _solve_reading(
    logits, maximum, factor, threshold, hit, K, LANES: tl.constexpr, STRIP: tl.constexpr, Q: tl.constexpr
):
    """The same of the entries of the lanes `hit`, which are read anew in each step."""
    columns = tl.arange(0, STRIP)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    previous = -1.0
    steps = 0
    go = True
    while go:
        powers = tl.zeros([LANES], tl.float32)
        slopes = tl.zeros([LANES], tl.float32)
        for start in range(0, K, STRIP * LANES):
            z = tl.load(logits + start + columns, mask=(start + columns < K) & hit[None, :], other=MASKED)
            some_powers, some_slopes = _powers(_excess(z - maximum, factor, threshold), Q)
            powers += tl.sum(some_powers, 0)
            slopes += tl.sum(some_slopes, 0)
        count = tl.sum(slopes)
        rise = _rise(tl.sum(powers), count, Q)
        threshold += rise
        steps += 1
        go = _continues(rise, count, previous, steps, Q)
        previous = count
    return threshold


@triton.jit
def _measure(d, is_gold, factor, threshold, scale, SCALED: tl.constexpr, Q: tl.constexpr):
    """What entries give to the sums over S, inside of S and y, and outside: seven tensors of their shape.

    They are for `size`, `expected` (without the factor c), `powers`, `tail`, `kept`, `scaled_tail` and `scaled_kept`.
    What is masked, or beyond the row, has a d of -inf, and gives nothing.
    """
    excess = _excess(d, factor, threshold)
    inside = excess > 0.0
    kept = inside | is_gold
    root = tl.maximum(excess, 0.0)  # p^(alpha - 1)
    p = root
    if Q == 2:
        p = root * root
    expected = p * tl.where(inside, d, 0.0)
    e = tl.exp2(d * LOG2E)
    tail = tl.where(kept, 0.0, e)
    mass = tl.where(kept, e, 0.0)
    if SCALED:
        e = tl.exp2(d * (scale * LOG2E))
    return inside.to(tl.float32), expected, p * root, tail, mass, tl.where(kept, 0.0, e), tl.where(kept, e, 0.0)


@triton.jit
def _of_few_lanes(logits, list, label, maximum, factor, threshold, scale, hit, hits, K, LANES: tl.constexpr,
                  HELD: tl.constexpr, DEPTH: tl.constexpr, SCALED: tl.constexpr, Q: tl.constexpr):  # fmt: skip
    """Threshold, and sums of `_measure`, where at most HELD lanes may hold support: read once, into registers."""
    tl.store(list + tl.cumsum(hit.to(tl.int32), 0) - 1, tl.arange(0, LANES), mask=hit)
    tl.debug_barrier()  # what one thread has written, others read
    place = tl.arange(0, HELD)
    lane = tl.load(list + place, mask=place < hits, other=0)
    turn = tl.arange(0, DEPTH)
    columns = lane[:, None] + LANES * turn[None, :]
    d = tl.load(logits + columns, mask=(columns < K) & (place < hits)[:, None], other=MASKED) - maximum
    threshold = _solve(d, factor, threshold, Q)
    is_gold = (lane == label % LANES)[:, None] & (turn == label // LANES)[None, :]
    sums = _measure(d, is_gold, factor, threshold, scale, SCALED, Q)
    return (threshold, tl.sum(sums[0]), tl.sum(sums[1]), tl.sum(sums[2]), tl.sum(sums[3]), tl.sum(sums[4]),
            tl.sum(sums[5]), tl.sum(sums[6]))  # fmt: skip


@triton.jit
def _of_many_lanes(logits, label, maximum, factor, threshold, scale, hit, K, LANES: tl.constexpr, STRIP: tl.constexpr,
                   SCALED: tl.constexpr, Q: tl.constexpr):  # fmt: skip
    """The same where more lanes may: they are read in every step, and once more for the sums."""
    threshold = _solve_reading(logits, maximum, factor, threshold, hit, K, LANES, STRIP, Q)
    zeros = tl.zeros([LANES], tl.float32)
    size, expected, powers, tail, kept, scaled_tail, scaled_kept = zeros, zeros, zeros, zeros, zeros, zeros, zeros
    columns = tl.arange(0, STRIP)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    for start in range(0, K, STRIP * LANES):
        d = tl.load(logits + start + columns, mask=(start + columns < K) & hit[None, :], other=MASKED) - maximum
        of_strip = _measure(d, start + columns == label, factor, threshold, scale, SCALED, Q)
        size += tl.sum(of_strip[0], 0)
        expected += tl.sum(of_strip[1], 0)
        powers += tl.sum(of_strip[2], 0)
        tail += tl.sum(of_strip[3], 0)
        kept += tl.sum(of_strip[4], 0)
        if SCALED:
            scaled_tail += tl.sum(of_strip[5], 0)
            scaled_kept += tl.sum(of_strip[6], 0)
    if not SCALED:
        scaled_tail = tail
        scaled_kept = kept
    return (threshold, tl.sum(size), tl.sum(expected), tl.sum(powers), tl.sum(tail), tl.sum(kept),
            tl.sum(scaled_tail), tl.sum(scaled_kept))  # fmt: skip


@triton.jit
def _store(fields, n, first: tl.constexpr, numbers):
    """Writes numbers of a row to the fields from the first on."""
    for i in tl.static_range(len(numbers)):
        tl.store(fields + (first + i) * n, numbers[i].to(tl.float32))


@triton.jit(do_not_specialize=["n"])
def summary_program(logits, stride, labels, fields, lists, n, K, scale, support_scale, LANES: tl.constexpr,
                    STRIP: tl.constexpr, HELD: tl.constexpr, DEPTH: tl.constexpr, Q: tl.constexpr,
                    SUPPORT: tl.constexpr, SCALED: tl.constexpr, UNIFORM: tl.constexpr):  # fmt: skip
    """One row of `summarize`; `lists` [n, HELD] int32 is memory to compute in."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    fields += row
    label = tl.load(labels + row).to(tl.int32)
    gold = tl.load(logits + label)
    top, normalizer, weighted, scaled_normalizer, scaled_weighted, above, unmasked, total = _read(
        logits, gold, K, scale, LANES, STRIP, SCALED, UNIFORM)  # fmt: skip

    maximum = tl.max(top)
    fall = top - maximum
    shrink = tl.exp2(fall * LOG2E)
    normalizer *= shrink
    weighted = weighted * shrink + fall * normalizer
    if SCALED:
        shrink = tl.exp2(fall * (scale * LOG2E))
        scaled_normalizer *= shrink
        scaled_weighted = (scaled_weighted * shrink + fall * scaled_normalizer) * scale
    else:
        scaled_normalizer = normalizer
        scaled_weighted = weighted
    mass = tl.sum(normalizer)
    # A NaN is sure to be in the sum alone: as the maximum it reaches every other field, and the gradient.
    maximum = tl.where(mass == mass, maximum, mass)
    second, third = _second_and_third(logits, top, maximum, K, LANES, DEPTH)
    _store(fields, n, 0, (maximum, mass, tl.sum(weighted), tl.sum(scaled_normalizer), tl.sum(scaled_weighted),
                          gold - maximum, tl.sum(above), second - maximum, third - maximum))  # fmt: skip
    if UNIFORM:
        _store(fields, n, OF_UNIFORM, (tl.sum(unmasked), tl.sum(total + unmasked * (top - maximum))))
    if SUPPORT:
        factor = support_scale
        if Q == 2:
            factor = support_scale * 0.5
        threshold = _solve(top - maximum, factor, tl.full([], -1.0, tl.float32), Q)
        hit = (_excess(top - maximum, factor, threshold) > -MARGIN) | (tl.arange(0, LANES) == label % LANES)
        hits = tl.sum(hit.to(tl.int32))
        if hits <= HELD:
            threshold, size, expected, powers, tail, kept, scaled_tail, scaled_kept = _of_few_lanes(
                logits, lists + row * HELD, label, maximum, factor, threshold, scale, hit, hits, K, LANES, HELD, DEPTH,
                SCALED, Q)  # fmt: skip
        else:
            threshold, size, expected, powers, tail, kept, scaled_tail, scaled_kept = _of_many_lanes(
                logits, label, maximum, factor, threshold, scale, hit, K, LANES, AGAIN, SCALED, Q)  # fmt: skip
        tail += tl.sum(tl.where(hit, 0.0, normalizer))
        scaled_tail += tl.sum(tl.where(hit, 0.0, scaled_normalizer))
        in_support = _excess(gold - maximum, factor, threshold) > 0.0
        _store(fields, n, OF_SUPPORT, (threshold, size, expected * support_scale, powers, tail, kept, scaled_tail,
                                       scaled_kept, in_support, hits))  # fmt: skip


# -- the gradient


@triton.jit
def _entries(z, maximum, scale, factor, threshold, outside, inside, slope, sparse, uniform, Q: tl.constexpr,
             SUPPORT: tl.constexpr, SLOPE: tl.constexpr, UNIFORM: tl.constexpr):  # fmt: skip
    """The gradient at logits z, the gold token's correction apart; `outside` is what holds where no support is."""
    d = z - maximum
    weight = outside
    if SUPPORT:
        excess = _excess(d, factor, threshold)
        weight = tl.where(excess > 0.0, inside, outside)
    if SLOPE:
        weight += slope * tl.maximum(d, FLOOR, propagate_nan=tl.PropagateNan.ALL)  # -inf times exp(-inf) is 0 here
    gradient = tl.exp2(d * (scale * LOG2E)) * weight
    if SUPPORT:
        p = tl.maximum(excess, 0.0)
        if Q == 2:
            p *= p
        gradient += sparse * p
    if UNIFORM:
        gradient += tl.where(z > MASKED, uniform, 0.0)
    return gradient


@triton.jit(do_not_specialize=["n"])
def gradient_program(logits, stride, out, out_stride, labels, fields, coefficients, n, K, scale, factor,
                     TILE: tl.constexpr, Q: tl.constexpr, SUPPORT: tl.constexpr, SLOPE: tl.constexpr,
                     UNIFORM: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """One row of `write_gradient`."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    out += row * out_stride
    fields += row
    coefficients += row
    label = tl.load(labels + row)
    maximum = tl.load(fields)
    outside = tl.load(coefficients)
    inside = tl.load(coefficients + n)
    threshold = 0.0
    slope = 0.0
    sparse = 0.0
    uniform = 0.0
    if SLOPE:
        slope = tl.load(coefficients + 2 * n)
    if SUPPORT:
        sparse = tl.load(coefficients + 3 * n)
        threshold = tl.load(fields + OF_SUPPORT * n)
    if UNIFORM:
        uniform = tl.load(coefficients + 5 * n)
    # The gold token counts as inside whatever its logit: its entry is computed by itself, and written last.
    gold = tl.load(logits + label)
    gold = _entries(
        gold, maximum, scale, factor, threshold, inside, inside, slope, sparse, uniform, Q, SUPPORT, SLOPE, UNIFORM
    )
    gold -= tl.load(coefficients + 4 * n)
    tl.debug_barrier()  # `out` may be the logits, and nobody has yet to read the gold one
    columns = tl.arange(0, TILE)
    for start in range(0, K, TILE):
        exists = start + columns < K
        z = tl.load(logits + start + columns, mask=exists, other=MASKED)
        gradient = _entries(
            z, maximum, scale, factor, threshold, outside, inside, slope, sparse, uniform, Q, SUPPORT, SLOPE, UNIFORM
        )
        if OVERLAP:
            tl.debug_barrier()
        tl.store(out + start + columns, gradient.to(out.dtype.element_ty), mask=exists)
    tl.debug_barrier()
    tl.store(out + label, gold.to(out.dtype.element_ty))

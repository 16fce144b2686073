"""The sort-free threshold against a full sort, and against the conditions that define the projection."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.reference import sparsemax as by_sort
from ts2_lightning.ops import Entries, sparsemax
from ts2_lightning.ops.sparsemax import block_maxima

WIDTHS = [1, 2, 3, 255, 256, 257, 512, 1000, 4099]


def dense(logits: Tensor) -> Tensor:
    result = sparsemax(logits)
    out = torch.zeros_like(logits)
    out[result.support.index] = result.probabilities
    return out


def logits_of(kind: str, n: int, k: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(n * k)
    z = torch.randn(n, k, generator=generator, dtype=torch.float64)
    made = {
        "randn": z,
        "peaked": z + 20 * torch.nn.functional.one_hot(torch.arange(n) * 7 % k, k),
        "flat": z * 0.05,
        "very_flat": z * 0.002,
        "all_equal": torch.full_like(z, 3.25),
        "two_values": (z > 0).double(),  # ties at the top, and the rest exactly at max - 1
        "wide_range": z * 1e4,
        "offset": z + 1e4,
        "masked": z.masked_fill(z < 0.5, -torch.inf).index_fill(1, torch.tensor([0]), 0.0),
    }[kind]
    return made.to(dtype)


@pytest.mark.parametrize("kind", ["randn", "peaked", "flat", "very_flat", "all_equal", "two_values", "wide_range"])
@pytest.mark.parametrize("k", WIDTHS)
def test_equals_sort_in_float64(kind: str, k: int) -> None:
    z = logits_of(kind, 9, k, torch.float64)
    torch.testing.assert_close(dense(z), by_sort(z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["randn", "flat", "very_flat", "wide_range", "offset", "masked"])
@pytest.mark.parametrize("k", [2, 257, 4099])
def test_float32_is_exact_to_rounding(kind: str, k: int) -> None:
    """The same float32 logits, projected in float64 by a sort: an offset of 1e4 costs no digits."""
    z = logits_of(kind, 9, k, torch.float32)
    torch.testing.assert_close(dense(z), by_sort(z.double()).float(), rtol=1e-5, atol=1e-7)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=600), st.integers(1, 5))
def test_is_the_projection(values: list[float], repeats: int) -> None:
    """Karush-Kuhn-Tucker: on the simplex, z - tau where positive, and nothing outside exceeds tau."""
    z = torch.tensor(values, dtype=torch.float64).repeat(repeats)[None]  # repeats make ties
    result = sparsemax(z)
    p, tau = dense(z), result.threshold + z.amax(-1)
    assert torch.isclose(p.sum(), torch.ones((), dtype=p.dtype))
    assert (result.probabilities > 0).all()
    torch.testing.assert_close(p, (z - tau[:, None]).clamp(min=0), rtol=0, atol=1e-12)
    assert result.size.item() == (p > 0).sum().item() == len(result.probabilities)


def test_entries_are_distinct() -> None:
    z = logits_of("flat", 4, 4099, torch.float32)
    support = sparsemax(z).support
    flat = support.rows * 4099 + support.columns
    assert len(flat.unique()) == len(flat)


def test_no_rows() -> None:
    result = sparsemax(torch.zeros(0, 300))
    assert len(result.support.rows) == len(result.probabilities) == len(result.threshold) == 0


def test_nan_ends() -> None:
    """A row of NaN has no support, and does not make the iteration run for ever or spoil other rows."""
    z = torch.randn(3, 600)
    z[1] = torch.nan
    result = sparsemax(z)
    assert result.size[1] == 0
    torch.testing.assert_close(dense(z)[[0, 2]], by_sort(z[[0, 2]]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", WIDTHS)
def test_block_maxima(k: int) -> None:
    z = torch.randn(3, k)
    blocks = [z[:, i : i + 256].amax(-1) for i in range(0, k, 256)]
    assert torch.equal(block_maxima(z), torch.stack(blocks, -1))


def test_entries() -> None:
    entries = Entries(torch.tensor([0, 0, 2]), torch.tensor([5, 1, 3]))
    assert entries.hits(torch.tensor([1, 5, 4])).tolist() == [True, False, False]
    union = entries.union(torch.tensor([1, 5, 4]))
    assert sorted(zip(union.rows.tolist(), union.columns.tolist(), strict=True)) == [
        (0, 1),
        (0, 5),
        (1, 5),
        (2, 3),
        (2, 4),
    ]
    assert entries.count(4).tolist() == [2, 0, 1, 0]
    assert entries.sum(torch.tensor([1.0, 2.0, 4.0]), 4).tolist() == [3, 0, 4, 0]

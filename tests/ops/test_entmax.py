"""The sort-free thresholds against a full sort or a bisection, and against the conditions that define the projection.

Everything runs twice: with supports as lists of pairs, and as padded lists and masks, the way of a GPU.
"""

import entmax as references
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.gpu_way import as_on_a_gpu
from tests.reference import sparsemax as by_sort
from ts2_lightning.ops import Listed, Masked, Padded, entmax
from ts2_lightning.ops import entmax_probabilities as dense
from ts2_lightning.ops.entmax import block_maxima, block_width

WIDTHS = [1, 2, 3, 255, 256, 257, 512, 1000, 4099, 16400]


@pytest.fixture(params=["cpu", "gpu"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "gpu":
        as_on_a_gpu(monkeypatch)
    return request.param


def bisected(logits: Tensor, alpha: float) -> Tensor:
    """[n, K] alpha-entmax of the reference package, exact at 1.5 and 2."""
    shifted = logits - logits.amax(-1, keepdim=True)
    if alpha == 1.5:
        return references.entmax15(shifted, -1)
    return by_sort(shifted) if alpha == 2 else references.entmax_bisect(shifted, alpha, -1, n_iter=100)


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


@pytest.mark.parametrize("alpha", [1.05, 1.25, 1.5, 1.75])
@pytest.mark.parametrize("kind", ["randn", "peaked", "flat", "very_flat", "all_equal", "two_values", "wide_range"])
@pytest.mark.parametrize("k", [2, 3, 257, 1000])
def test_entmax_equals_bisection(kind: str, k: int, alpha: float) -> None:
    z = logits_of(kind, 9, k, torch.float64)
    torch.testing.assert_close(dense(z, alpha), bisected(z, alpha), rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [1.25, 1.5])
@pytest.mark.parametrize("kind", ["randn", "flat", "very_flat", "wide_range", "offset", "masked"])
def test_entmax_in_float32(kind: str, alpha: float) -> None:
    z = logits_of(kind, 9, 4099, torch.float32)
    torch.testing.assert_close(dense(z, alpha), bisected(z.double(), alpha).float(), rtol=1e-4, atol=1e-7)


@settings(
    derandomize=True, deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=600), st.integers(1, 5))
def test_is_the_projection(values: list[float], repeats: int) -> None:
    """Karush-Kuhn-Tucker: on the simplex, z - tau where positive, and nothing outside exceeds tau."""
    z = torch.tensor(values, dtype=torch.float64).repeat(repeats)[None]  # repeats make ties
    result = entmax(z)
    p, tau = dense(z), result.threshold + z.amax(-1)
    assert torch.isclose(p.sum(), torch.ones((), dtype=p.dtype))
    torch.testing.assert_close(p, (z - tau[:, None]).clamp(min=0), rtol=0, atol=1e-12)
    assert result.size.item() == (p > 0).sum().item() == result.support.count().item()


def test_a_set_is_what_the_machine_likes(way: str) -> None:
    narrow, wide = torch.randn(3, 40), torch.randn(3, 4099)
    kinds = [type(entmax(logits).support) for logits in (narrow, wide * 5, wide / 99)]
    assert kinds == ([Listed] * 3 if way == "cpu" else [Masked, Padded, Masked])


@pytest.mark.parametrize("k", [1031, 4099, 8192, 16400, 16513])
@pytest.mark.parametrize("alpha", [1.5, 2])
def test_supports_are_those_of_float64(k: int, alpha: float) -> None:
    """Entry by entry, on rows of all kinds, each kind by itself: as lists, long lists and masks."""
    for kind in ("randn", "peaked", "flat", "very_flat", "all_equal", "two_values", "wide_range", "offset", "masked"):
        z = logits_of(kind, 6, k, torch.float32)
        z[0, k - 3 :] = z[0].amax() + 0.5  # in the last block, which may be shorter
        z[1, k - 40 : k - 3] = z[1].amax()  # and across its border
        expected = (by_sort(z.double()) if alpha == 2 else bisected(z.double(), alpha)) > 0
        result = entmax(z, alpha)
        made = torch.zeros_like(z)
        result.support.put(made, 1.0)
        assert torch.equal(made.bool(), expected), kind
        assert torch.equal(result.size, expected.sum(-1)), kind


def test_a_list_is_long_enough_for_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows with large supports among many with small ones; many entries of one block, or of many blocks."""
    flags = as_on_a_gpu(monkeypatch)
    told = {}
    for number, apart in [(32, 1000), (33, 1000), (63, 1), (64, 1), (1023, 7), (1024, 7)]:
        z = torch.full((3, 40_000), -5.0)
        z[:, 0] = 0
        z[1, torch.arange(number) * apart] = torch.linspace(0, 1e-4, number)
        flags.told.clear()
        assert entmax(z).size.tolist() == [1, number, 1]
        told[number] = flags.told.copy()
        torch.testing.assert_close(dense(z), by_sort(z.double()).float(), rtol=1e-5, atol=1e-8)
    long, masks = [True, False], [True, True]
    assert told == {32: [False], 33: long, 63: [False], 64: long, 1023: long, 1024: masks}


def test_no_rows() -> None:
    result = entmax(torch.zeros(0, 300))
    assert result.support.count().shape == result.threshold.shape == result.size.shape == (0,)


def test_nan_ends() -> None:
    """A row of NaN has no support, and does not make the iteration run for ever or spoil other rows."""
    z = torch.randn(3, 600)
    z[1] = torch.nan
    assert entmax(z).size[1] == 0
    torch.testing.assert_close(dense(z)[[0, 2]], by_sort(z[[0, 2]]), rtol=1e-5, atol=1e-6)


def test_a_block_is_never_wider_than_their_number() -> None:
    widths = {k: block_width(k) for k in (*range(1, 70_000), 128_256, 151_936, 262_144)}
    assert all(width & (width - 1) == 0 and width * width <= k for k, width in widths.items())
    assert all(width == 256 or 4 * width * width > k for k, width in widths.items())
    assert set(widths.values()) == {2**power for power in range(9)}


@pytest.mark.parametrize("k", WIDTHS)
def test_block_maxima(k: int) -> None:
    z = torch.randn(3, k)
    width = block_width(k)
    blocks = [z[:, i : i + width].amax(-1) for i in range(0, k, width)]
    assert torch.equal(block_maxima(z), torch.stack(blocks, -1))

"""The top-p set against a loop over tokens, on both ways."""

import pytest
import torch
from torch import Tensor

from tests.gpu_way import as_on_a_gpu
from tests.reference import nucleus
from ts2_lightning.ops import LogitRows, top_p
from ts2_lightning.ops.nucleus import CANDIDATES


@pytest.fixture(params=["cpu", "as on a gpu"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "cpu":
        as_on_a_gpu(monkeypatch)


def mask_of(z: Tensor, p: float) -> Tensor:
    mask = torch.zeros_like(z)
    top_p(LogitRows(z, torch.zeros(len(z), dtype=torch.long)), p).put(mask, 1.0)
    return mask.bool()


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (5, 40), (4, 1031), (2, 40_000)])
@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 1 - 1e-6])
def test_against_a_loop(shape: tuple[int, int], p: float) -> None:
    """Rows of which some reach p among the candidates, and some do not."""
    generator = torch.Generator().manual_seed(shape[1])
    z = torch.randn(shape, generator=generator).double()
    z *= torch.tensor([0.1, 3.0, 8.0, 1.0, 20.0])[: shape[0], None]
    wanted = nucleus(z, p)
    assert torch.equal(mask_of(z, p), wanted)
    if shape[1] > 10 * CANDIDATES and p == 0.3:
        assert wanted.sum(-1).max() > CANDIDATES
    assert torch.equal(mask_of(z + 1e4, p), wanted)


@pytest.mark.parametrize("p", [0.3, 0.9])
def test_float32(p: float) -> None:
    """The same set, but for a token at its edge."""
    z = torch.randn(20, 1031, generator=torch.Generator().manual_seed(0)) * 3
    assert ((mask_of(z, p) != nucleus(z, p)).sum(-1) <= 1).all()


def test_ties_are_all_in_it() -> None:
    """Ten equally likely tokens, at the edge: not three of them that happen to come first."""
    z = torch.cat([torch.tensor([1.0]), torch.zeros(10), torch.full((300,), -6.0)])[None].double()
    for columns in (torch.arange(311), torch.randperm(311, generator=torch.Generator().manual_seed(1))):
        assert torch.equal(mask_of(z[:, columns], 0.5), (z > -1)[:, columns])
    assert mask_of(torch.zeros(1, 600), 0.5).all()


def test_masked_tokens_are_never_in_it() -> None:
    z = torch.full((2, 900), -torch.inf).double()
    z[:, ::300] = torch.tensor([[1.0, 0.0, -3.0], [0.0, 0.0, -800.0]]).double()
    assert mask_of(z, 1 - 1e-9).sum(-1).tolist() == [3, 2]
    assert mask_of(z, 0.5).sum(-1).tolist() == [1, 2]

"""Both kinds of sets answer alike, and as a mask over the matrix would."""

import pytest
import torch
from torch import Tensor

from tests.gpu_way import as_on_a_gpu
from ts2_lightning.ops import Entries, Listed, Masked
from ts2_lightning.ops.sparse import some_per_row

N, K = 4, 9
MASK = torch.zeros(N, K, dtype=torch.bool)
MASK[0, [1, 5]] = MASK[2, 3] = MASK[3, :] = True  # row 1 has none, row 3 all


def sets() -> list[Entries]:
    return [Listed(*MASK.nonzero(as_tuple=True), N), Masked(MASK)]


@pytest.fixture(params=[0, 1], ids=["listed", "masked"])
def entries(request: pytest.FixtureRequest) -> Entries:
    return sets()[request.param]


@pytest.fixture
def matrix() -> Tensor:
    return torch.randn(N, K, dtype=torch.float64)


def test_at_and_put(entries: Entries, matrix: Tensor) -> None:
    other = torch.zeros_like(matrix)
    entries.put(other, entries.at(matrix))
    assert torch.equal(other, matrix * MASK)
    entries.put(other, 7.0)
    assert torch.equal(other, MASK * 7.0)


def test_add(entries: Entries, matrix: Tensor) -> None:
    total = matrix.clone()
    entries.add(total, entries.at(matrix) * 2)
    torch.testing.assert_close(total, matrix + 2 * matrix * MASK)


def test_sums(entries: Entries, matrix: Tensor) -> None:
    before = matrix.clone()
    torch.testing.assert_close(entries.sum(entries.at(matrix)), (matrix * MASK).sum(-1))
    torch.testing.assert_close(entries.sum_outside(matrix), (matrix * ~MASK).sum(-1))
    assert torch.equal(matrix, before)
    assert entries.count().tolist() == [2, 0, 1, K]


def test_of_rows(entries: Entries, matrix: Tensor) -> None:
    numbers = torch.arange(1.0, N + 1).double()
    scaled = entries.sum(entries.at(matrix) * entries.of_rows(numbers))
    torch.testing.assert_close(scaled, (matrix * MASK * numbers[:, None]).sum(-1))


def test_membership(entries: Entries, matrix: Tensor) -> None:
    columns = torch.tensor([5, 5, 4, 0])
    assert entries.contains(columns).tolist() == [True, False, False, True]
    expected = matrix.gather(-1, columns[:, None])[:, 0] * torch.tensor([1, 0, 0, 1])
    torch.testing.assert_close(entries.pick(entries.at(matrix), columns), expected)


def test_union(entries: Entries) -> None:
    columns = torch.tensor([5, 5, 4, 0])
    union = torch.zeros(N, K)
    entries.union(columns).put(union, 1.0)
    assert torch.equal(union.bool(), MASK.scatter(-1, columns[:, None], True))
    assert entries.union(columns).count().tolist() == [2, 1, 2, K]


@pytest.mark.parametrize("kind", [Listed, Masked])
def test_some_per_row(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind is Masked:
        as_on_a_gpu(monkeypatch)
    entries = some_per_row(torch.tensor([[2, 0], [1, 8]]), K)
    assert isinstance(entries, kind)
    made = torch.zeros(2, K)
    entries.put(made, 1.0)
    assert made.nonzero().tolist() == [[0, 0], [0, 2], [1, 1], [1, 8]]

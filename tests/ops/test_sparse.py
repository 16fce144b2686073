"""All kinds of sets answer alike, and as a mask over the matrix would."""

import pytest
import torch
from torch import Tensor

from tests.gpu_way import as_on_a_gpu
from ts2_lightning.ops import Entries, Listed, Masked, Padded
from ts2_lightning.ops.sparse import some_per_row, told

N, K = 4, 9
MASK = torch.zeros(N, K, dtype=torch.bool)
MASK[0, [1, 5]] = MASK[2, 3] = MASK[3, :] = True  # row 1 has none, row 3 all


def sets() -> list[Entries]:
    columns = torch.stack([torch.randperm(K) for _ in range(N)])  # row 3 is full: a list has no column to fill it up
    padded = Padded(columns, MASK.gather(-1, columns))
    return [Listed(*MASK.nonzero(as_tuple=True), N), Masked(MASK), padded]


@pytest.fixture(params=[0, 1, 2], ids=["listed", "masked", "padded"])
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


def test_softmax_over_the_entries_alone(entries: Entries, matrix: Tensor) -> None:
    """Far below all others, with masked ones among them, and around an offset."""
    matrix = torch.where(MASK, matrix - 1000, matrix)
    matrix[0, 5] = matrix[3, 2] = -torch.inf
    origin = matrix.amax(-1) + 3
    some = MASK.any(-1)
    probabilities, log_total = entries.softmax(matrix, origin)
    dense = torch.zeros_like(matrix)
    entries.put(dense, probabilities)
    inside = matrix.masked_fill(~MASK, -torch.inf)
    torch.testing.assert_close(dense[some], inside.softmax(-1)[some])
    torch.testing.assert_close(log_total[some], (inside.logsumexp(-1) - origin)[some])


def test_of_rows(entries: Entries, matrix: Tensor) -> None:
    numbers = torch.arange(1.0, N + 1).double()
    scaled = entries.sum(entries.at(matrix) * entries.of_rows(numbers))
    torch.testing.assert_close(scaled, (matrix * MASK * numbers[:, None]).sum(-1))


def test_membership(entries: Entries, matrix: Tensor) -> None:
    columns = torch.tensor([5, 5, 4, 0])
    assert entries.contains(columns).tolist() == [True, False, False, True]
    expected = matrix.gather(-1, columns[:, None])[:, 0] * torch.tensor([1, 0, 0, 1])
    torch.testing.assert_close(entries.pick(entries.at(matrix), columns), expected)


@pytest.mark.parametrize("entries", sets()[:2], ids=["listed", "masked"])
def test_union(entries: Entries) -> None:
    columns = torch.tensor([5, 5, 4, 0])
    union = torch.zeros(N, K)
    entries.union(columns).put(union, 1.0)
    assert torch.equal(union.bool(), MASK.scatter(-1, columns[:, None], True))
    assert entries.union(columns).count().tolist() == [2, 1, 2, K]


@pytest.mark.parametrize(("kind", "vocabulary"), [(Listed, K), (Masked, K), (Padded, 32)])
def test_some_per_row(kind: type, vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind is not Listed:
        as_on_a_gpu(monkeypatch)
    entries = some_per_row(torch.tensor([[2, 0], [1, 8]]), vocabulary)
    assert isinstance(entries, kind)
    made = torch.zeros(2, vocabulary)
    entries.put(made, 1.0)
    assert made.nonzero().tolist() == [[0, 0], [0, 2], [1, 1], [1, 8]]


@pytest.mark.parametrize("m", [1, 2, 5, K - 1])
def test_a_padded_list_grows_by_a_column_that_is_not_there(m: int) -> None:
    """Whether the new one is an entry, fills up, or is none of the list's; again and again."""
    for seed in range(20):
        torch.manual_seed(seed)
        columns = torch.stack([torch.randperm(K)[:m] for _ in range(N)])
        entries = Padded(columns, torch.rand(N, m) < 0.5)
        mask = torch.zeros(N, K, dtype=torch.bool).scatter_(-1, entries.columns, entries.member)
        while entries.columns.shape[-1] < K:
            added = torch.randint(K, (N,))
            entries, mask = entries.union(added), mask.scatter(-1, added[:, None], True)
            made = torch.zeros(N, K).scatter_add_(-1, entries.columns, torch.ones_like(entries.columns).float())
            assert made.max() == 1  # distinct
            entries.put(made.zero_(), 1.0)
            assert torch.equal(made.bool(), mask)
            assert torch.equal(entries.count(), mask.sum(-1))


def test_a_plan_takes_the_largest_sets() -> None:
    assert told(torch.tensor(False, device="meta"))
    assert [told(torch.tensor(flag)) for flag in (True, False)] == [True, False]

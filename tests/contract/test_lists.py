"""Gradients that touch few tokens stay lists, and give the numbers of the matrix products."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.contract.test_engines_and_losses import HEADS, assert_close, expected, found, linear, problem
from tests.reference import OBJECTIVES
from ts2_lightning.engines import ChunkedEngine, chunked
from ts2_lightning.engines.chunked import CHUNK_SIZE, default_chunk_size
from ts2_lightning.losses import CrossEntropyLoss, EntmaxLoss, SparsemaxLoss, TokenLoss
from ts2_lightning.ops import LogitRows
from ts2_lightning.ops.rows import ELEMENTS_PER_BLOCK

SHAPE = (23, 5, 1031)


@pytest.mark.parametrize("head", ["plain", "bias", "frozen"])
@pytest.mark.parametrize(
    ("objective", "share", "ways"),
    [
        ("sparsemax", 0.0, {"accumulate"}),
        ("sparsemax", 0.006, {"accumulate", "accumulate_lists"}),
        ("sparsemax", 1.0, {"accumulate_lists"}),
        ("entmax", 0.027, {"accumulate", "accumulate_lists"}),
        ("entmax", 1.0, {"accumulate_lists"}),
        ("ts2", 1.0, {"accumulate"}),
    ],
)
def test_the_same_numbers(
    objective: str, share: float, ways: set[str], head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first block of a chunk gives a list, and the next one makes it too long."""
    monkeypatch.setattr(chunked, "LISTED_SHARE", share)
    monkeypatch.setitem(ELEMENTS_PER_BLOCK, "cpu", 2 * SHAPE[-1])
    taken = set()
    for way in ("accumulate", "accumulate_lists"):
        monkeypatch.setattr(chunked._LinearHead, way, noticed(way, taken))
    loss, formula = OBJECTIVES[objective]
    hidden, weight, labels, weights = problem(*SHAPE)
    wanted = expected(formula, HEADS.get(head, linear)(weight), hidden, labels, weights)
    actual, _ = found(ChunkedEngine(4), loss, HEADS.get(head, linear)(weight), hidden, labels, weights)
    assert_close(actual, wanted, torch.float64)
    assert taken == ways


def noticed(way: str, taken: set[str]) -> Callable[..., None]:
    """The method of that name, which leaves its name."""
    method = getattr(chunked._LinearHead, way)

    def call(self: object, *arguments: object) -> None:
        taken.add(way)
        method(self, *arguments)

    return call


@pytest.mark.parametrize(
    ("loss", "listed"), [(SparsemaxLoss(), True), (EntmaxLoss(), True), (CrossEntropyLoss(), False)]
)
def test_which_gradients_are_lists(loss: TokenLoss, listed: bool) -> None:
    z, labels = torch.randn(3, 400) * 4, torch.tensor([1, 2, 3])
    rows = LogitRows(z, labels)
    gradient = loss.evaluate(rows).term.gradient
    support = rows.entmax(getattr(loss, "alpha", 2.0)).size.sum().item()
    assert gradient.listed == (support + 3 if listed else 0)


@pytest.mark.parametrize("n", [0, 1, 191, 192, 193, 300, 1024, 5000])
def test_default_chunks_are_equal(n: int) -> None:
    size = default_chunk_size(n, nn.Linear(2, 100_000), "cpu")
    chunks = [min(size, n - start) for start in range(0, n, size)]
    assert size >= 1
    if n > CHUNK_SIZE["cpu"]:
        assert max(chunks) - min(chunks) <= len(chunks)
        assert CHUNK_SIZE["cpu"] / 2 <= size <= CHUNK_SIZE["cpu"]
    else:
        assert len(chunks) <= 1


def test_small_vocabularies_and_gpus_take_larger_chunks() -> None:
    assert default_chunk_size(10**6, nn.Linear(2, 100), "cpu") > 7000
    assert default_chunk_size(10**6, nn.Linear(2, 128_000), "cuda") == pytest.approx(2048, rel=0.05)
    assert default_chunk_size(10**6, nn.Linear(2, 32_000), "cuda") == pytest.approx(8389, rel=0.05)
    assert default_chunk_size(500, nn.Identity(), "cpu") == 167

"""Statistics by name, and the heads and tails of several orders at once."""

import pytest
import torch

from tests.metrics.plain import problem
from ts2_lightning.ops import LogitRows, heads_and_tails, token_statistics, top_probabilities
from ts2_lightning.types import TOKEN_STATISTICS


def rows(n: int = 9, vocabulary: int = 700, seed: int = 1) -> LogitRows:
    logits, labels = problem((n,), vocabulary, seed, ignored=0.0)
    return LogitRows(logits, labels)


@pytest.mark.parametrize("name", TOKEN_STATISTICS)
def test_a_statistic_alone_is_the_same(name: str) -> None:
    everything = token_statistics(rows(), 0.7)
    alone = token_statistics(rows(), 0.7, [name])
    assert list(alone) == [name]
    torch.testing.assert_close(alone[name], everything[name], rtol=1e-6, atol=1e-7)


def test_names_keep_their_order_and_nothing_is_nothing() -> None:
    names = ["top1", "tspd_tail_3", "entropy", "tspd_head_12"]
    assert list(token_statistics(rows(), names=names)) == names
    assert token_statistics(rows(), names=()) == {}


@pytest.mark.parametrize("name", ["median", "tspd_head_1", "tspd_head_x", "tspd_middle_2"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown statistics: {name}"):
        token_statistics(rows(), names=["entropy", name])


@pytest.mark.parametrize("vocabulary", [5, 700])
@pytest.mark.parametrize("orders", [[2], [3, 2], [2, 4, 5], [4, 9]])
def test_heads_and_tails_of_several_orders(vocabulary: int, orders: list[int]) -> None:
    """Against sorted rows; with ties, with gold tokens of every rank, and with vocabularies smaller than the order."""
    logits, _ = problem((vocabulary,), vocabulary, seed=2, ignored=0.0)
    logits[::3] = logits[::3].round()
    labels = torch.arange(vocabulary)
    found = heads_and_tails(LogitRows(logits, labels), orders)
    assert list(found) == orders
    for m, (head, tail) in found.items():
        for z, y, one_head, one_tail in zip(
            logits.double(), labels.tolist(), head.tolist(), tail.tolist(), strict=True
        ):
            if m > vocabulary:
                assert one_head == 0
                continue
            p = z.softmax(-1)
            order = p.argsort(descending=True).tolist()
            chosen = order[:m] if y in order[:m] else [*order[: m - 1], y]
            assert one_head == pytest.approx(min(p[j].item() for j in chosen), rel=1e-5, abs=1e-9)
            outside = sum(x for j, x in enumerate(p.tolist()) if j not in chosen)
            assert one_tail == pytest.approx(outside, rel=1e-4, abs=1e-9)


def test_a_small_tail_keeps_its_digits() -> None:
    logits = torch.full((1, 1000), -30.0)
    logits[0, :2] = torch.tensor([10.0, 10.0])
    found = heads_and_tails(LogitRows(logits, torch.tensor([0])), [2, 6])
    for m in (2, 6):
        assert found[m].tail.item() == pytest.approx(
            (1000 - m) * 0.5 * torch.tensor(-40.0).double().exp().item(), rel=1e-5
        )


def test_top_probabilities_of_a_small_vocabulary() -> None:
    assert top_probabilities(rows(4, 3), 5)[:, 3:].sum() == 0

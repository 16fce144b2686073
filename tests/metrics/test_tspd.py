"""TSPD against definition 1, worked by hand and by trying every set."""

import math

import pytest
import torch
from plain import has_tspd, problem, softmax

from tests.gpu_way import as_on_a_gpu
from ts2_lightning.metrics import functional as f
from ts2_lightning.types import UserError

P = [0.4, 0.3, 0.2, 0.06, 0.04]


def holds(p: list[float], y: int, m: int, eps_head: float, eps_tail: float) -> bool:
    value = f.tspd(torch.tensor(p, dtype=torch.float64).log(), torch.tensor(y), m, eps_head, eps_tail).item()
    return {0.0: False, 1.0: True}[value]


@pytest.mark.parametrize(
    ("y", "m", "eps_head", "eps_tail", "wanted"),
    [
        (0, 3, 0.19, 0.11, True),  # S = {0, 1, 2}: head 0.2, tail 0.1
        (0, 3, 0.21, 0.11, False),  # head
        (0, 3, 0.19, 0.09, False),  # tail
        (2, 3, 0.19, 0.11, True),  # y last in Top_m
        (3, 3, 0.05, 0.25, True),  # y outside Top_m: S = {0, 1, 3}, head 0.06, tail 0.24
        (3, 3, 0.07, 0.25, False),
        (3, 3, 0.05, 0.23, False),
        (4, 2, 0.03, 0.57, True),  # S = {0, 4}: head 0.04, tail 0.56
        (4, 2, 0.03, 0.55, False),
        (4, 5, 0.03, 0.0, True),  # m = K: nothing is outside
        (0, 6, 0.01, 0.0, False),  # m > K: there are no six tokens
    ],
)
def test_by_hand(y: int, m: int, eps_head: float, eps_tail: float, wanted: bool) -> None:
    assert holds(P, y, m, eps_head, eps_tail) is wanted
    assert has_tspd(P, y, m, eps_head, eps_tail) is wanted


@pytest.mark.parametrize("y", [0, 1, 2, 3])
def test_ties_at_rank_m(y: int) -> None:
    """Whichever of three equal tokens is taken as second: head 0.2, tail 0.4."""
    p = [0.4, 0.2, 0.2, 0.2]
    assert holds(p, y, 2, 0.199, 0.401)
    assert not holds(p, y, 2, 0.201, 0.401)
    assert not holds(p, y, 2, 0.199, 0.399)


def test_the_ends_of_the_thresholds() -> None:
    """Uniform on m tokens is the only distribution that satisfies eps_head = 1 / m, eps_tail = 0."""
    z = torch.tensor([0.0, 0.0, 0.0, 0.0, -math.inf])
    for m in (2, 4):
        assert f.tspd(z, torch.tensor(0), m, 1 / m, 0.0).item() == (m == 4)
    assert f.tspd(z, torch.tensor(4), 4, 0.01, 0.5).item() == 0  # a gold token without any probability
    assert f.tspd(torch.tensor([0.0, -math.inf]), torch.tensor(0), 2, 0.01, 0.5).item() == 0  # corollary 2: collapse


@pytest.mark.parametrize("gpu_way", [False, True])
@pytest.mark.parametrize(("m", "eps_head", "eps_tail"), [(2, 0.05, 0.3), (3, 0.1, 0.2), (3, 0.02, 0.6), (5, 0.01, 0.2)])
def test_every_set_is_tried(
    monkeypatch: pytest.MonkeyPatch, m: int, eps_head: float, eps_tail: float, gpu_way: bool
) -> None:
    if gpu_way:
        as_on_a_gpu(monkeypatch)
    verdicts = set()
    for K in (2, 3, 7):
        logits, labels = problem((40, 3), K, seed=K)
        logits = (logits * 2).round().div(4).double()  # many ties
        actual = f.tspd(logits, labels, m, eps_head, eps_tail)
        for value, z, y in zip(actual.reshape(-1), logits.reshape(-1, K), labels.reshape(-1).tolist(), strict=True):
            if y == -100:
                assert value.isnan()
            else:
                wanted = has_tspd(softmax(z), y, m, eps_head, eps_tail)
                assert value.item() == wanted
                verdicts.add(wanted)
    assert verdicts == {True, False}


def test_a_wide_vocabulary_and_a_grid() -> None:
    """Head and tail once, any thresholds after; gold tokens in and outside of Top_m, in blocks of columns."""
    logits, labels = problem((6, 4), 1031)
    for m in (2, 3, 10):
        head, tail = f.head_and_tail(logits, labels, m)
        for place in (labels != -100).nonzero().tolist():
            p, y = softmax(logits[tuple(place)]), int(labels[tuple(place)])
            order = sorted(range(len(p)), key=lambda j: (-p[j], j != y))
            chosen = set(order[:m]) if y in order[:m] else {*order[: m - 1], y}
            assert head[tuple(place)].item() == pytest.approx(min(p[j] for j in chosen), rel=1e-4)
            outside = math.fsum(x for j, x in enumerate(p) if j not in chosen)
            assert tail[tuple(place)].item() == pytest.approx(outside, rel=1e-4, abs=1e-12)
        for eps_head, eps_tail in ((0.01, 0.5), (0.09, 0.05)):
            satisfied = f.head_and_tail(logits, labels, m).satisfies(eps_head, eps_tail)
            assert torch.equal(satisfied.float(), f.tspd(logits, labels, m, eps_head, eps_tail).nan_to_num(0))


def test_fewer_tokens_than_m_are_unmasked() -> None:
    """257 columns: the second block has one, so that what is asked for beyond the row is not a token twice."""
    z = torch.full((257,), -math.inf)
    z[[0, 256]] = 0.0
    for y in (0, 256):
        head, tail = f.head_and_tail(z, torch.tensor(y), 5)
        assert (head.item(), tail.item()) == (0.0, 0.0)
        assert f.tspd(z, torch.tensor(y), 2, 0.5, 0.0).item() == 1


@pytest.mark.parametrize(
    ("m", "eps_head", "eps_tail", "message"),
    [
        (1, 0.5, 0.1, "TSPD: m must be a whole number of at least 2, got 1"),
        (2.0, 0.5, 0.0, "TSPD: m .* got 2.0"),
        (
            3,
            0.0,
            0.1,
            "TSPD: eps_head must be a finite number above 0 and at most 0.333333, got 0.0; it is at most 1 / m",
        ),
        (3, 0.34, 0.0, "TSPD: eps_head .* got 0.34"),
        (
            3,
            0.1,
            0.71,
            "TSPD: eps_tail must be a finite number of at least 0 and at most 0.7, got 0.71; it is at most 1 - m",
        ),
        (3, 0.1, -0.1, "TSPD: eps_tail .* got -0.1"),
        (3, math.nan, 0.1, "TSPD: eps_head .* got nan"),
    ],
)
def test_settings_out_of_range(m: int, eps_head: float, eps_tail: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        f.tspd(torch.zeros(4), torch.tensor(0), m, eps_head, eps_tail)


def test_the_largest_tail_is_allowed() -> None:
    f.check_tspd(3, 0.1, 0.7)  # 1 - 3 * 0.1 is a hair below 0.7
    f.check_tspd(10, 0.1, 0.0)

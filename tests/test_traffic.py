"""The counter of memory traffic against programs that are counted by hand."""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, library
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy

from benchmarks import traffic as benchmark
from benchmarks.traffic import Traffic, declare

N, K = 3, 40
PASS = 4 * N * K
"""Bytes of one pass over float32 [N, K]."""


def tensors() -> SimpleNamespace:
    logits = torch.randn(N, K)
    return SimpleNamespace(
        logits=logits,
        other=torch.randn(N, K),
        mask=logits > 0,
        columns=torch.tensor([[1, 5], [2, 3], [0, 39]]),
        numbers=torch.randn(N),
    )


@pytest.mark.parametrize(
    ("program", "by_hand"),
    [
        (lambda t: t.logits + 1, 2 * PASS),
        (lambda t: t.logits * t.logits, 2 * PASS),  # read twice at the same place, by one kernel
        (lambda t: t.logits * t.logits.clone(), 2 * PASS + 3 * PASS),
        (lambda t: t.logits - t.numbers[:, None], 2 * PASS + 4 * N),
        (lambda t: t.logits - t.numbers[:, None].expand(N, K), 2 * PASS + 4 * N),
        (lambda t: t.other.mul_(2), 2 * PASS),
        (lambda t: t.other.mul_(t.logits), 3 * PASS),
        (lambda t: t.other.zero_(), PASS),
        (lambda t: t.other.fill_(1), PASS),
        (lambda t: t.other.copy_(t.logits), 2 * PASS),
        (lambda t: torch.exp(t.logits, out=t.other), 2 * PASS),
        (lambda t: torch.exp(t.other, out=t.other), 2 * PASS),
        (lambda t: torch.where(t.mask, t.logits, t.other, out=t.other), 3 * PASS + PASS // 4),
        (lambda t: t.other.masked_fill_(t.mask, 0), 2 * PASS + PASS // 4),
        (lambda t: t.logits > 0, PASS + PASS // 4),
        (lambda t: t.logits.bfloat16(), PASS + PASS // 2),
        (lambda t: t.logits.double(), 3 * PASS),
        (lambda t: t.logits.sum(-1), PASS + 4 * N),
        (lambda t: t.logits.amax(-1), PASS + 4 * N),
        (lambda t: t.logits.topk(2), 5 * PASS + 2 * N * (4 + 8)),
        (lambda t: torch.linalg.vector_norm(t.logits, 0, dim=-1), PASS + 4 * N),
        # A GPU converts before it adds: a copy in the dtype of the sum is written and read.
        (lambda t: t.logits.sum(-1, dtype=torch.float64), PASS + 4 * PASS + 8 * N),
        (lambda t: t.mask.sum(-1), PASS // 4 + 4 * PASS + 8 * N),
        (lambda t: torch.count_nonzero(t.mask, dim=-1), PASS // 4 + 4 * PASS + 8 * N),
        (lambda t: torch.count_nonzero(t.logits, dim=-1), PASS + PASS // 2 + 4 * PASS + 8 * N),
        (lambda t: torch.empty(N, K), 0),
        (lambda t: t.logits.view(-1)[4:].unsqueeze(0).expand(5, -1).T.detach(), 0),
        (lambda t: torch.zeros(N, K), PASS),
        (lambda t: torch.zeros_like(t.logits), PASS),
        (lambda t: t.logits.gather(-1, t.columns), N * 2 * (8 + 4 + 4)),
        (lambda t: t.logits[torch.arange(N)[:, None], t.columns], 8 * N + 8 * N + N * 2 * (8 + 4 + 4)),
        (lambda t: t.logits.scatter(-1, t.columns, 1.0), 2 * PASS + N * 2 * (8 + 4)),
        (lambda t: t.other.scatter_(-1, t.columns, 1.0), N * 2 * (8 + 4)),
        (lambda t: t.other.scatter_(-1, t.columns, t.logits[:, :2]), N * 2 * (8 + 4 + 4)),
        (lambda t: t.other.scatter_add_(-1, t.columns, t.logits[:, :2]), N * 2 * (8 + 4 + 8)),
        (lambda t: t.other.index_put_((t.columns[:, 0],), t.numbers[:, None]), 8 * N + 4 * N + PASS),
        (lambda t: t.other.index_add_(0, t.columns[:, 0] * 0, t.logits), 2 * 8 * N + 8 * N + 3 * PASS),
        (lambda t: t.logits.softmax(-1), 4 * PASS),
        (lambda t: cross_entropy(t.logits, t.columns[:, 0], reduction="none"), 4 * PASS + N * (4 + 8 + 4)),
    ],
)
@pytest.mark.parametrize("data", [True, False])
def test_a_program_counts_as_by_hand(program: Callable[[SimpleNamespace], object], by_hand: int, data: bool) -> None:
    with nullcontext() if data else FakeTensorMode():
        operands = tensors()
        with Traffic() as traffic:
            program(operands)
    assert sum(traffic.moved.values()) == by_hand
    assert traffic.passes(N * K) == by_hand / PASS
    assert (traffic.operations > 0) == (by_hand > 0)
    assert traffic.synchronisations == 0
    assert not traffic.products


def test_products_count_apart() -> None:
    x = torch.ones(N, K)
    with Traffic() as traffic:
        x @ x.T
    assert traffic.products == {"mm": 2 * PASS + 4 * N * N}
    assert traffic.passes(N * K) == 0
    assert traffic.operations == 1


def test_values_that_the_host_asks_for_count_and_can_be_told() -> None:
    with FakeTensorMode(), Traffic([2, 1, 7]) as traffic:
        x = torch.empty(4)
        assert int((x > 0).sum()) == 2
        assert bool((x > 0).any()) is True
        assert float(x[0]) == 7
    assert traffic.synchronisations == 3
    with Traffic() as traffic:
        assert torch.tensor([2.5, 3.5]).sum().item() == 6
    assert traffic.synchronisations == 1


def test_an_operation_of_ours_reads_and_writes_what_it_names_or_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "DECLARED", {})

    @library.custom_op("traffic_test::scaled", mutates_args=("out",))
    def scaled(x: Tensor, out: Tensor) -> None:
        out.copy_(x * 2)

    x, out = torch.ones(N, K), torch.empty(N, K)
    with Traffic() as traffic:
        scaled(x, out)
    assert traffic.moved == {"scaled": 3 * PASS}  # what it changes, it may read
    declare("traffic_test::scaled", lambda x, out: 2 * PASS)
    with Traffic() as traffic:
        scaled(x, out)
    assert traffic.moved == {"scaled": 2 * PASS}


def test_plain_cross_entropy_has_the_passes_counted_by_hand() -> None:
    """Upcast 1.5, log-softmax 4, its gradient 1 and 4, back to bfloat16 1.5."""
    figures = benchmark.measure(None, shape=(64, 5000))
    assert figures.passes == pytest.approx(12, abs=0.1)
    assert figures.synchronisations == 0


WITH_KERNELS = {
    "CE": 2.6,
    "TS2": 2.6,
    "GEM": 2.6,
    "TOFU": 2.6,
    "sparsemax": 2.6,
    "label smoothing": 2.6,
    "Entmax+": 3.7,
}
"""Passes with Triton kernels and all statistics; the support of a 1.5-entmax is not that of the statistics."""


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_kernels_read_rows_twice_and_write_them_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton, which this platform lacks")
    monkeypatch.setattr(benchmark, "WIDTH", 2)
    loss = benchmark.LOSSES[name]
    figures = benchmark.measure(loss, benchmark.TOKEN_STATISTICS, (256, 128256), kernels=True)
    assert 2.5 < figures.passes <= WITH_KERNELS[name], figures
    assert figures.synchronisations == 0
    assert list(figures.by_operation)[:2] == ["row_gradient", "row_summary"][:: -1 if name == "Entmax+" else 1]


MOST = {
    "CE": {"bare": 9.6, "statistics": 17.4, "long lists": 23.2, "masks": 98},
    "TS2": {"bare": 11.3, "statistics": 17.4, "long lists": 23.6, "masks": 124},
    "GEM": {"bare": 16.7, "statistics": 29.4, "long lists": 35.2, "masks": 110},
    "TOFU": {"bare": 18.7, "statistics": 26.4, "long lists": 32.2, "masks": 107},
    "sparsemax": {"bare": 4.2, "statistics": 16.4, "long lists": 22.4, "masks": 114},
}
"""Passes over float32 [N, K], just above what was reached."""


@pytest.mark.parametrize("name", MOST)
def test_an_objective_moves_no_more_than_it_did(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a block of rows; a head of width 2 hardly counts. The host waits for a flag for each length of lists."""
    monkeypatch.setattr(benchmark, "WIDTH", 2)
    counted = benchmark.measure_all([name], (256, 128256))[name]
    counted.pop("kernels", None)
    assert counted.keys() == MOST[name].keys()
    passes = {way: figures.passes for way, figures in counted.items()}
    assert all(0.95 * most < passes[way] <= most for way, most in MOST[name].items()), passes
    waits = {way: figures.synchronisations for way, figures in counted.items()}
    assert waits == {"bare": name in ("TS2", "sparsemax"), "statistics": 1, "long lists": 2, "masks": 2}


def test_the_table_has_a_row_for_each_subject() -> None:
    figures = benchmark.measure_all([benchmark.PLAIN, "CE"], (2, 300))
    lines = benchmark.table(figures).splitlines()
    assert [line.count("|") for line in lines] == [9] * 4
    assert [line.split("|")[1].strip() for line in lines[2:]] == [benchmark.PLAIN, "CE"]

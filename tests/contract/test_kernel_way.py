"""The way of kernels, without any: summaries of rows and gradients of a few numbers each, by the kernels' definitions.

What the kernels themselves compute is held to the same definitions in `tests/kernels`.
"""

from collections import Counter

import pytest
import torch
from torch import Tensor

from tests.contract.test_engines_and_losses import (
    SHAPES,
    assert_close,
    expected,
    found,
    linear,
    problem,
    run,
    wanted_of,
)
from tests.gpu_way import as_on_a_gpu
from tests.kernels import twin
from tests.reference import ANCHORED, OBJECTIVES
from tests.support.errors import refused
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.engines.kernels import row_kernels
from ts2_lightning.losses import (
    CrossEntropyLoss,
    DensePart,
    EntmaxLoss,
    FenchelYoungPlusLoss,
    Gradient,
    LossResult,
    SparsemaxLoss,
    SparsePart,
    SuppressionOnlyLoss,
    Term,
    TokenLoss,
    TS2Loss,
    cross_entropy,
    entmax_loss,
    fenchel_young,
    tail_suppression,
)
from ts2_lightning.losses.cross_entropy import negative_entropy
from ts2_lightning.losses.gem import gem_linear
from ts2_lightning.modules.head import ScaledHead
from ts2_lightning.ops import LogitRows, SummarisedRows, SummaryRequest, summary_request, token_statistics
from ts2_lightning.ops.rows import ELEMENTS_PER_BLOCK
from ts2_lightning.types import TOKEN_STATISTICS, Targets

ALL = OBJECTIVES | ANCHORED
BY_TORCH = {
    *("gem_logsigmoid", "gem_logsigmoid_cold", "entmax_1.25", "entmax_1.75", "ts2_top_k", "ts2_all"),
    *("entmax_plus_scaled", "entmax_plus_top_k", "exponential_inflation", "logarithmic_inflation"),
    *("entmax_plus_all", "suppression_only_top_k", "value_only"),
}
"""Objectives that need a matrix [n, K], by the beginning of their names, beside the anchored ones."""


class Kernels:
    """The kernels' stand-in, which counts its calls and keeps what it was asked for."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.requests: list[SummaryRequest] = []
        self.dtypes: list[torch.dtype] = []

    def summarize(self, logits: Tensor, labels: Tensor, request: SummaryRequest) -> Tensor:
        self.calls["summarize"] += 1
        self.requests.append(request)
        return twin.summarize(logits, labels, request)

    def write_gradient(self, logits: Tensor, labels: Tensor, fields: Tensor, coefficients: Tensor,
                       request: SummaryRequest, out: Tensor, support: bool, slope: bool, uniform: bool
    ) -> None:  # fmt: skip
        self.calls["write_gradient"] += 1
        self.dtypes.append(out.dtype)
        assert out.data_ptr() == logits.data_ptr() or out.untyped_storage().data_ptr() != logits.data_ptr()
        unused = {"slope": coefficients[2], "sparse": coefficients[3], "uniform": coefficients[5]}
        flags = {"slope": slope, "sparse": support, "uniform": uniform}
        assert all(flags[name] or not numbers.any() for name, numbers in unused.items())
        assert support or torch.equal(coefficients[0].nan_to_num(), coefficients[1].nan_to_num())
        twin.write_gradient(logits, labels, fields, coefficients, request, out, support, slope, uniform)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    as_on_a_gpu(monkeypatch)
    stand_in = Kernels()
    monkeypatch.setattr("ts2_lightning.engines.chunked.row_kernels", lambda wanted, logits: stand_in)
    return stand_in


def by_torch(objective: str) -> bool:
    return objective in ANCHORED or any(objective.startswith(name) for name in BY_TORCH)


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_values_and_gradients(objective: str, dtype: torch.dtype, kernels: Kernels) -> None:
    loss = ALL[objective][0]
    for shape in SHAPES:
        hidden, weight, labels, weights = problem(*shape)
        hidden, weight, weights = hidden.to(dtype), weight.to(dtype), weights.to(dtype)
        actual, _ = found(ChunkedEngine(7), loss, linear(weight), hidden, labels, weights)
        assert_close(actual, wanted_of(objective, shape, dtype), dtype)
    assert (kernels.calls["write_gradient"] == 0) == by_torch(objective)


@pytest.mark.parametrize("objective", [name for name in ALL if not by_torch(name)])
def test_one_read_and_one_write(objective: str, kernels: Kernels) -> None:
    """With all statistics; only those of a 1.5-entmax need a support of their own, and so another read."""
    loss = ALL[objective][0]
    assert loss.summary is not None
    hidden, weight, labels, weights = problem(13, 6, 300)
    found(ChunkedEngine(13), loss, linear(weight), hidden, labels, weights)
    assert kernels.calls == {"summarize": 1 + (loss.summary.alpha == 1.5), "write_gradient": 1}
    kernels.calls.clear()
    found(ChunkedEngine(13), loss, linear(weight), hidden, labels, weights, statistics=())
    assert kernels.calls == {"summarize": 1, "write_gradient": 1}
    assert kernels.requests[-1] == loss.summary


@pytest.mark.parametrize("objective", [name for name in ALL if by_torch(name)])
def test_what_needs_matrices_gets_a_few_rows_at_a_time(
    objective: str, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ELEMENTS_PER_BLOCK, "cpu", 5 * 300)
    assert ALL[objective][0].summary is None
    hidden, weight, labels, weights = problem(13, 6, 300)
    actual, _ = found(ChunkedEngine(13), ALL[objective][0], linear(weight), hidden, labels, weights)
    assert_close(actual, wanted_of(objective, (13, 6, 300), torch.float64), torch.float64)
    assert kernels.calls["summarize"] >= 3


@pytest.mark.parametrize("objective", ALL)
def test_statistics(objective: str, kernels: Kernels) -> None:
    """The same as from torch's operations; TSPD too, which no summary has."""
    loss = ALL[objective][0]
    names = (*TOKEN_STATISTICS, "tspd_head_2", "tspd_tail_2", "tspd_tail_5")
    hidden, weight, labels, _ = problem(37, 8, 700)
    summarised = run(ChunkedEngine(13), loss, linear(weight), hidden, labels, statistics=names).tokens
    assert kernels.calls["summarize"] > 0
    rows = LogitRows(linear(weight)(hidden).detach(), labels)
    for name, value in token_statistics(rows, loss.logit_scale, names).items():
        torch.testing.assert_close(summarised[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_few_columns(kernels: Kernels) -> None:
    for k in (1, 2, 3):
        hidden, weight, labels, _ = problem(5, 4, k)
        tokens = run(ChunkedEngine(5), TS2Loss(), linear(weight), hidden, labels).tokens
        rows = LogitRows(linear(weight)(hidden).detach(), labels)
        for name, value in token_statistics(rows).items():
            torch.testing.assert_close(tokens[name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("objective", ["cross_entropy", "label_smoothing", "entropy_bonus", "ts2_scaled", "sparsemax"])
def test_a_masked_vocabulary(objective: str, kernels: Kernels) -> None:
    loss, _ = ALL[objective]
    hidden, weight, labels, weights = problem(13, 6, 40)
    bias = torch.zeros(60, dtype=torch.float64)
    bias[40:] = -torch.inf
    wide = torch.cat([weight, torch.ones(20, 6, dtype=torch.float64)])
    wanted, _ = found(ChunkedEngine(7), loss, linear(weight, bias[:40]), hidden, labels, weights)
    actual, _ = found(ChunkedEngine(7), loss, linear(wide, bias), hidden, labels, weights)
    assert_close([actual[0], actual[1], actual[2][:40], actual[3][:40]], wanted, torch.float64)
    assert not actual[2][40:].any()
    assert not actual[3][40:].any()


class Mixed(TokenLoss):
    """Somebody's objective of parts that one kernel cannot write together."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def evaluate(self, rows: LogitRows) -> LossResult:
        if self.kind == "two temperatures":
            term = cross_entropy(rows) + gem_linear(rows, 0.5)
        elif self.kind == "two supports":
            term = entmax_loss(rows, 2.0) + entmax_loss(rows, 1.5)
        elif self.kind == "support without the gold token":
            support = rows.sparsemax.support
            outside = DensePart(1 / rows.normalizer, rows.matrix("exponentials"), excluded=support)
            term = Term(rows.cross_entropy, Gradient(dense=(outside,)))  # nobody reads the support before it is written
        elif self.kind == "entropy at another temperature":
            term = negative_entropy(rows.scaled(2.0)).chain(2.0) + cross_entropy(rows.scaled(2.0)).chain(2.0)
        elif self.kind == "projection at another scale":
            projection = rows.scaled(2.0).sparsemax
            kept = rows.scaled(2.0).with_gold(projection.support)
            size = (kept.count() + 2 * projection.support.count()).to(rows.logits.dtype)
            term = fenchel_young(rows, projection, size)
        elif self.kind == "own column":
            term = cross_entropy(rows) + Term(
                rows.logits[:, 0].clone(), Gradient(sparse=(SparsePart(rows.top_k(1), torch.ones_like(rows.logits)),))
            )
        else:
            scaled = rows.scaled(2.0)
            kept = rows.with_gold(rows.sparsemax.support)
            term = tail_suppression(scaled, kept).chain(2.0)
        return LossResult(term, {})


@pytest.mark.parametrize(
    "kind",
    [
        *("two temperatures", "two supports", "support without the gold token", "own column"),
        *("support at another scale", "entropy at another temperature", "projection at another scale"),
    ],
)
def test_parts_that_do_not_fit_together(kind: str, kernels: Kernels) -> None:
    hidden, weight, labels, weights = problem(13, 6, 300)
    wanted, _ = found(ChunkedEngine(7, kernels=False), Mixed(kind), linear(weight), hidden, labels, weights)
    rows = LogitRows(linear(weight)(hidden).detach(), labels)
    summarised = SummarisedRows(rows.logits.clone(), labels, kernels, SummaryRequest())
    results = [Mixed(kind).evaluate(one).term for one in (rows, summarised)]
    torch.testing.assert_close(results[1].value, results[0].value, rtol=1e-10, atol=1e-12)
    outs = [torch.empty_like(rows.logits), summarised.logits]  # the second over the logits
    gradients = [term.gradient.write_to(out) for term, out in zip(results, outs, strict=True)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)
    actual, _ = found(ChunkedEngine(7), Mixed(kind), linear(weight), hidden, labels, weights)
    assert_close(actual, wanted, torch.float64)


def test_one_temperature_and_another_support_are_one_write(kernels: Kernels) -> None:
    hidden, weight, labels, weights = problem(13, 6, 300)
    found(ChunkedEngine(13), Mixed("support at another scale"), linear(weight), hidden, labels, weights)
    assert kernels.calls["write_gradient"] == 1


def test_bfloat16_in_the_memory_of_the_logits(kernels: Kernels) -> None:
    """The gradient is rounded on its way where that is what it is multiplied in, and only if all rows are one block."""
    logits = torch.randn(9, 300)
    labels = torch.arange(9)
    for loss in (TS2Loss(), CrossEntropyLoss()):
        assert loss.summary is not None
        rows = SummarisedRows(logits.clone(), labels, kernels, loss.summary)
        wanted = loss.evaluate(LogitRows(logits, labels)).term.gradient.write_to(torch.empty_like(logits))
        gradient = loss.evaluate(rows).term.gradient.write_to(rows.logits, torch.bfloat16)
        assert (gradient.dtype, gradient.stride()) == (torch.bfloat16, (600, 1))
        assert gradient.data_ptr() == rows.logits.data_ptr()
        torch.testing.assert_close(gradient.float(), wanted.bfloat16().float(), rtol=2**-7, atol=1e-7)
    anchored = Mixed("two temperatures").evaluate(SummarisedRows(logits.clone(), labels, kernels, SummaryRequest()))
    assert anchored.term.gradient.write_to(logits, torch.bfloat16).dtype == torch.float32


def test_a_head_called_as_a_module(kernels: Kernels) -> None:
    hidden, weight, labels, weights = problem(23, 5, 1031)
    for dtype in (torch.float64, torch.bfloat16):
        head = ScaledHead(linear(weight.to(dtype)), 0.5, 3.0)
        actual, _ = found(ChunkedEngine(7), TS2Loss(), head, hidden.to(dtype), labels, weights.float())
        plain = ScaledHead(linear(weight.to(dtype).double()), 0.5, 3.0)
        wanted = expected(ALL["ts2"][1], plain, hidden.to(dtype).double(), labels, weights.float().double())
        assert_close(actual, wanted, dtype)
        assert kernels.dtypes[-1] == dtype


def test_no_tokens(kernels: Kernels) -> None:
    hidden, weight, _, _ = problem(5, 4, 7)
    none = torch.empty(0, dtype=torch.long)
    output = ChunkedEngine()(TS2Loss(), linear(weight), hidden[:0].requires_grad_(), none)
    assert output.total == 0
    assert set(output.tokens) >= set(TOKEN_STATISTICS)
    output.total.backward()


def test_a_nan_reaches_its_row_alone(kernels: Kernels) -> None:
    for objective in (
        "cross_entropy",
        "label_smoothing",
        "gem",
        "tofu",
        "sparsemax",
        "ts2",
        "entmax_plus",
        "entropy_bonus",
    ):
        loss, _ = ALL[objective]
        logits = torch.randn(3, 40, dtype=torch.float64)
        logits[1, 7] = torch.nan
        assert loss.summary is not None
        request = summary_request(loss.summary, loss.logit_scale)
        rows = SummarisedRows(logits, torch.tensor([1, 2, 3]), kernels, request)
        term = loss.evaluate(rows).term
        assert term.value.isnan().tolist() == [False, True, False], objective
        assert token_statistics(rows, loss.logit_scale)["entropy"].isnan().tolist() == [False, True, False]
        assert term.gradient.write_to(logits).isnan().any(-1).tolist() == [False, True, False], objective


def test_requests_serve_what_they_hold() -> None:
    everything = SummaryRequest(2.0, 1.5, 1.5, uniform=True)
    assert everything.serves(SummaryRequest())
    assert everything.serves(SummaryRequest(2.0, 1.5, 1.5))
    for other in (SummaryRequest(3.0), SummaryRequest(1.0, 1.0, 1.5), SummaryRequest(1.0, 1.5, 2.0)):
        assert not everything.serves(other)
    assert not SummaryRequest().serves(SummaryRequest(uniform=True))


@pytest.mark.parametrize(
    ("loss", "request_"),
    [
        (SparsemaxLoss(), SummaryRequest(support_scale=1.0)),
        (EntmaxLoss(1.5), SummaryRequest(support_scale=1.0, alpha=1.5)),
        (EntmaxLoss(1.25), None),
        (TS2Loss(logit_scale=2.0), SummaryRequest(2.0, 2.0)),
        (TS2Loss(top_k=3), None),
        (FenchelYoungPlusLoss(logit_scale=2.0), SummaryRequest(2.0, 2.0, 1.5)),
        (FenchelYoungPlusLoss(EntmaxLoss(1.25)), None),
        (SuppressionOnlyLoss(logit_scale=1.3), SummaryRequest(1.3, 1.3)),
        (SuppressionOnlyLoss(top_k=3), None),
    ],
)
def test_what_a_loss_asks_of_a_summary(loss: TokenLoss, request_: SummaryRequest | None) -> None:
    assert loss.summary == request_


# -- which way is taken


def test_a_cpu_takes_its_own_way() -> None:
    assert row_kernels(None, torch.empty(1, 3)) is None
    assert row_kernels(False, torch.empty(1, 3)) is None


def test_kernels_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    hidden, weight, labels, _ = problem(5, 4, 7)
    with refused("kernels is true, but they cannot be used: .*(TRITON_INTERPRET=1|Triton is not installed)"):
        ChunkedEngine(kernels=True)(TS2Loss(), linear(weight.float()), hidden.float(), Targets(labels))

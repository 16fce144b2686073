"""The way of a GPU, without one: the same numbers, and nothing that would make the host wait for the device but a flag
that says whether lists are long enough for the supports of a block of rows.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.contract.test_engines_and_losses import assert_close, expected, found, linear, problem
from tests.gpu_way import as_on_a_gpu
from tests.reference import ANCHORED, OBJECTIVES
from ts2_lightning.engines import ChunkedEngine, FullEngine, LossEngine
from ts2_lightning.engines.linear import factor_dtype
from ts2_lightning.losses import CrossEntropyLoss, EntmaxLoss, ReferenceSuppression, TokenLoss, TS2Loss
from ts2_lightning.modules.head import ScaledHead
from ts2_lightning.types import ReferenceOutput, Targets

ALL = OBJECTIVES | ANCHORED
N, K, BLOCKS = 160, 5000, 2
DATA_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException)


class NoBooleanIndices(TorchDispatchMode):
    """Refuses what makes a GPU's host wait and a tensor without data accepts: `x[mask] = value`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
            assert all(index is None or index.dtype != torch.bool for index in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("objective", ALL)
def test_the_same_numbers(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    loss, formula = ALL[objective]
    for n, h, k in [(5, 4, 7), (13, 6, 300), (23, 5, 1031)]:
        hidden, weight, labels, weights = problem(n, h, k)
        wanted = expected(formula, linear(weight), hidden, labels, weights)
        actual, _ = found(ChunkedEngine(7), loss, linear(weight), hidden, labels, weights)
        assert_close(actual, wanted, torch.float64)


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize(
    ("flatness", "too_short"),
    [(4.0, [False]), (0.03, [True, False]), (0.001, [True, True])],
    ids=["short lists", "long lists", "masks"],
)
def test_the_same_numbers_however_large_the_supports(
    objective: str, flatness: float, too_short: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = as_on_a_gpu(monkeypatch)
    loss, formula = ALL[objective]
    hidden, weight, labels, weights = problem(5, 6, 16_400)
    hidden *= flatness
    wanted = expected(formula, linear(weight), hidden, labels, weights)
    actual, _ = found(ChunkedEngine(), loss, linear(weight), hidden, labels, weights)
    assert_close(actual, wanted, torch.float64)
    assert flags.told[-len(too_short) :] == too_short  # of sparsemax, for the statistics


def step_without_data(
    engine: LossEngine, loss: TokenLoss, dtype: torch.dtype, wrap: Callable[[nn.Linear], nn.Module] = lambda head: head
) -> None:
    """Forward and backward pass on tensors without values, in two chunks or blocks, of which one is short."""
    with FakeTensorMode(), NoBooleanIndices():
        hidden = torch.empty(N, 64, dtype=dtype, requires_grad=True)
        head = nn.Linear(64, K, bias=True, dtype=dtype)
        labels, positions = torch.empty(N, dtype=torch.long), torch.empty(N, dtype=torch.long)
        reference = ReferenceOutput(torch.empty(N, 8, dtype=dtype), nn.Linear(8, K, dtype=dtype))
        targets = Targets(labels, torch.empty(N), positions, positions, reference if loss.needs_reference else None)
        output = engine(loss, wrap(head), hidden, targets)
        output.total.backward()
        assert hidden.grad.dtype == head.weight.grad.dtype == dtype
        assert head.weight.grad.shape == (K, 64)
        assert all(value.shape == (N,) for value in output.tokens.values())
        assert all(value.dtype == torch.float32 for value in output.tokens.values())


WAYS = [
    pytest.param(FullEngine(), torch.float32, False, id="full, float32, lists"),
    pytest.param(ChunkedEngine(), torch.bfloat16, True, id="chunked, bfloat16, masks"),
]
"""Engine, dtype of the factors, and whether lists are too short: what an objective meets has no more kinds."""

OTHER_WAYS = [
    pytest.param(FullEngine(), torch.bfloat16, True, id="full, bfloat16, masks"),
    pytest.param(ChunkedEngine(), torch.float32, True, id="chunked, float32, masks"),
    *(
        pytest.param(ChunkedEngine(128), dtype, False, id=f"128, {dtype}, lists")
        for dtype in (torch.float32, torch.bfloat16)
    ),
]


@pytest.mark.parametrize(
    ("objective", "engine", "dtype", "too_short"),
    [
        pytest.param(name, *way.values, id=f"{name}, {way.id}")
        for name in ALL
        for way in [*WAYS, *(OTHER_WAYS if name in ("cross_entropy", "ts2", "entmax_plus") else [])]
    ],
)
def test_nothing_depends_on_data(
    objective: str, engine: LossEngine, dtype: torch.dtype, too_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No `.item()`, no boolean selection, no shape that follows from a value: each would raise here.

    But for one flag for each block of rows and each projection: sparsemax, of which there are statistics, the loss's
    own, and that of a reference.
    """
    flags = as_on_a_gpu(monkeypatch, products=True, answers=[too_short])
    loss = ALL[objective][0]
    step_without_data(engine, loss, dtype)
    base = getattr(loss, "base", loss)
    own = isinstance(base, EntmaxLoss) and base.alpha != 2
    of_reference = isinstance(loss, ReferenceSuppression) and loss.top_p is None and loss.top_k is None
    thresholds = 1 + own + of_reference
    assert len(flags.told) == BLOCKS * thresholds


@pytest.mark.parametrize("loss", [TS2Loss(), CrossEntropyLoss()])
@pytest.mark.parametrize("engine", [FullEngine(), ChunkedEngine(128)], ids=["full", "chunked"])
@pytest.mark.parametrize("wrap", [lambda head: head, lambda head: ScaledHead(head, 0.5, 3.0)], ids=["linear", "module"])
def test_under_autocast(
    loss: TokenLoss, engine: LossEngine, wrap: Callable[[nn.Linear], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 weights, bfloat16 factors, and everything of the loss in float32."""
    as_on_a_gpu(monkeypatch, products=True, answers=[False])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step_without_data(engine, loss, torch.float32, wrap)


def test_the_factors_of_products_are_those_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch, products=True)
    weight = torch.empty(3, 2)
    assert factor_dtype(torch.empty(1, 2), weight) == torch.float32
    assert factor_dtype(torch.empty(1, 2).bfloat16(), weight.bfloat16()) == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert factor_dtype(torch.empty(1, 2), weight) == torch.bfloat16


def test_the_way_of_a_cpu_does_depend_on_data() -> None:
    """The test above can fail."""
    with pytest.raises(DATA_DEPENDENT):
        step_without_data(ChunkedEngine(), TS2Loss(), torch.float32)


def test_boolean_indices_are_noticed() -> None:
    x = torch.zeros(3)
    with pytest.raises(AssertionError), NoBooleanIndices():
        x[x > 0] = 1.0

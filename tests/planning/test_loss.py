"""The loss engine's peak: against what the engines allocate when they take the way of a GPU."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.gpu_way import as_on_a_gpu
from tests.reference import OBJECTIVES
from ts2_lightning.engines import ChunkedEngine, FullEngine, LossEngine, LossSizes
from ts2_lightning.losses import CrossEntropyLoss, ReferenceAnchored, TokenLoss, TS2Loss
from ts2_lightning.modules.head import ScaledHead
from ts2_lightning.ops import LogitRows, rows
from ts2_lightning.planning.counting import LiveBytes
from ts2_lightning.planning.loss import count_block, loss_bytes
from ts2_lightning.planning.model import Head
from ts2_lightning.types import ReferenceOutput, Targets

N, H, K = 48, 40, 6000
BLOCK = 12  # rows
ANCHORED_LOSS = ReferenceAnchored(TS2Loss())
PRECISIONS = [(torch.float32, None), (torch.float32, torch.bfloat16), (torch.bfloat16, None)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch, products=True, answers=[True])  # a plan is for the largest sets
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(rows.ELEMENTS_PER_BLOCK, device, BLOCK * K + 1)


def allocated(engine: LossEngine, loss: TokenLoss, precision: Any, plain: bool = True, trained: bool = True) -> int:
    """Peak of forward and backward pass, all that the caller gave left out."""
    dtype, autocast = precision
    with FakeTensorMode():
        linear = nn.Linear(H, K, bias=False, dtype=dtype).requires_grad_(trained)
        head = linear if plain else ScaledHead(linear, scale=0.5)
        hidden = torch.empty(N, H, dtype=dtype, requires_grad=True)
        labels, weights = torch.empty(N, dtype=torch.long), torch.empty(N)
        mixed = torch.autocast("cpu", autocast, enabled=autocast is not None, cache_enabled=False)
        frozen = nn.Linear(H, K, bias=False, dtype=dtype)
        said = ReferenceOutput(torch.empty(N, H, dtype=dtype), frozen if plain else ScaledHead(frozen, scale=0.5))
        reference = said if loss.needs_reference else None
        there = [linear.weight, hidden, labels, weights, frozen.weight, said.hidden_states]
        with LiveBytes(there) as live, mixed:
            engine(loss, head, hidden, Targets(labels, weights, labels, labels, reference))
    return live.peak


def planned(engine: LossEngine, loss: TokenLoss, precision: Any, plain: bool = True, trained: bool = True) -> int:
    dtype, autocast = precision
    head = Head(K, H, dtype.itemsize, trained, plain, tied=False)
    return loss_bytes(engine, loss, head, N, dtype.itemsize, autocast)


@pytest.mark.parametrize("precision", PRECISIONS, ids=["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("loss", [CrossEntropyLoss(), TS2Loss(), TS2Loss(logit_scale=2.0)], ids=["ce", "ts2", "scaled"])
@pytest.mark.parametrize("trained", [True, False])
def test_chunked(loss: TokenLoss, precision: Any, trained: bool) -> None:
    for chunk in (24, 48):
        engine = ChunkedEngine(chunk)
        found = allocated(engine, loss, precision, trained=trained)
        assert planned(engine, loss, precision, trained=trained) == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("precision", PRECISIONS, ids=["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("loss", [TS2Loss(), ANCHORED_LOSS], ids=["ts2", "anchored"])
def test_full(precision: Any, loss: TokenLoss) -> None:
    found = allocated(FullEngine(), loss, precision)
    states = N * H * precision[0].itemsize * loss.needs_reference
    assert planned(FullEngine(), loss, precision) - states == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("precision", PRECISIONS, ids=["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("trained", [True, False])
def test_a_reference(precision: Any, trained: bool) -> None:
    """Its logits of a chunk at a time, and its hidden states, which the network holds."""
    states = N * H * precision[0].itemsize
    for chunk in (24, 48):
        engine = ChunkedEngine(chunk)
        counted = allocated(engine, ANCHORED_LOSS, precision, trained=trained)
        assert counted > allocated(engine, TS2Loss(), precision, trained=trained)
        told = planned(engine, ANCHORED_LOSS, precision, trained=trained) - states
        assert told == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("precision", PRECISIONS, ids=["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("trained", [True, False])
def test_a_head_that_is_called_as_a_module(precision: Any, trained: bool) -> None:
    """Its own temporaries are not known, so there may be more in the plan."""
    engine = ChunkedEngine(24)
    found = allocated(engine, TS2Loss(), precision, plain=False, trained=trained)
    assert found <= planned(engine, TS2Loss(), precision, plain=False, trained=trained) * 1.05 <= 1.5 * found


class RowByRow(ChunkedEngine):
    """An engine of a user's own, which says what it needs."""

    def peak_bytes(self, sizes: LossSizes) -> int:
        return sizes.tokens * sizes.width + sizes.block


class Silent(LossEngine):
    """One that does not."""

    def run(self, *args: Any) -> Any:
        return FullEngine().run(*args)


def test_an_engine_of_ones_own() -> None:
    """What it says is taken; of one that says nothing, what an engine needs that holds all logits."""
    block = count_block(TS2Loss(), BLOCK, K)
    assert planned(RowByRow(), TS2Loss(), PRECISIONS[0]) == N * H + block
    assert planned(Silent(), TS2Loss(), PRECISIONS[0]) == planned(FullEngine(), TS2Loss(), PRECISIONS[0])
    assert planned(Silent(), TS2Loss(), PRECISIONS[0]) >= allocated(Silent(), TS2Loss(), PRECISIONS[0]) * 0.98


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_block_of_any_loss(name: str) -> None:
    """From the statistics of a row at the least to many temporaries."""
    loss, _ = OBJECTIVES[name]
    counted = count_block(loss, BLOCK, K)
    assert 4 * 4 * BLOCK * K < counted < 16 * 4 * BLOCK * K
    with torch.device("meta"):  # a floor: one block's results alone
        logits, labels = torch.empty(BLOCK, K), torch.empty(BLOCK, dtype=torch.long)
        with LiveBytes([logits, labels]) as live:
            loss.evaluate(LogitRows(logits, Targets(labels, None, labels, labels)))
    assert live.peak <= counted

"""The engine with the kernels themselves, in the interpreter: run by `test_interpreter.py` in a process of its own."""

import pytest
import torch

from tests.contract.test_engines_and_losses import assert_close, found, linear, problem, wanted_of
from tests.reference import OBJECTIVES
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.ops import LogitRows, token_statistics

SHAPE = (5, 6, 300)
FAST = ("cross_entropy", "label_smoothing", "ts2_scaled", "entmax_plus", "gem_logsigmoid")


@pytest.mark.parametrize(
    "objective", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in OBJECTIVES]
)
def test_values_gradients_and_statistics(objective: str) -> None:
    loss = OBJECTIVES[objective][0]
    hidden, weight, labels, weights = (t.float() if t.is_floating_point() else t for t in problem(*SHAPE))
    head = linear(weight)
    actual, tokens = found(ChunkedEngine(3, kernels=True), loss, head, hidden, labels, weights)
    assert_close(actual, wanted_of(objective, SHAPE, torch.float32), torch.float32)
    rows = LogitRows(head(hidden).detach().double(), labels)
    for name, value in token_statistics(rows, loss.logit_scale).items():
        exact = name in ("support_size", "gold_in_support", "gold_rank")
        rtol, atol = (0, 0) if exact else (1e-5, 1e-6)
        torch.testing.assert_close(tokens[name].double(), value, rtol=rtol, atol=atol, msg=name)

"""Inside the loss head, ZeRO-3's hooks on the head's modules are away, and everybody else's stay."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ts2_lightning.engines import ChunkedEngine, LossHead
from ts2_lightning.losses import CrossEntropyLoss


def called(head: nn.Module, tokens: int = 5) -> Tensor:
    """The loss of some tokens, in chunks of two."""
    torch.manual_seed(0)
    hidden, labels = torch.randn(tokens, 8), torch.arange(tokens)
    return LossHead(head, CrossEntropyLoss(), ChunkedEngine(chunk_size=2))(hidden, labels).total


def test_hooks() -> None:
    calls: list[str] = []

    def gather(*args: Any) -> None:
        calls.append("gathered")

    def note(*args: Any) -> None:
        calls.append("noted")

    gather.__module__ = "deepspeed.runtime.zero.parameter_offload"
    head = nn.Linear(8, 16, bias=False)
    plain = called(head)
    head.register_forward_pre_hook(gather)
    head.register_forward_hook(gather)
    assert torch.equal(called(head), plain)
    assert calls == []
    head(torch.zeros(1, 8))  # outside they are there
    assert calls == ["gathered", "gathered"]
    calls.clear()
    head.register_forward_hook(note)
    assert torch.allclose(called(head), plain)
    assert calls == ["noted"] * 3  # one for each chunk


def test_hooks_come_back_after_an_error() -> None:
    head = nn.Linear(8, 16)
    head.register_forward_pre_hook(gathering := lambda *args: None)
    gathering.__module__ = "deepspeed.utils.nvtx"
    loss_head = LossHead(head, CrossEntropyLoss(), ChunkedEngine())
    with pytest.raises(RuntimeError):
        loss_head(torch.zeros(1, 9), torch.tensor([0]))  # of another width
    assert list(head._forward_pre_hooks.values()) == [gathering]

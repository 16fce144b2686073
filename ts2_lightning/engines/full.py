"""The simplest engine: all logits at once."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from ts2_lightning.engines.base import LossEngine
from ts2_lightning.engines.linear import accumulator, is_plain_linear, wide_products
from ts2_lightning.losses import TokenLoss
from ts2_lightning.losses.from_logits import loss_from_logits, promote
from ts2_lightning.types import LossOutput, Targets


class FullEngine(LossEngine):
    """Calls the head once and holds the logits [N, K] of the micro-batch and their gradient.

    For small models, and as the reference of the others.

    Example:
        >>> from ts2_lightning.losses import TS2Loss
        >>> hidden, labels = torch.randn(5, 8, requires_grad=True), torch.tensor([0, 1, 2, 3, 4])
        >>> output = FullEngine()(TS2Loss(), nn.Linear(8, 100), hidden, labels)
        >>> output.total.backward()
        >>> hidden.grad.shape, output.tokens["entropy"].shape
        (torch.Size([5, 8]), torch.Size([5]))
    """

    def run(
        self, loss: TokenLoss, head: nn.Module, hidden_states: Tensor, targets: Targets, statistics: Collection[str]
    ) -> LossOutput:
        """See `LossEngine`."""
        return loss_from_logits(loss, _logits(head, hidden_states), targets, statistics)


def _logits(head: nn.Module, hidden_states: Tensor) -> Tensor:
    """Logits [N, K], in float32 from the product on, but for modules with weights in fewer bits."""
    if not is_plain_linear(head):
        with wide_products(head, hidden_states.device) as dtype:
            return promote(head(hidden_states if dtype is None else hidden_states.to(dtype)))
    assert isinstance(head, nn.Linear)
    dtype = accumulator(torch.promote_types(hidden_states.dtype, head.weight.dtype))
    bias = None if head.bias is None else head.bias.to(dtype)
    with torch.autocast(hidden_states.device.type, enabled=False):
        return nn.functional.linear(hidden_states.to(dtype), head.weight.to(dtype), bias)

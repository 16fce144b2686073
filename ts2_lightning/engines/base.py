"""How rows of logits come to be, and how a loss is run over them.

Shapes: N supervised tokens, H the width of the model, K the vocabulary.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ts2_lightning.losses import TokenLoss
from ts2_lightning.ops import LogitRows, token_statistics
from ts2_lightning.types import LossOutput

ELEMENTS_PER_BLOCK = {"cpu": 3 * 2**18, "cuda": 2**25}
"""Logits that a loss works on at a time: on a CPU their temporaries stay in the cache; on a GPU they stay small."""


class LossEngine(ABC):
    """Runs any loss on the hidden states of the supervised tokens, through any head.

    All engines give the same numbers; they differ in memory and speed. Logits reach the loss in float32 at least,
    whatever the dtype of the model: thresholds of bfloat16 logits get the support wrong.
    """

    @abstractmethod
    def __call__(
        self, loss: TokenLoss, head: nn.Module, hidden_states: Tensor, labels: Tensor, weights: Tensor | None = None
    ) -> LossOutput:
        """The loss of N supervised tokens.

        Args:
            loss: the objective.
            head: maps hidden states [*, H] to logits [*, K].
            hidden_states: [N, H], already selected: row i predicts `labels[i]`.
            labels: [N] int64.
            weights: [N] factors on the tokens' losses. Default: ones.

        Returns:
            The sum of the tokens' weighted losses, differentiable with respect to `hidden_states` and the head's
            parameters, and what was measured at every token, unweighted. With N = 0 the sum is a zero that is
            connected to the graph.
        """


class _WithGradients(torch.autograd.Function):
    """The identity on a value whose gradients have been computed already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("The loss was differentiated twice; its gradients are formed in place, once.")
        # In place: the head's gradient is as large as the head.
        return None, None, *(None if g is None else g.mul_(grad_outputs[0]) for g in gradients)


def attach_gradients(value: Tensor, inputs: list[Tensor], gradients: list[Tensor | None]) -> Tensor:
    """Makes a scalar differentiable whose gradients are at hand.

    Args:
        value: [].
        inputs: the tensors it depends on.
        gradients: of `value` with respect to each of them; consumed by the backward pass.
    """
    result: Tensor = _WithGradients.apply(value, gradients, *inputs)
    return result


class TokenRecorder:
    """Collects what is measured at the tokens, block by block, and sums their losses.

    Args:
        size: N, tokens to come.
        like: a tensor of the device to use.
    """

    def __init__(self, size: int, like: Tensor) -> None:
        self._size = size
        self._tokens: dict[str, Tensor] = {}
        self._total = torch.zeros((), dtype=torch.float64, device=like.device)

    def record(self, start: int, values: dict[str, Tensor], weights: Tensor | None) -> None:
        """Adds n tokens from position `start`. `values`: each [n]; `weights`: [n]."""
        for name, value in values.items():
            if name not in self._tokens:
                self._tokens[name] = value.new_empty(self._size)
            self._tokens[name][start : start + len(value)] = value
        objective = values["objective"].double()
        self._total += objective.sum() if weights is None else (objective * weights).sum()

    def output(self, dtype: torch.dtype) -> LossOutput:
        """The sum of the weighted losses, not yet differentiable, and everything recorded."""
        return LossOutput(self._total.to(dtype), self._tokens)


def evaluate_rows(
    loss: TokenLoss,
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    recorder: TokenRecorder,
    start: int,
    *,
    gradient: Tensor | None,
) -> None:
    """Runs the loss over rows of logits, block by block, and records what it and the statistics give.

    Args:
        loss: the objective.
        logits: [n, K] float32 or float64, contiguous.
        labels: [n] int64.
        weights: [n] factors on the tokens' losses, or None.
        recorder: takes the values of tokens `start` to `start + n`.
        start: position of the first row among the N tokens.
        gradient: [n, K], receives the weighted gradient with respect to the logits; may be `logits`. None: not wanted.
    """
    n, K = logits.shape
    block = max(1, ELEMENTS_PER_BLOCK.get(logits.device.type, ELEMENTS_PER_BLOCK["cuda"]) // K)
    scratch = logits.new_empty(2, min(block, n), K)
    with torch.autocast(logits.device.type, enabled=False):  # it would turn products in a loss to bfloat16
        for first in range(0, max(n, 1), block):  # no rows at all still tell the names of the statistics
            part = slice(first, min(first + block, n))
            rows = LogitRows(logits[part], labels[part], scratch)
            result = loss.evaluate(rows)
            factors = None if weights is None else weights[part]
            values = {"objective": result.term.value} | token_statistics(rows, loss.logit_scale)
            values |= {f"objective/{name}": value for name, value in result.parts.items()}
            recorder.record(start + first, values, factors)
            if gradient is not None:
                weighted = result.term.gradient if factors is None else result.term.gradient.scaled(factors)
                weighted.write_to(gradient[part])


def promote(logits: Tensor) -> Tensor:
    """Logits in float32 at least, contiguous."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()

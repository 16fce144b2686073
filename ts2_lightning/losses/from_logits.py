"""An objective, run over rows of logits that are there: values, statistics and gradients, a few rows at a time.

Shapes: N supervised tokens, n of them at a time, K columns (the vocabulary).
"""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ts2_lightning.ops import (
    LogitRows,
    RowKernels,
    SummarisedRows,
    Workspace,
    rows_per_block,
    summary_request,
    token_statistics,
    widest_float,
)
from ts2_lightning.types import LossOutput, Targets

if TYPE_CHECKING:  # an objective can be called with logits, and comes here
    from ts2_lightning.losses.base import Gradient, LossResult, TokenLoss


def loss_from_logits(
    loss: "TokenLoss", logits: Tensor, targets: Targets, statistics: Collection[str] = ()
) -> LossOutput:
    """The loss of N supervised tokens whose logits are all there.

    Args:
        loss: The objective.
        logits: Logits [N, K] of float32 or float64, contiguous. Beside them there will be their gradient.
        targets: What is known of the tokens.
        statistics: Names of what to measure at every token, see `ops.token_statistics`.

    Returns:
        The sum of the tokens' weighted losses, differentiable with respect to the logits by the loss's closed form,
        and what was measured.
    """
    recorder = TokenRecorder(len(logits), logits)
    gradient = torch.empty_like(logits) if logits.requires_grad else None
    with torch.no_grad():
        for part, share in evaluate_rows(loss, logits.detach(), targets, recorder, 0, statistics):
            if gradient is not None:
                share.write_to(gradient[part])
    output = recorder.output(logits.dtype)
    if gradient is None:
        return output
    return LossOutput(attach_gradients(output.total, [logits], [gradient]), output.tokens)


class _WithGradients(torch.autograd.Function):
    """The identity on a value whose gradients have been computed already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        """The value; its gradients are kept for the backward pass."""
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, scaled in place; they can be had once."""
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
        gradients: The gradients of `value` with respect to each of them; consumed by the backward pass.
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
        self._total = torch.zeros((), dtype=widest_float(like.device), device=like.device)

    def record(self, start: int, values: dict[str, Tensor], weights: Tensor | None) -> None:
        """Adds n tokens from position `start`. `values`: each [n]; `weights`: [n]."""
        objective = values["objective"].to(self._total.dtype)
        if len(objective) == self._size:  # nothing to put together; a copy, as a loss may return a part of its rows
            self._tokens = {name: value.clone() for name, value in values.items()}
        else:
            for name, value in values.items():
                if name not in self._tokens:
                    self._tokens[name] = value.new_empty(self._size)
                self._tokens[name][start : start + len(value)] = value
        self._total += objective.sum() if weights is None else (objective * weights).sum()

    def output(self, dtype: torch.dtype) -> LossOutput:
        """The sum of the weighted losses, not yet differentiable, and everything recorded."""
        return LossOutput(self._total.to(dtype), self._tokens)


def evaluate_rows(
    loss: "TokenLoss",
    logits: Tensor,
    targets: Targets,
    recorder: TokenRecorder,
    start: int,
    statistics: Collection[str],
    kernels: RowKernels | None = None,
) -> "Iterator[tuple[slice, Gradient]]":
    """Runs the loss over rows of logits, block by block, and records what it and the statistics give.

    Args:
        loss: the objective.
        logits: [n, K] float32 or float64, contiguous.
        targets: What is known of the n tokens.
        recorder: takes the values of tokens `start` to `start + n`.
        start: position of the first row among the N tokens. Of a loss that needs a reference, all its rows of these
            n tokens are computed at once.
        statistics: which to measure.
        kernels: kernels that read rows of logits, or None for torch's operations.

    Yields:
        Which rows make the block, and the weighted gradient with respect to their logits. Its dense parts lie in memory
        that the next block uses again; the block's logits may be overwritten.
    """
    n, K = logits.shape
    # Where kernels do all there is to do on [n, K], there are no temporaries that ask for small blocks.
    block = max(n, 1) if kernels and loss.summary else rows_per_block(K, logits.device)
    request = summary_request(loss.summary, loss.logit_scale, statistics)
    workspace = Workspace()
    reference = None if targets.reference is None else targets.reference.head(targets.reference.hidden_states)
    for first in range(0, max(n, 1), block):  # no rows at all still tell the names of the statistics
        part = slice(first, min(first + block, n))
        block_targets = targets.part(part)
        weights = block_targets.weights
        workspace.clear()
        with _without_autocast(logits.device.type):  # it would turn products in a loss to bfloat16
            of_reference = None if reference is None else reference[part]
            if kernels is None:
                rows = LogitRows(logits[part], block_targets, workspace, of_reference)
            else:
                rows = SummarisedRows(logits[part], block_targets, kernels, request, workspace, of_reference)
            result = loss.evaluate(rows)
            _check(loss, result, rows)
            values = {"objective": result.term.value}
            values |= {f"objective/{name}": value for name, value in result.parts.items()}
            values |= token_statistics(rows, loss.logit_scale, statistics)
        recorder.record(start + first, values, weights)
        yield part, result.term.gradient if weights is None else result.term.gradient.scaled(weights)


def _without_autocast(device: str) -> AbstractContextManager[object]:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _check(loss: "TokenLoss", result: "LossResult", rows: LogitRows) -> None:
    """What is relied on, of a loss that anybody may have written."""
    for name, value in {"the value": result.term.value, **result.parts}.items():
        if value.shape != rows.labels.shape:
            raise ValueError(
                f"{type(loss).__name__}: {name} must have one number per token, shape {list(rows.labels.shape)}, "
                f"but has {list(value.shape)}: do not average or sum over tokens"
            )
    if any(part.basis is rows.logits for part in result.term.gradient.dense):
        raise ValueError(
            f"{type(loss).__name__}: rows.logits cannot be the basis of a gradient, which is written over them; "
            "copy them: rows.buffer().copy_(rows.logits)"
        )


def promote(logits: Tensor) -> Tensor:
    """Logits in float32 at least, contiguous."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()

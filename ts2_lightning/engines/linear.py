"""Heads and their products: logits in float32, whatever the dtype of the factors.

Shapes: n tokens, H the width of the model, K the vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn


def is_plain_linear(head: nn.Module) -> bool:
    """Whether the head is a matrix product and nothing else: no subclass, hook, parametrisation or other `forward`."""
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    return type(head) is nn.Linear and "forward" not in vars(head) and not any(hooks)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values of this dtype are summed: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def sums_in_float32(device: torch.device) -> bool:
    """Whether the device's matrix products of bfloat16 can be had in float32, in which a GPU's matrix units sum.

    Elsewhere a product rounds its result to bfloat16, in which thresholds are wrong.
    """
    return device.type == "cuda"


def factor_dtype(hidden_states: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of the factors of the head's products: that of autocast or of the tensors, or float32 if need be."""
    device = hidden_states.device
    dtype = torch.promote_types(hidden_states.dtype, weight.dtype)
    if not sums_in_float32(device):
        return accumulator(dtype)
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a b, with `out` of the dtype of the factors or of float32."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def multiply_add(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, with `total` of the dtype of the factors or of float32."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


@torch.no_grad()
def frozen_head(head: nn.Module, hidden_states: Tensor) -> Callable[[Tensor], Tensor]:
    """A head without its gradient, which maps hidden states [n, H] to logits [n, K] in float32 at least, contiguous.

    The head's matrix is brought into the dtype of the products once, for all parts of the hidden states.

    Args:
        head: A head of any kind.
        hidden_states: Hidden states [N, H] whose parts it is to be called with.
    """
    if not is_plain_linear(head):
        return partial(_module_logits, head)
    assert isinstance(head, nn.Linear)
    dtype = factor_dtype(hidden_states, head.weight)
    return partial(_linear_logits, head.weight.detach().to(dtype), head.bias)


@torch.no_grad()
def _module_logits(head: nn.Module, hidden_states: Tensor) -> Tensor:
    with wide_products(head, hidden_states.device) as dtype:
        logits: Tensor = head(hidden_states if dtype is None else hidden_states.to(dtype))
    return logits.to(accumulator(logits.dtype)).contiguous()


@torch.no_grad()
def _linear_logits(weight: Tensor, bias: Tensor | None, hidden_states: Tensor) -> Tensor:
    logits = hidden_states.new_empty(len(hidden_states), len(weight), dtype=accumulator(hidden_states.dtype))
    multiply(hidden_states.to(weight.dtype), weight.T, out=logits)
    return logits if bias is None else logits.add_(bias)


@contextmanager
def wide_products(head: nn.Module, device: torch.device) -> Iterator[torch.dtype | None]:
    """Within it a module that is called as a head, or differentiated, gives float32 where its weights are float32.

    Autocast would round them to bfloat16, in which thresholds are wrong. Instead a GPU's matrix units may round the
    factors to TF32, which has three bits more than bfloat16, and sum in float32.

    Yields:
        The dtype that the hidden states are to have, or None for theirs.
    """
    wide = all(p.dtype.itemsize >= 4 for p in head.parameters() if p.is_floating_point())
    if not (wide and torch.is_autocast_enabled(device.type)):
        yield None
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast(device.type, enabled=False):
            yield torch.float32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before

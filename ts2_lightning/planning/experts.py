"""The experts of a mixture, as a GPU's grouped product computes them, on tensors without memory.

How many tokens an expert gets follows from values, which such tensors have not. It changes no size of a grouped
product: each of the S = tokens x top_k choices is a row of it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ExpertsInterface

GROUPED = "counted_grouped_experts"
"""Our name for it, among transformers' implementations of experts."""


class _GroupedProduct(torch.autograd.Function):
    """Allocates and keeps what `torch.nn.functional.grouped_mm` does: rows and weights in, [S, width] out."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, width: int) -> Tensor:
        """What the forward pass allocates and keeps."""
        ctx.save_for_backward(rows, weights)
        return rows.new_empty(len(rows), width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """What the backward pass allocates."""
        needed = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        return *(torch.empty_like(tensor) if is_needed else None for tensor, is_needed in needed), None


def _product(rows: Tensor, weights: Tensor, biases: Tensor | None, transposed: bool) -> Tensor:
    # As in transformers: no part of autocast, which leaves rows as wide as the weights.
    width = weights.shape[-1 if transposed else -2]
    result: Tensor = _GroupedProduct.apply(rows.to(weights.dtype), weights, width)
    return result if biases is None else result.add_(biases)


def _grouped_experts(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """`grouped_mm_experts_forward` of transformers, line by line, but for the two products."""
    tokens, top_k = top_k_index.shape
    chosen, order = torch.sort(top_k_index.reshape(-1))
    rows, factors = hidden_states[order // top_k], top_k_weights.reshape(-1)[order]
    kind = "gate_up_proj" if experts.has_gate else "up_proj"
    biases = [getattr(experts, f"{name}_bias")[chosen] if experts.has_bias else None for name in (kind, "down_proj")]
    inner = _product(rows, getattr(experts, kind), biases[0], experts.is_transposed)
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    outer = _product(inner, experts.down_proj, biases[1], experts.is_transposed)
    if experts.has_post_expert_norm:
        outer = experts.post_expert_norm(outer)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    weighted = (outer * factors.unsqueeze(-1))[back]
    return weighted.view(tokens, top_k, -1).sum(dim=1).to(hidden_states.dtype)


ExpertsInterface.register(GROUPED, _grouped_experts)


def count_experts(model: PreTrainedModel) -> None:
    """Has a model's experts, if it has some, computed as they are counted."""
    if model._can_set_experts_implementation():
        model.set_experts_implementation(GROUPED)


def share_of_tokens(model: PreTrainedModel) -> dict[nn.Parameter, float]:
    """Of fused experts, the share of all tokens that is multiplied by each: top_k of them, and E lie in a parameter."""
    text = model.config.get_text_config()
    top_k = getattr(text, "num_experts_per_tok", None) or 1
    fused = (
        p for module in model.modules() if hasattr(module, "num_experts") for p in module.parameters(recurse=False)
    )
    return {p: min(1.0, top_k / p.shape[0]) for p in fused if p.dim() == 3}

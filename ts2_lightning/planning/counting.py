"""What a forward and a backward pass allocate, counted on the model itself with tensors that have no memory.

A formula for activations holds for one architecture and one version of its code. Here transformers' own model runs,
forward and backward, on fake tensors (shapes and types without data, as torch.compile uses them), and the bytes of all
tensors that are alive at a time are added up: exact for the tensors, whatever the architecture.

Two things differ from a GPU. Fused attention (flash attention, and what sdpa chooses on a GPU) is replaced by a
function that keeps what those kernels keep. And an allocator rounds sizes up and leaves gaps: part of the margin.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv

from ts2_lightning.modules.router import balance_of_rows

FUSED = "counted_fused_attention"
"""Our name for fused attention, among transformers' implementations."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on, for as long as they live.

    Views share their memory and count once.

    Args:
        ignored: tensors that were there before, and do not count.

    Attributes:
        now: bytes alive.
        peak: the most that were alive at a time.

    Example:
        >>> with LiveBytes() as live:
        ...     kept = torch.ones(3)
        ...     _ = (kept + 1).sum()
        >>> live.now, live.peak
        (16, 28)
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: dict[int, Any] = {_storage(tensor)._cdata: _storage(tensor) for tensor in ignored}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and adds what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(_storage(leaf))
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone(_: Any) -> None:
            del self._storages[key]
            self.now -= size

        self._storages[key] = weakref.ref(storage, gone)


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


class _FusedAttention(torch.autograd.Function):
    """Allocates and keeps what fused attention does: queries, keys, values, output, a float32 per query and head.

    Source: Dao (2023), FlashAttention-2, algorithm 1; a mask is kept in the dtype of the queries, as torch's
    memory-efficient kernel has it.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """What the forward pass allocates and keeps."""
        # In the layout of the queries: if that is not [B, T, heads, d], transformers makes a copy that is.
        output = torch.empty_like(query)[..., : value.shape[-1]]
        logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, output, logsumexp)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """What the backward pass allocates."""
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _fused_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Fused attention as transformers calls it: queries [B, heads, T, d]; returns [B, T, heads, d].

    With a mask transformers repeats keys and values for every query head, without one the kernels need not.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    if attention_mask is not None and groups > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    bias = None if attention_mask is None else torch.empty(attention_mask.shape, dtype=query.dtype)
    output: Tensor = _FusedAttention.apply(query, key, value, bias)
    return output.transpose(1, 2).contiguous(), None


def _mask_of_the_caller(*args: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """Whoever counts says whether there is a mask."""
    return attention_mask


AttentionInterface.register(FUSED, _fused_attention)
AttentionMaskInterface.register(FUSED, _mask_of_the_caller)


@dataclass(frozen=True)
class MicroBatch:
    """The largest micro-batch there can be.

    Attributes:
        rows: sequences, B.
        length: tokens of each, T.
        masked: whether attention gets a mask [B, 1, T, T]; flash attention needs none.
        packed: whether positions start again within a sequence.
    """

    rows: int
    length: int
    masked: bool = False
    packed: bool = False

    @property
    def tokens(self) -> int:
        """B T."""
        return self.rows * self.length


class Activations(NamedTuple):
    """Bytes beyond weights and the sums of their gradients.

    Attributes:
        kept: held from the forward pass for the backward pass: with gradient checkpointing the inputs of the layers,
            else all that autograd keeps; the copies of weights that autocast makes are among them.
        backward: what the backward pass adds at its peak: with gradient checkpointing a layer's activations, computed
            anew; gradients of activations; those of a weight, before they are summed.
    """

    kept: int
    backward: int


def count_activations(
    decoder: PreTrainedModel, batch: MicroBatch, checkpointing: bool, autocast: torch.dtype | None, routed: int = 0
) -> Activations:
    """Runs a model without its head, forward and backward, and counts. Call it under `FakeTensorMode`.

    Args:
        decoder: `FUSED` or eager attention, in training mode. Its parameters get gradients, as if a
            micro-batch had been before.
        batch: the largest micro-batch.
        checkpointing: whether layers are computed anew in the backward pass.
        autocast: to which dtype, or None.
        routed: experts that a token goes to, if the loss of a mixture's routers is added; else 0.
    """
    for parameter in decoder.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    decoder.activation_checkpointing_disable()
    if checkpointing:
        decoder.activation_checkpointing_enable({"use_reentrant": False})
    gradients = [parameter.grad for parameter in decoder.parameters() if parameter.grad is not None]
    with LiveBytes([*decoder.parameters(), *decoder.buffers(), *gradients]) as live:
        with torch.autocast("cpu", autocast, enabled=autocast is not None, cache_enabled=False):
            results = _results(decoder, batch, routed)
        kept, live.peak = live.now, live.now
        differentiable = [result for result in results if result.requires_grad]
        if differentiable:
            torch.autograd.backward(differentiable, [torch.empty_like(result) for result in differentiable])
    return Activations(kept, live.peak - kept)


def _results(decoder: PreTrainedModel, batch: MicroBatch, routed: int) -> list[Tensor]:
    """The last hidden states, and the loss of the routers over each row, as the network has it."""
    switches = {"output_router_logits": True} if routed else {}
    output = decoder(**inputs_of(decoder, batch), **switches, use_cache=False)
    if not routed:
        return [output.last_hidden_state]
    spans = torch.zeros(batch.rows, 2, dtype=torch.long)
    return [output.last_hidden_state, balance_of_rows(output.router_logits, spans, routed)]


def inputs_of(decoder: PreTrainedModel, batch: MicroBatch) -> dict[str, Tensor]:
    """What a model without its head is called with, for a micro-batch."""
    shape = (batch.rows, batch.length)
    inputs = {"input_ids": torch.zeros(shape, dtype=torch.long)}
    if batch.packed or decoder.config.model_type == "opt":  # which counts them by a mask in two dimensions
        inputs["position_ids"] = torch.zeros(shape, dtype=torch.long)
    if batch.masked:  # in four dimensions transformers takes a mask as it is
        dtype = next(decoder.parameters()).dtype if decoder.config._attn_implementation == "eager" else torch.bool
        inputs["attention_mask"] = torch.ones(batch.rows, 1, batch.length, batch.length, dtype=dtype)
    return inputs

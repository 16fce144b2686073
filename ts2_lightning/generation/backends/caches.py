"""Rows of a cache of keys and values: dropped, repeated, and joined with those of another cache.

Rows end at the same column, and shorter ones begin with columns that the attention mask leaves out. So a row moves into
a wider cache by columns at its left, which no layer ever reads, sliding windows included: these count columns from the
right.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer, get_layer_types_and_kwargs

_LAYERS = {"full_attention", "sliding_attention"}

_FED_ALIKE = {"Gemma3ForConditionalGeneration"}
"""Models that make inputs in a way of their own for pictures alone."""


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache, with the kinds of layers that the model's config names."""
    return DynamicCache(config=model.config)


def has_rows(model: PreTrainedModel) -> bool:
    """Whether a model's cache is made of layers whose rows can be dropped and joined.

    Models with a recurrent state, an encoder, or inputs of their own have no such cache.
    """
    config: Any = model.config
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False) or model._is_stateful:
        return False
    kind: Any = type(model)
    is_own = kind.prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation
    if is_own and kind.__name__ not in _FED_ALIKE:
        return False
    try:
        return set(get_layer_types_and_kwargs(config.get_text_config(decoder=True))[0]) <= _LAYERS
    except AttributeError:  # a config that counts its layers under another name
        return False


def select_rows(cache: DynamicCache, rows: Sequence[int], device: torch.device) -> None:
    """Leaves these rows of a cache, in this order; one may come several times."""
    cache.batch_select_indices(torch.tensor(rows, device=device))


def trim(cache: DynamicCache, columns: int) -> None:
    """Leaves out columns at the left, which the mask of every row leaves out."""
    layers: Sequence[Any] = cache.layers
    for layer in layers:
        _set_width(layer, layer.get_seq_length() - columns)


def join_rows(cache: DynamicCache, other: DynamicCache) -> None:
    """Adds the rows of another cache behind those of a cache; the narrower one gets columns at its left."""
    layers: Sequence[Any] = cache.layers
    others: Sequence[Any] = other.layers
    for layer, more in zip(layers, others, strict=True):
        width = max(layer.get_seq_length(), more.get_seq_length())
        _set_width(layer, width)
        _set_width(more, width)
        layer.keys = torch.cat([layer.keys, more.keys])
        layer.values = torch.cat([layer.values, more.values])


def _set_width(layer: Any, width: int) -> None:
    """Makes a layer as wide as if so many columns had been seen, by columns at its left."""
    if not layer.is_initialized:  # shares the keys of another layer
        return
    stored = width
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = width
        stored = min(width, layer.sliding_window - 1)
    layer.keys, layer.values = (_widened(states, stored) for states in (layer.keys, layer.values))


def _widened(states: Tensor, width: int) -> Tensor:
    """States [B, heads, width, size] of such with another width; what comes at the left is 0."""
    missing = width - states.shape[-2]
    return pad(states, (0, 0, missing, 0)) if missing > 0 else states[..., -missing or 0 :, :] if missing else states

"""What a model keeps of every token while it generates, counted on its own cache with tensors that have no memory.

A formula for keys and values holds for one kind of attention. Here transformers' own model fills transformers' own
cache, so that grouped heads, sliding windows, layers that share a cache, and recurrent states count as they are.
"""

from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, PreTrainedModel

from ts2_lightning.planning.counting import MicroBatch, inputs_of


@dataclass(frozen=True)
class CacheLayer:
    """What a layer keeps of one sequence.

    Attributes:
        token: bytes that a token adds.
        constant: bytes whatever the number of tokens, as a recurrent state has them.
        window: number of tokens that are kept at most; None keeps all.

    Example:
        >>> CacheLayer(token=4096, window=1024).bytes(5000)
        4194304
    """

    token: int
    constant: int = 0
    window: int | None = None

    def columns(self, tokens: float) -> float:
        """Number of tokens that a query looks at, of so many."""
        if not self.token:
            return 0.0
        return tokens if self.window is None else min(tokens, self.window)

    def bytes(self, tokens: float) -> int:
        """Bytes of a sequence of so many tokens."""
        return self.constant + int(self.token * self.columns(tokens))


def count_cache(decoder: PreTrainedModel) -> tuple[CacheLayer, ...]:
    """Fills the cache of a model without its head with one token and with two. Call it under `FakeTensorMode`.

    Args:
        decoder: `counting.FUSED` or eager attention.

    Returns:
        A layer of the cache for each of the model's, those without one left out.
    """
    (one, windows), (two, _) = _held(decoder, 1), _held(decoder, 2)
    growth = [after - before for before, after in zip(one, two, strict=True)]
    return tuple(
        CacheLayer(token, before - token, window)
        for token, before, window in zip(growth, one, windows, strict=True)
        if before
    )


def _held(decoder: PreTrainedModel, tokens: int) -> tuple[list[int], list[int | None]]:
    """Bytes that each layer of the cache holds of a sequence, and its window."""
    cache = DynamicCache(config=decoder.config)
    # Models of recurrent states alone have another name for it.
    name = "cache_params" if "cache_params" in signature(decoder.forward).parameters else "past_key_values"
    with torch.no_grad():
        decoder(**inputs_of(decoder, MicroBatch(1, tokens)), **{name: cache}, use_cache=True)
    held = [
        sum(
            one.numel() * one.element_size()
            for one in tree_leaves(vars(layer))
            if isinstance(one, Tensor) and one.is_floating_point()  # a sliding layer also counts its columns
        )
        for layer in cache.layers
    ]
    return held, [getattr(layer, "sliding_window", None) for layer in cache.layers]

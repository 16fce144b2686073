"""A cache of keys and values whose rows come and go, and whose columns are added in place.

Rows end at the same column, and shorter ones begin with columns that the attention mask leaves out. So a row moves into
a wider cache by columns at its left, which no layer ever reads, sliding windows included: these count columns from the
right. transformers' own layers copy all that they hold for each token, and again for each row that is dropped.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, get_layer_types_and_kwargs

_SPARE = 64
"""Columns that are allocated beyond those that are needed."""

_LAYERS = {"full_attention", "sliding_attention"}

_FED_ALIKE = {"Gemma3ForConditionalGeneration"}
"""Models that make inputs in a way of their own for pictures alone."""


def has_rows(model: PreTrainedModel) -> bool:
    """Whether rows of a model's cache can be dropped and joined.

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


class RowCache(DynamicCache):
    """A cache of rows.

    Args:
        model: a model that `has_rows`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(config=model.config)
        self._rows: list[_Rows] = [
            _SlidingRows(layer.sliding_window) if isinstance(layer, DynamicSlidingWindowLayer) else _FullRows()
            for layer in self.layers
        ]
        self.layers = list(self._rows)

    def select(self, rows: Sequence[int]) -> None:
        """Leaves these rows, in this order; one may come several times."""
        for layer in self._rows:
            layer.select(rows)

    def trim(self, columns: int) -> None:
        """Leaves out columns at the left, which the mask of every row leaves out."""
        for layer in self._rows:
            layer.set_width(layer.get_seq_length() - columns)

    def join(self, other: "RowCache") -> None:
        """Adds the rows of another cache behind its own; the narrower one gets columns at its left."""
        for layer, more in zip(self._rows, other._rows, strict=True):
            width = max(layer.get_seq_length(), more.get_seq_length())
            layer.set_width(width)
            more.set_width(width)
            layer.join(more)


class _Block:
    """The keys, or the values, of a layer: [rows, heads, columns, size], within a larger tensor."""

    def __init__(self) -> None:
        self._data: Tensor | None = None
        self._rows, self._start, self._stop = 0, 0, 0

    @property
    def states(self) -> Tensor:
        """What is held, without a copy."""
        assert self._data is not None
        return self._data[: self._rows, :, self._start : self._stop]

    def append(self, states: Tensor) -> Tensor:
        """Adds columns at the right, and gives all of them."""
        if self._data is None:
            self._take(states, len(states), states.shape[-2], 0)
        else:
            more = states.shape[-2]
            if self._stop + more > self._data.shape[-2]:
                self._take(self.states, self._rows, self._stop - self._start, 0, more)
            self._data[: self._rows, :, self._stop : self._stop + more] = states
            self._stop += more
        return self.states

    def keep(self, columns: int) -> None:
        """Leaves the last columns."""
        self._start = max(self._start, self._stop - columns)

    def widen(self, columns: int) -> None:
        """Adds columns of zeros at the left until there are so many."""
        self._take(self.states, self._rows, self._stop - self._start, columns - (self._stop - self._start))

    def select(self, rows: Sequence[int]) -> None:
        """Leaves these rows, in this order. Where most stay in their place only the others are moved."""
        count = len(rows)
        if count > self._rows or any(row != place and row < count for place, row in enumerate(rows)):
            self._take(self.states[list(rows)], count, self._stop - self._start, 0)
            return
        assert self._data is not None
        moved = [(place, row) for place, row in enumerate(rows) if row != place]
        if moved:
            places, sources = map(list, zip(*moved, strict=True))
            held = self._data[:, :, self._start : self._stop]
            held[places] = held[sources]
        self._rows = count

    def join(self, other: "_Block") -> None:
        """Adds the rows of another with as many columns."""
        states, rows = other.states, self._rows + other._rows
        assert self._data is not None
        if rows > len(self._data):
            self._take(self.states, rows, self._stop - self._start, 0)
        self._data[self._rows : rows, :, self._start : self._stop] = states
        self._rows = rows

    def _take(self, states: Tensor, rows: int, columns: int, at: int, more: int = 0) -> None:
        """Moves into a tensor with room for so many rows, and for some columns more; `at` columns are 0 before."""
        width = at + columns
        data = states.new_empty(rows, states.shape[1], width + more + _SPARE, states.shape[-1])
        data[: len(states), :, :at] = 0
        data[: len(states), :, at:width] = states
        self._data, self._rows, self._start, self._stop = data, len(states), 0, width


class _Rows(DynamicLayer):
    """A layer of a cache of rows."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks = _Block(), _Block()
        self.seen = 0
        """Columns so far, of which a sliding layer holds the last."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Adds columns, and gives the keys and values that a query may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.seen += key_states.shape[-2]
        keys, values = (
            block.append(states) for block, states in zip(self._blocks, (key_states, value_states), strict=True)
        )
        for block in self._blocks:
            block.keep(self._held(self.seen))
        return keys, values

    def get_seq_length(self) -> int:
        """Columns so far."""
        return self.seen

    def select(self, rows: Sequence[int]) -> None:
        """Leaves these rows, in this order."""
        for block in self._blocks:
            block.select(rows)

    def set_width(self, columns: int) -> None:
        """Makes it as wide as if so many columns had been seen, at the left."""
        if columns == self.seen:
            return
        is_wider, self.seen = columns > self.seen, columns
        for block in self._blocks:
            if not is_wider:
                block.keep(self._held(columns))
            elif block.states.shape[-2] < self._held(columns):
                block.widen(self._held(columns))

    def join(self, other: "_Rows") -> None:
        """Adds the rows of another layer that is as wide."""
        for block, more in zip(self._blocks, other._blocks, strict=True):
            block.join(more)

    def _held(self, columns: int) -> int:
        """How many of so many columns are held."""
        return columns


class _FullRows(_Rows):
    """A layer that looks at all columns."""


class _SlidingRows(_Rows):
    """A layer that looks at the last columns.

    Args:
        sliding_window: how many, with the query's own.
    """

    is_sliding = True

    def __init__(self, sliding_window: int) -> None:
        super().__init__()
        self.sliding_window = sliding_window

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many columns a query is given, and how many were left out before them."""
        held = self._held(self.seen)
        return held + query_length, self.seen - held

    def get_max_length(self) -> int:
        """The window."""
        return self.sliding_window

    def _held(self, columns: int) -> int:
        return min(columns, self.sliding_window - 1)

"""The engine for large vocabularies: a chunk of tokens at a time, its gradient formed in the forward pass.

Shapes: N supervised tokens, n tokens of a chunk, H the width of the model, K the vocabulary.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from ts2_lightning.engines.base import LossEngine
from ts2_lightning.engines.kernels import row_kernels
from ts2_lightning.engines.linear import (
    accumulator,
    factor_dtype,
    is_plain_linear,
    multiply,
    multiply_add,
    wide_products,
)
from ts2_lightning.engines.memory import FLOAT, LossSizes
from ts2_lightning.losses import Gradient, TokenLoss
from ts2_lightning.losses.from_logits import TokenRecorder, attach_gradients, evaluate_rows, promote
from ts2_lightning.ops import Listed
from ts2_lightning.ranges import COUNT, NULL, check_number
from ts2_lightning.types import LossOutput, Targets

CHUNK_SIZE = {"cpu": 192, "cuda": 2048}
"""Tokens per chunk, at most. On a large GPU small chunks lose their time in the traffic of the head's gradient."""

CHUNK_ELEMENTS = {"cpu": 3 * 2**18, "cuda": 2**28}
"""Logits that a chunk may have in any case: with a small vocabulary it takes more tokens."""

LISTED_SHARE = 1 / 128
"""Up to this share of entries in a gradient, gathering rows of the head is cheaper than a matrix product."""


class ChunkedEngine(LossEngine):
    """Never holds the logits [N, K]: per chunk it forms logits, loss, statistics and gradients, and drops the logits.

    Beyond the head's gradient it needs one buffer [chunk_size, K]. A plain linear head is multiplied directly and its
    gradient summed in place, in float32 at least; where a loss touches few tokens of the vocabulary, only their rows
    of the head are. Any other head (an adapter, a quantised or soft-capped one) is called as the module it is.

    Args:
        chunk_size: tokens per chunk, >= 1. Default: equal chunks of at most 192 on a CPU, 2,048 on a GPU, more for a
            small vocabulary.
        kernels: whether Triton kernels read the rows of logits and write their gradients. By default they do where
            they can: on NVIDIA GPUs with bfloat16, with Triton installed.

    Raises:
        ValueError: `chunk_size` is below 1.
        UserError: kernels are asked for on a device that cannot run them.

    Example:
        >>> from ts2_lightning.losses import TS2Loss
        >>> hidden, labels = torch.randn(5, 8, requires_grad=True), torch.tensor([0, 1, 2, 3, 4])
        >>> output = ChunkedEngine(chunk_size=2)(TS2Loss(), nn.Linear(8, 100), hidden, labels)
        >>> output.total.backward()
        >>> hidden.grad.shape, output.tokens["entropy"].shape
        (torch.Size([5, 8]), torch.Size([5]))
    """

    def __init__(self, chunk_size: int | None = None, kernels: bool | None = None) -> None:
        check_number("ChunkedEngine: chunk_size", chunk_size, COUNT, NULL)
        self.chunk_size = chunk_size
        self.kernels = kernels

    def run(
        self, loss: TokenLoss, head: nn.Module, hidden_states: Tensor, targets: Targets, statistics: Collection[str]
    ) -> LossOutput:
        """See `LossEngine`."""
        n = len(hidden_states)
        size = self.chunk_size or default_chunk_size(n, head, hidden_states.device.type)
        recorder = TokenRecorder(n, hidden_states)
        kind = _LinearHead if is_plain_linear(head) else _ModuleHead
        inputs = kind(head, hidden_states, size)
        for start in range(0, max(n, 1), size):
            _run_chunk(loss, inputs, targets, recorder, slice(start, min(start + size, n)), statistics, self.kernels)
        return inputs.attach(recorder.output(inputs.dtype))

    def peak_bytes(self, sizes: LossSizes) -> int:
        """Sums of the gradients of hidden states and head, 4 N H + 4 K H, and what a chunk takes.

        A plain head: the factors' copies, a buffer of logits 4 n K, and a block's temporaries or the gradient's copy.
        A head called as a module: its output, logits and gradient of a chunk, a copy of the hidden states; then the
        gradient in the output's dtype, and what autograd gives for hidden states and head.
        Where kernels read the logits there are no temporaries, and the gradient's copy lies in the logits' memory.
        """
        factor = sizes.factor_itemsize
        chunk = min(sizes.tokens, self.chunk_size or _even_chunks(sizes.tokens, sizes.vocabulary, sizes.device))
        matrix, logits = sizes.vocabulary * sizes.width, chunk * sizes.vocabulary
        sums = FLOAT * (sizes.width * sizes.tokens + matrix * sizes.head_trained) + sizes.reference_head
        block = sizes.block + sizes.reference_logits(chunk)
        if sizes.head_plain:
            gradient = factor * logits if factor != FLOAT else 0
            return sums + sizes.copies(factor) + FLOAT * logits + max(block, gradient)
        output, inputs = factor * logits, sizes.hidden_itemsize * chunk * sizes.width
        weights = sizes.head_itemsize * matrix * sizes.head_trained
        copy = factor * matrix if sizes.head_itemsize != factor else 0
        return sums + 2 * FLOAT * logits + output + inputs + copy + max(block, output + inputs + weights)


def _run_chunk(
    loss: TokenLoss,
    inputs: "_Head",
    targets: Targets,
    recorder: TokenRecorder,
    part: slice,
    statistics: Collection[str],
    kernels: bool | None,
) -> None:
    """One chunk, of which nothing is left when the next one begins."""
    logits, gradient = inputs.logits(part)
    chunk = _ChunkGradient(gradient, inputs.takes_lists, inputs.gradient_dtype)
    with torch.no_grad():
        reader = row_kernels(kernels, logits)
        blocks = evaluate_rows(loss, logits, targets.part(part), recorder, part.start, statistics, reader)
        for rows, share in blocks:
            chunk.add(rows, share)
    chunk.give_to(inputs, part)


@torch.no_grad()
def logits_in_chunks(head: nn.Module, hidden_states: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The logits that a loss would read, a chunk of tokens at a time.

    Args:
        head: maps hidden states [*, H] to logits [*, K].
        hidden_states: [N, H].

    Yields:
        Which tokens, and their logits [n, K] in float32 at least, in memory that the next chunk uses again.
    """
    n = len(hidden_states)
    size = default_chunk_size(n, head, hidden_states.device.type)
    inputs = (_LinearHead if is_plain_linear(head) else _ModuleHead)(head, hidden_states, size)
    for start in range(0, n, size):
        part = slice(start, min(start + size, n))
        yield part, inputs.logits(part)[0]


def default_chunk_size(n: int, head: nn.Module, device: str) -> int:
    """Tokens per chunk, such that n tokens make chunks of equal size: a small last one would multiply slowly."""
    return _even_chunks(n, getattr(head, "out_features", None), device)


def _even_chunks(n: int, vocabulary: int | None, device: str) -> int:
    device = device if device in CHUNK_SIZE else "cuda"
    size = max(CHUNK_SIZE[device], CHUNK_ELEMENTS[device] // (vocabulary or CHUNK_ELEMENTS[device]))
    return max(1, math.ceil(n / max(1, math.ceil(n / size))))


class _ChunkGradient:
    """The gradient of a chunk's logits: lists of entries, for as long as its blocks give short ones, else dense.

    Args:
        out: [n, K] receives a dense gradient; may be the logits. None: no gradient is wanted.
        lists: whether the head takes lists.
        dtype: what the head will turn a dense gradient into.
    """

    def __init__(self, out: Tensor | None, lists: bool, dtype: torch.dtype) -> None:
        self._out = out
        self._lists = lists
        self._dtype = dtype
        self._dense = out
        self._blocks: list[tuple[slice, Gradient]] = []
        self._entries = 0

    def add(self, rows: slice, gradient: Gradient) -> None:
        """Takes the gradient of a block of rows."""
        if self._out is None:
            return
        self._entries += gradient.listed
        if self._lists and gradient.listed and self._entries <= LISTED_SHARE * self._out.numel():
            # The next block takes the memory in which this one's matrices lie.
            self._blocks.append((rows, gradient.formed()))
            return
        self._lists = False
        for place, share in [*self._blocks, (rows, gradient)]:
            self._write(place, share)
        self._blocks.clear()

    def _write(self, rows: slice, gradient: Gradient) -> None:
        assert self._out is not None
        if rows == slice(0, len(self._out)):  # alone in its chunk: it may be of the head's dtype
            self._dense = gradient.write_to(self._out, self._dtype)
        else:
            gradient.write_to(self._out[rows])

    def give_to(self, head: "_Head", part: slice) -> None:
        """Adds the chunk's share to the head's gradients."""
        if self._dense is None:
            return
        if self._lists:
            head.accumulate_lists(part, self._blocks)
        else:
            head.accumulate(part, self._dense)


class _Head(ABC):
    """A head, the hidden states that go through it chunk by chunk, and the sums of their gradients."""

    takes_lists = False
    """Whether `accumulate_lists` can be called."""

    def __init__(self, head: nn.Module, hidden_states: Tensor, parameters: Sequence[Tensor]) -> None:
        self._head = head
        self._hidden = hidden_states.detach()
        self._inputs = [hidden_states, *parameters]
        wanted = torch.is_grad_enabled()
        self._gradients: list[Tensor | None] = [
            torch.zeros_like(x, dtype=accumulator(x.dtype)) if wanted and x.requires_grad else None
            for x in self._inputs
        ]

    @property
    def dtype(self) -> torch.dtype:
        """In which the loss is summed."""
        return accumulator(self._hidden.dtype)

    @property
    def _needs_gradient(self) -> bool:
        return any(g is not None for g in self._gradients)

    @property
    @abstractmethod
    def gradient_dtype(self) -> torch.dtype:
        """The dtype in which the gradient of the logits is multiplied."""

    @abstractmethod
    def logits(self, part: slice) -> tuple[Tensor, Tensor | None]:
        """Logits [n, K] of a chunk, and the tensor [n, K] that shall receive their gradient (None: none wanted)."""

    @abstractmethod
    def accumulate(self, part: slice, gradient: Tensor) -> None:
        """Adds the chunk's share to the gradients, from the gradient [n, K] of its logits."""

    def accumulate_lists(self, part: slice, blocks: list[tuple[slice, Gradient]]) -> None:
        """As `accumulate`, from lists of entries of blocks of rows."""
        raise NotImplementedError

    def attach(self, output: LossOutput) -> LossOutput:
        """The output with a total that is differentiable."""
        if not self._needs_gradient:
            return output
        return LossOutput(attach_gradients(output.total, self._inputs, self._gradients), output.tokens)


class _LinearHead(_Head):
    """logits = hidden W^T + b, multiplied directly: no second tensor of the head's size, one reused buffer."""

    takes_lists = True

    def __init__(self, head: nn.Module, hidden_states: Tensor, chunk_size: int) -> None:
        assert isinstance(head, nn.Linear)
        super().__init__(head, hidden_states, [p for p in (head.weight, head.bias) if p is not None])
        dtype = factor_dtype(hidden_states, head.weight)
        self._weight, self._bias = head.weight.detach().to(dtype), head.bias
        self._factors = self._hidden.to(dtype)
        rows = min(chunk_size, len(hidden_states))
        self._buffer = hidden_states.new_empty(rows, head.out_features, dtype=self.dtype)

    @property
    def gradient_dtype(self) -> torch.dtype:
        """See `_Head`."""
        return self._weight.dtype

    @torch.no_grad()
    def logits(self, part: slice) -> tuple[Tensor, Tensor | None]:
        """See `_Head`."""
        logits = self._buffer[: part.stop - part.start]
        multiply(self._factors[part], self._weight.T, out=logits)
        if self._bias is not None:
            logits += self._bias
        # The gradient overwrites the logits, row by row, once the loss has read them.
        return logits, logits if self._needs_gradient else None

    @torch.no_grad()
    def accumulate(self, part: slice, gradient: Tensor) -> None:
        """See `_Head`."""
        of_hidden, of_weight, *of_bias = self._gradients
        factor = gradient.to(self._weight.dtype)
        if of_hidden is not None:
            multiply(factor, self._weight, out=of_hidden[part])
        if of_weight is not None:
            multiply_add(of_weight, factor.T, self._factors[part])
        if of_bias and of_bias[0] is not None:
            of_bias[0] += gradient.sum(0, dtype=of_bias[0].dtype)

    @torch.no_grad()
    def accumulate_lists(self, part: slice, blocks: list[tuple[slice, Gradient]]) -> None:
        """See `_Head`."""
        of_hidden, of_weight, *of_bias = self._gradients
        for block, gradient in blocks:
            for entries, values in gradient.sparse:
                assert isinstance(entries, Listed)
                assert isinstance(values, Tensor)
                places, columns = entries.rows + (part.start + block.start), entries.columns
                factor = values.to(self._weight.dtype)[:, None]
                if of_hidden is not None:
                    of_hidden.index_add_(0, places, (factor * self._weight[columns]).to(of_hidden.dtype))
                if of_weight is not None:
                    of_weight.index_add_(0, columns, (factor * self._factors[places]).to(of_weight.dtype))
                if of_bias and of_bias[0] is not None:
                    of_bias[0].index_add_(0, columns, values.to(of_bias[0].dtype))


class _ModuleHead(_Head):
    """Any head, called as a module under autograd, chunk by chunk."""

    def __init__(self, head: nn.Module, hidden_states: Tensor, chunk_size: int) -> None:
        super().__init__(head, hidden_states, list(head.parameters()))

    @property
    def gradient_dtype(self) -> torch.dtype:
        """See `_Head`."""
        return self._output.dtype

    def logits(self, part: slice) -> tuple[Tensor, Tensor | None]:
        """See `_Head`."""
        with torch.set_grad_enabled(self._needs_gradient), wide_products(self._head, self._hidden.device) as dtype:
            self._chunk = self._hidden[part].clone().requires_grad_(self._needs_gradient)
            self._output = self._head(self._chunk if dtype is None else self._chunk.to(dtype))
        logits = promote(self._output.detach())
        return logits, torch.empty_like(logits) if self._needs_gradient else None

    def accumulate(self, part: slice, gradient: Tensor) -> None:
        """See `_Head`."""
        wanted = [g is not None for g in self._gradients]
        inputs = [x for x, w in zip([self._chunk, *self._inputs[1:]], wanted, strict=True) if w]
        with wide_products(self._head, self._hidden.device):
            shares = torch.autograd.grad(self._output, inputs, gradient.to(self._output.dtype), allow_unused=True)
        sums = [g for g in self._gradients if g is not None]
        if self._gradients[0] is not None:
            sums[0] = sums[0][part]
        for total, share in zip(sums, shares, strict=True):
            if share is not None:
                total += share
        del self._chunk, self._output

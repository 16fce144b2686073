"""Memory traffic of the row work of every objective, counted for a GPU on tensors without data; nothing is timed.

    python -m benchmarks.traffic --out figures.json
    python -m benchmarks.traffic --subjects TS2 --by-operation

On a GPU what a loss does with rows of logits costs the bytes that it moves. Each operation of a step, forward and
backward, is counted as it is dispatched: what it reads and writes, in passes over the logits [N, K] in float32. The
matrix products of the head are left out, and the head is narrow, so that its gradient hardly counts. Factors are in
bfloat16. "kernels" is the way with Triton kernels, statistics included, the others are that without: in a block of rows
supports are short lists if no row has a large one, else long lists or masks, both with statistics too.
"""

import argparse
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.loss_engine import LOSSES
from benchmarks.record import write
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.losses import TokenLoss
from ts2_lightning.ops import rows as rows_of_logits
from ts2_lightning.types import TOKEN_STATISTICS, Targets

SHAPE = (2048, 128256)
"""(N tokens, K vocabulary): a chunk of a GPU."""

WIDTH = 64
"""H. The traffic of the head's gradient, in passes about 4 H / N, is not what is counted here."""

PLAIN = "plain CE"
"""The subject that is no objective of ours: logits in bfloat16, upcast, `F.cross_entropy`."""

PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm")
"""Operations that are counted apart."""

FREE = (
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
    "lift_fresh",
    "device",
)
"""Operations that move nothing; views are recognised by their schema."""

FILLS = (
    *("zero_", "fill_", "zeros", "zeros_like", "ones", "ones_like", "full", "full_like", "arange", "scalar_tensor"),
    *("new_zeros", "new_ones", "new_full"),
)
"""Operations that write without reading."""

REDUCTIONS = ("sum", "mean", "prod", "nansum", "linalg_vector_norm")
"""Reductions before which a GPU converts the whole tensor to the dtype of the result, in memory."""

DECLARED: dict[str, Callable[..., int]] = {}
"""Name of an operation, with its namespace -> function of its arguments that gives the bytes it moves."""


KERNELS = "ts2_lightning.ops.row_kernels"
"""The module of the Triton kernels."""


def declare(name: str, moved: Callable[..., int]) -> None:
    """Says what an operation moves whose traffic its arguments do not show.

    Without it an operation reads its tensors and writes its results, and reads and writes what it changes.

    Args:
        name: name of the operation, such as `ts2_lightning::row_summary`.
        moved: function that is called with the operation's arguments, and returns bytes.
    """
    DECLARED[name] = moved


def _summary_moved(logits: Tensor, *_: Any, **__: Any) -> int:
    """One read, and another of the lanes that hold the support and the three largest logits."""
    n, vocabulary = logits.shape
    layout = import_module(KERNELS).layout_for(vocabulary)
    again: int = layout.depth * (layout.held_lanes + 3)
    return logits.element_size() * n * (vocabulary + min(vocabulary, again))


def _gradient_moved(logits: Tensor, labels: Tensor, fields: Tensor, coefficients: Tensor, out: Tensor, *_: Any) -> int:
    """One read of the logits, and one write of the gradient."""
    return logits.numel() * (logits.element_size() + out.element_size())


declare("ts2_lightning::row_summary", _summary_moved)
declare("ts2_lightning::row_gradient", _gradient_moved)


SUPPORTS = {"short lists": (0,), "long lists": (1, 0), "masks": (1,)}
"""How supports of a block of rows are stored -> what the device answers: whether a list is too short for some row."""


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write while it is on, as a GPU would.

    A tensor that an operation reads twice counts once; of a broadcast or a selection counts what is read. Under
    `FakeTensorMode` nothing is computed, so that any size can be counted; values that the host asks for are then made
    up.

    Args:
        answers: values of tensors without data for `.item()`, in turn and again from the start.

    Attributes:
        moved: bytes by operation.
        products: bytes of the matrix products, by operation.
        operations: number of operations that move anything, products included.
        synchronisations: number of times that the host has asked for a value.

    Example:
        >>> with Traffic() as traffic:
        ...     _ = torch.ones(10).mul_(2).sum()
        >>> dict(traffic.moved), traffic.operations
        ({'ones': 40, 'mul_': 80, 'sum': 44}, 3)
    """

    def __init__(self, answers: Sequence[float] = (0,)) -> None:
        super().__init__()
        self._answers = itertools.cycle(answers)
        self.moved: Counter[str] = Counter()
        self.products: Counter[str] = Counter()
        self.operations = self.synchronisations = 0

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and counts it."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.synchronisations += 1
            if isinstance(args[0], FakeTensor):
                answer = next(self._answers)
                return bool(answer) if args[0].dtype == torch.bool else answer
        result = func(*args, **kwargs)
        moved = _moved(func, name, args, kwargs, result)
        if moved:
            self.operations += 1
            (self.products if name in PRODUCTS else self.moved)[name] += moved
        return result

    def passes(self, elements: int) -> float:
        """Bytes moved but by products, in units of `elements` numbers in float32."""
        return sum(self.moved.values()) / (4 * elements)


def _moved(func: OpOverload, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """Bytes that an operation moves."""
    if f"{func.namespace}::{name}" in DECLARED:
        return DECLARED[f"{func.namespace}::{name}"](*args, **kwargs)
    returns = [out.alias_info for out in func._schema.returns]
    if name in FREE or any(alias is not None and not alias.is_write for alias in returns):
        return 0
    if name in FILLS:
        return _size(result)
    if name in _PARTIAL_READS:
        return _PARTIAL_READS[name](args, result)
    if name.removesuffix("_") in _PARTIAL_WRITES:
        copy = 0 if name.endswith("_") else 2 * _size(result)
        return copy + _PARTIAL_WRITES[name.removesuffix("_")](args, kwargs)
    read, written = _touched(func, args, kwargs, result)
    if name == "copy_":
        read = read[1:]
    moved = sum(map(_size, read)) + sum(map(_size, written))
    return moved + _within(name, read[0], result) if read else moved


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor's distinct elements: what is broadcast counts once."""
    return tensor.itemsize * math.prod(
        size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 0
    )


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _touched(
    func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Which tensors an operation reads, each once, and which it writes."""
    read: dict[Any, Tensor] = {}
    written: list[Tensor] = []
    for place, argument in enumerate(func._schema.arguments):
        values = _tensors(args[place] if place < len(args) else kwargs.get(argument.name))
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += values
        if not argument.is_out:
            read |= {_identity(tensor): tensor for tensor in values}
    changed = {_identity(tensor) for tensor in written}
    written += [tensor for tensor in _tensors(result) if _identity(tensor) not in changed]
    return list(read.values()), written


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _within(name: str, operand: Tensor, result: Any) -> int:
    """Bytes that an operation moves besides reading its operands and writing its results once."""
    if name in REDUCTIONS:
        return _converted(operand, result.dtype)
    if name == "count_nonzero":  # a mask, and its sum
        mask = 0 if operand.dtype == torch.bool else 2 * operand.numel()
        return mask + 2 * operand.numel() * torch.int64.itemsize
    if name in ("_softmax", "_log_softmax"):  # the maximum and the sum are read before
        return 2 * _size(operand)
    if name in ("_softmax_backward_data", "_log_softmax_backward_data"):  # so is a sum over the gradient
        return _size(operand)
    if name == "topk":  # a radix select reads a byte of each number at a time, before it gathers
        return operand.itemsize * _size(operand)
    if name == "logsumexp":  # a maximum; differences, their exponentials in place, and a sum of these
        return 5 * _size(operand)
    return 0


def _converted(operand: Tensor, dtype: torch.dtype) -> int:
    """Bytes of a copy in another dtype, written and read. Halves are summed in float32 without one."""
    halves = operand.dtype in (torch.float16, torch.bfloat16) and dtype == torch.float32
    return 0 if halves or operand.dtype == dtype else 2 * operand.numel() * dtype.itemsize


def _selected(args: Sequence[Any], result: Tensor) -> int:
    """Indices are read, and each selected element is read and written."""
    return sum(map(_size, _tensors(args[1:]))) + 2 * result.numel() * result.itemsize


_PARTIAL_READS: dict[str, Callable[[Sequence[Any], Any], int]] = {
    **dict.fromkeys(("index", "gather", "index_select"), _selected),
    # One number of each row of log-probabilities is read; the gradient is zeros, and one number of each row.
    "nll_loss_forward": lambda args, result: _size(args[1]) + len(args[1]) * args[0].itemsize + _size(result[0]),
    "nll_loss_backward": lambda args, result: _size(args[2]) + len(args[2]) * result.itemsize + _size(result),
}


def _scattered(args: Sequence[Any], kwargs: Mapping[str, Any], adds: bool = False) -> int:
    """`scatter(self, dim, index, source or value)`."""
    index = args[2]
    return _size(index) + sum(map(_size, _tensors(args[3:]))) + (1 + adds) * index.numel() * args[0].itemsize


def _put(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """`index_put(self, indices, values, accumulate)`."""
    adds = args[3] if len(args) > 3 else kwargs.get("accumulate", False)
    places = [index for index in args[1] if index is not None]
    whole = [size for size, index in zip(args[0].shape, args[1], strict=False) if index is None]
    whole += args[0].shape[len(args[1]) :]
    number = math.prod([*torch.broadcast_shapes(*(index.shape for index in places)), *whole])
    return sum(map(_size, [*places, args[2]])) + (1 + bool(adds)) * number * args[0].itemsize


def _added(args: Sequence[Any], kwargs: Mapping[str, Any], adds: bool = True) -> int:
    """`index_add(self, dim, index, source)`."""
    return _size(args[2]) + _size(args[3]) + (1 + adds) * args[3].numel() * args[0].itemsize


_PARTIAL_WRITES: dict[str, Callable[[Sequence[Any], Mapping[str, Any]], int]] = {
    "scatter": _scattered,
    "scatter_add": lambda args, kwargs: _scattered(args, kwargs, adds=True),
    "index_put": _put,
    "index_add": _added,
    "index_copy": lambda args, kwargs: _added(args, kwargs, adds=False),
}


@dataclass(frozen=True)
class Figures:
    """What a step of one subject moves.

    Attributes:
        passes: bytes of the row work, in passes over float32 [N, K].
        operations: number of operations of the step that move anything.
        synchronisations: number of times that the host waits for a value.
        by_operation: passes of each operation that has a hundredth of one, the largest first.
    """

    passes: float
    operations: int
    synchronisations: int
    by_operation: dict[str, float]

    @classmethod
    def of(cls, traffic: Traffic, elements: int) -> "Figures":
        """The figures of what was counted over logits of `elements` numbers."""
        shares = {name: round(moved / (4 * elements), 2) for name, moved in traffic.moved.most_common()}
        return cls(
            round(traffic.passes(elements), 2),
            traffic.operations,
            traffic.synchronisations,
            {name: share for name, share in shares.items() if share},
        )


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Within it tensors of a CPU without data take the way of a GPU that has no Triton kernels."""
    block = {"cpu": rows_of_logits.ELEMENTS_PER_BLOCK["cuda"]}
    with (
        mock.patch("ts2_lightning.ops.sparse.sizes_may_depend_on_data", return_value=False),
        mock.patch("ts2_lightning.engines.linear.sums_in_float32", return_value=True),
        mock.patch.dict(rows_of_logits.ELEMENTS_PER_BLOCK, block),
    ):
        yield


def measure(
    loss: TokenLoss | None,
    statistics: Collection[str] = (),
    shape: tuple[int, int] = SHAPE,
    supports: str = "short lists",
    kernels: bool = False,
) -> Figures:
    """Counts a forward and a backward pass from hidden states [N, H] and a head [K, H] in bfloat16, in one chunk.

    Args:
        loss: the objective; None is plain cross-entropy in PyTorch.
        statistics: names of what is measured at every token.
        shape: (N tokens, K vocabulary).
        supports: how supports are stored without kernels, one of `SUPPORTS`.
        kernels: whether Triton kernels read the rows.
    """
    n, k = shape
    reader = import_module(KERNELS) if kernels else None
    engine = mock.patch("ts2_lightning.engines.chunked.row_kernels", return_value=reader)
    with as_on_a_gpu(), engine, FakeTensorMode():
        hidden = torch.empty(n, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        head = nn.Linear(WIDTH, k, bias=False, dtype=torch.bfloat16)
        labels, positions = torch.empty(n, dtype=torch.long), torch.empty(n, dtype=torch.long)
        with Traffic(SUPPORTS[supports]) as traffic:
            if loss is None:
                total = F.cross_entropy(head(hidden).float(), labels, reduction="sum")
            else:
                targets = Targets(labels, torch.empty(n), positions, positions)
                total = ChunkedEngine(n)(loss, head, hidden, targets, statistics).total
            total.backward()
    return Figures.of(traffic, n * k)


def measure_all(subjects: Collection[str], shape: tuple[int, int]) -> dict[str, dict[str, Figures]]:
    """Name of a subject -> figures of its step without statistics, with them, and with them and large supports."""
    figures = {}
    for name in subjects:
        if name == PLAIN:
            figures[name] = {"bare": measure(None, (), shape)}
            continue
        loss = LOSSES[name]
        figures[name] = {
            "bare": measure(loss, (), shape),
            "statistics": measure(loss, TOKEN_STATISTICS, shape),
            **{kind: measure(loss, TOKEN_STATISTICS, shape, kind) for kind in ("long lists", "masks")},
            **({"kernels": measure(loss, TOKEN_STATISTICS, shape, kernels=True)} if find_spec("triton") else {}),
        }
    return figures


def table(figures: Mapping[str, Mapping[str, Figures]]) -> str:
    """The passes as Markdown, a row per subject; operations and synchronisations are those with statistics."""
    columns = ("kernels", "bare", "statistics", "long lists", "masks")
    lines = ["| passes over float32 [N, K] | " + " | ".join((*columns, "operations", "synchronisations")) + " |"]
    lines.append("| --- |" + " ---: |" * 7)
    for name, ways in figures.items():
        way = ways.get("statistics", ways["bare"])
        cells = [f"{ways[column].passes:.1f}" if column in ways else "" for column in columns]
        lines.append(f"| {name} | " + " | ".join([*cells, str(way.operations), str(way.synchronisations)]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, metavar=("N", "K"), default=SHAPE)
    parser.add_argument(
        "--subjects", nargs="+", choices=[PLAIN, *LOSSES], default=[PLAIN, *LOSSES], help="default: all"
    )
    parser.add_argument("--by-operation", action="store_true", help="print the passes of each operation, too")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    n, k = options.shape
    figures = measure_all(options.subjects, (n, k))
    print(table(figures))
    if options.by_operation:
        for name, ways in figures.items():
            for way, counted in ways.items():
                print(f"\n{name}, {way}:", *(f"{op} {share}" for op, share in counted.by_operation.items()), sep="\n  ")
    results = {name: {way: asdict(counted) for way, counted in ways.items()} for name, ways in figures.items()}
    write(options.out, {"tokens": n, "vocabulary": k, "results": results})


if __name__ == "__main__":
    main()

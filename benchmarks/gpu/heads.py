"""The heads that the GPU check compares: from hidden states [N, H] and a matrix [K, H] to a loss and both gradients."""

import importlib
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.device import Device, LeftOutError
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.losses import CrossEntropyLoss, GEMLoss, SparsemaxLoss, TOFULoss, TokenLoss, TS2Loss
from ts2_lightning.types import TOKEN_STATISTICS, Targets

CHUNK = 2048
"""Tokens of a chunk, of plain cross-entropy in chunks."""

TRL_CHUNK = 32768
"""Columns of a tile, as TRL's trainer has them."""

PRODUCTS, PLAIN, COMPILED = "three products", "plain CE", "plain CE, compiled"
PUBLIC, TRL, LIGER = "public TS2", "TRL's Triton head", "Liger's fused linear CE"


class Shape(NamedTuple):
    """Sizes of a head.

    Attributes:
        tokens: Number N of tokens.
        width: Width H of the model.
        vocabulary: Size K of the vocabulary.
    """

    tokens: int
    width: int
    vocabulary: int

    def __str__(self) -> str:
        return " x ".join(f"{size:,}" for size in self)


SHAPES = (Shape(8192, 4096, 128256), Shape(8192, 2048, 151936), Shape(2048, 1024, 32000))
"""Llama 3.1 8B's head, that of Qwen 2.5 3B, and a small one. The first has the targets."""

TINY = (Shape(5, 32, 300),)


class HeadInputs(NamedTuple):
    """What a head gets.

    Attributes:
        hidden_states: Hidden states [N, H], a leaf that wants its gradient.
        head: A linear head, of which the matrix [K, H] wants its gradient.
        labels: Gold tokens [N].
    """

    hidden_states: Tensor
    head: nn.Linear
    labels: Tensor


Mean = Callable[[HeadInputs], Tensor]
"""The mean loss of the tokens, differentiable."""


def inputs(device: Device, shape: Shape) -> HeadInputs:
    """A random head in bfloat16, and hidden states some of which point at the gold token: rows from flat to one-hot."""
    n, h, k = shape
    torch.manual_seed(0)
    head = nn.Linear(h, k, bias=False, device=device.name, dtype=torch.bfloat16)
    labels = torch.randint(k, (n,), device=device.name)
    with torch.no_grad():
        head.weight.normal_()
        noise = F.normalize(torch.randn(n, h, device=device.name), dim=-1) * 1.5
        sharpness = torch.rand(n, 1, device=device.name) * 16 / h
        hidden_states = (noise + head.weight[labels] * sharpness).to(torch.bfloat16)
    return HeadInputs(hidden_states.requires_grad_(), head, labels)


def differentiated(mean: Mean, data: HeadInputs) -> Tensor:
    """One forward and backward pass, from no gradients; returns the loss."""
    data.head.weight.grad = data.hidden_states.grad = None
    loss = mean(data)
    loss.backward()
    return loss.detach()


def plain(data: HeadInputs) -> Tensor:
    """What a training script does without us."""
    return F.cross_entropy(data.head(data.hidden_states).float(), data.labels)


def in_chunks(data: HeadInputs) -> Tensor:
    """Plain cross-entropy, of which each chunk is differentiated before the next begins."""
    data.head.weight.grad = data.hidden_states.grad = None
    total = torch.zeros((), device=data.labels.device)
    for start in range(0, len(data.labels), CHUNK):
        logits = data.head(data.hidden_states[start : start + CHUNK]).float()
        share = F.cross_entropy(logits, data.labels[start : start + CHUNK], reduction="sum") / len(data.labels)
        share.backward()
        total += share.detach()
    return total


def products(data: HeadInputs) -> Callable[[], Tensor]:
    """The three matrix products that every head needs, in bfloat16 and all tokens at once, and nothing else."""
    hidden_states, weight = data.hidden_states.detach(), data.head.weight.detach()
    size = (len(hidden_states), len(weight))
    gradient = torch.randn(size, dtype=weight.dtype, device=weight.device)  # products of zeros run faster

    def step() -> Tensor:
        logits = hidden_states @ weight.T
        data.hidden_states.grad, data.head.weight.grad = gradient @ weight, gradient.T @ hidden_states
        return logits[0, 0]

    return step


def ours(loss: TokenLoss, kernels: bool, names: Collection[str] = TOKEN_STATISTICS) -> Mean:
    """A loss of the package in chunks, by the Triton kernels or by torch operations."""

    def mean(data: HeadInputs) -> Tensor:
        engine = ChunkedEngine(kernels=kernels)
        return engine(loss, data.head, data.hidden_states, Targets(data.labels), names).total / len(data.labels)

    return mean


def of_torch(data: HeadInputs) -> Tensor:
    """PyTorch's own chunked head."""
    functional: Any = F
    if not hasattr(functional, "linear_cross_entropy"):
        raise LeftOutError(f"torch {torch.__version__} has no linear_cross_entropy")
    options = nn.LinearCrossEntropyOptions()
    mean: Tensor = functional.linear_cross_entropy(data.hidden_states, data.head.weight, data.labels, options=options)
    return mean


def of_trl(data: HeadInputs) -> Tensor:
    """TRL's head as its trainer calls it, entropy included."""
    function = importlib.import_module("trl.kernels").ChunkedLogProbFunction
    weight, outputs = data.head.weight, ("entropy",)
    log_p, *_ = function.apply(data.hidden_states, weight, None, data.labels, 1.0, TRL_CHUNK, None, 1.0, outputs)
    mean: Tensor = -log_p.mean()
    return mean


def of_liger(data: HeadInputs) -> Tensor:
    """Liger's head with its own settings."""
    module: Any = importlib.import_module("liger_kernel.transformers.fused_linear_cross_entropy")
    mean: Tensor = module.LigerFusedLinearCrossEntropyLoss()(data.head.weight, data.hidden_states, data.labels)
    return mean


def public_ts2(data: HeadInputs) -> Tensor:
    """TS2 as public code computes it, which sorts every row."""
    formula = importlib.import_module("benchmarks.loss_engine").public_ts2
    mean: Tensor = formula(lambda states: data.head(states).float(), data.hidden_states, data.labels)
    return mean


@dataclass(frozen=True)
class Subject:
    """One of the heads.

    Attributes:
        mean: Its mean loss; None for the products, which have none.
        is_cross_entropy: Whether its loss has to be that of plain cross-entropy.
        of_all_shapes: Whether it is measured at all shapes, not at the first alone.
        rounds: The most rounds that it takes part in; few, where a step is slow.
    """

    mean: Mean | None
    is_cross_entropy: bool = False
    of_all_shapes: bool = True
    rounds: int = 99

    def step(self, data: HeadInputs) -> Callable[[], Tensor]:
        """The step that is measured."""
        mean = self.mean
        if mean is None:
            return products(data)
        return (lambda: in_chunks(data)) if mean is in_chunks else lambda: differentiated(mean, data)


_OURS: dict[str, TokenLoss] = {
    "CE": CrossEntropyLoss(),
    "TS2": TS2Loss(),
    "GEM": GEMLoss(),
    "TOFU": TOFULoss(),
    "sparsemax": SparsemaxLoss(),
}

SUBJECTS: dict[str, Subject] = {
    PRODUCTS: Subject(None),
    PLAIN: Subject(plain, True),
    "TS2": Subject(ours(_OURS["TS2"], True)),
    "CE": Subject(ours(_OURS["CE"], True), True),
    TRL: Subject(of_trl, True),
    LIGER: Subject(of_liger, True),
    "TS2, torch operations": Subject(ours(_OURS["TS2"], False), rounds=3),
    "CE, torch operations": Subject(ours(_OURS["CE"], False), True, rounds=3),
    "plain CE in chunks": Subject(in_chunks, True),
    "torch's linear_cross_entropy": Subject(of_torch, True),
    PUBLIC: Subject(public_ts2, of_all_shapes=False, rounds=1),
    **{name: Subject(ours(_OURS[name], True), of_all_shapes=False) for name in ("GEM", "TOFU", "sparsemax")},
    **{
        f"{name}, no statistics": Subject(ours(loss, True, ()), name == "CE", of_all_shapes=name in ("CE", "TS2"))
        for name, loss in _OURS.items()
    },
}
"""In the order in which they are measured; the compiled head comes after them all."""


@dataclass(frozen=True)
class Target:
    """What the first shape is to reach on an H200.

    Attributes:
        subject: Whose time it is.
        unit: The head whose time is 1.
        most: The largest ratio that meets it.
    """

    subject: str
    unit: str
    most: float

    def told(self, value: float, tiny: bool) -> dict[str, Any]:
        """The target beside what was measured, and whether that meets it; at tiny sizes nobody can say."""
        return target_beside(f"{self.subject} / {self.unit}, time", value, self.most, tiny)


TARGETS = [
    Target("TS2", PRODUCTS, 1.2),
    Target("TS2", PLAIN, 0.9),
    Target("TS2", TRL, 0.85),
    Target("TS2", LIGER, 0.6),
    Target("TS2", PUBLIC, 1 / 3),
]

MEMORY_TARGET = 2.0
"""Most GB of TS2 with all statistics beyond the head's gradient, which is summed in float32."""


def target_beside(name: str, value: float, most: float, tiny: bool) -> dict[str, Any]:
    """A result that says how a number compares with the largest that meets a target."""
    return {"target": name, "value": round(value, 3), "most": round(most, 3), "met": None if tiny else value <= most}


def same_loss(loss: float, plain_loss: float) -> bool:
    """Whether a head has computed cross-entropy; bfloat16 logits cost two digits."""
    return math.isfinite(loss) and abs(loss - plain_loss) <= 0.02 * max(1.0, abs(plain_loss))

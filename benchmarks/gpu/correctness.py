"""Whether a GPU computes what the CPU does in float64: every objective, every statistic, both gradients.

Every quantity is compared entry by entry. What is told of it is its worst error over its tolerance: at most 1 is right.
"""

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device import Device, check_names, tell, told
from benchmarks.gpu.rows import Rows, all_rows
from ts2_lightning import losses
from ts2_lightning.engines import ChunkedEngine, FullEngine, LossEngine
from ts2_lightning.engines.chunked import logits_in_chunks
from ts2_lightning.losses import (
    EntmaxLoss,
    FenchelYoungPlusLoss,
    FocalLoss,
    GEMLoss,
    ReferenceAnchored,
    SuppressionOnlyLoss,
    TOFULoss,
    TokenLoss,
    TS2Loss,
)
from ts2_lightning.ops import row_kernels
from ts2_lightning.types import TOKEN_STATISTICS

DTYPES = (torch.float32, torch.bfloat16)

ROWS = 4
"""Rows of each kind; one at tiny sizes, for which the interpreter takes a second each."""

RELATIVE = 2e-5
"""What float32 may lose of a softmax probability."""

ABSOLUTE = 3e-7
"""What float32 may lose where a difference is taken: at the gold token, and where a projection may have its support."""

SUMMED = 1e-4
"""What a product of float32 loses, relative to the sum of its terms' sizes, over a vocabulary of 128k."""

REACH = 4.0
"""Largest distance from the row's maximum of a token in the support of 1.25-entmax, the widest projection here."""

FLUSHED = 1e-35
"""Numbers below are not held to their relative error: a GPU makes them zero."""

OBJECTIVE = 1e-5
"""What float32 may lose of a token's loss, relative to it where it is above 1."""

FOURTH_POWERS = 10
"""Times as much as it may lose where it sums high powers of 128k equal numbers, as 1.25-entmax does."""

WHOLE = ("support_size", "gold_rank", "gold_in_support")
"""Whole numbers, which are equal or wrong."""

IN_NATS = ("cross_entropy", "entropy")


def objectives() -> dict[str, TokenLoss]:
    """Every objective of the package with its defaults, and those whose settings take another way."""
    first = ("TS2Loss", "CrossEntropyLoss", "GEMLoss", "TOFULoss", "SparsemaxLoss")
    classes = {name: loss for name, loss in vars(losses).items() if name in losses.__all__ and inspect.isclass(loss)}
    every = {
        name: loss() for name, loss in classes.items() if issubclass(loss, TokenLoss) and not inspect.isabstract(loss)
    }
    variants: dict[str, TokenLoss] = {
        "TS2Loss, scaled": TS2Loss(logit_scale=1.7),
        "TS2Loss, adaptive and capped": TS2Loss(adaptive=True, tail_mass_cap=0.6),
        "TS2Loss, top 3": TS2Loss(top_k=3),
        "GEMLoss, logsigmoid": GEMLoss(h="logsigmoid"),
        "TOFULoss, cold": TOFULoss(gamma=0.5, beta=0.3),
        "FocalLoss, below 1": FocalLoss(gamma=0.5),
        "EntmaxLoss, 1.25": EntmaxLoss(1.25),
        "EntmaxLoss, 2": EntmaxLoss(2.0),
        "FenchelYoungPlusLoss, scaled": FenchelYoungPlusLoss(logit_scale=2.5, adaptive=True),
        "SuppressionOnlyLoss, scaled": SuppressionOnlyLoss(logit_scale=1.3),
        "ReferenceAnchored, TS2Loss": ReferenceAnchored(TS2Loss(), 2.0),
    }
    return {**{name: every[name] for name in first}, **every, **variants}


@dataclass(frozen=True)
class Worst:
    """The worst error of a quantity.

    Attributes:
        over_tolerance: Error over tolerance; infinite where one side is NaN and the other is not.
        case: Which kind of row it is of.
    """

    over_tolerance: float
    case: str


Results = dict[str, Tensor]
"""Values of tokens by name, and `gradient` [n, K] of the logits, `grad_hidden_states` [n, H] and `grad_bias` [K]."""


def run(engine: LossEngine, loss: TokenLoss, rows: Rows, dtype: torch.dtype, device: str) -> Results:
    """What an engine computes of rows, on the CPU and in float64."""
    head, hidden_states = rows.head(dtype, device), rows.hidden_states(dtype, device)
    output = engine(loss, head, hidden_states, rows.targets(device, dtype, loss.needs_reference), TOKEN_STATISTICS)
    output.total.backward()
    assert head.weight.grad is not None
    assert hidden_states.grad is not None
    n = len(rows.labels)
    results = {**output.tokens, "gradient": head.weight.grad[:, :n].T, "grad_hidden_states": hidden_states.grad}
    if head.bias is not None and head.bias.grad is not None:
        results["grad_bias"] = head.bias.grad
    return {name: value.detach().cpu().double() for name, value in results.items()}


def tolerances(
    exact: Mapping[str, Tensor], rows: Rows, loss: TokenLoss, dtype: torch.dtype, truncates: bool
) -> Results:
    """The largest error that is right, of every entry of every quantity.

    Args:
        exact: Results in float64.
        rows: The rows that they are of.
        loss: The objective.
        dtype: The dtype of the factors, to which the gradient of the logits is rounded.
        truncates: Whether bfloat16 is rounded towards zero, as Triton's interpreter does.
    """
    rounding = (2.0**-7 if truncates else 2.0**-8) if dtype == torch.bfloat16 else 0.0
    bounds = {}
    for name, value in exact.items():
        size = value.abs()
        if name.startswith("objective"):
            bounds[name] = OBJECTIVE * (FOURTH_POWERS if _has_high_powers(loss) else 1) * size.clamp(min=1)
        elif name in WHOLE:
            bounds[name] = torch.zeros_like(size)
        elif name in IN_NATS:
            bounds[name] = 3e-6 * size.clamp(min=1)
        elif name in TOKEN_STATISTICS:
            bounds[name] = 1e-5 * size + FLUSHED
    entry = rounding * exact["gradient"].abs() + _of_float32(exact["gradient"].abs(), rows, loss.logit_scale)
    bounds["gradient"] = entry
    summed = entry + SUMMED * exact["gradient"].abs()
    bounds["grad_hidden_states"] = summed @ rows.matrix_sizes + rounding * exact["grad_hidden_states"].abs()
    if "grad_bias" in exact:
        bounds["grad_bias"] = entry.sum(0) + rounding * exact["grad_bias"].abs()
    return bounds


def _has_high_powers(loss: TokenLoss) -> bool:
    return isinstance(loss, EntmaxLoss) and loss.alpha < 1.5


def _of_float32(size: Tensor, rows: Rows, logit_scale: float) -> Tensor:
    """What float32 may lose of the gradient [n, K] of logits, of which `size` has the absolute values."""
    logits = rows.exact_logits
    taken = (logits > logits.amax(-1, keepdim=True) - REACH).scatter(-1, rows.labels[:, None], True)
    lost = RELATIVE * rows.probabilities + ABSOLUTE * max(1.0, logit_scale) * taken
    return RELATIVE * size + lost * rows.weights("cpu")[:, None].double() + FLUSHED


def worst_of(actual: Results, exact: Results, bounds: Results, rows: Rows) -> dict[str, Worst]:
    """The worst error of every quantity, with its row."""
    worst = {}
    for name, wanted in exact.items():
        if name not in actual:
            worst[name] = Worst(math.inf, "it is missing")
            continue
        error = (actual[name] - wanted).abs()
        error = error.masked_fill(actual[name] == wanted, 0.0)  # infinite ones are equal too
        over = torch.where(error == 0, 0.0, error / bounds[name]).nan_to_num(nan=math.inf)
        place = int(over.argmax()) if over.numel() else 0
        row = place // (over.numel() // len(rows.kinds)) if len(over) == len(rows.kinds) else 0
        worst[name] = Worst(float(over.max()), rows.kinds[row])
    return worst


def check(device: Device, vocabulary: int, names: Collection[str] = ()) -> None:
    """Tells a line for each objective and dtype at one vocabulary, and at the end the worst of each quantity.

    Args:
        device: The device that is checked.
        vocabulary: Columns of the logits.
        names: Which objectives; all by default.
    """
    every = objectives()
    check_names("--objectives", names, every)
    batches = all_rows(1 if device.tiny else ROWS, vocabulary)
    _check_logits(device, batches, vocabulary)
    overall: dict[str, tuple[float, str]] = {}
    for name, loss in every.items():
        if names and name not in names:
            continue
        subject = {"part": "correctness", "objective": name, "vocabulary": vocabulary}
        if device.left < 3:
            tell(**subject, ok=False, failed="no time was left")
            continue
        with told(**subject):
            exact = [run(FullEngine(), loss, rows, torch.float64, "cpu") for rows in batches]
            for dtype in DTYPES:
                _compare(device, {**subject, "factors": str(dtype)[6:]}, loss, batches, exact, dtype, overall)
    for quantity, (over, case) in overall.items():
        what = {"quantity": quantity, "vocabulary": vocabulary, "over_tolerance": round(over, 4), "case": case}
        tell(part="correctness", ok=over <= 1, **what)


def _check_logits(device: Device, batches: list[Rows], vocabulary: int) -> None:
    """Tells whether the heads give the very logits, without which the reference would be that of others."""
    for dtype in DTYPES:
        what = {"part": "correctness", "check": f"logits of {str(dtype)[6:]} factors", "vocabulary": vocabulary}
        with told(**what):
            differ = 0
            for rows in batches:
                logits = rows.exact_logits.float()
                head, hidden_states = rows.head(dtype, device.name), rows.hidden_states(dtype, device.name)
                for part, chunk in logits_in_chunks(head, hidden_states):
                    differ += int((chunk.cpu() != logits[part]).sum())
            tell(**what, entries_that_differ=differ, ok=differ == 0)


def _compare(
    device: Device,
    subject: dict[str, object],
    loss: TokenLoss,
    batches: list[Rows],
    exact: list[Results],
    dtype: torch.dtype,
    overall: dict[str, tuple[float, str]],
) -> None:
    """Tells the line of one objective and dtype."""
    worst: dict[str, Worst] = {}
    with counted() as calls:
        actual = [run(ChunkedEngine(kernels=True), loss, rows, dtype, device.name) for rows in batches]
    for rows, mine, wanted in zip(batches, actual, exact, strict=True):
        bounds = tolerances(wanted, rows, loss, dtype, device.tiny)
        for quantity, this in worst_of(mine, wanted, bounds, rows).items():
            if quantity not in worst or this.over_tolerance > worst[quantity].over_tolerance:
                worst[quantity] = this
    for quantity, this in worst.items():
        if quantity not in overall or this.over_tolerance > overall[quantity][0]:
            overall[quantity] = this.over_tolerance, f"{subject['objective']}, {subject['factors']}, {this.case}"
    quantity, this = max(worst.items(), key=lambda item: item[1].over_tolerance)
    over = round(this.over_tolerance, 4)
    ok = this.over_tolerance <= 1 and calls["summarize"] > 0
    tell(**subject, **calls, worst=quantity, over_tolerance=over, rows=this.case, ok=ok)


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts how often each of the two kernels is called: an objective that asks for more may have neither."""
    calls = {"summarize": 0, "write_gradient": 0}
    kernels = {name: getattr(row_kernels, name) for name in calls}

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return kernels[name](*args, **options)

        return call

    try:
        for name in calls:
            setattr(row_kernels, name, counting(name))
        yield calls
    finally:
        for name, kernel in kernels.items():
            setattr(row_kernels, name, kernel)

"""The two row kernels by themselves: races and NaNs, and what a pass over the logits costs beside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.device import Device, in_turns, quartiles, tell, told
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.losses import CrossEntropyLoss, TokenLoss, TS2Loss
from ts2_lightning.ops import row_kernels
from ts2_lightning.ops.summary import SummaryRequest
from ts2_lightning.types import TOKEN_STATISTICS

REPEATS = 10
"""Times that a gradient is written in place: a race need not show the first time."""

TS2 = SummaryRequest(support_scale=1.0)
"""What TS2 and the statistics ask for."""

REQUESTS = {
    "summary": TS2,
    "summary, no support": SummaryRequest(),
    "summary, second softmax": SummaryRequest(1 / 0.7, 1.0),
    "summary, 1.5-entmax": SummaryRequest(support_scale=1.0, alpha=1.5),
}

COEFFICIENTS = 6

LAYOUT_SECONDS = 15
"""Seconds that a layout may take, most of them to compile it."""

GradientFlags = dict[str, bool]
EVERYTHING: GradientFlags = {"support": True, "slope": True, "uniform": True}
OF_TS2: GradientFlags = {"support": True, "slope": False, "uniform": False}
OF_CE: GradientFlags = {"support": False, "slope": False, "uniform": False}


def rows_like_a_model(device: Device, n: int, k: int, body: float = 2.5) -> tuple[Tensor, Tensor]:
    """Logits [n, K] with a few strong candidates over a body of some deviation, and labels of which most lead."""
    g = device.generator(0)
    logits = torch.randn(n, k, device=device.name, generator=g) * body
    columns = torch.randint(k, (n, 6), device=device.name, generator=g)
    logits.scatter_add_(1, columns, 14 + 2 * torch.randn(n, 6, device=device.name, generator=g))
    others = torch.randint(k, (n,), device=device.name, generator=g)
    leads = torch.rand(n, device=device.name, generator=g) < 0.6
    return logits, torch.where(leads, logits.argmax(-1), others)


def in_place(logits: Tensor) -> Tensor:
    """The memory of float32 logits [n, K] as bfloat16 [n, K], rows 2 K apart."""
    return logits.view(torch.bfloat16)[:, : logits.shape[1]]


def coefficients_like_a_loss(device: Device, n: int) -> Tensor:
    """Six numbers a row, none of them zero."""
    return torch.rand(COEFFICIENTS, n, device=device.name, generator=device.generator(1)) + 0.1


# -- right?


def check(device: Device, vocabulary: int) -> None:
    """Tells whether gradients in place are those elsewhere, bit for bit and every time, and what becomes of NaNs.

    Args:
        device: The device.
        vocabulary: Number K of columns.
    """
    with told(part="correctness", kernel="gradient in place", vocabulary=vocabulary):
        _check_in_place(device, 2 if device.tiny else 512, vocabulary)
    for name, loss in {"TS2Loss": TS2Loss(), "CrossEntropyLoss": CrossEntropyLoss()}.items():
        with told(part="correctness", kernel=f"NaN, {name}", vocabulary=vocabulary):
            _check_nan(device, loss, name, vocabulary)


def _check_in_place(device: Device, n: int, k: int) -> None:
    """Tells a line for each dtype, over the gradients of all that a loss may ask for."""
    logits, labels = rows_like_a_model(device, n, k)
    fields, coefficients = row_kernels.summarize(logits, labels, TS2), coefficients_like_a_loss(device, n)
    differ = {"gradient in place, bfloat16": 0, "gradient in place, float32": 0}
    if not device.tiny:  # the interpreter rounds towards zero
        differ["gradient in bfloat16 is the nearest"] = 0
    for flags in (EVERYTHING, OF_TS2, OF_CE):

        def write(out: Tensor, source: Tensor, flags: GradientFlags = flags) -> Tensor:
            row_kernels.write_gradient(source, labels, fields, coefficients, TS2, out, **flags)
            return out

        exact = write(torch.empty_like(logits), logits)
        rounded = write(torch.empty_like(logits, dtype=torch.bfloat16), logits)
        for _ in range(1 if device.tiny else REPEATS):
            copy = logits.clone()
            differ["gradient in place, bfloat16"] += _different(write(in_place(copy), copy), rounded)
            copy = logits.clone()
            differ["gradient in place, float32"] += _different(write(copy, copy), exact)
        if not device.tiny:
            differ["gradient in bfloat16 is the nearest"] += _different(rounded, exact.to(torch.bfloat16))
    for kernel, entries in differ.items():
        what = {"part": "correctness", "kernel": kernel, "vocabulary": k, "rows": n}
        tell(**what, entries_that_differ=entries, ok=entries == 0)


def _different(a: Tensor, b: Tensor) -> int:
    """Number of entries whose bits differ."""
    bits = torch.int16 if a.dtype == torch.bfloat16 else torch.int32
    return int((a.contiguous().view(bits) != b.contiguous().view(bits)).sum())


class _Spoilt(nn.Module):
    """A head one of whose logits is NaN: a product alone could not give that.

    Args:
        head: the head.
        row: Row of the logit.
        column: Column of the logit.
    """

    def __init__(self, head: nn.Linear, row: int | None, column: int) -> None:
        super().__init__()
        self.head, self._row, self._column = head, row, column

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The logits; all tokens are to come at once."""
        logits: Tensor = self.head(hidden_states)
        if self._row is None:
            return logits
        spoil = torch.zeros_like(logits)
        spoil[self._row, self._column] = torch.nan
        return logits + spoil


def _check_nan(device: Device, loss: TokenLoss, name: str, k: int) -> None:
    """A row with a NaN anywhere has NaN as its value and gradient, and leaves the others as they were."""
    n, width = 3, 8
    g = device.generator(2)
    hidden_states = torch.randn(n, width, device=device.name, generator=g)
    labels = torch.randint(1, k - 1, (n,), device=device.name, generator=g)
    head = nn.Linear(width, k, bias=False, device=device.name)
    head.requires_grad_(False).weight.normal_(generator=g)

    def run(row: int | None, column: int = 0) -> tuple[Tensor, Tensor]:
        states = hidden_states.clone().requires_grad_()
        engine = ChunkedEngine(chunk_size=n, kernels=True)
        output = engine(loss, _Spoilt(head, row, column), states, labels, TOKEN_STATISTICS)
        output.total.backward()
        assert states.grad is not None
        return output.tokens["objective"], states.grad

    value, gradient = run(None)
    wrong = []
    places = {"gold": int(labels[1]), "last": k - 1, "middle": k // 2, "first": 0}
    for place, column in list(places.items())[: 2 if device.tiny else None]:
        spoilt_value, spoilt_gradient = run(1, column)
        others = torch.tensor([0, 2], device=device.name)
        isolated = torch.equal(spoilt_value[others], value[others])
        isolated &= torch.equal(spoilt_gradient[others], gradient[others])
        if not (isolated and bool(spoilt_value[1].isnan()) and bool(spoilt_gradient[1].isnan().all())):
            wrong.append(place)
    what = {"part": "correctness", "kernel": f"NaN, {name}", "vocabulary": k}
    tell(**what, wrong_at=wrong, ok=not wrong)


# -- how fast?


def measure(device: Device) -> None:
    """Tells what a pass costs, and the time of the kernels by request, by kind of rows and by output."""
    n, k, rounds = _sizes(device)
    logits, labels = rows_like_a_model(device, n, k)
    kept = logits.clone()
    steps: dict[str, Any] = {"copy": lambda: logits.copy_(kept), "amax": lambda: logits.amax(-1)}
    passes = {"copy": 2.0, "amax": 1.0}
    for name, request in REQUESTS.items():
        steps[name] = lambda request=request: row_kernels.summarize(kept, labels, request)
        passes[name] = 1.0
    for body in (0.002, 0.05, 0.0):
        rows = torch.randn(n, k, device=device.name, generator=device.generator(3)) * body
        name = f"summary, rows of deviation {body:g}"
        steps[name], passes[name] = lambda rows=rows: row_kernels.summarize(rows, labels, TS2), 1.0
    _tell_times(device, steps, passes, n * k, rounds, {"layout": "default"})
    del rows, steps
    _measure_gradients(device, logits, kept, labels, rounds)


def measure_layouts(device: Device) -> None:
    """Tells the time of both kernels in other layouts than the default one, for as long as there is time."""
    n, k, rounds = _sizes(device)
    logits, labels = rows_like_a_model(device, n, k)
    kept = logits.clone()
    for layout in _layouts(k):
        if device.left < LAYOUT_SECONDS:
            tell(part="time", kernel="other layouts", left_out="no time was left")
            break
        with told(part="time", kernel="layout", layout=str(tuple(layout))), _with_layout(layout):
            some = {"summary": lambda: row_kernels.summarize(kept, labels, TS2)}
            some |= _gradient_steps(device, logits, kept, labels, OF_TS2, ("bfloat16 in place",))
            _tell_times(device, some, {"summary": 1.0}, n * k, rounds, {"layout": str(tuple(layout))})


def _sizes(device: Device) -> tuple[int, int, int]:
    """Rows, columns, and rounds."""
    return (2, 300, 1) if device.tiny else (2048, 128256, 11)


def _tell_times(
    device: Device, steps: dict[str, Any], passes: dict[str, float], elements: int, rounds: int, what: dict[str, str]
) -> None:
    """Tells a line for each step; `passes`: reads and writes of float32 [n, K], for the rate."""
    ready: dict[str, Any] = {}
    for name, step in steps.items():
        with told(part="time", kernel=name, **what):
            step()  # compiles
            ready[name] = step
    for name, milliseconds in in_turns(device, ready, rounds).items():
        count = passes.get(name, 1.5)
        figures = quartiles(milliseconds)
        rate = count * 4 * elements / figures["ms"] / 1e9 if figures["ms"] else 0.0
        tell(part="time", kernel=name, **what, passes=count, **figures, tb_per_second=round(rate, 2))


def _gradient_steps(
    device: Device, logits: Tensor, kept: Tensor, labels: Tensor, flags: GradientFlags, outputs: tuple[str, ...]
) -> dict[str, Any]:
    """Steps that write gradients. Those in place read what the last one wrote, which takes the same time."""
    fields, coefficients = row_kernels.summarize(kept, labels, TS2), coefficients_like_a_loss(device, len(labels))
    wide = torch.empty_like(kept)
    outs = {
        "bfloat16 in place": (logits, in_place(logits)),
        "bfloat16 elsewhere": (kept, wide.view(torch.bfloat16).view(2, *kept.shape)[0]),
        "float32 elsewhere": (kept, wide),
    }

    def step(source: Tensor, out: Tensor) -> None:
        row_kernels.write_gradient(source, labels, fields, coefficients, TS2, out, **flags)

    return {f"gradient, {name}": lambda pair=outs[name]: step(*pair) for name in outputs}


def _measure_gradients(device: Device, logits: Tensor, kept: Tensor, labels: Tensor, rounds: int) -> None:
    every = ("bfloat16 in place", "bfloat16 elsewhere", "float32 elsewhere")
    for name, flags in {"TS2": OF_TS2, "CE": OF_CE}.items():
        steps = _gradient_steps(device, logits, kept, labels, flags, every)
        _tell_times(
            device, steps, {"gradient, float32 elsewhere": 2.0}, kept.numel(), rounds, {"layout": "default", "of": name}
        )


def _layouts(k: int) -> list[Any]:
    """Other layouts of the programs than the default one."""
    default = row_kernels.layout_for(k)
    sizes = [
        default._replace(warps=w, lanes=128 * w, depth=max(4, default.depth * default.warps // w), tile=512 * w)
        for w in (4, 16)
    ]
    strips = [default._replace(strip=strip) for strip in (4, 16)]
    return [*sizes, *strips, default._replace(tile=2 * default.tile), default._replace(tile=default.tile // 2)]


@contextmanager
def _with_layout(layout: Any) -> Iterator[None]:
    """Has the kernels run with a layout."""
    before = row_kernels.layout_for
    row_kernels.layout_for = lambda *request, **options: layout
    try:
        yield
    finally:
        row_kernels.layout_for = before

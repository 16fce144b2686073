"""Time of the heads, forward and backward, beside the three matrix products and plain cross-entropy."""

import math
import signal
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor

from benchmarks.gpu.device import Device, LeftOutError, check_names, in_turns, quartiles, ratios, tell, told
from benchmarks.gpu.heads import (
    COMPILED,
    PLAIN,
    PRODUCTS,
    SHAPES,
    SUBJECTS,
    TARGETS,
    TINY,
    HeadInputs,
    Shape,
    differentiated,
    inputs,
    plain,
    same_loss,
)
from benchmarks.record import spread

ROUNDS = 9

COMPILE_SECONDS = 40
"""Seconds after which the compiler is given up."""

RESERVE_SECONDS = 45
"""Seconds that the rounds of the first shape leave to the compiled head and to the other shapes."""


def measure(device: Device, names: Collection[str] = ()) -> None:
    """Tells the time of every head at every shape, and then the targets.

    Args:
        device: The device.
        names: Which heads; all by default. The products and plain cross-entropy are there in any case.
    """
    check_names("--heads", names, [*SUBJECTS, COMPILED])
    shapes = TINY if device.tiny else SHAPES
    of_first: dict[str, list[float]] = {}
    for shape in shapes:
        if device.left < 5:
            tell(part="time", shape=str(shape), ok=False, failed="no time was left")
            continue
        milliseconds = _measure_shape(device, shape, names, shape == shapes[0])
        of_first = of_first or milliseconds
    for target in TARGETS:
        values = ratios(of_first.get(target.subject, []), of_first.get(target.unit, []))
        if values:
            tell(part="time", **target.told(statistics.median(values), device.tiny))


def _measure_shape(device: Device, shape: Shape, names: Collection[str], first: bool) -> dict[str, list[float]]:
    """Tells a line for each head; returns its milliseconds."""
    data = inputs(device, shape)
    steps = _steps(data, shape, names, first)
    rounds = 1 if device.tiny else ROUNDS
    fewer = {name: SUBJECTS[name].rounds for name in steps}
    reserve = RESERVE_SECONDS if first and not device.tiny else 0.0
    milliseconds = in_turns(device, steps, rounds, fewer, reserve)
    for name, of_name in milliseconds.items():
        _tell(shape, name, of_name, milliseconds)
    if first and (not names or COMPILED in names):
        with told(part="time", head=COMPILED, shape=str(shape)):
            beside = {name: steps[name] for name in (PRODUCTS, PLAIN)}
            compiled = in_turns(device, {**beside, COMPILED: _compiled_step(device, data)}, rounds)
            _tell(shape, COMPILED, compiled[COMPILED], compiled)
    return milliseconds


def _steps(data: HeadInputs, shape: Shape, names: Collection[str], first: bool) -> dict[str, Callable[[], Tensor]]:
    """The heads that can be measured, each of which has made a step; a line for each that cannot."""
    steps: dict[str, Callable[[], Tensor]] = {}
    plain_loss = math.nan
    for name, subject in SUBJECTS.items():
        left_out = names and name not in (*names, PRODUCTS, PLAIN)
        if left_out or not (first or subject.of_all_shapes):
            continue
        what = {"part": "time", "head": name, "shape": str(shape)}
        with told(**what):
            step = subject.step(data)
            loss = float(step())
            plain_loss = loss if name == PLAIN else plain_loss
            if subject.is_cross_entropy and not same_loss(loss, plain_loss):
                tell(**what, ok=False, failed=f"its loss is {loss:.4g}, that of plain CE {plain_loss:.4g}")
                continue
            steps[name] = step
    return steps


def _tell(shape: Shape, name: str, own: list[float], every: Mapping[str, list[float]]) -> None:
    """Tells the line of a head, with its ratios to the products and to plain cross-entropy."""
    figures = quartiles(own)
    for key, unit in {"to_products": PRODUCTS, "to_plain_ce": PLAIN}.items():
        if values := ratios(own, every.get(unit, [])):
            figures |= spread(key, values)
    tell(part="time", head=name, shape=str(shape), **figures)


def _compiled_step(device: Device, data: HeadInputs) -> Callable[[], Tensor]:
    """Plain cross-entropy through `torch.compile`, once it is compiled; at tiny sizes no code is made of its graph.

    Raises:
        LeftOutError: that takes too long.
    """
    compiled = torch.compile(plain, dynamic=False, backend="aot_eager" if device.tiny else "inductor")
    with _at_most(COMPILE_SECONDS):
        differentiated(compiled, data)
    return lambda: differentiated(compiled, data)


class _TooLongError(BaseException):
    """Passes through a compiler, which makes an error of its own of every `Exception`."""


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Ends what runs in it after some seconds.

    Raises:
        LeftOutError: it has been ended.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TooLongError:
        raise LeftOutError(f"it takes over {seconds:g} seconds to compile") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

"""What the jobs of the GPU check share: the device and its clock, rounds in turns, and the line of a result."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.record import spread
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

CACHE = 2**28
"""Bytes that are written between two measurements: several times the L2 cache of any GPU."""

Step = Callable[[], Any]


@dataclass(frozen=True)
class Device:
    """A GPU, or the CPU that stands in for it at tiny sizes.

    Attributes:
        tiny: Whether this is the CPU, whose times mean nothing.
        until: When the job will be ended, by `time.time`.
    """

    tiny: bool
    until: float

    @property
    def name(self) -> str:
        """The device's type."""
        return "cpu" if self.tiny else "cuda"

    @property
    def left(self) -> float:
        """Seconds that are left to the job."""
        return self.until - time.time()

    def generator(self, seed: int) -> torch.Generator:
        """A seeded source of random numbers on the device."""
        return torch.Generator(self.name).manual_seed(seed)

    def milliseconds(self, step: Step) -> float:
        """Time of one step from a cold cache: between two CUDA events, or of the processor."""
        if self.tiny:
            before = time.process_time()
            step()
            return 1000 * (time.process_time() - before)
        torch.empty(CACHE, dtype=torch.uint8, device=self.name).zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


class LeftOutError(Exception):
    """What is not measured on this machine, and why; no failure."""


def tell(**result: Any) -> None:
    """Prints a result as one line of JSON. `ok`: whether it is right; without it the result is neither."""
    plain = {name: str(x) if isinstance(x, float) and not math.isfinite(x) else x for name, x in result.items()}
    print(json.dumps(plain, default=str), flush=True)


def check_names(option: str, names: Iterable[str], every: Iterable[str]) -> None:
    """Refuses a name that is none.

    Raises:
        UserError: with the nearest right one.
    """
    every = list(every)
    for name in names:
        if name not in every:
            raise UserError(f"{option}: expected one of {', '.join(every)}; got {name!r}{did_you_mean(name, every)}")


def one_line(error: BaseException) -> str:
    """Kind and message of an exception."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@contextmanager
def told(**subject: Any) -> Iterator[None]:
    """Tells an exception in one line, as that of a subject, and goes on. What is not installed is no failure."""
    try:
        yield
    except LeftOutError as reason:
        tell(**subject, left_out=str(reason))
    except ModuleNotFoundError as error:
        tell(**subject, left_out=f"not installed: {error.name}")
    except Exception as error:
        tell(**subject, ok=False, failed=one_line(error))


def in_turns(
    device: Device, steps: Mapping[str, Step], rounds: int, fewer: Mapping[str, int] | None = None, reserve: float = 0.0
) -> dict[str, list[float]]:
    """Milliseconds of steps that take turns, so that what changes on the machine meets them alike.

    Every step has run before, so that what is compiled is. There is one round at least, and none is begun when the
    job's seconds are short.

    Args:
        device: The device.
        steps: Name -> step.
        rounds: Number of rounds.
        fewer: Name -> number of rounds of a slow step, which takes part in the first ones.
        reserve: Seconds to leave to what comes after.
    """
    milliseconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        before = time.perf_counter()
        for name, step in steps.items():
            if turn < (fewer or {}).get(name, rounds):
                milliseconds[name].append(device.milliseconds(step))
        if device.left - reserve < 2 * (time.perf_counter() - before):
            break
    return milliseconds


def quartiles(milliseconds: list[float]) -> dict[str, float]:
    """Median and quartiles, and the number of rounds."""
    return {**spread("ms", milliseconds, 4), "rounds": len(milliseconds)}


def ratios(milliseconds: list[float], units: list[float]) -> list[float]:
    """Ratios within the rounds in which both took part, where the time of the unit is above what the clock shows."""
    return [mine / unit for mine, unit in zip(milliseconds, units, strict=False) if unit > 0]

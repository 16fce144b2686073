"""How fast responses were made: a line for each stretch of work of a process, beside the responses."""

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ts2_lightning.generation.response_files import whole_lines
from ts2_lightning.ranges import COUNT_OR_ZERO, NOT_NEGATIVE, check_numbers
from ts2_lightning.runs.writing import append_lines
from ts2_lightning.types import UserError

RATES = "rates.jsonl"

ENOUGH = 64, 10.0
"""Number of responses, and seconds, from which others are foreseen."""

_EVERY = 60.0
"""Seconds after which a line is written: more is lost of a process that is killed."""


@dataclass(frozen=True)
class Rate:
    """What some responses took, of the processes of one kind together.

    Attributes:
        backend: name of the backend.
        device: the driver's name of the GPU, `cpu`, or empty where a server computes.
        devices: number of them that a process has.
        seconds: seconds that the processes took, added up; loading is among them where the backend does that.
        responses: number of responses.
        tokens: tokens of the responses.

    Raises:
        UserError: a number out of its range.
    """

    backend: str
    device: str
    devices: int
    seconds: float
    responses: int
    tokens: int

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("devices", "responses", "tokens"), COUNT_OR_ZERO)
        check_numbers("Rate: ", self, seconds=NOT_NEGATIVE, **counts)

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second of one process.

        Example:
            >>> Rate("transformers", "cpu", 1, seconds=20.0, responses=100, tokens=5000).tokens_per_second
            250.0
        """
        return self.tokens / self.seconds if self.seconds else math.nan

    @property
    def is_enough(self) -> bool:
        """Whether so much was made that more of it can be foreseen: those that end first are the shortest."""
        return self.responses >= ENOUGH[0] and self.seconds >= ENOUGH[1] and self.tokens > 0


def read_rates(directory: Path) -> list[Rate]:
    """What was measured of the responses of a directory, a rate for each kind of process, that of most tokens first.

    Args:
        directory: the directory `NAME-DIGEST` itself.

    Raises:
        UserError: naming file and line of what is no rate.
    """
    added: dict[tuple[str, str, int], Rate] = {}
    for number, text in enumerate(whole_lines(directory / RATES, 0), 1):
        try:
            rate = _rate(json.loads(text))
        except (ValueError, TypeError, KeyError, RecursionError, UserError) as error:
            raise UserError(f"{directory / RATES}:{number}: no rate ({error!r}); remove the line") from error
        kind = rate.backend, rate.device, rate.devices
        before = added.get(kind)
        added[kind] = rate if before is None else _sum(before, rate)
    return sorted(added.values(), key=lambda rate: -rate.tokens)


def _rate(plain: Mapping[str, Any]) -> Rate:
    names = {"backend": str, "device": str, "devices": int, "seconds": float, "responses": int, "tokens": int}
    return Rate(**{name: kind(plain[name]) for name, kind in names.items()})


def _sum(one: Rate, other: Rate) -> Rate:
    names = ("seconds", "responses", "tokens")
    return replace(one, **{name: getattr(one, name) + getattr(other, name) for name in names})


class Clock:
    """Notes how fast a process makes responses, as long as it makes some.

    Args:
        directory: directory of the responses.
        backend: name of the backend.
        device: as of a `Rate`.
        devices: as of a `Rate`.
    """

    def __init__(self, directory: Path, backend: str, device: str, devices: int) -> None:
        self._file = directory / RATES
        self._nothing = Rate(backend, device, devices, 0.0, 0, 0)
        self._sum, self._since = self._nothing, time.monotonic()

    def add(self, tokens: int) -> None:
        """Counts a response of so many tokens.

        Raises:
            OSError: the file cannot be written.
        """
        self._sum = replace(self._sum, responses=self._sum.responses + 1, tokens=self._sum.tokens + tokens)
        if time.monotonic() - self._since > _EVERY:
            self.write()

    def write(self) -> None:
        """Writes what was counted since the last time, if anything was.

        Raises:
            OSError: the file cannot be written.
        """
        now = time.monotonic()
        if self._sum.responses:
            line = {**asdict(self._sum), "seconds": round(now - self._since, 3)}
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                append_lines(descriptor, f"{json.dumps(line)}\n".encode())
            finally:
                os.close(descriptor)
        self._sum, self._since = self._nothing, now

"""Whether an objective flattens the distributions while it trains, told from the tail mass of the logged steps."""

import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from ts2_lightning.ranges import NOT_NEGATIVE, SHARE, Range, check_numbers

_WINDOW = Range(least=2, most=2**20, whole=True, hint="a standard error takes two steps")


@dataclass(frozen=True)
class FlatteningRule:
    """When the tail mass of the training rows counts as risen: its mean over the latest steps against the first ones.

    Both means are over `window` logged steps, and at least three windows have been logged, so that steps lie between
    them. A rise by chance is mostly smaller than `least_rise`: of runs of 2,000 logged steps that differ by chance
    alone (standard deviation 0.03, 0.05, 0.1) the default rule speaks in none, 3% and 2%, with 3 standard errors in
    none, 9% and 21%.

    Args:
        window: logged steps that a mean is taken over, at least 2.
        least_rise: smallest rise of the mean, as probability.
        standard_errors: the rise is also larger than so many standard errors of the difference of the means.
    """

    window: int = 20
    least_rise: float = 0.05
    standard_errors: float = 4.0

    def __post_init__(self) -> None:
        check_numbers("FlatteningRule: ", self, window=_WINDOW, least_rise=SHARE, standard_errors=NOT_NEGATIVE)


class LoggedStep(NamedTuple):
    """The means over the tokens of a logged step.

    Attributes:
        step: number of optimizer steps done.
        tail_mass: softmax mass outside the sparsemax support.
        entropy: entropy of softmax in nats.
    """

    step: int
    tail_mass: float
    entropy: float


class FlatteningWatch:
    """Reads the logged steps of a run one by one, and has one line to say, once, if its distributions flatten.

    Args:
        rule: when that is so.

    Example:
        >>> watch = FlatteningWatch(FlatteningRule(window=2))
        >>> lines = [watch.add(LoggedStep(step, 0.3 + 0.02 * step, 2.0)) for step in range(1, 9)]
        >>> [step for step, line in enumerate(lines, 1) if line]
        [6]
    """

    def __init__(self, rule: FlatteningRule) -> None:
        self.rule = rule
        self._first: list[LoggedStep] = []
        self._latest: deque[LoggedStep] = deque(maxlen=rule.window)
        self._count = 0
        self._has_spoken = False

    def add(self, logged: LoggedStep) -> str | None:
        """Takes in a step; returns the line, if it is time for it."""
        if not math.isfinite(logged.tail_mass) or not math.isfinite(logged.entropy):
            return None
        if len(self._first) < self.rule.window:
            self._first.append(logged)
        self._latest.append(logged)
        self._count += 1
        if self._has_spoken or self._count < 3 * self.rule.window or not self._is_risen():
            return None
        self._has_spoken = True
        return self._line()

    def _is_risen(self) -> bool:
        (before, variance_before), (now, variance) = map(_mean_and_variance, (self._first, self._latest))
        error = math.sqrt((variance_before + variance) / self.rule.window)
        return now - before > max(self.rule.least_rise, self.rule.standard_errors * error)

    def _line(self) -> str:
        first, latest = (_means(steps) for steps in (self._first, list(self._latest)))
        return (
            f"train/tail_mass has risen from {first.tail_mass:.2f} (steps {self._first[0].step} to {first.step}) to "
            f"{latest.tail_mass:.2f} (steps {self._latest[0].step} to {latest.step}), train/entropy from "
            f"{first.entropy:.2f} to {latest.entropy:.2f} nats: the objective flattens the distributions, and softmax "
            "samples more outside the plausible tokens. Try a larger alpha (1 is as hard on the tail as CE), a smaller "
            "logit_scale or a smaller learning rate: "
            '"When training flattens" in docs/objectives.md'
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values, from which a run that goes on says the same at the same step."""
        steps = {"first": self._first, "latest": self._latest}
        return {
            "window": self.rule.window,
            "count": self._count,
            "has_spoken": self._has_spoken,
            **{name: [list(step) for step in logged] for name, logged in steps.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state; from nothing, if that was of another window."""
        if state["window"] != self.rule.window:
            return
        self._count, self._has_spoken = state["count"], state["has_spoken"]
        self._first = [LoggedStep(*step) for step in state["first"]]
        self._latest = deque((LoggedStep(*step) for step in state["latest"]), maxlen=self.rule.window)


def _mean_and_variance(steps: Collection[LoggedStep]) -> tuple[float, float]:
    """Mean and sample variance of the tail mass."""
    mean = fmean(step.tail_mass for step in steps)
    return mean, sum((step.tail_mass - mean) ** 2 for step in steps) / (len(steps) - 1)


def _means(steps: Sequence[LoggedStep]) -> LoggedStep:
    """Means of both values, and the last of the steps."""
    return LoggedStep(steps[-1].step, fmean(s.tail_mass for s in steps), fmean(s.entropy for s in steps))

"""Permitted numbers of settings. Others are refused when they are read, in the same words everywhere."""

import math
import re
from dataclasses import dataclass
from numbers import Integral, Real
from reprlib import repr as shortened
from typing import Any

from ts2_lightning.types import UserError

_LARGEST, _LARGEST_WHOLE = 1e30, 2**63 - 1
"""Float32 and int64 tensors can hold these numbers, and float32 also the first one's inverse times a logit."""


@dataclass(frozen=True)
class Range:
    """The finite numbers between bounds, of which a bound that is left out is none. True and False are no numbers.

    Args:
        least: smallest permitted number.
        above: lower bound that is not permitted itself.
        most: largest permitted number.
        below: upper bound that is not permitted itself.
        whole: whether only whole numbers are permitted.
        hint: text that is added to a refusal.

    Example:
        >>> Range(above=0, most=1).admits(0.5), POSITIVE.admits(float("nan")), POSITIVE.admits(True), COUNT.admits(2.0)
        (True, False, False, False)
        >>> str(Range(least=0, below=1)), str(COUNT)
        ('a finite number of at least 0 and below 1', 'a whole number of at least 1')
    """

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    whole: bool = False
    hint: str = ""

    def admits(self, value: object) -> bool:
        """Whether a value is one of the numbers."""
        return self._encloses(value) and not self.excess(value)

    def excess(self, value: Any) -> str:
        """The objection to a number within the bounds that a tensor cannot hold or calculate with; empty if none."""
        if not self._encloses(value):
            return ""
        if abs(value) > (_LARGEST_WHOLE if self.whole else _LARGEST):
            return ", which is too large to calculate with"
        if self.above == 0 and not self.whole and value < 1 / _LARGEST:
            return ", which is too small to calculate with"
        return ""

    def _encloses(self, value: Any) -> bool:
        is_number = isinstance(value, Integral if self.whole else Real) and not isinstance(value, bool)
        return is_number and self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        stated = {"of at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        bounds = [f"{words} {_in_words(bound)}" for words, bound in stated.items() if not math.isinf(bound)]
        return f"a {'whole' if self.whole else 'finite'} number {' and '.join(bounds)}".rstrip()


@dataclass(frozen=True)
class Only:
    """One value by itself, beside a range.

    Args:
        value: permitted number, or None, which a user writes `null`.
        meaning: meaning of the value, for messages.
        hint: text that is added to a refusal.

    Example:
        >>> Only(None, "the support").admits(None), Only(-1).admits(-1.0), Only(1).admits(True)
        (True, True, False)
    """

    value: float | None
    meaning: str = ""
    hint: str = ""

    def admits(self, value: object) -> bool:
        """Whether a value is this one."""
        if self.value is None or isinstance(value, bool):
            return value is self.value
        return isinstance(value, Real) and value == self.value

    def excess(self, value: object) -> str:
        """Nothing."""
        return ""

    def __str__(self) -> str:
        value = "null" if self.value is None else _in_words(self.value)
        return f"{value} for {self.meaning}" if self.meaning else value


Allowed = Range | Only

POSITIVE = Range(above=0)
NOT_NEGATIVE = Range(least=0)
SHARE = Range(least=0, most=1)
COUNT = Range(least=1, whole=True)
COUNT_OR_ZERO = Range(least=0, whole=True)
SEED = Range(least=0, most=2**32 - 1, whole=True)
"""The seeds that numpy's global generator takes, which `seed_everything` seeds too."""
NULL = Only(None)


def trouble(value: object, *allowed: Allowed) -> str:
    """The objection to a number, a text to follow its name; empty if the number is permitted.

    Args:
        value: value of a setting, of any type.
        *allowed: ranges, one of which has to contain the value.

    Example:
        >>> trouble(2.5, COUNT, NULL)
        'must be a whole number of at least 1 or null, got 2.5'
        >>> trouble(1e-40, POSITIVE)
        'must be a finite number above 0, got 1e-40, which is too small to calculate with'
    """
    if any(one.admits(value) for one in allowed):
        return ""
    excess = next(filter(None, (one.excess(value) for one in allowed)), "")
    hints = "".join(f"; {one.hint}" for one in allowed if one.hint)
    *others, last = map(str, allowed)
    expected = f"{', '.join(others)}{', or ' if len(others) > 1 else ' or '}{last}" if others else last
    return f"must be {expected}, got {shortened(value)}{excess}{hints}"


def check_number(name: str, value: object, *allowed: Allowed) -> None:
    """Raises a `UserError` unless a number is in one of some ranges.

    Args:
        name: name of the setting, as the user writes it: `trainer.max_steps`, `TS2Loss: alpha`, `--gpus`.
        value: value of the setting, of any type.
        *allowed: ranges, one of which has to contain the value.

    Example:
        >>> check_number("trainer.max_steps", -2, COUNT, Only(-1, "no limit"))
        Traceback (most recent call last):
            ...
        ts2_lightning.types.UserError: trainer.max_steps must be a whole number of at least 1 or -1 for no limit, got -2
    """
    if wrong := trouble(value, *allowed):
        raise UserError(f"{name} {wrong}")


def check_numbers(prefix: str, settings: object, **allowed: Allowed | tuple[Allowed, ...]) -> None:
    """Raises a `UserError` unless all of some numbers are in their ranges.

    Args:
        prefix: beginning of the names in messages: `TS2Loss: `, `model.optimizer.`, `--`.
        settings: object that has the numbers as attributes.
        **allowed: range of each number, or several ranges, one of which has to contain it.

    Example:
        >>> from types import SimpleNamespace
        >>> check_numbers("GEMLoss: ", SimpleNamespace(beta=float("nan")), beta=Range(above=0, most=1))
        Traceback (most recent call last):
            ...
        ts2_lightning.types.UserError: GEMLoss: beta must be a finite number above 0 and at most 1, got nan
    """
    for name, ranges in allowed.items():
        check_number(f"{prefix}{name}", getattr(settings, name), *(ranges if isinstance(ranges, tuple) else (ranges,)))


def whole_number(text: object) -> object:
    """The whole number in a text; any other value is returned as it is.

    >>> whole_number("-3"), whole_number("2.5"), whole_number("²"), whole_number(4)
    (-3, '2.5', '²', 4)
    """
    if isinstance(text, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,99}\s*", text):
        return int(text)
    return text


def _in_words(bound: float) -> str:
    return f"{bound:.0f}" if float(bound).is_integer() and abs(bound) < 1e15 else f"{bound:g}"

"""Random draws that are the same in every process, on every platform and Python.

`random.Random.random()` is the one method whose sequence Python promises to keep, so every draw is made from it.
"""

import hashlib
import random
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """A stream of draws that belongs to a purpose and a seed.

    Streams of different purposes are independent, so a new family or task leaves the others' draws as they were.

    Args:
        purpose: what the draws are for, for example `"split/copy"`.
        seed: any integer.
    """

    def __init__(self, purpose: str, seed: int) -> None:
        digest = hashlib.sha256(f"{purpose}#{seed}".encode()).digest()
        self.uniform = random.Random(int.from_bytes(digest[:8], "big")).random

    def below(self, n: int) -> int:
        """An integer in 0 .. n - 1."""
        return int(self.uniform() * n)

    def choice(self, values: Sequence[T]) -> T:
        """One of the values."""
        return values[self.below(len(values))]

    def shuffled(self, values: Sequence[T]) -> list[T]:
        """The values in a random order (Fisher-Yates); the argument is left as it is."""
        out = list(values)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out

    def sample(self, values: Sequence[T], k: int) -> list[T]:
        """`k` different values, in random order."""
        return self.shuffled(values)[:k]

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, drawn in proportion to non-negative weights."""
        target = self.uniform() * sum(weights)
        for i, total in enumerate(accumulate(weights)):
            if target < total:
                return i
        return len(weights) - 1  # the sum was rounded up

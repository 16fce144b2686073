"""How much models differ, question by question, and how sure that is."""

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ts2_lightning.evaluation.comparison.ways import Way
from ts2_lightning.evaluation.descriptions import describe
from ts2_lightning.evaluation.intervals import Difference, paired
from ts2_lightning.evaluation.measure import PER_ITEM
from ts2_lightning.evaluation.protocols.differences import Common, common_values, main_values
from ts2_lightning.evaluation.protocols.tables import title_of
from ts2_lightning.evaluation.significance import holm, sign_flip
from ts2_lightning.values import Value

LEVEL = 0.05
"""Corrected p values below it tell two models apart."""

ALL = "all"


@dataclass(frozen=True)
class Pair:
    """A value of two models, at the questions that both were asked.

    Attributes:
        way: protocol and settings.
        part: label of the part of the protocol; empty where it has one part alone.
        name: name of the value in the part.
        first: number of the model that is subtracted.
        second: number of the other one.
        common: values at the common questions.
        difference: second minus first, with the interval of the paired bootstrap; None without a common question.
        p: p value of the sign-flip test; nan without a common question.
        exact: whether all signs were gone through.
        corrected: p value corrected by Holm for all pairs that are shown together.
    """

    way: Way
    part: str
    name: str
    first: int
    second: int
    common: Common
    difference: Difference | None
    p: float
    exact: bool
    corrected: float = math.nan

    @property
    def value(self) -> Value:
        """What the value is called, and which way it is better."""
        return describe(f"{self.way.protocol}/{self.name}", self.way.described)

    @property
    def title(self) -> str:
        """Protocol, part and value."""
        return " ".join(filter(None, [self.way.title, self.part, title_of(self.value, self.way.protocol, self.name)]))

    @property
    def means(self) -> tuple[float, float]:
        """Means of first and second over the common questions; nan without any."""
        return _mean(self.common.before.values()), _mean(self.common.after.values())

    @property
    def is_sure(self) -> bool:
        """Whether the models are told apart once their number is corrected for."""
        return self.corrected < LEVEL

    @property
    def ahead(self) -> int | None:
        """Number of the model that is better, where that is sure and one direction is better; else None."""
        if not self.is_sure or self.difference is None or self.value.better is None:
            return None
        more = self.second if self.difference.interval.mean > 0 else self.first
        return more if self.value.better == "higher" else self.first + self.second - more


def compare_all(
    ways: Sequence[Way], baseline: int = 0, all_pairs: bool = False, names: Collection[str] = ()
) -> list[Pair]:
    """Compares models in every way in which they were measured.

    Args:
        ways: what was measured alike.
        baseline: number of the model that others are compared with.
        all_pairs: whether they are compared with each other too.
        names: names of values in their parts that are compared; empty for the main ones, `all` for every one that is
            there for each question.

    Returns:
        The pairs, way by way, part by part, value by value; with p values that are corrected for all of them together.
    """
    pairs = []
    for way in ways:
        there = [number for number, result in enumerate(way.results) if result is not None]
        there.sort(key=lambda number: number != baseline)
        couples = [(i, j) for i, j in itertools.combinations(there, 2) if all_pairs or i == baseline]
        for part, name in _values(way, names):
            pairs += [pair for i, j in couples if (pair := _pair(way, part, name, i, j)) is not None]
    corrected = holm([pair.p for pair in pairs])
    return [replace(pair, corrected=float(p)) for pair, p in zip(pairs, corrected, strict=True)]


def values_of(ways: Sequence[Way]) -> list[str]:
    """The names of all values that are there for each question."""
    return list(dict.fromkeys(name for way in ways for _, name in _values(way, (ALL,))))


def _values(way: Way, names: Collection[str]) -> list[tuple[str, str]]:
    """Part and name of the values that are compared."""
    of_parts: dict[str, list[str]] = {}
    for result in filter(None, way.results):
        for whole in result.documents.get(PER_ITEM, {}):
            part, _, name = whole.rpartition("/")
            if name not in of_parts.setdefault(part, []):
                of_parts[part].append(name)
    values = []
    for part, there in of_parts.items():
        chosen = there if ALL in names else [name for name in there if name in names] if names else _main(way, there)
        values += [(part, name) for name in chosen]
    return values


def _main(way: Way, there: Sequence[str]) -> list[str]:
    """What `evaluate` shows differences of; where nothing is right or wrong, what tables show and is better one way."""
    main = main_values(there)
    if "accuracy" in there or main != there[:1]:
        return main
    described = {name: describe(f"{way.protocol}/{name}", way.described) for name in there}
    return [name for name, value in described.items() if value.shown and value.better] or main


def _pair(way: Way, part: str, name: str, first: int, second: int) -> Pair | None:
    results = way.results[first], way.results[second]
    common = None if None in results else common_values(*results, part, name)  # type: ignore[arg-type]
    if common is None:
        return None
    if not common.before:
        return Pair(way, part, name, first, second, common, None, math.nan, True)
    test = sign_flip([common.after[id] - common.before[id] for id in common.before])
    return Pair(way, part, name, first, second, common, paired(common.before, common.after), test.p, test.exact)


def _mean(numbers: Collection[float]) -> float:
    return math.fsum(numbers) / len(numbers) if numbers else math.nan

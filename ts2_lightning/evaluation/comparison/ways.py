"""What of several models was measured in the same way: under a protocol, with the same settings."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ts2_lightning.evaluation.measure import ASKED, PER_ITEM
from ts2_lightning.evaluation.registry import registered_measures
from ts2_lightning.evaluation.results import DIRECTORY, Result, read_result
from ts2_lightning.types import UserError
from ts2_lightning.values import Value

OF_QUESTIONS = ("data", "sets", "limit", "rows", "prompts")
"""Settings that say which questions, prompts or rows there are: models are compared at those that both have."""

_BESIDE = (*OF_QUESTIONS, "ks", "seed")
"""Settings in which results may differ that are compared with each other."""


@dataclass(frozen=True)
class Entrant:
    """A model that is compared.

    Attributes:
        title: name in tables and pictures; no two have the same.
        name: what the user calls it.
        directory: directory of its `responses`, `scores` and `measures`.
    """

    title: str
    name: str
    directory: Path


@dataclass(frozen=True)
class Way:
    """A protocol, or another measure of single prompts or rows, with the settings that its results have in common.

    Attributes:
        protocol: name of the protocol or measure.
        title: the same, with the settings that tell it from the other ways of the protocol.
        results: for each model what it scored; None of one that was not measured in this way.
        described: descriptions of the values of a user's protocol, by their whole names.
    """

    protocol: str
    title: str
    results: Sequence[Result | None]
    described: Mapping[str, Value] = field(default_factory=dict)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the first model that has any."""
        return next(result.settings for result in self.results if result is not None)


def ways_of(
    entrants: Sequence[Entrant], protocols: Collection[str] = (), decoding: str = "softmax"
) -> tuple[list[Way], list[str]]:
    """What was measured of models, each protocol by itself.

    Args:
        entrants: models.
        protocols: names of those that are wanted; empty for all.
        decoding: distribution that the models were decoded with.

    Returns:
        The ways, in the order of the registry; and lines on files that are left out.
    """
    notes: list[str] = []
    by_way: dict[str, list[list[Result]]] = {}
    for number, entrant in enumerate(entrants):
        for result in _results_of(entrant, notes):
            if result.decoding in (decoding, None) and (not protocols or result.name in protocols):
                of_way = by_way.setdefault(_key(result), [[] for _ in entrants])
                of_way[number].append(result)
    order = [*registered_measures()]
    ranked = sorted(by_way.items(), key=lambda way: (_place(json.loads(way[0])[0], order), way[0]))
    ways = [
        _way([_chosen(of_model, entrant, notes) for of_model, entrant in zip(of_way, entrants, strict=True)])
        for _, of_way in ranked
    ]
    return _told_apart(ways), notes


def _results_of(entrant: Entrant, notes: list[str]) -> list[Result]:
    """The results of single items; a line for each file that cannot be read, or does not say what was asked."""
    results = []
    for file in sorted((entrant.directory / DIRECTORY).glob("*.json")):
        try:
            result = read_result(file)
        except UserError as error:
            notes.append(str(error))
            continue
        if not result.documents.get(PER_ITEM):
            continue
        if not result.documents.get(ASKED):
            notes.append(f"{file}: does not say what was asked, as of an earlier version; evaluate it again")
        elif not _is_whole(result):
            notes.append(f"{file}: not what `evaluate` writes of questions; remove it, and evaluate again")
        else:
            results.append(result)
    return results


def _is_whole(result: Result) -> bool:
    """Whether each question has a number and what tells it apart, in a file that anybody may have written."""
    tables = [result.documents[PER_ITEM], result.documents[ASKED]]
    if not all(
        isinstance(table, Mapping) and all(isinstance(of, Mapping) for of in table.values()) for table in tables
    ):
        return False
    numbers = [number for of_value in tables[0].values() for number in of_value.values()]
    return all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)


def _key(result: Result) -> str:
    common = {name: value for name, value in result.settings.items() if name not in _BESIDE}
    return json.dumps([result.name, common], sort_keys=True)


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def _chosen(results: Sequence[Result], entrant: Entrant, notes: list[str]) -> Result | None:
    """Of several results of one way that of most questions, of these the newest."""
    if not results:
        return None
    best = max(results, key=lambda result: (_questions(result), result.changed))
    if len(results) > 1:
        notes.append(
            f"{entrant.title}: {len(results)} results of {best.name} differ in questions or seed alone; the one that "
            f"counts has most questions ({_questions(best):,}), or is the newest"
        )
    return best


def _questions(result: Result) -> int:
    return sum(len(of_part) for of_part in result.documents[ASKED].values())


def _way(results: Sequence[Result | None]) -> Way:
    there = [result for result in results if result is not None]
    described = {name: value for result in there for name, value in result.described.items()}
    return Way(there[0].name, there[0].name, results, described)


def _told_apart(ways: Sequence[Way]) -> list[Way]:
    """The ways, with titles that tell those of one protocol apart."""
    titled = []
    for way in ways:
        alike = [other.settings for other in ways if other.protocol == way.protocol]
        names = [name for name in way.settings if name not in _BESIDE and _differs(name, alike)]
        said = ", ".join(f"{name} {_text(way.settings.get(name))}" for name in names)
        title = f"{way.protocol} ({said})" if said else way.protocol
        titled.append(Way(way.protocol, title, way.results, way.described))
    return titled


def _differs(name: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    return len({json.dumps(of_way.get(name), sort_keys=True) for of_way in settings}) > 1


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

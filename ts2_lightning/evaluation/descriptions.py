"""What measured and logged values are called, by their whole names, such as `validation/chat/cross_entropy`."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType

from ts2_lightning.evaluation.measure import Measure
from ts2_lightning.evaluation.registry import LOGGED, registered_measures
from ts2_lightning.values import Value, by_name

RENAMED = {"diversity/self_bleu": "diversity/self_bleu_diversity"}
"""Names of values in files of versions before 0.2 -> their names now."""


def described_by(measures: Iterable[Measure | type[Measure]]) -> dict[str, Value]:
    """Descriptions of the values of measures, by their whole names, in the order of tables."""
    return by_name(value.under(measure.name) for measure in measures for value in measure.titled_values())


@cache
def described() -> dict[str, Value]:
    """Every value that a registered measure describes, by its whole name, in the order of tables."""
    return described_by(registered_measures().values())


def describe(name: str, others: Mapping[str, Value] = MappingProxyType({})) -> Value:
    """The description of a value by its whole name, be it measured or logged.

    A value of a named set of rows is called after the set; one that nobody has described by its own name. No value of a
    training step is better or worse by itself.

    Args:
        name: whole name of the value.
        others: descriptions of values of measures that are not registered, by their whole names: those of a user's
            class (`described_by`), or of a file of its values (`Result.described`).

    Example:
        >>> describe("probes/tspd/share").title, describe("mine/own").title
        ('TSPD(2, .1, .2)', 'mine/own')
        >>> describe("validation/chat/cross_entropy").title
        'CE, validation, chat'
        >>> describe("val/chat/token_accuracy").title
        'val/chat: token accuracy'
        >>> describe("val/cross_entropy").better, describe("train/cross_entropy").better
        ('lower', None)
    """
    if name in described():
        return described()[name]
    if name in others:
        return others[name]
    place, _, leaf = name.rpartition("/")
    stage, _, named_set = place.partition("/")
    if stage in LOGGED:
        measured = describe(f"validation/{leaf}")
        title, better = f"{place}: {leaf.replace('_', ' ')}", None if stage == "train" else measured.better
        return replace(measured, name=name, title=title, meaning="", better=better, shown=False)
    whole = described().get(f"{stage}/{leaf}")
    if whole is None or not named_set or "/" in named_set:
        return Value(name, name)
    return replace(whole, name=name, title=f"{whole.title}, {named_set}", meaning="", shown=False)

"""Descriptions of values by their whole names: of every measure, and of what training logs."""

from dataclasses import replace

from ts2_lightning.experiments.measures.spec import MEASURES
from ts2_lightning.values import Value, by_name

DESCRIBED: dict[str, Value] = by_name(
    value.under(name) for name, measure in MEASURES.items() for value in measure.values
)
"""Every value that a measure of ours describes, in the order of tables."""

RENAMED = {"diversity/self_bleu": "diversity/self_bleu_diversity"}
"""Old names of values, which files written by versions before 0.2 have."""

_LOGGED = ("train", "val", "test")


def describe(name: str) -> Value:
    """The description of a value by its whole name, be it measured or logged.

    A value of a named set of rows is called after the set; one that nobody has described by its own name. No value of a
    training step is better or worse by itself.

    Example:
        >>> describe("toyworld/seen/distinct_t1").title, describe("mine/own").title
        ('D, T 1', 'mine/own')
        >>> describe("validation/chat/cross_entropy").title
        'CE, validation, chat'
        >>> describe("val/chat/token_accuracy").title
        'val/chat: token accuracy'
        >>> describe("val/cross_entropy").better, describe("train/cross_entropy").better
        ('lower', None)
    """
    place, _, leaf = name.rpartition("/")
    stage = place.partition("/")[0]
    if stage in _LOGGED:
        measured = describe(f"validation/{leaf}")
        better = None if stage == "train" else measured.better
        return replace(
            measured, name=name, title=f"{place}: {leaf.replace('_', ' ')}", meaning="", better=better, shown=False
        )
    if name in DESCRIBED:
        return DESCRIBED[name]
    measure, _, named_set = place.partition("/")
    whole = DESCRIBED.get(f"{measure}/{leaf}")
    if whole is None or not named_set or "/" in named_set:
        return Value(name, name)
    return replace(whole, name=name, title=f"{whole.title}, {named_set}", meaning="", shown=False)

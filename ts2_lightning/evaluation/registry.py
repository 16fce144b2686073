"""The registry of measures: which there are, how users write what they want measured, what values are called."""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from ts2_lightning import plugins
from ts2_lightning.evaluation.distributions import DECODINGS
from ts2_lightning.evaluation.measure import Measure
from ts2_lightning.evaluation.measures.cost import Cost
from ts2_lightning.evaluation.measures.diversity import Diversity
from ts2_lightning.evaluation.measures.probes import Probes
from ts2_lightning.evaluation.measures.validation import Validation
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError
from ts2_lightning.values import Value, by_name

M = TypeVar("M", bound=Measure)

RENAMED = {"diversity/self_bleu": "diversity/self_bleu_diversity"}
"""Names of values in files of versions before 0.2 -> their names now."""

_LOGGED = ("train", "val", "test")
_FOREIGN: dict[str, Value] = {}
"""Descriptions of the values of measures that are not registered, by their whole names, as they are met."""


@cache
def registered_measures() -> dict[str, type[Measure]]:
    """Every measure by its name, in the order of tables: those of plug-ins first."""
    ours = (Validation, Diversity, Probes, Cost)
    return {**plugins.offered("measures"), **{measure.name: measure for measure in ours}}


# What is wanted -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """What is to be measured of a model.

    Attributes:
        decoding: distribution that it is decoded with, one of `DECODINGS`.
        template: name of the chat template that it is asked with; `auto`: the one that it was trained with, else that
            of its tokenizer, else `plain`.
        measures: measures with their settings, in the order of the registry.
    """

    decoding: str = "softmax"
    template: str = "auto"
    measures: tuple[Measure, ...] = ()


def check_spec(spec: Mapping[str, Any], where: str = "measure") -> Spec:
    """Reads what is to be measured, as far as it can be judged without a model.

    Args:
        spec: `decoding`, `template`, and measures with their settings: a mapping; null or true for none, false to leave
            the measure out. A measure of the user's own is named `FILE.CLASS`, as Python imports it.
        where: begins messages.

    Raises:
        UserError: an unknown measure or setting, or a value that cannot be; names it.

    Example:
        >>> check_spec({"validation": {"limit": 100}, "toyworld": {}, "cost": False}).measures
        (ToyWorld(), Validation(rows=None, format=None, limit=100, max_length=None, batch_size=None, logit_scale=1.0))
    """
    if not isinstance(spec, Mapping):
        raise UserError(f"{where} must be a mapping such as {{validation: {{}}, cost: {{}}}}, got {spec!r}")
    decoding, template = spec.get("decoding", "softmax"), spec.get("template", "auto")
    classes = {name: _class_of(name, where) for name in spec if name not in ("decoding", "template")}
    if not isinstance(decoding, str) or decoding not in DECODINGS:
        hint = did_you_mean(str(decoding), DECODINGS) or f"; there are {', '.join(DECODINGS)}"
        raise UserError(f"{where}.decoding: no decoding {decoding!r}{hint}")
    if not isinstance(template, str):
        raise UserError(f"{where}.template must be the name of a chat template, got {template!r}")
    order = [name for name in registered_measures() if name in classes] + [
        name for name in classes if name not in registered_measures()
    ]
    return Spec(
        decoding,
        template,
        tuple(_read(classes[name], spec[name], f"{where}.{name}") for name in order if spec[name] is not False),
    )


def _class_of(name: Any, where: str) -> type[Measure]:
    """The measure of a name, or the class that the name imports."""
    if name in registered_measures():
        return registered_measures()[name]
    module, _, attribute = str(name).rpartition(".")
    if not module:
        hint = did_you_mean(str(name), ["decoding", "template", *registered_measures()])
        raise UserError(f"{where}: no measure {name!r}{hint or '; there are ' + ', '.join(registered_measures())}")
    try:
        imported = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: measure {name} cannot be imported ({error}); write FILE.CLASS") from error
    if not (isinstance(imported, type) and issubclass(imported, Measure)):
        raise UserError(f"{where}: {name} is no measure; derive it from ts2_lightning.evaluation.Measure")
    if imported.name in registered_measures() and imported is not registered_measures()[imported.name]:
        raise UserError(f"{where}: {name}: there is a measure called {imported.name!r} already; give it another `name`")
    remember(value.under(imported.name) for value in imported.values)
    return imported


def _read(measure: type[M], value: Any, where: str) -> M:
    """A measure from its settings; each is parsed by the type of its field."""
    settings = {} if value is None or value is True else value
    if not isinstance(settings, Mapping):
        raise UserError(f"{where} must be a mapping of settings, {{}} for the usual ones, got {value!r}")
    types = {field.name: field.type for field in fields(measure)}
    for name in settings:
        if name not in types:
            hint = did_you_mean(str(name), types) or f"; there are {', '.join(types) or 'none'}"
            raise UserError(f"{where}: no setting {name!r}{hint}")
    read = measure(**{name: _parsed(measure, name, setting, where) for name, setting in settings.items()})
    try:
        read.check()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return read


def _parsed(measure: type[Measure], name: str, value: Any, where: str) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(measure, "of")
    try:
        return parser.parse_object({"of": {name: value}}).as_dict()["of"][name]
    except ArgumentError as error:
        field = next(field for field in fields(measure) if field.name == name)
        expected = str(field.type).replace("None", "null")
        raise UserError(f"{where}.{name}: expected {expected}, got {value!r}") from error


# What values are called -----------------------------------------------------------------------------------------


@cache
def described() -> dict[str, Value]:
    """Every value that a registered measure describes, by its whole name, in the order of tables."""
    return by_name(value.under(name) for name, measure in registered_measures().items() for value in measure.values)


def remember(values: Iterable[Value]) -> None:
    """Takes descriptions of values that no registered measure has: of a user's class, or from a file of its values."""
    _FOREIGN.update({value.name: value for value in values})


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
    if name in described():
        return described()[name]
    if name in _FOREIGN:
        return _FOREIGN[name]
    place, _, leaf = name.rpartition("/")
    stage, _, named_set = place.partition("/")
    if stage in _LOGGED:
        measured = describe(f"validation/{leaf}")
        title, better = f"{place}: {leaf.replace('_', ' ')}", None if stage == "train" else measured.better
        return replace(measured, name=name, title=title, meaning="", better=better, shown=False)
    whole = described().get(f"{stage}/{leaf}")
    if whole is None or not named_set or "/" in named_set:
        return Value(name, name)
    return replace(whole, name=name, title=f"{whole.title}, {named_set}", meaning="", shown=False)

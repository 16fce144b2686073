"""What is to be measured, as people write it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from ts2_lightning.evaluation.distributions import DECODINGS
from ts2_lightning.experiments.measures.base import Measure
from ts2_lightning.experiments.measures.cost import Cost
from ts2_lightning.experiments.measures.diversity import Diversity
from ts2_lightning.experiments.measures.probes import Probes
from ts2_lightning.experiments.measures.toyworld import ToyWorld
from ts2_lightning.experiments.measures.validation import Validation
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

MEASURES: dict[str, type[Measure]] = {
    measure.name: measure for measure in (ToyWorld, Validation, Diversity, Probes, Cost)
}
"""Every measure, in the order in which they are made. To add one, write a file and add its class."""

M = TypeVar("M", bound=Measure)


@dataclass(frozen=True)
class Spec:
    """What is measured of a model.

    Attributes:
        decoding: the distribution that it is decoded with, one of `DECODINGS`.
        template: name of the chat template that it is asked with; `auto`: the one that it was trained with, else that
            of its tokenizer, else `plain`.
        measures: with their settings, in the order of `MEASURES`.
    """

    decoding: str = "softmax"
    template: str = "auto"
    measures: tuple[Measure, ...] = ()


def check_spec(spec: Mapping[str, Any], where: str = "measure") -> Spec:
    """Reads what is to be measured, as far as it can be judged without a model.

    Args:
        spec: `decoding`, `template`, and measures with their settings: a mapping; null or true for none, false to leave
            the measure out.
        where: begins messages.

    Raises:
        UserError: an unknown measure or setting, or a value that cannot be; names it.

    Example:
        >>> check_spec({"validation": {"limit": 100}, "toyworld": {}, "cost": False}).measures
        (ToyWorld(), Validation(rows=None, format=None, limit=100, max_length=None, batch_size=None, logit_scale=1.0))
    """
    if not isinstance(spec, Mapping):
        raise UserError(f"{where} must be a mapping such as {{toyworld: {{}}, cost: {{}}}}, got {spec!r}")
    known = ["decoding", "template", *MEASURES]
    for name in spec:
        if name not in known:
            hint = did_you_mean(str(name), known) or f"; there are {', '.join(MEASURES)}"
            raise UserError(f"{where}: no measure {name!r}{hint}")
    decoding, template = spec.get("decoding", "softmax"), spec.get("template", "auto")
    if not isinstance(decoding, str) or decoding not in DECODINGS:
        hint = did_you_mean(str(decoding), DECODINGS) or f"; there are {', '.join(DECODINGS)}"
        raise UserError(f"{where}.decoding: no decoding {decoding!r}{hint}")
    if not isinstance(template, str):
        raise UserError(f"{where}.template must be the name of a chat template, got {template!r}")
    wanted = {name: measure for name, measure in MEASURES.items() if name in spec and spec[name] is not False}
    return Spec(decoding, template, tuple(_read(m, spec[name], f"{where}.{name}") for name, m in wanted.items()))


def _read(measure: type[M], given: Any, where: str) -> M:
    """A measure from its settings; each is parsed by the type of its field."""
    settings = {} if given is None or given is True else given
    if not isinstance(settings, Mapping):
        raise UserError(f"{where} must be a mapping of settings, {{}} for the usual ones, got {given!r}")
    types = {field.name: field.type for field in fields(measure)}
    for name in settings:
        if name not in types:
            hint = did_you_mean(str(name), types) or f"; there are {', '.join(types) or 'none'}"
            raise UserError(f"{where}: no setting {name!r}{hint}")
    made = measure(**{name: _parsed(measure, name, value, where) for name, value in settings.items()})
    try:
        made.check()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return made


def _parsed(measure: type[Measure], name: str, value: Any, where: str) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(measure, "of")
    try:
        return parser.parse_object({"of": {name: value}}).as_dict()["of"][name]
    except ArgumentError as error:
        field = next(field for field in fields(measure) if field.name == name)
        wanted = str(field.type).replace("None", "null")
        raise UserError(f"{where}.{name}: expected {wanted}, got {value!r}") from error

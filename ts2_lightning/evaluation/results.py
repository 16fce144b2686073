"""Measuring a model, each thing once, and measured values on disk.

A measure's values lie in DIRECTORY/measures/NAME-DIGEST.json, whole or not at all; those of weights between the base
model and the run's in DIRECTORY/measures/interpolate-SHARE. The digest is of what was asked for
alone, so that values of a model that has changed are replaced; a key in the file is of everything that they depend on.
"""

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ts2_lightning.evaluation.descriptions import RENAMED
from ts2_lightning.evaluation.measure import Measure, Measured
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.registry import Spec, code_digest, is_name, registered_measures
from ts2_lightning.runs.stamps import digest
from ts2_lightning.runs.writing import write_json
from ts2_lightning.types import UserError
from ts2_lightning.values import Value, by_name

DIRECTORY = "measures"
_ANY_DECODING = "softmax"
"""What a measure that does not depend on the decoding is filed under."""


@dataclass(frozen=True)
class Result:
    """One file of `measures/`.

    Attributes:
        name: name of the measure.
        decoding: distribution that the model was decoded with; None if the values do not depend on it.
        template: name of the chat template that the model was asked with.
        settings: settings of the measure.
        values: number by its whole name.
        documents: plain values from which pictures are drawn, by name, where the measure keeps any.
        described: descriptions of the values of a measure that is not registered, by their whole names, where the file
            has any.
        key: digest of everything that the values depend on.
        changed: time at which the file was written, in ns.
    """

    name: str
    decoding: str | None
    template: str
    settings: Mapping[str, Any]
    values: Mapping[str, float]
    documents: Mapping[str, Any]
    described: Mapping[str, Value]
    key: str
    changed: int


def make_measures(model: Model, spec: Spec, say: Callable[[str], None] = print, draw: bool = True) -> dict[str, float]:
    """Measures what has not been measured yet, and writes each when it is done.

    Args:
        model: the model; its decoding and template are those of the spec here.
        spec: what is wanted.
        say: takes a line for each measure.
        draw: whether pictures are drawn beside the values.

    Returns:
        All values that the spec asks for, by their whole names.

    Raises:
        UserError: a measure does not apply to the model, before any is made; what a measure raises; or an error in the
            code of a user's measure, with its line.
    """
    if model.interpolate != spec.interpolate:
        raise UserError(
            f"measure.interpolate is {spec.interpolate:g}, and {model.name} has the weights at {model.interpolate:g}"
        )
    if (model.decoding, model.template) != (spec.decoding, spec.template):
        model = replace(model, decoding=spec.decoding, template=spec.template)
    keys = [_key(model, measure) for measure in spec.measures]
    kept = [kept_values(file, key) for file, key in zip(files_of(model.out, spec).values(), keys, strict=True)]
    for measure, values in zip(spec.measures, kept, strict=True):
        if values is None:
            with _errors_of(measure):
                measure.check_model(model)
    whole: dict[str, float] = {}
    for measure, key, values in zip(spec.measures, keys, kept, strict=True):
        place = place_of(model.out, spec, measure)
        if values is None:
            started = time.perf_counter()
            with _errors_of(measure):
                measured = measure.measure(model, place)
                if draw:
                    measure.draw(model, measured, place)
            values = write_result(place, spec, measure, key, measured)
            say(f"{measure.name}: {len(values)} values in {time.perf_counter() - started:.1f} s -> {place}.json")
        else:
            say(f"{measure.name}: {len(values)} values, kept in {place}.json")
        whole |= values
    return whole


@contextmanager
def _errors_of(measure: Measure) -> Iterator[None]:
    """Says of an error in the code of a user's measure which one it is, and in which line of its file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a user's class may raise anything
        if registered_measures().get(measure.name) is type(measure):
            raise
        frames = list(traceback.walk_tb(error.__traceback__))
        of_class = [entry for entry in frames if entry[0].f_globals.get("__name__") == type(measure).__module__]
        frame, line = (of_class or frames)[-1]
        said = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        raise UserError(f"{measure.name}: {frame.f_code.co_filename}, line {line}: {said}") from error


def _key(model: Model, measure: Measure) -> str:
    """A digest of what the values depend on beside the settings; of a user's measure the file of its class is part."""
    code = code_digest(type(measure))
    with _errors_of(measure):
        inputs = measure.inputs(model)
    try:
        return digest([model.identity, inputs] if code is None else [model.identity, inputs, code])
    except (TypeError, ValueError) as error:
        raise UserError(f"{measure.name}: `inputs` must return plain values ({error})") from error


def place_of(directory: Path, spec: Spec, measure: Measure) -> Path:
    """Path without ending of a measure's files. It follows from what was asked for alone."""
    asked = {
        "decoding": _filed_under(spec, measure),
        "template": spec.template,
        "settings": measure.plain_settings(),
    }
    between = "" if spec.interpolate == 1 else f"interpolate-{spec.interpolate!r}"
    return directory / DIRECTORY / between / f"{measure.name}-{digest(asked)[:8]}"


def files_of(directory: Path, spec: Spec) -> dict[str, Path]:
    """The file of each measure's values that a spec asks for, be it there or not, by the name of the measure."""
    return {measure.name: place_of(directory, spec, measure).with_suffix(".json") for measure in spec.measures}


def _filed_under(spec: Spec, measure: Measure) -> str:
    return spec.decoding if measure.decoded else _ANY_DECODING


def write_result(place: Path, spec: Spec, measure: Measure, key: str, measured: Measured) -> dict[str, float]:
    """Writes values under their whole names; those that are not finite, which JSON cannot write, are left out.

    Args:
        place: path from `place_of`.
        spec: what was asked for.
        measure: the measure that was made.
        key: digest of everything that the values depend on.
        measured: what is written.

    Returns:
        The values as they were written.

    Raises:
        UserError: a user's measure returned what cannot be written.
    """
    numbers = _numbers(measure, measured)
    values = {f"{measure.name}/{name}": number for name, number in numbers.items() if math.isfinite(number)}
    document: dict[str, Any] = {
        "name": measure.name,
        "decoding": _filed_under(spec, measure),
        "template": spec.template,
        "settings": measure.plain_settings(),
        "key": key,
        "values": values,
    }
    if measure.name not in registered_measures():  # whoever reads the file need not have the class
        document["decoded"] = measure.decoded
        document["described"] = [asdict(value) for value in measure.titled_values()]
    try:
        if measured.documents:
            document["documents"] = dict(measured.documents)
        write_json(place.with_suffix(".json"), document)
    except (TypeError, ValueError) as error:
        raise UserError(f"{measure.name}: `measure` must return documents of plain values ({error})") from error
    return values


def _numbers(measure: Measure, measured: Any) -> dict[str, float]:
    """The values of a measure, if they are what a measure returns."""
    if not isinstance(measured, Measured) or not isinstance(measured.values, Mapping):
        raise UserError(f"{measure.name}: `measure` must return Measured({{NAME: NUMBER}}), got {measured!r}")
    numbers: dict[str, float] = {}
    for name, value in measured.values.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise UserError(f"{measure.name}: `measure` must return numbers; {name!r} is {str(value)!r}") from error
    return numbers


def read_result(file: Path) -> Result:
    """Reads a file of `measures/`.

    Raises:
        UserError: it is not there, or not whole, or something else.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        name = document["name"]
        if not (isinstance(name, str) and is_name(name) and file.name.startswith(f"{name}-")):
            raise ValueError(f"values of {name!r}")
        values = {RENAMED.get(value, value): float(number) for value, number in document["values"].items()}
        if not all(value.startswith(f"{name}/") and math.isfinite(number) for value, number in values.items()):
            raise ValueError(f"no values of {name}")
        decoded = (
            registered_measures()[name].decoded
            if name in registered_measures()
            else bool(document.get("decoded", True))
        )
        return Result(
            name,
            str(document["decoding"]) if decoded else None,
            str(document["template"]),
            dict(document["settings"]),
            values,
            dict(document.get("documents") or {}),
            by_name(Value(**value).under(name) for value in document.get("described", ())),
            str(document["key"]),
            file.stat().st_mtime_ns,
        )
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{file}: not what `measure` writes ({error!r}); remove it, and measure again") from error


def kept_values(file: Path, key: str) -> Mapping[str, float] | None:
    """The values that were written under a key; None if there are none, or they cannot be read: they are made again."""
    try:
        result = read_result(file)
    except UserError:
        return None
    return result.values if result.key == key else None

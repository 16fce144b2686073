"""Measured values on disk: DIRECTORY/measures/NAME-KEY.json, each there whole or not there."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ts2_lightning.evaluation.probes.report import write_json
from ts2_lightning.experiments.measures.base import Measure, Measured
from ts2_lightning.experiments.measures.descriptions import RENAMED
from ts2_lightning.experiments.measures.digests import digest
from ts2_lightning.experiments.measures.spec import MEASURES, Spec
from ts2_lightning.types import UserError

DIRECTORY = "measures"
_ANY_DECODING = "softmax"
"""What a measure that does not depend on the decoding is filed under."""


@dataclass(frozen=True)
class Result:
    """One file of `measures/`.

    Attributes:
        name: of the measure.
        decoding: that the model was measured with; None if the values do not depend on it.
        template: name of the chat template that the model was asked with.
        settings: that it was made with.
        values: whole name -> number.
        documents: from which pictures are drawn, by name, where the measure keeps any.
        key: of everything that the values depend on.
        changed: time at which the file was written, in ns.
    """

    name: str
    decoding: str | None
    template: str
    settings: Mapping[str, Any]
    values: Mapping[str, float]
    documents: Mapping[str, Any]
    key: str
    changed: int


def place_of(directory: Path, spec: Spec, measure: Measure) -> Path:
    """Path without ending of a measure's files. It follows from what was asked for alone, so that values of a model
    that has changed are replaced.
    """
    asked = {"decoding": _filed_under(spec, measure), "template": spec.template, "settings": asdict(measure)}
    return directory / DIRECTORY / f"{measure.name}-{digest(asked)[:8]}"


def files_of(directory: Path, spec: Spec) -> dict[str, Path]:
    """Measure -> the file of its values, be it there or not, of all that a spec asks for."""
    return {measure.name: place_of(directory, spec, measure).with_suffix(".json") for measure in spec.measures}


def _filed_under(spec: Spec, measure: Measure) -> str:
    return spec.decoding if measure.decoded else _ANY_DECODING


def write_result(place: Path, spec: Spec, measure: Measure, key: str, found: Measured) -> dict[str, float]:
    """Writes values under their whole names; those that are not finite, which JSON cannot write, are left out.

    Args:
        place: from `place_of`.
        spec: what was asked for.
        measure: what was made of it.
        key: of everything that the values depend on.
        found: what is written.

    Returns:
        The values as they were written.
    """
    values = {f"{measure.name}/{name}": float(value) for name, value in found.values.items() if math.isfinite(value)}
    document = {
        "name": measure.name,
        "decoding": _filed_under(spec, measure),
        "template": spec.template,
        "settings": asdict(measure),
        "key": key,
        "values": values,
    }
    documents = {"documents": dict(found.documents)} if found.documents else {}
    write_json(place.with_suffix(".json"), document | documents)
    return values


def read_result(file: Path) -> Result:
    """What a file of `measures/` says.

    Raises:
        UserError: it is not there, or not whole, or something else.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        name, decoding = str(document["name"]), str(document["decoding"])
        return Result(
            name,
            decoding if name not in MEASURES or MEASURES[name].decoded else None,
            str(document["template"]),
            dict(document["settings"]),
            {RENAMED.get(value, str(value)): float(number) for value, number in document["values"].items()},
            dict(document.get("documents") or {}),
            str(document["key"]),
            file.stat().st_mtime_ns,
        )
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{file}: not what `measure` writes ({error!r}); remove it, and measure again") from error


def kept_values(file: Path, key: str) -> Mapping[str, float] | None:
    """The values that were written under a key; None if there are none, or they cannot be read: they are made again."""
    try:
        found = read_result(file)
    except UserError:
        return None
    return found.values if found.key == key else None

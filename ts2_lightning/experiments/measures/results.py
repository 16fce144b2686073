"""Measured values on disk: DIRECTORY/measures/NAME-KEY.json, each there whole or not there."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ts2_lightning.evaluation.probes.report import write_json
from ts2_lightning.experiments.measures.base import Measure, Measured
from ts2_lightning.experiments.measures.digests import digest
from ts2_lightning.experiments.measures.spec import Spec

DIRECTORY = "measures"


def place_of(directory: Path, spec: Spec, measure: Measure) -> Path:
    """Path without ending of a measure's files. It follows from what was asked for alone, so that values of a model
    that has changed are replaced.
    """
    asked = {"decoding": spec.decoding, "template": spec.template, "settings": asdict(measure)}
    return directory / DIRECTORY / f"{measure.name}-{digest(asked)[:8]}"


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
        "decoding": spec.decoding,
        "template": spec.template,
        "settings": asdict(measure),
        "key": key,
        "values": values,
    }
    documents = {"documents": dict(found.documents)} if found.documents else {}
    write_json(place.with_suffix(".json"), document | documents)
    return values


def read_result(place: Path, key: str) -> dict[str, float] | None:
    """The values that were written under a key; None if there are none."""
    found = _read(place.with_suffix(".json"))
    return found["values"] if found is not None and found["key"] == key else None


def _read(file: Path) -> dict[str, Any] | None:
    """A result; None if there is none, or what is there cannot be read: then it is made again."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= {"key", "values"} else None

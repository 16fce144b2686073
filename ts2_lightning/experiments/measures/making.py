"""Making measures of a model, each once."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ts2_lightning.experiments.measures.base import Measure
from ts2_lightning.experiments.measures.digests import digest
from ts2_lightning.experiments.measures.results import files_of, kept_values, place_of, write_result
from ts2_lightning.experiments.measures.spec import Spec
from ts2_lightning.experiments.measures.target import Target


def make_measures(target: Target, spec: Spec, say: Callable[[str], None] = print) -> dict[str, float]:
    """Measures what has not been measured yet, and writes each when it is done.

    Args:
        target: the model.
        spec: what is wanted.
        say: takes a line for each measure.

    Returns:
        All values that the spec asks for, by their whole names.

    Raises:
        UserError: a measure does not apply to the model, before any is made; or what a measure raises.
    """
    target = replace(target, decoding=spec.decoding, template=spec.template)
    keys = [digest([target.identity, measure.inputs(target)]) for measure in spec.measures]
    places = [place_of(target.out, spec, measure) for measure in spec.measures]
    kept = [kept_values(file, key) for file, key in zip(files_of(target.out, spec).values(), keys, strict=True)]
    for measure, values in zip(spec.measures, kept, strict=True):
        if values is None:
            measure.check_target(target)
    found: dict[str, float] = {}
    for measure, place, key, values in zip(spec.measures, places, keys, kept, strict=True):
        if values is None:
            values = _make(target, spec, measure, place, key, say)
        else:
            say(f"{measure.name}: {len(values)} values, kept in {place}.json")
        found |= values
    return found


def _make(
    target: Target, spec: Spec, measure: Measure, place: Path, key: str, say: Callable[[str], None]
) -> dict[str, float]:
    place.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    values = write_result(place, spec, measure, key, measure.measure(target, place))
    say(f"{measure.name}: {len(values)} values in {time.perf_counter() - started:.1f} s -> {place}.json")
    return values

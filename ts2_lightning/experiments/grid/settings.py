"""What the grid, a choice, a condition and a seed set, and how it becomes the command line of `fit`."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ts2_lightning.config_files import no_such_file
from ts2_lightning.experiments.grid.entries import Entry
from ts2_lightning.experiments.grid.measuring import read_measure
from ts2_lightning.experiments.grid.paths import beside

KEYS = ("config", "set", "measure")
SEED = "{seed}"
_SETTING = re.compile(r"(?:--)?([\w.]+)")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Settings:
    """Configuration files, overrides as `--setting value` of fit, what is measured differently, and where in the file
    each of the overrides is.
    """

    configs: tuple[str, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)
    measure: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Entry] = field(default_factory=dict)

    @classmethod
    def read(cls, parts: Mapping[str, Entry]) -> "Settings":
        """From the entries `config`, `set` and `measure`, as far as they are there.

        Raises:
            UserError: for a file that is not there, and anything but `setting: value` in a set.
        """
        return cls(
            read_configs(parts["config"]) if "config" in parts else (),
            read_overrides(parts["set"]) if "set" in parts else {},
            read_measure(parts["measure"]) if "measure" in parts else {},
            parts["set"].mapping() if "set" in parts else {},
        )


def read_configs(entry: Entry) -> tuple[str, ...]:
    """The configuration files of an entry, relative to the grid file, as paths from the working directory.

    Raises:
        UserError: for a file that is not there.
    """
    found = []
    for item in entry.one_or_more("a configuration file or a list of them"):
        path = beside(item.file, item.text)
        if not os.path.isfile(path):
            raise item.error(no_such_file(path))
        found.append(path)
    return tuple(found)


def read_overrides(entry: Entry) -> dict[str, str]:
    """Setting -> value as it stands on a command line. The name of a .yaml file beside the grid becomes its path.

    Raises:
        UserError: if it is no mapping, or speaks of the seed.
    """
    overrides = {}
    for setting, value in entry.mapping("`setting: value` lines").items():
        text = argument(value)
        if SEED in text:
            raise value.error(f"{SEED} stands only in values of seeded")
        overrides[setting] = text
    return overrides


def read_seeded(entry: Entry | None) -> dict[str, str]:
    """What a seed sets, with `{seed}` in place of its number.

    Raises:
        UserError: for another placeholder, and for values none of which has the seed.
    """
    if entry is None:
        return {"seed_everything": SEED, "data.seed": SEED}
    values = entry.mapping('what a seed sets, such as {data.seed: "{seed}"}')
    seeded = {setting: argument(value) for setting, value in values.items()}
    for setting, text in seeded.items():
        for name in _PLACEHOLDER.findall(text):
            if name != "seed":
                raise values[setting].error(f"{{{name}}} is not known in {text!r}; the seed is written {SEED}")
    if not any(SEED in text for text in seeded.values()):
        raise entry.error(f"no value has {SEED}, so that all seeds would be the same training")
    return seeded


def with_seed(seeded: Mapping[str, str], seed: int) -> Settings:
    """What one seed sets.

    >>> with_seed({"data.train": "toyworld:train?seed={seed}"}, 3).overrides
    {'data.train': 'toyworld:train?seed=3'}
    """
    return Settings(overrides={setting: text.replace(SEED, str(seed)) for setting, text in seeded.items()})


def refuse_seeded(layers: Iterable[Settings], seeded: Mapping[str, str], seeds: Sequence[int]) -> None:
    """Makes sure that what a seed sets, which comes last, undoes nothing that the grid, a choice or a condition sets.

    Raises:
        UserError: for a setting that would be lost, as all choices with it would be the same training.
    """
    last = [with_seed(seeded, seed).overrides for seed in seeds]
    for layer in layers:
        for setting, value in layer.overrides.items():
            name = setting.rstrip("+")
            if name in seeded and any(overrides[name] != value for overrides in last):
                raise layer.origins[setting].error(
                    f"{name} is what a seed sets, which comes after this; take it out here or of seeded "
                    "(without which it is seed_everything and data.seed)"
                )


def argument(entry: Entry) -> str:
    """A value as it stands on a command line: a scalar as it is written, all else as JSON."""
    value = entry.value
    if isinstance(value, dict | list):
        try:
            return json.dumps(value, ensure_ascii=False)
        except TypeError as error:
            raise entry.error(f"not a value that a setting can have ({error})") from None
    if value is None:
        return "null"
    if isinstance(value, str) and value.endswith((".yaml", ".yml")) and os.path.isfile(beside(entry.file, value)):
        return beside(entry.file, value)
    return entry.text


def options_of(layers: Iterable[Settings]) -> tuple[str, ...]:
    """The command line of several layers, of which a later one beats the earlier ones.

    All files come before all overrides. A class is named before its settings, in whatever order the axes have them. Of
    settings that end in `+`, which append to a list, every one counts.

    >>> options_of([Settings(("a.yaml",), {"model.loss.alpha": "1"}), Settings(("b.yaml",), {"model.loss": "TS2Loss"})])
    ('-c', 'a.yaml', '-c', 'b.yaml', '--model.loss', 'TS2Loss', '--model.loss.alpha', '1')
    """
    layers = list(layers)
    words = [word for layer in layers for file in layer.configs for word in ("-c", file)]
    overrides: list[tuple[str, str]] = []
    for layer in layers:
        for setting, value in layer.overrides.items():
            _put(overrides, setting, value)
    return (*words, *(word for setting, value in overrides for word in (f"--{setting}", value)))


def origin_of(complaint: str, layers: Sequence[Settings]) -> Entry | None:
    """Where the setting is given that a complaint begins with; None if none of the layers gives it."""
    named = _SETTING.match(complaint)
    given = [(setting.rstrip("+"), entry) for layer in layers for setting, entry in layer.origins.items()]
    return next((entry for setting, entry in reversed(given) if named and setting == named[1]), None)


def _put(overrides: list[tuple[str, str]], setting: str, value: str) -> None:
    """Adds a setting behind the others, or in its old place, or before the first that is part of it."""
    names = [name for name, _ in overrides]
    if setting in names and not setting.endswith("+"):
        overrides[names.index(setting)] = (setting, value)
        return
    parts = (place for place, name in enumerate(names) if name.startswith(f"{setting}."))
    overrides.insert(next(parts, len(overrides)), (setting, value))


def merged(specification: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A specification with some of its settings changed.

    >>> merged({"cost": {}, "diversity": {"samples": 16, "limit": 9}}, {"cost": False, "diversity": {"samples": 4}})
    {'cost': False, 'diversity': {'samples': 4, 'limit': 9}}
    """
    result = dict(specification)
    for key, value in change.items():
        before = result.get(key)
        result[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result

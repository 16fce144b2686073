"""Which runs belong to one row, and what a row is called: by the settings in which configurations differ."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ts2_lightning.experiments.report.results import number

NOT_A_RESULT = ("name", "runs_dir", "ckpt_path", "trainer.default_root_dir")
"""Settings that say where a run lies, not what it is."""

SEEDS = ("seed_everything", "data.seed")
_SEED_OF_A_SOURCE = re.compile(r"\bseed=(\d+)")

Settings = Mapping[str, Any]
"""Dotted name -> value, as `flat` gives them."""


_SAYS_NOTHING_ALONE = ("true", "false", "null")


class ClassName(str):
    """The value of a setting that names a class, which says by itself what it is the value of."""

    __slots__ = ()


def flat(config: object, name: str = "") -> dict[str, Any]:
    """A configuration by the dotted names in which people think of it; settings that are null are left out.

    Example:
        >>> flat({"model": {"loss": {"class_path": "losses.TS2Loss", "init_args": {"alpha": 0.25, "top_k": None}}}})
        {'model.loss': 'TS2Loss', 'model.loss.alpha': 0.25}
        >>> flat({"callbacks": [{"class_path": "a.NEFTune"}], "betas": [0.9, 0.95]})
        {'callbacks.0': 'NEFTune', 'betas': [0.9, 0.95]}
    """
    if isinstance(config, Mapping):
        found: dict[str, Any] = {}
        for key, value in config.items():
            inner = name if key in ("class_path", "init_args") else f"{name}.{key}".strip(".")
            is_class = key == "class_path" and isinstance(value, str)
            found |= {inner: ClassName(value.rpartition(".")[2])} if is_class else flat(value, inner)
        return found
    if isinstance(config, list) and any(isinstance(value, Mapping) for value in config):
        return {key: value for i, inner in enumerate(config) for key, value in flat(inner, f"{name}.{i}").items()}
    return {} if config is None else {name: config}


def without_seeds(settings: Settings) -> dict[str, Any]:
    """The settings that runs of one row share: no seeds, and nothing that only says where a run lies.

    Example:
        >>> without_seeds({"name": "a", "data.seed": 3, "data.train": "toyworld:train?seed=3", "model.loss.alpha": 1})
        {'data.train': 'toyworld:train?seed=*', 'model.loss.alpha': 1}
    """
    return {
        key: _SEED_OF_A_SOURCE.sub("seed=*", value) if type(value) is str else value
        for key, value in settings.items()
        if key not in (*NOT_A_RESULT, *SEEDS)
    }


def seeds_of(settings: Settings) -> dict[str, int]:
    """Setting -> seed, of everything, of the data, and of sources that are drawn.

    Example:
        >>> seeds_of({"data.train": "toyworld:train?seed=3", "data.seed": 1, "seed_everything": 0})
        {'seed_everything': 0, 'data.seed': 1, 'data.train': 3}
    """
    found = {key: settings[key] for key in SEEDS if type(settings.get(key)) is int}
    drawn = {key: _SEED_OF_A_SOURCE.search(value) for key, value in settings.items() if type(value) is str}
    return found | {key: int(match[1]) for key, match in drawn.items() if match and key not in NOT_A_RESULT}


def distinguishing(rows: Sequence[Settings]) -> list[str]:
    """The settings that tell rows apart: those with several values among the rows that have them.

    Arguments of a class that only one row uses are none: the class tells. Only where rows would still look
    alike, a setting that one of them lacks is added.

    Example:
        >>> ce, ts2 = {"loss": "CE"}, {"loss": "TS2", "alpha": 0.25, "scale": 1}
        >>> distinguishing([ce, ts2]), distinguishing([ce, ts2, {**ts2, "alpha": 1}])
        (['loss'], ['loss', 'alpha'])
        >>> distinguishing([ce, {**ce, "top_k": 5}])
        ['top_k']
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    chosen = [name for name in names if len({repr(row[name]) for row in rows if name in row}) > 1]
    seen: dict[str, Settings] = {}
    for row in rows:
        while (other := seen.get(_look(row, chosen))) is not None and other != row:
            chosen.append(next(name for name in names if name not in chosen and other.get(name) != row.get(name)))
            seen = {_look(before, chosen): before for before in seen.values()}
        seen[_look(row, chosen)] = row
    return [name for name in names if name in chosen]


def _look(row: Settings, names: Sequence[str]) -> str:
    return repr([(name, row[name]) for name in names if name in row])


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Dotted name -> its last parts, as few as tell it from the others.

    Example:
        >>> short_names(["model.loss.alpha", "model.loss.base.alpha", "model.optimizer.lr"])
        {'model.loss.alpha': 'loss.alpha', 'model.loss.base.alpha': 'base.alpha', 'model.optimizer.lr': 'lr'}
    """
    endings = {name: [".".join(name.split(".")[i:]) for i in reversed(range(name.count(".") + 1))] for name in names}
    every = [ending for of_name in endings.values() for ending in of_name]
    return {name: next((e for e in of_name if every.count(e) == 1), name) for name, of_name in endings.items()}


def labels_of(rows: Sequence[Settings]) -> list[dict[str, str]]:
    """For each row: short name -> value of the settings that tell it apart, as text.

    Example:
        >>> labels_of([{"model.lr": 0.1, "data.train": "x"}, {"model.lr": 0.2, "data.train": "x"}])
        [{'lr': '0.1'}, {'lr': '0.2'}]
    """
    names = short_names(distinguishing(rows))
    return [{short: text_of(row[name]) for name, short in names.items() if name in row} for row in rows]


def text_of(value: object) -> str:
    """A value as one would write it in a configuration."""
    if isinstance(value, bool):
        return str(value).lower()
    return ClassName(value) if isinstance(value, ClassName) else str(value)


def named_axes(axes: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The axes whose choices say nothing without the axis's name: a number, true, false, null, one of several axes.

    Example:
        >>> named_axes({"objective": ("CE", "TS2"), "alpha": ("0.25", "1"), "adaptive": ("true", "false")})
        ['alpha', 'adaptive']
        >>> named_axes({"neft": ("off", "on"), "wd": ("none", "on")})
        ['neft', 'wd']
    """
    several = Counter(choice for choices in axes.values() for choice in set(choices))
    return [
        axis
        for axis, choices in axes.items()
        if any(number(c) is not None or c in _SAYS_NOTHING_ALONE or several[c] > 1 for c in choices)
    ]


def label_of(labels: Mapping[str, str], numeric: Sequence[str]) -> str:
    """What a row is called: its choices; a number, and what says nothing without it, with the name of its axis.

    Args:
        labels: axis -> choice.
        numeric: the axes whose choices need their name.

    Example:
        >>> label_of({"objective": "TS2", "alpha": "0.25"}, ["alpha"])
        'TS2, alpha 0.25'
    """
    return ", ".join(f"{axis} {choice}" if axis in numeric else choice for axis, choice in labels.items())

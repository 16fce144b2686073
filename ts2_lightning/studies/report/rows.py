"""Rows of runs that belong to no grid: those whose configurations differ in nothing but their seeds are one row."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ts2_lightning.program import program
from ts2_lightning.runs.contents import read_config, why_unfinished
from ts2_lightning.runs.directory import CONFIG
from ts2_lightning.studies.report.results import Missing, Row, Run, number
from ts2_lightning.studies.report.runs import make_run, outdated, read_measures
from ts2_lightning.types import UserError

# What tells rows apart ------------------------------------------------------------------------------------------------


NOT_A_RESULT = ("name", "runs_dir", "ckpt_path", "trainer.default_root_dir")
"""FlatSettings that say where a run lies, not what it is."""

SEEDS = ("seed_everything", "data.seed")
_SEED_OF_A_SOURCE = re.compile(r"\bseed=(\d+)")

FlatSettings = Mapping[str, Any]
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
        settings: dict[str, Any] = {}
        for key, value in config.items():
            inner = name if key in ("class_path", "init_args") else f"{name}.{key}".strip(".")
            is_class = key == "class_path" and isinstance(value, str)
            settings |= {inner: ClassName(value.rpartition(".")[2])} if is_class else flat(value, inner)
        return settings
    if isinstance(config, list) and any(isinstance(value, Mapping) for value in config):
        return {key: value for i, inner in enumerate(config) for key, value in flat(inner, f"{name}.{i}").items()}
    return {} if config is None else {name: config}


def without_seeds(settings: FlatSettings) -> dict[str, Any]:
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


def seeds_of(settings: FlatSettings) -> dict[str, int]:
    """Setting -> seed, of everything, of the data, and of sources that are drawn.

    Example:
        >>> seeds_of({"data.train": "toyworld:train?seed=3", "data.seed": 1, "seed_everything": 0})
        {'seed_everything': 0, 'data.seed': 1, 'data.train': 3}
    """
    seeds = {key: settings[key] for key in SEEDS if type(settings.get(key)) is int}
    drawn = {key: _SEED_OF_A_SOURCE.search(value) for key, value in settings.items() if type(value) is str}
    return seeds | {key: int(match[1]) for key, match in drawn.items() if match and key not in NOT_A_RESULT}


def distinguishing(rows: Sequence[FlatSettings]) -> list[str]:
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
    seen: dict[str, FlatSettings] = {}
    for row in rows:
        while (other := seen.get(_look(row, chosen))) is not None and other != row:
            chosen.append(next(name for name in names if name not in chosen and other.get(name) != row.get(name)))
            seen = {_look(before, chosen): before for before in seen.values()}
        seen[_look(row, chosen)] = row
    return [name for name in names if name in chosen]


def _look(row: FlatSettings, names: Sequence[str]) -> str:
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


def labels_of(rows: Sequence[FlatSettings]) -> list[dict[str, str]]:
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


# Rows -----------------------------------------------------------------------------------------------------------------


_LONG = 48  # characters of a label; a longer one tells less than the run's name
_DECODING = "decoding"  # a setting of the measurement, in which rows may differ as in those of the training


@dataclass(frozen=True)
class _Attempt:
    """A run's directory.

    Attributes:
        directory: `RUNS_DIR/NAME/N`.
        settings: its configuration, by dotted names.
        runs: one for each decoding that it was measured with, without a seed; none if there is nothing to show.
        problem: why there is nothing, or what is wrong with it.
    """

    directory: Path
    settings: dict[str, Any]
    runs: dict[str, Run]
    problem: str = ""

    @property
    def same(self) -> str:
        """Equal for the attempts at one training."""
        return repr((name_of(self.directory), [item for item in self.settings.items() if item[0] != "name"]))

    @property
    def number(self) -> int:
        """Number of the attempt; 0 for a directory that somebody has called otherwise."""
        return int(self.directory.name) if self.directory.name.isdigit() else 0


def name_of(run: Path) -> str:
    """The name of a run, `RUNS_DIR/NAME`; its own where it was moved and is no number.

    Example:
        >>> name_of(Path("runs/ts2/3")), name_of(Path("kept/best"))
        ('runs/ts2', 'kept/best')
    """
    return str(run.parent if run.name.isdigit() else run)


def base_row(directory: Path) -> Row:
    """A model that was measured without having been trained here.

    Raises:
        UserError: its measures cannot be read.
    """
    return Row(directory.name, {}, (make_run(str(directory), directory, None, read_measures(directory)),), is_base=True)


def rows_of(directories: Iterable[Path]) -> tuple[list[Row], dict[str, tuple[str, ...]], list[Missing]]:
    """Puts runs into rows.

    Args:
        directories: directories of runs. Of several attempts at one training, the newest that has ended counts.

    Returns:
        The rows, the axes (setting -> its values in the order of the rows), and the runs that have nothing to show, or
        something that is no longer so.
    """
    attempts, missing = [], []
    for directory in directories:
        try:
            attempts.append(_attempt(directory))
        except UserError as error:
            missing.append(Missing(str(directory), "", str(error)))
    newest: dict[str, _Attempt] = {}
    for attempt in sorted(attempts, key=lambda a: (bool(a.runs), a.number)):
        newest[attempt.same] = attempt
    counted = [attempt for attempt in attempts if newest[attempt.same] is attempt]
    missing += [Missing(str(a.directory), "", a.problem) for a in counted if a.problem]
    measured = [(run, {**a.settings, _DECODING: decoding}) for a in counted for decoding, run in a.runs.items()]
    rows, axes = _labelled(_groups(measured))
    return rows, axes, missing


def _attempt(directory: Path) -> _Attempt:
    settings = flat(read_config(directory))
    try:
        if unfinished := why_unfinished(directory):
            return _Attempt(directory, settings, {}, unfinished)
        measures = read_measures(directory)
        runs = {}
        for decoding in dict.fromkeys(filter(None, (measure.decoding for measure in measures))) or ["softmax"]:
            of_decoding = [measure for measure in measures if measure.decoding in (decoding, None)]
            command = f"{program()} fit -c {directory / CONFIG}"
            runs[decoding] = make_run(str(directory), directory, None, of_decoding, command)
    except UserError as error:
        return _Attempt(directory, settings, {}, str(error))
    if not any(run.values for run in runs.values()):
        return _Attempt(directory, settings, {}, "nothing was logged and nothing measured")
    return _Attempt(directory, settings, runs, outdated(directory, measures))


def _groups(measured: Iterable[tuple[Run, FlatSettings]]) -> list[pd.DataFrame]:
    """Runs that differ in their seeds alone, one of each seed; others are told apart by their names, or stay alone.

    Args:
        measured: runs, and all settings in which they may differ.

    Returns:
        Lines with `run`, `settings`, `name` (of the run, without its number) and `seed`, of each row.
    """
    table = pd.DataFrame(measured, columns=["run", "settings"])
    table["name"] = [name_of(run.directory) for run in table["run"]]
    table["same"] = [repr(without_seeds(settings)) for settings in table["settings"]]
    table["seed"] = _seeds(table)
    table["run"] = [replace(run, seed=seed) for run, seed in zip(table["run"], table["seed"], strict=True)]
    groups: list[pd.DataFrame] = []
    for _, same in table.groupby("same", sort=False):
        for _, group in same.groupby("name" if _is_repeated(same) else "same", sort=False):
            groups += [one for _, one in group.groupby(group.index)] if _is_repeated(group) else [group]
    return groups


def _seeds(table: pd.DataFrame) -> pd.Series:
    """The seeds of runs: the values of the one setting that tells most runs of the same settings apart.

    It is the same setting for all of them, as rows are paired by it; seeds are often varied in one of several.
    """
    every = [seeds_of(settings) for settings in table["settings"]]
    names = list(dict.fromkeys(name for seeds in every for name in seeds)) or [""]
    columns = [pd.Series([seeds.get(name) for seeds in every], index=table.index, dtype=object) for name in names]
    return min(columns, key=lambda seeds: table.assign(seed=seeds).duplicated(["same", "seed"]).sum())


def _is_repeated(runs: pd.DataFrame) -> bool:
    """Whether two runs have the same seed, or none."""
    return bool(runs["seed"].duplicated().any())


def _labelled(groups: Sequence[pd.DataFrame]) -> tuple[list[Row], dict[str, tuple[str, ...]]]:
    """The rows, called by the settings that tell them apart, or else by the names of their runs; and their axes."""
    firsts = [group.iloc[0] for group in groups]
    labels = labels_of([without_seeds(first["settings"]) for first in firsts])
    axes: dict[str, dict[str, None]] = {}
    for of_row in labels:
        for axis, choice in of_row.items():
            axes.setdefault(axis, {})[choice] = None
    named = [axis for axis, choices in axes.items() if not all(isinstance(choice, ClassName) for choice in choices)]
    order = sorted(axes, key=lambda axis: axis in named)  # what was trained with, then its settings
    called = [label_of({axis: of_row[axis] for axis in order if axis in of_row}, named) for of_row in labels]
    called = _told_apart(called, [first["name"] for first in firsts], [first["run"].directory for first in firsts])
    rows = [Row(*entry) for entry in zip(called, labels, (tuple(group["run"]) for group in groups), strict=True)]
    return rows, {axis: tuple(choices) for axis, choices in axes.items()}


def _told_apart(labels: Sequence[str], names: Sequence[str], directories: Sequence[Path]) -> list[str]:
    """Labels, with the names of the runs where they are equal; the names alone where they tell more in less.

    Args:
        labels: labels of the rows.
        names: name of a run of each.
        directories: its directory. Where two rows have label and name in common, its number tells them apart.
    """
    names = endings(names)
    several = Counter(zip(labels, names, strict=True))
    names = [
        f"{name}/{directory.name}" if several[label, name] > 1 else name
        for label, name, directory in zip(labels, names, directories, strict=True)
    ]
    if max(map(len, labels), default=0) > _LONG and len(set(names)) == len(names):
        return names
    equal = Counter(labels)
    return [
        f"{label} ({name})" if label and equal[label] > 1 else label or name
        for label, name in zip(labels, names, strict=True)
    ]


def endings(names: Sequence[str]) -> list[str]:
    """Paths by their last parts, as few as tell the different ones apart.

    Example:
        >>> endings(["runs/a/ts2", "runs/b/ts2"]), endings(["runs/ce", "runs/ts2"])
        (['a/ts2', 'b/ts2'], ['ce', 'ts2'])
    """
    parts = [Path(name).parts for name in names]
    ending: list[str] = []
    for length in range(1, max(map(len, parts), default=1) + 1):
        ending = ["/".join(part[-length:]) for part in parts]
        if len(set(ending)) == len(set(names)):
            break
    return ending

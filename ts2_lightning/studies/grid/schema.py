"""What a grid file may say: data classes whose fields are its keys, see `entries.read_part`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from ts2_lightning.evaluation.registry import NO_MEASURES
from ts2_lightning.ranges import SEED as SEED_RANGE
from ts2_lightning.ranges import SHARE, trouble
from ts2_lightning.studies.grid.entries import Entry, read_entries, read_part
from ts2_lightning.studies.grid.identity import PLACES
from ts2_lightning.studies.grid.published import PublishedTable
from ts2_lightning.studies.grid.reported import ReportPart
from ts2_lightning.studies.grid.rows import ALL, LabelledRow, Labels, Rule, read_rule, rows_of
from ts2_lightning.studies.grid.settings import (
    SEED,
    Argument,
    Configs,
    Measures,
    Overrides,
    Settings,
    argument_of,
    measure_of,
)
from ts2_lightning.suggestions import did_you_mean

INTERPOLATE = "interpolate"
"""Axis whose choices are shares of the way from the base model to a row's own; nothing is trained for them."""
PLACES_REFUSED = "a grid sees to where its runs lie and from where they go on; take it out"
"""What is said of settings in `identity.PLACES`."""
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
RESERVED = dict.fromkeys(("zip", "product"), "blocks of runs use it") | {"seed": "`seeds` is what it would mean"}
"""Names that no axis can have, with the reason."""

# Axes and conditions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AxisValues:
    """An axis of the values of one setting: of `fit`, or of a measure, which needs no training of its own.

    Attributes:
        values: values, in the order of the axis.
        setting: setting of `fit`, such as `model.optimizer.lr`.
        measure: measure and setting, such as `diversity.temperature`; instead of `setting`.
    """

    entry: Entry
    values: Annotated[tuple[Entry, ...], "a list of values"]
    setting: str | None = None
    measure: Entry | None = None

    def choices(self) -> dict[str, Settings]:
        """Each value as a choice, called as it is written."""
        if (self.setting is None) == (self.measure is None):
            raise self.entry.error("expected one of setting and measure beside values")
        choices: dict[str, Settings] = {}
        for value in self.values:
            if value.text in choices:
                raise value.error(f"{value.text} comes twice")
            choices[value.text] = self._choice(value)
        return choices

    def _choice(self, value: Entry) -> Settings:
        if self.measure is None:
            assert self.setting is not None
            return Settings(set={self.setting: argument_of(value)})
        measure, _, setting = self.measure.text.rpartition(".")
        if not (measure and setting):
            raise self.measure.unlike("a measure and its setting, such as diversity.temperature")
        return Settings(measure={measure: {setting: value.value}})


def _axes(entry: Entry) -> dict[str, dict[str, Settings]]:
    """Every axis with its choices: values of one setting, or named sets of settings."""
    axes = {}
    for name, axis in entry.mapping("axes with their choices").items():
        if name in RESERVED:
            raise axis.error(f"the name is taken, {RESERVED[name]}; call the axis otherwise")
        if name == INTERPOLATE:
            axes[name] = _shares(axis)
            continue
        choices = axis.mapping("choices with their settings, or `setting:` and `values:`")
        if "values" in choices or "setting" in choices:
            axes[name] = read_part(AxisValues, axis).choices()
        else:
            axes[name] = {choice: read_part(Settings, inner) for choice, inner in choices.items()}
        if ALL in axes[name]:
            raise axis.error(f"no choice can be called {ALL!r}, which stands for all of them")
    return axes


def _shares(entry: Entry) -> dict[str, Settings]:
    """Each share as a choice, called as it is written, which sets nothing but how the model is measured."""
    choices: dict[str, Settings] = {}
    for item in entry.items("a list of shares of the way from the base model to the tuned one, such as [0.5, 0.8, 1]"):
        if wrong := trouble(item.value, SHARE):
            raise item.error(wrong)
        if float(item.value) in [choice.measure[INTERPOLATE] for choice in choices.values()]:
            raise item.error(f"{item.text} comes twice")
        choices[item.text] = Settings(measure={INTERPOLATE: float(item.value)})
    return choices


@dataclass(frozen=True, kw_only=True)
class Condition(Settings):
    """What rows set besides that match `if_`."""

    entry: Entry
    if_: Entry


# Seeds --------------------------------------------------------------------------------------------------------------


def _seeds(entry: Entry) -> tuple[int, ...]:
    seeds: list[int] = []
    for item in entry.items("a list of whole numbers, such as [0, 1, 2]"):
        if wrong := trouble(item.value, SEED_RANGE):
            raise item.error(wrong)
        if item.value in seeds:
            raise item.error(f"seed {item.value} comes twice")
        seeds.append(item.value)
    return tuple(seeds)


def _seeded(entry: Entry) -> dict[str, Argument]:
    """What a seed sets, with `{seed}` in place of its number."""
    values = entry.mapping('what a seed sets, such as {data.seed: "{seed}"}')
    seeded = {setting: argument_of(value) for setting, value in values.items()}
    for setting, value in seeded.items():
        for name in _PLACEHOLDER.findall(value.text):
            if name != "seed":
                raise values[setting].error(f"{{{name}}} is not known in {value.text!r}; the seed is written {SEED}")
    if not any(SEED in value.text for value in seeded.values()):
        raise entry.error(f"no value has {SEED}, so that all seeds would be the same training")
    return seeded


def usual_seeded() -> dict[str, Argument]:
    """What a seed sets where nobody has said what."""
    return {"seed_everything": Argument(SEED), "data.seed": Argument(SEED)}


# What is measured and reported besides ------------------------------------------------------------------------------


@dataclass(frozen=True)
class BaseModelPart:
    """The model that the runs start from: how its row is called, and what is measured of it (None: as of the runs)."""

    entry: Entry
    label: str = "base"
    measure: Annotated[Mapping[str, Any] | None, measure_of] = None


def _base_model(entry: Entry) -> BaseModelPart | None:
    return None if entry.value is None else read_part(BaseModelPart, entry)


def _slurm(entry: Entry) -> dict[str, Any]:
    """Submitit's parameters, whose names are checked where it is installed."""
    parts = entry.mapping("a mapping of submitit's parameters", empty=True)
    if parts and find_spec("submitit") is not None:
        from submitit import SlurmExecutor

        for name, part in parts.items():
            names = sorted(SlurmExecutor._valid_parameters())
            if name not in names:
                hint = did_you_mean(name, names) or f"; there are {', '.join(names)}"
                raise part.error(f"submitit has no such parameter{hint}")
    time = parts.get("time")
    if time and time.value and not isinstance(time.value, str) and ":" in time.text:
        raise time.error(f'YAML reads {time.text} as the number {time.value}; write it in quotes: "{time.text}"')
    return dict(entry.value)


# The file -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GridFile:
    """A grid file as it is written.

    Attributes:
        entry: the whole file.
        title: title of the report.
        paper: name of what is repeated.
        base: configuration files of all runs.
        set: settings of all runs.
        axes: axis -> choice -> what it sets.
        runs: blocks of rows; none: the product of all axes.
        exclude: conditions on rows that are left out.
        when: what rows that match set besides, in order.
        seeds: seeds of every row.
        seeded: what a seed sets.
        measure: specification of what is measured of all runs.
        base_model: the model that the runs start from, None if it is not measured.
        report: settings of the report.
        published: tables of papers, whose figures the report shows beside those of the runs.
        slurm: submitit's parameters.
    """

    entry: Entry
    title: str | None = None
    paper: str | None = None
    base: Configs
    set: Overrides = field(default_factory=dict)
    axes: Annotated[Mapping[str, Mapping[str, Settings]], _axes]
    runs: Annotated[tuple[Entry, ...], "a list of blocks, such as `- {objective: [CE, TS2]}`"] = ()
    exclude: tuple[Entry, ...] = ()
    when: tuple[Condition, ...] = ()
    seeds: Annotated[tuple[int, ...], _seeds] = (0,)
    seeded: Annotated[Mapping[str, Argument], _seeded] = field(default_factory=usual_seeded)
    measure: Measures = field(default_factory=dict)
    base_model: Annotated[BaseModelPart | None, _base_model] = None
    report: ReportPart | None = None
    published: tuple[PublishedTable, ...] = ()
    slurm: Annotated[Mapping[str, Any] | None, _slurm] = None

    @cached_property
    def common(self) -> Settings:
        """What all runs have."""
        return Settings(self.base, self.set, self.measure)

    @cached_property
    def rows(self) -> list[LabelledRow]:
        """The rows of the report."""
        whole = self.entry.mapping()["runs" if self.runs else "axes"]
        exclude = [read_rule(entry, self.axes, "{beta: 1.0}") for entry in self.exclude]
        return rows_of(self.runs, exclude, self.axes, whole)

    @cached_property
    def conditions(self) -> list[tuple[Rule, Condition]]:
        """Conditions with the rows that they are about."""
        example = "{objective: TS2, alpha: [1, 5]}"
        return [(read_rule(condition.if_, self.axes, example), condition) for condition in self.when]

    @property
    def base_measure(self) -> Mapping[str, Any]:
        """What is measured of the base model: what of the runs, but for the cost of training."""
        if self.base_model is None:
            return {}
        own = {name: settings for name, settings in self.measure.items() if name != "cost"}
        return own if self.base_model.measure is None else self.base_model.measure

    def layers(self, labels: Labels, seed: int | None = None) -> list[Settings]:
        """What a row sets: what is common, its choices, the conditions that it meets, and a seed."""
        choices = [self.axes[axis][choice] for axis, choice in labels.items()]
        conditions = [condition for rule, condition in self.conditions if rule.matches(labels)]
        return [self.common, *choices, *conditions, *([] if seed is None else [self.with_seed(seed)])]

    def with_seed(self, seed: int) -> Settings:
        """What one seed sets."""
        seeded = ((name, value.text.replace(SEED, str(seed)), value.entry) for name, value in self.seeded.items())
        return Settings(set={name: Argument(text, entry) for name, text, entry in seeded})


def read_grid_file(file: Path) -> GridFile:
    """A grid file, checked as far as that goes without the parser of `fit`.

    Raises:
        UserError: for whatever is wrong with it, with file and line.
    """
    grid = read_part(GridFile, read_entries(file))
    rows = grid.rows
    for rule, condition in grid.conditions:
        if not (condition.config or condition.set or condition.measure):
            raise condition.entry.error("sets nothing; give it one of config, set, measure")
        if not any(rule.matches(row.labels) for row in rows):
            raise rule.entry.error("no row of the grid is meant; mend it, or remove it")
    layers = [grid.common, *(choice for axis in grid.axes.values() for choice in axis.values()), *grid.when]
    _check_settings(grid, layers)
    specifications = [*(layer.measure for layer in layers), grid.base_measure]
    names = (name for one in specifications for name, settings in one.items() if settings is not False)
    measured = [name for name in dict.fromkeys(names) if name not in NO_MEASURES]
    if grid.report is not None:
        grid.report.check(grid.axes, rows, measured, grid.seeds)
    for table in grid.published:
        table.check(grid.axes, rows, None if grid.base_model is None else grid.base_model.label)
    return grid


def _check_settings(grid: GridFile, layers: list[Settings]) -> None:
    """Makes sure that nothing that is set is undone: by what a seed sets, which comes last, or by the grid itself."""
    for settings in (*(layer.set for layer in layers), grid.seeded):
        for name in PLACES:
            if name in settings and (entry := settings[name].entry) is not None:
                raise entry.error(PLACES_REFUSED)
    last = [grid.with_seed(seed).set for seed in grid.seeds]
    for layer in layers:
        for setting, value in layer.set.items():
            name = setting.rstrip("+")
            if value.entry and name in grid.seeded and any(seeded[name].text != value.text for seeded in last):
                raise value.entry.error(
                    f"{name} is what a seed sets, which comes after this; take it out here or of seeded "
                    "(without which it is seed_everything and data.seed)"
                )

"""The parts of a grid file, checked as far as that goes without the parser of `fit`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ts2_lightning.experiments.grid.entries import Entry, read_entries
from ts2_lightning.experiments.grid.expansion import ALL, Labels, Row, Rule, read_rule, rows_of
from ts2_lightning.experiments.grid.measuring import read_measure
from ts2_lightning.experiments.grid.reported import listed, read_report
from ts2_lightning.experiments.grid.settings import KEYS, Settings, argument, read_seeded, refuse_seeded
from ts2_lightning.ranges import SEED, trouble
from ts2_lightning.suggestions import did_you_mean

_FILE = (
    "title", "paper", "base", "set", "axes", "runs", "exclude", "when", "seeds", "seeded", "measure", "base_model",
    "report", "slurm",
)  # fmt: skip
_VALUES = ("setting", "values")
_TAKEN = dict.fromkeys(("zip", "product"), "blocks of runs use it") | {"seed": "`seeds` is what it would mean"}

Axes = dict[str, dict[str, Settings]]


@dataclass(frozen=True)
class Form:
    """A grid file as it is written.

    Attributes:
        title: of the report.
        paper: what is repeated.
        common: what all runs have.
        axes: axis -> choice -> what it sets.
        rows: of the report.
        when: what rows that match set besides, in order.
        seeds: of every row.
        seeded: what a seed sets, see `settings.read_seeded`.
        base_model: place, label and measure of the model that the runs start from, None if it is not measured.
        report: settings of the report.
        slurm: submitit's parameters.
    """

    title: str
    paper: str | None
    common: Settings
    axes: Axes
    rows: list[Row]
    when: list[tuple[Rule, Settings]]
    seeds: tuple[int, ...]
    seeded: Mapping[str, str]
    base_model: tuple[Entry, str, Mapping[str, Any]] | None
    report: Mapping[str, Any]
    slurm: Mapping[str, Any] | None

    def layers(self, labels: Labels) -> list[Settings]:
        """What a row sets, but for the seed: what is common, its choices, and the conditions that it meets."""
        choices = [self.axes[axis][choice] for axis, choice in labels.items()]
        return [self.common, *choices, *(settings for rule, settings in self.when if rule.matches(labels))]


def read_form(file: Path) -> Form:
    """A grid file.

    Raises:
        UserError: for whatever is wrong with it, with file and line.
    """
    whole = read_entries(file)
    parts = whole.known(_FILE, required=("base", "axes"))
    axes = {name: _axis(name, entry) for name, entry in parts["axes"].mapping("axes with their choices").items()}
    exclude = [read_rule(entry, axes, "{beta: 1.0}") for entry in listed(parts, "exclude")]
    rows = rows_of(parts.get("runs"), exclude, axes, parts["axes"])
    when = [_condition(entry, axes, rows) for entry in listed(parts, "when")]
    common = Settings.read({"config": parts["base"], **{key: parts[key] for key in KEYS if key in parts}})
    base_model = _base_model(parts.get("base_model"), common.measure)
    choices = [settings for choices in axes.values() for settings in choices.values()]
    layers = [common, *choices, *(settings for _, settings in when)]
    seeds, seeded = _seeds(parts.get("seeds")), read_seeded(parts.get("seeded"))
    refuse_seeded(layers, seeded, seeds)
    measured = _measured(layers, base_model)
    return Form(
        parts["title"].text if "title" in parts else file.stem,
        parts["paper"].text if "paper" in parts else None,
        common,
        axes,
        rows,
        when,
        seeds,
        seeded,
        base_model,
        read_report(parts["report"], axes, rows, measured) if "report" in parts else {},
        _slurm(parts["slurm"]) if "slurm" in parts else None,
    )


def _axis(name: str, entry: Entry) -> dict[str, Settings]:
    """The choices of an axis: values of one setting, or named sets of settings."""
    if name in _TAKEN:
        raise entry.error(f"the name is taken, {_TAKEN[name]}; call the axis otherwise")
    choices = entry.mapping("choices with their settings, or `setting:` and `values:`")
    if _VALUES[0] in choices or _VALUES[1] in choices:
        found = _values(entry)
    else:
        found = {choice: Settings.read(_choice(inner)) for choice, inner in choices.items()}
    if ALL in found:
        raise entry.error(f"no choice can be called {ALL!r}, which stands for all of them")
    return found


def _choice(entry: Entry) -> dict[str, Entry]:
    """The parts of a choice; one that sets nothing, `{}`, is the grid's base as it is."""
    return {} if entry.is_empty_mapping else entry.known(KEYS)


def _values(entry: Entry) -> dict[str, Settings]:
    parts = entry.known(_VALUES, required=_VALUES)
    setting, found = parts["setting"].text, {}
    for value in parts["values"].items("a list of values"):
        text = value.text
        if text in found:
            raise value.error(f"{text} comes twice")
        found[text] = Settings(overrides={setting: argument(value)}, origins={setting: value})
    return found


def _condition(entry: Entry, axes: Axes, rows: list[Row]) -> tuple[Rule, Settings]:
    parts = entry.known(("if", *KEYS), required=("if",))
    rule = read_rule(parts.pop("if"), axes, "{objective: TS2, alpha: [1, 5]}")
    if not parts:
        raise entry.error(f"sets nothing; give it one of {', '.join(KEYS)}")
    if not any(rule.matches(row.labels) for row in rows):
        raise rule.origin.error("no row of the grid is meant; mend it, or remove it")
    return rule, Settings.read(parts)


def _seeds(entry: Entry | None) -> tuple[int, ...]:
    found: list[int] = []
    for item in [] if entry is None else entry.items("a list of whole numbers, such as [0, 1, 2]"):
        seed = item.value
        if wrong := trouble(seed, SEED):
            raise item.error(wrong)
        if seed in found:
            raise item.error(f"seed {seed} comes twice")
        found.append(seed)
    return tuple(found) or (0,)


def _base_model(entry: Entry | None, measure: Mapping[str, Any]) -> tuple[Entry, str, Mapping[str, Any]] | None:
    if entry is None or entry.value is None:
        return None
    parts = {} if entry.is_empty_mapping else entry.known(("label", "measure"))
    label = parts["label"].text if "label" in parts else "base"
    own = {name: settings for name, settings in measure.items() if name != "cost"}  # it is not trained
    return entry, label, read_measure(parts["measure"]) if "measure" in parts else own


def _measured(layers: Iterable[Settings], base_model: tuple[Entry, str, Mapping[str, Any]] | None) -> list[str]:
    """The measures that are made of any row, or of the base model."""
    specifications = [*(layer.measure for layer in layers), *([base_model[2]] if base_model else [])]
    made = (name for one in specifications for name, settings in one.items() if settings is not False)
    return [name for name in dict.fromkeys(made) if name not in ("decoding", "template")]


def _slurm(entry: Entry) -> dict[str, Any]:
    """Submitit's parameters, whose names are known where it is installed."""
    value = entry.value
    if not isinstance(value, dict):
        raise entry.error(f"expected a mapping of submitit's parameters, got {entry.kind}")
    parts = {} if entry.is_empty_mapping else entry.mapping()
    known = _parameters() if parts else []
    for name, part in parts.items():
        if known and name not in known:
            hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
            raise part.error(f"submitit has no such parameter{hint}")
    time = parts.get("time")
    if time and not isinstance(time.value, str) and ":" in time.text:
        raise time.error(f'YAML reads {time.text} as the number {time.value}; write it in quotes: "{time.text}"')
    return value


def _parameters() -> list[str]:
    """Of jobs of SLURM; none where submitit is not installed."""
    if find_spec("submitit") is None:
        return []
    from submitit import SlurmExecutor

    return sorted(SlurmExecutor._valid_parameters())

"""A grid of one line: the configuration of a fit, and the values of some of its settings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ts2_lightning.config_files import check_config, find_config, no_such_file
from ts2_lightning.evaluation.measures.cost import Cost
from ts2_lightning.evaluation.measures.validation import Validation
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.registry import registered_measures
from ts2_lightning.plugins import model_scheme
from ts2_lightning.ranges import SEED, check_number
from ts2_lightning.studies.grid.entries import Entry, entry_of
from ts2_lightning.studies.grid.identity import PLACES
from ts2_lightning.studies.grid.resolve import Grid, Read, grid_name, resolve_grid
from ts2_lightning.studies.grid.schema import (
    INTERPOLATE,
    PLACES_REFUSED,
    RESERVED,
    AxisValues,
    GridFile,
    usual_seeded,
)
from ts2_lightning.studies.grid.settings import Argument
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import compose_yaml

_EXAMPLE = "model.optimizer.lr=1e-3,5e-4"


def is_grid(file: str) -> bool | None:
    """Whether a configuration file is a grid; None if it is neither that nor the configuration of a fit.

    Raises:
        UserError: there is no such file, or it is no configuration.
    """
    root = check_config(file)
    keys = {str(key.value) for key, _ in root.value} if root is not None else set()
    if keys & {"base", "axes"}:
        return True
    return False if keys & {"model", "data", "trainer"} else None


def read_sweep(
    configs: Sequence[str],
    sweeps: Sequence[str],
    overrides: Sequence[str],
    seeds: Sequence[int],
    read: Read,
    runs_dir: str | Path = "runs",
    name: str | None = None,
) -> Grid:
    """A grid over the values of settings, in which what is usual is measured.

    Args:
        configs: configuration files of `fit`, in order.
        sweeps: `SETTING=VALUE,VALUE,...` each, an axis; several make a product.
        overrides: `SETTING=VALUE` each, of every run.
        seeds: seeds of every row.
        read: gives the whole configuration of a command line of `fit`.
        runs_dir: directory of all runs.
        name: name of the grid; by default the stem of the last file and the names of the axes.

    Raises:
        UserError: for whatever is wrong, in one line that names the option.
    """
    files = tuple(map(_config, configs))
    swept = dict(_axis(text) for text in _once("--sweep", sweeps))
    settings = {setting: _override(setting, value) for setting, value in map(_parted, _once("--set", overrides))}
    if twice := next((setting for setting in settings if setting in swept), None):
        raise UserError(f"--set {twice}: --sweep has values of it too; keep one of them")
    titles = _titles([*swept])
    axes = {titles[setting]: axis.choices() for setting, axis in swept.items()}
    whole = Entry("--sweep", 0, "", {}, None, {"axes": next(iter(swept.values())).entry})
    words = [word for file in files for word in ("-c", file)]
    words += [word for setting, value in settings.items() for word in (f"--{setting}", value.text)]
    grid = GridFile(
        entry=whole,
        title=f"{Path(files[-1]).stem} over {' and '.join(swept)}",
        base=files,
        set=settings,
        axes=axes,
        seeds=_seeds(seeds),
        measure=usual_measures(read(words)),
    )
    named = name or "-".join([grid_name(Path(files[-1])), *axes])
    resolved = resolve_grid(grid, Path(files[-1]), named, read, runs_dir)
    _refuse_twins(resolved)
    return resolved


def usual_measures(config: Mapping[str, Any]) -> dict[str, Any]:
    """The measures that are usual and apply to runs of a configuration, as far as local files tell.

    Args:
        config: resolved configuration of a fit.
    """
    path, data = str(config["model"]["lm"]["path"]), config["data"]
    model = Model(path, None, lambda: path, Path(), data=data)
    is_here = model_scheme(path) is not None or Path(path).is_dir()

    def applies(measure: Any) -> bool:
        if measure in (Validation, Cost):
            return measure is Cost or data.get("validation") is not None
        try:
            measure().check_model(model)
        except UserError:
            return False
        return True

    usual = {name: measure for name, measure in registered_measures().items() if measure.usual}
    return {name: {} for name, one in usual.items() if (is_here or one in (Validation, Cost)) and applies(one)}


def _config(name: str) -> str:
    there = find_config(name)
    if there is None:
        raise UserError(f"-c {no_such_file(name)}")
    if is_grid(there):
        raise UserError(f"--sweep: {name} is a grid, which has axes of its own; add one there, or give a file of fit")
    return there


def _parted(text: str, option: str = "--set") -> tuple[str, str]:
    setting, equals, value = text.partition("=")
    if not (setting and equals and value):
        several = "VALUE,VALUE,..." if option == "--sweep" else "VALUE"
        raise UserError(f"{option} {text}: expected SETTING={several}, such as {_EXAMPLE.partition(',')[0]}")
    return setting.removeprefix("--"), value


def _once(option: str, texts: Sequence[str]) -> Sequence[str]:
    """Texts that give each setting once."""
    names = [_parted(text, option)[0] for text in texts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        hint = "put all values into one" if option == "--sweep" else "keep one of them"
        raise UserError(f"{option} {twice}: given twice; {hint}")
    return texts


def _axis(text: str) -> tuple[str, AxisValues]:
    """A setting and the axis of its values."""
    setting, values = _parted(text, "--sweep")
    option = f"--sweep {setting}"
    _check_setting(option, setting)
    text, problem = f"[{values}]", "no list"
    try:
        node = compose_yaml(text, option)
    except yaml.YAMLError as error:
        node, problem = None, getattr(error, "problem", None) or problem
    if not isinstance(node, yaml.SequenceNode) or node.end_mark.index < len(text):  # a comment may follow
        raise UserError(f"{option}: expected values with commas between them, got {values!r} ({problem})")
    tree = entry_of(option, node, 0, "")
    entries = tuple(replace(item, name="") for item in tree.items("values, such as 1e-3,5e-4"))
    return setting, AxisValues(entry=tree, values=entries, setting=setting)


def _check_setting(option: str, setting: str) -> None:
    """Refuses what the grid would undo."""
    if setting in usual_seeded():
        raise UserError(f"{option}: is what a seed sets; give --seeds 0 1 2")
    if setting in PLACES:
        raise UserError(f"{option}: {PLACES_REFUSED}")


def _override(setting: str, value: str) -> Argument:
    _check_setting(f"--set {setting}", setting)
    return Argument(value, Entry(f"--set {setting}", 0, "", value, value))


def _titles(settings: Sequence[str]) -> dict[str, str]:
    """What each axis is called: the last part of its setting, or all of it where that is taken."""
    short = [setting.rpartition(".")[2] for setting in settings]
    taken = {*RESERVED, INTERPOLATE, *(name for name in short if short.count(name) > 1)}
    return {whole: whole if name in taken else name for whole, name in zip(settings, short, strict=True)}


def _seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    for seed in seeds:
        check_number("--seeds", seed, SEED)
        if seeds.count(seed) > 1:
            raise UserError(f"--seeds: {seed} comes twice")
    return tuple(seeds)


def _refuse_twins(grid: Grid) -> None:
    """Two values of a setting that are one, such as 1e-3 and 0.001."""
    first: dict[str, str] = {}
    for point in (point for point in grid.points if point.seed == grid.seeds[0]):
        other = first.setdefault(point.training.digest, point.title)
        if other != point.title:
            raise UserError(f"--sweep: {other} and {point.title} are the same training; keep one")

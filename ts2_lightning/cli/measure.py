"""`measure`: what is measured of trained models, each thing once, into their runs' directories."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any

from ts2_lightning.cli.errors.guard import one_line
from ts2_lightning.cli.going_on import check_own_run, names_code
from ts2_lightning.cli.model_places import ModelPlace, add_device, begin, find_model, model_help
from ts2_lightning.cli.package_configs import tell
from ts2_lightning.cli.terminal import OptionParser, put
from ts2_lightning.config_files import Taken
from ts2_lightning.evaluation import (
    Model,
    Spec,
    check_spec,
    describe,
    described_by,
    make_measures,
    registered_measures,
)
from ts2_lightning.evaluation.distributions import DECODINGS
from ts2_lightning.json_files import read_json
from ts2_lightning.runs.directory import latest_config
from ts2_lightning.shipped_configs import meant_config
from ts2_lightning.types import UserError
from ts2_lightning.values import Value
from ts2_lightning.yaml_files import load_yaml

_ABOUT = """Measures trained models, each thing once: what has been measured of the same model, with the same settings
and files, is not measured again. Values go to DIR/measures. The measures, and their settings: """


def run(argv: Sequence[str]) -> int:
    """Measures models.

    Args:
        argv: the options after the command.

    Returns:
        The exit status, 0.

    Raises:
        UserError: no such model or file, a spec that cannot be read, a measure that does not apply.
    """
    options = _parser().parse_args(argv)
    begin("measure", options.device, options.out)
    if options.out is not None and len(options.model) > 1:
        raise UserError("--out: it takes the measures of one model; leave it out, so that each run has its own")
    specs = [check_spec(read_spec(wanted)) for wanted in options.spec or ()]
    if not all(spec.measures for spec in specs):
        raise UserError(f"--spec: nothing to measure; name some of {', '.join(registered_measures())}")
    data = {} if options.config is None else data_of(Path(options.config))
    wanted: list[Spec | None] = [*specs] or [None]
    shares = [1.0 if spec is None else spec.interpolate for spec in wanted]
    places = {(name, share): find_model(name, name).between(share, name) for name in options.model for share in shares}
    measured: list[dict[str, dict[str, float]]] = [{} for _ in wanted]
    with tempfile.TemporaryDirectory(prefix="ts2-measure-") as scratch:
        for number, name in enumerate(options.model):
            put(f"== {name}")
            for share in dict.fromkeys(shares):  # one model in memory at a time
                model = _model(name, places[name, share], data, options, Path(scratch) / f"{number}-{share}")
                for of_spec, spec, its_share in zip(measured, wanted, shares, strict=True):
                    if its_share == share:
                        of_spec[name] = make_measures(model, spec or _usual(model), put)
    described = described_by({measure.name: measure for spec in specs for measure in spec.measures}.values())
    for text, of_spec in zip(options.spec or [""], measured, strict=True):
        put(f"\n{one_line(text)}" if len(measured) > 1 else "")
        put(table(of_spec, described))
    return 0


def read_spec(wanted: str) -> dict[str, Any]:
    """What is to be measured: a YAML or JSON file, or the text itself.

    Raises:
        UserError: no such file, or it cannot be read.

    Example:
        >>> read_spec("{cost: {}, validation: {limit: 10}}")
        {'cost': {}, 'validation': {'limit': 10}}
    """
    said = f"--spec {one_line(wanted)}"
    try:
        is_text = wanted.lstrip().startswith("{")
        text = wanted if is_text else Path(_spec_file(wanted)).read_text(encoding="utf-8")
        spec = load_yaml(text, said)
    except OSError as error:
        hint = "name a file, or write the spec, such as '{validation: {}}'"
        raise UserError(f"{said}: no such file ({error.strerror}); {hint}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{said}: not YAML ({one_line(str(error))})") from error
    return spec if spec is not None else {}


def _spec_file(wanted: str) -> str:
    """The user's file, or the package's of that name, which is said."""
    file = None if "\n" in wanted else meant_config(wanted)
    if file is None or Path(wanted).is_file():
        return wanted
    tell([Taken(wanted, str(file))])
    return str(file)


def _usual_names() -> list[str]:
    return [name for name, measure in registered_measures().items() if measure.usual]


def _usual(model: Model) -> Spec:
    """What is measured where nobody has said what: of the usual measures those that apply. It says which do not."""
    wanted: dict[str, Any] = {}
    for name in _usual_names():
        try:
            registered_measures()[name]().check_model(model)
            registered_measures()[name]().inputs(model)
            wanted[name] = {}
        except UserError as error:
            put(f"{name}: left out ({str(error).removeprefix(f'{name}: ')})")
    return check_spec(wanted)


def _model(name: str, place: ModelPlace, data: Mapping[str, Any], options: Any, scratch: Path) -> Model:
    out = options.out or place.run
    if out is None:
        raise UserError(f"{name}: it is not a run; say with --out where its measures go")
    return Model(
        name=name,
        identity=place.identity,
        locate=cache(partial(place.loadable, scratch)),  # once for all copies of the model
        out=Path(out),
        run=place.run,
        data=data or ({} if place.run is None else data_of_run(place.run, Path(options.runs_dir), name)),
        text_template=place.text_template,
        files=place.files,
        interpolate=place.interpolate,
        device=options.device,
    )


def data_of_run(run: Path, runs: Path, name: str) -> dict[str, Any]:
    """The settings of `data.*` that a run has recorded; a function that they name is called, so it is code."""
    file = latest_config(run)
    data = data_of(file)
    if names_code(data):
        check_own_run(run, runs, file, name, "--config")
    if data.get("max_length") is None:
        data["max_length"] = _recorded_length(run / "data.json")
    return data


def _recorded_length(file: Path) -> int | None:
    """What `data.max_length: null` was to a run; None if that is not recorded."""
    if not file.is_file():
        return None
    length = read_json(file).get("max_length")
    return length if isinstance(length, int) else None


def data_of(file: Path) -> dict[str, Any]:
    """The settings of `data.*` of a run's configuration."""
    try:
        config = load_yaml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({one_line(str(error))})") from error
    data = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, dict):
        raise UserError(f"{file}: not a run's configuration, which has its settings of data")
    return data


def table(measured: Mapping[str, Mapping[str, float]], described: Mapping[str, Value]) -> str:
    """Values in lines, models in columns: those that tables show by default, or all if there are none of them.

    Args:
        measured: values by their whole names, by model.
        described: descriptions of values of measures that are not registered.
    """
    values = [describe(name, described) for name in dict.fromkeys(name for of in measured.values() for name in of)]
    rows = [["", *measured]]
    for value in [value for value in values if value.shown] or values:
        cells = [format(of[value.name], value.format) if value.name in of else "-" for of in measured.values()]
        rows.append([value.title, *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(lines)


def _parser() -> OptionParser:
    listed = [
        f"{name} ({', '.join(f.name for f in fields(made)) or 'none'})" for name, made in registered_measures().items()
    ]
    parser = OptionParser("measure", f"{_ABOUT}{'; '.join(listed)}.")
    parser.add_argument("model", nargs="+", metavar="MODEL", help=model_help())
    parser.add_argument(
        "--spec",
        action="append",
        metavar="FILE|TEXT",
        help="measures with their settings, as `measure:` of a grid file, in YAML or JSON, such as '{diversity: {}, "
        "validation: {limit: 500}, decoding: sparsemax, interpolate: 0.7}' (default: what applies of "
        f"{', '.join(_usual_names())}); several times to measure the same in several ways, such as at several "
        f"temperatures; decodings: {', '.join(DECODINGS)}",
    )
    parser.add_argument("--out", metavar="DIR", help="measures go to DIR/measures (default: the run)")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a run's config.yaml whose data.* says the validation rows and how they are read, for a model of no run",
    )
    parser.add_argument(
        "--runs_dir",
        default="runs",
        help="the directory of your own runs (default: runs), whose configurations may name functions that read rows",
    )
    add_device(parser)
    return parser

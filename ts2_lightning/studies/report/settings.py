"""What a report shows: what the grid or the command line names, and for the rest what there is."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ts2_lightning.evaluation import described, registered_measures
from ts2_lightning.studies.report.results import Missing, Results, Settings, numeric_axes
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

_LOGGED = ("cross_entropy", "token_accuracy", "entropy", "support_size", "tail_mass")
_CURVES = ("val/cross_entropy", "train/cross_entropy", "train/entropy", "train/support_size", "train/tail_mass")
_CURVES_SHOWN = 4
_AGAINST_SHOWN = 4


def override_settings(
    results: Results,
    baseline: str | None = None,
    columns: Sequence[str] | None = None,
    planes: Sequence[tuple[str, str]] | None = None,
) -> Results:
    """The results with other settings than those of their grid.

    Args:
        results: what `collect` gives.
        baseline: label of a row.
        columns: names of values.
        planes: (x, y).

    Raises:
        UserError: there is no such row or value.
    """
    settings = results.settings
    if baseline is not None:
        labels = [row.label for row in results.trained]
        if baseline not in labels:
            raise UserError(f"--baseline {baseline}: no such row{_hint(baseline, labels, 'the rows are')}")
        settings = replace(settings, baseline=baseline)
    if columns is not None:
        settings = replace(settings, columns=_there("--columns", columns, results))
    if planes is not None:
        for plane in planes:
            _there("--planes", plane, results)
        settings = replace(settings, planes=tuple(planes))
    return replace(results, settings=settings)


def _there(option: str, names: Iterable[str], results: Results) -> tuple[str, ...]:
    for name in names:
        if name not in results.names:
            raise UserError(f"{option} {name}: no run has such a value{_hint(name, results.names, 'there are')}")
    return tuple(names)


def _hint(word: str, names: Sequence[str], else_: str) -> str:
    return did_you_mean(word, names) or f"; {else_} {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"


def complete_settings(results: Results) -> Results:
    """The same results, with settings in which nothing is left open, and nothing is that no run has: it is missing."""
    there, wanted = set(results.names), results.settings
    baseline = wanted.baseline or next((row.label for row in results.trained if row.runs), "")
    columns = tuple(name for name in wanted.columns if name in there) or tuple(_columns(results))
    planes = [plane for plane in wanted.planes if there.issuperset(plane)]
    usual = [plane for measure in registered_measures().values() for plane in measure.planes]
    planes = planes or [plane for plane in usual if there.issuperset(plane)]
    default = tuple(dict.fromkeys(name for x, y in planes for name in (y, x))) or tuple(
        name for name in columns if results.describe(name).better
    )
    against = wanted.against
    if against is None:
        against = dict.fromkeys(numeric_axes(results.axes), ())
    filled = {axis: names or default[:_AGAINST_SHOWN] for axis, names in against.items()}
    shown = Settings(baseline, columns, tuple(planes), filled, _curves(results))
    return replace(results, settings=shown, missing=tuple(dict.fromkeys((*results.missing, *_unmet(results)))))


def _columns(results: Results) -> list[str]:
    """The measured values that tables show by default, and of rows that have none of them what was logged last."""
    names = results.names
    default = [name for name, value in described().items() if value.shown and name in names]
    if all(any(results.values(row, name) for name in default) for row in results.trained if row.runs):
        return default
    logged = [name for name in names if name.startswith(("val/", "train/"))]
    of_model = [name for name in logged if name.rpartition("/")[2] in _LOGGED]
    validated = [name for name in of_model if name.startswith("val/")]
    for some in (validated, of_model, logged):  # the first of these that says something of every row
        if all(any(results.values(row, name) for name in (*default, *some)) for row in results.trained if row.runs):
            return [*default, *some]
    return [*default, *(name for name in names if name not in default)]


def _curves(results: Results) -> tuple[str, ...]:
    logged = {name for run in results.runs for name in run.curves}
    wanted = tuple(name for name in results.settings.curves if name in logged)
    return wanted or tuple(name for name in _CURVES if name in logged)[:_CURVES_SHOWN]


def _unmet(results: Results) -> tuple[Missing, ...]:
    """The values of columns and pictures that are asked for and that no run has; none where no run has any value."""
    wanted = results.settings
    values = [*wanted.columns, *(name for plane in wanted.planes for name in plane)]
    values += [name for names in (wanted.against or {}).values() for name in names]
    logged = list(dict.fromkeys(name for run in results.runs for name in run.curves))
    there = results.names
    lacking = [(name, there) for name in values if name not in there]
    lacking += [(name, logged) for name in wanted.curves if name not in logged]
    if not there:
        return ()
    return tuple(Missing(name, "", _why(name, names, results)) for name, names in dict(lacking).items())


def _why(name: str, names: list[str], results: Results) -> str:
    made = {measure for row in results.rows for run in row.runs for measure in run.settings}
    if name not in described():
        return f"not measured{did_you_mean(name, names)}"
    return "not measured, or not defined" if name.partition("/")[0] in made else "not measured"

"""What a report shows: what the grid or the command line names, and for the rest what there is."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from ts2_lightning.evaluation import described, registered_measures
from ts2_lightning.studies.grid.frontiers import BASELINE, MOST_DIALS
from ts2_lightning.studies.grid.reported import PAPER_COLUMNS
from ts2_lightning.studies.report.baselines import named_baseline
from ts2_lightning.studies.report.frontiers import why_no_frontier, why_no_target
from ts2_lightning.studies.report.results import (
    BestSettings,
    FrontierSettings,
    Missing,
    Results,
    Settings,
    number,
    numeric_axes,
)
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
    frontier: tuple[str, str] | None = None,
    dials: Sequence[str] | None = None,
    at: Sequence[str] | None = None,
    paper_columns: int | None = None,
) -> Results:
    """The results with other settings than those of their grid.

    Args:
        results: what `collect` gives.
        baseline: label of a row, or `AXIS=CHOICE,...`: the row of these choices at each row's other axes.
        columns: names of values.
        planes: (x, y).
        frontier: quality and diversity that are drawn along dials, instead of the grid's.
        dials: axes of it.
        at: qualities at which diversities are compared, of all frontiers: numbers, labels of rows, or `baseline`.
        paper_columns: columns of a paper, 1 or 2, that the pictures are as wide as.

    Raises:
        UserError: there is no such row, axis or value, or no such width.
    """
    settings = results.settings
    if paper_columns is not None:
        if paper_columns not in PAPER_COLUMNS:
            raise UserError(
                f"--paper-columns {paper_columns}: expected 1 or 2, the columns of a paper that a picture is as wide as"
            )
        settings = replace(settings, paper_columns=paper_columns)
    if baseline is not None:
        label, matched = _baseline(baseline, results)
        settings = replace(settings, baseline=label, matched=matched)
    if columns is not None:
        settings = replace(settings, columns=_there("--columns", columns, results))
    if planes is not None:
        for plane in planes:
            _there("--planes", plane, results)
        settings = replace(settings, planes=tuple(planes))
    if frontier is not None or dials is not None:
        settings = replace(settings, frontiers=(_frontier(frontier, dials, results),))
    if at is not None:
        if not settings.frontiers:
            raise UserError("--at: nothing is drawn along a dial; give --frontier QUALITY:DIVERSITY and --dials AXIS")
        targets = tuple(_target(text, results) for text in at)
        settings = replace(settings, frontiers=tuple(replace(one, at=targets) for one in settings.frontiers))
    return replace(results, settings=settings)


def _baseline(text: str, results: Results) -> tuple[str, dict[str, str]]:
    """`baseline` and `matched` of the settings."""
    labels = [row.label for row in results.trained]
    if text in labels:
        return text, {}
    if "=" not in text:
        raise UserError(f"--baseline {text}: no such row{_hint(text, labels, 'the rows are')}")
    wanted = dict(part.strip().partition("=")[::2] for part in text.split(","))
    for axis, choice in wanted.items():
        if axis not in results.axes:
            raise UserError(f"--baseline {text}: no axis {axis!r}{_hint(axis, list(results.axes), 'there are')}")
        if choice not in results.axes[axis]:
            near = _hint(choice, results.axes[axis], "there are")
            raise UserError(f"--baseline {text}: no choice of {axis} {choice!r}{near}")
    if (baseline := named_baseline(results.rows, wanted)) is None:
        raise UserError(f"--baseline {text}: no row has these choices together")
    return baseline


def _frontier(frontier: tuple[str, str] | None, dials: Sequence[str] | None, results: Results) -> FrontierSettings:
    if frontier is None or not dials:
        raise UserError("--frontier QUALITY:DIVERSITY and --dials AXIS[,AXIS] belong together; give both")
    _there("--frontier", frontier, results)
    for dial in dials:
        if dial not in results.axes:
            raise UserError(f"--dials {dial}: no axis {dial!r}{_hint(dial, list(results.axes), 'there are')}")
    if len(dials) > MOST_DIALS or len(set(dials)) < len(dials):
        raise UserError(f"--dials {','.join(dials)}: expected one axis or two different ones")
    wanted = FrontierSettings(tuple(dials), *frontier)
    if reason := why_no_frontier(results, wanted):
        raise UserError(f"--frontier {':'.join(frontier)}: {reason}")
    return wanted


def _target(text: str, results: Results) -> float | Mapping[str, str] | Literal["baseline"]:
    if text == BASELINE:
        return "baseline"
    if (quality := number(text)) is not None:
        return quality
    by_label = {row.label: row.labels for row in results.trained}
    if text not in by_label:
        near = _hint(text, list(by_label), "the rows are")
        raise UserError(f"--at {text}: neither a number nor {BASELINE} nor a row{near}")
    return by_label[text]


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
    baseline = wanted.baseline
    if not (baseline or wanted.matched):
        baseline = next((row.label for row in results.trained if row.runs), "")
    results = replace(results, settings=replace(wanted, baseline=baseline))
    frontiers, lacking = _frontiers(results)
    best, lacking_best = _best(results)
    results = replace(results, settings=replace(results.settings, frontiers=frontiers, best=best))
    columns = tuple(name for name in wanted.columns if name in there) or tuple(_columns(results))
    planes = [plane for plane in wanted.planes if there.issuperset(plane)]
    usual = [plane for measure in registered_measures().values() for plane in measure.planes]
    if not frontiers:  # of their rows, as many as there are settings, a frontier shows more
        planes = planes or [plane for plane in usual if there.issuperset(plane)]
    default = tuple(dict.fromkeys(name for x, y in planes for name in (y, x))) or tuple(
        name for name in columns if results.describe(name).better
    )
    against = wanted.against
    if against is None:
        dials = {dial for frontier in frontiers for dial in frontier.dials}
        against = {axis: () for axis in numeric_axes(results.axes) if axis not in dials}
    filled = {axis: names or default[:_AGAINST_SHOWN] for axis, names in against.items()}
    curves = _curves(results)
    shown = Settings(
        baseline, columns, tuple(planes), filled, curves, wanted.matched, frontiers, best, wanted.paper_columns
    )
    missing = (*results.missing, *_unmet(results), *lacking, *lacking_best)
    return replace(results, settings=shown, missing=tuple(dict.fromkeys(missing)))


def _frontiers(results: Results) -> tuple[tuple[FrontierSettings, ...], list[Missing]]:
    """The frontiers that can be drawn, at the qualities that there are; and why others cannot."""
    drawn, missing = [], []
    for wanted in results.settings.frontiers:
        name = f"frontier along {' and '.join(wanted.dials)}"
        if reason := why_no_frontier(results, wanted):
            missing.append(Missing(name, "", reason))
            continue
        reasons = {place: why_no_target(results, wanted, at) for place, at in enumerate(wanted.at)}
        missing += [Missing(name, "", reason) for reason in reasons.values() if reason]
        drawn.append(replace(wanted, at=tuple(at for place, at in enumerate(wanted.at) if not reasons[place])))
    return tuple(drawn), missing


def _best(results: Results) -> tuple[tuple[BestSettings, ...], list[Missing]]:
    """The best choices that can be made, with the columns that there are; and why others cannot."""
    made, missing = [], []
    for wanted in results.settings.best:
        name = f"best {wanted.axis}"
        if wanted.axis not in results.axes:
            near = _hint(wanted.axis, list(results.axes), "there are")
            missing.append(Missing(name, "", f"no axis {wanted.axis!r}{near}"))
        elif wanted.by not in results.names:
            missing.append(Missing(name, "", f"{wanted.by}: {_why(wanted.by, results.names, results)}"))
        elif results.describe(wanted.by).better is None:
            missing.append(Missing(name, "", f"{wanted.by}: neither direction is better, so that none is the best"))
        else:
            columns = tuple(column for column in wanted.columns if column in results.names)
            missing += [Missing(name, "", f"{one}: not measured") for one in wanted.columns if one not in columns]
            made.append(replace(wanted, columns=columns))
    return tuple(made), missing


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
    if results.settings.frontiers:
        return wanted
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

"""The pictures of a report: results in, figures out."""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, ScalarFormatter

from ts2_lightning.evaluation.style import (
    TWO_COLUMNS,
    colour_of,
    dash_of,
    layout,
    legend_below,
    literal,
    marker_of,
    n_said,
    new_figure,
    place_of,
    put_n,
    put_title,
    tidy,
)
from ts2_lightning.pages.colours import REST
from ts2_lightning.studies.report.results import Results, Row, by_runs, measured_along, number
from ts2_lightning.studies.report.rows import label_of, named_axes
from ts2_lightning.values import Value

# How a row is drawn, the same in every picture ------------------------------------------------------------------------


_DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)))
_WIDE = 34  # characters of a line of a legend
_BETTER = {"higher": "  (higher is better)", "lower": "  (lower is better)", None: ""}


def styles_of(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Label -> colour and marker; 72 rows are told apart by both together, and base models are grey stars."""
    styles: dict[str, dict[str, Any]] = {}
    trained = 0
    for row in rows:
        if row.is_base:
            styles[row.label] = {"color": REST, "marker": "*"}
            continue
        styles[row.label] = {"color": colour_of(trained), "marker": marker_of(trained)}
        trained += 1
    return styles


def places_of(rows: Iterable[Row]) -> dict[str, int]:
    """Label -> place of a model in the probes' pictures, `style.look`, with its colour of `styles_of`."""
    trained = [row.label for row in rows if not row.is_base]
    return {label: place_of(i) for i, label in enumerate(trained)}


def dashes(index: int) -> Any:
    """A pattern for a line that stands for a row without a place on the axis."""
    return _DASHES[index % len(_DASHES)]


def axis_label(value: Value) -> str:
    """The title of a value, and which way is better."""
    return literal(value.title) + _BETTER[value.better]


def explained(value: Value, width: int) -> str:
    """The title of a value with what it is, in lines for an axis that has room for them."""
    whole = f"{value.title}: {value.meaning}" if value.meaning else value.title
    return wrapped(whole + _BETTER[value.better], width)


def span_what_is_printed(axis: Axis, value: Value) -> None:
    """Plain numbers on an axis, which spans at least ten of the last digit that tables print: less is no difference.

    Args:
        axis: along which the value is drawn.
        value: description of the value.
    """
    decimals = re.fullmatch(r"\.(\d+)f", value.format)
    if decimals:
        low, high = axis.get_view_interval()
        lacking = 10.0 ** (1 - int(decimals[1])) - (high - low)
        if lacking > 0:
            axis.set_view_interval(low - lacking / 2, high + lacking / 2, ignore=True)
    if isinstance(formatter := axis.get_major_formatter(), ScalarFormatter):
        formatter.set_useOffset(False)


def wrapped(text: str, width: int = _WIDE) -> str:
    """A label in lines that are no longer than a legend is wide."""
    return literal("\n".join(textwrap.wrap(text, width)))


def add_legend(figure: Figure, handles: Sequence[Artist], at_side: bool = True) -> None:
    """A legend outside of the axes: beside them, or for wide figures below."""
    if at_side:
        figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
        return
    legend_below(figure, handles)


_LEGEND = 2.2  # inches that a legend beside the axes may take
_LOG_FROM = 10.0  # largest over smallest choice from which on an axis is logarithmic


@dataclass(frozen=True)
class Picture:
    """One picture of the report.

    Attributes:
        stem: name of its files without the ending.
        figure: what is drawn.
        caption: what one sees, in a sentence or two.
    """

    stem: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class _Point:
    """A row's mean in one or two directions; standard deviations, nan or 0 where there is none; number of seeds."""

    row: Row
    x: float
    y: float
    x_sd: float = 0.0
    y_sd: float = 0.0
    n: int = 0


# Quality against diversity --------------------------------------------------------------------------------------


def plane(results: Results, x: str, y: str) -> Figure | None:
    """Quality against diversity: a point per row, with bars where there are several seeds. None for fewer than two."""
    points = [_point(results, row, x, y) for row in results.rows]
    points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if len(points) < 2:
        return None
    styles = styles_of(results.rows)
    figure = new_figure(TWO_COLUMNS, 4.9)
    axes = figure.subplots()
    for rows in _dials(results):
        dialled = {point.row.label: point for point in points}
        there = [dialled[row.label] for row in rows if row.label in dialled]
        axes.plot([p.x for p in there], [p.y for p in there], color="0.75", linewidth=1.0, zorder=1)
    for point in points:
        look = styles[point.row.label]
        size = 12 if point.row.is_base else 8
        axes.errorbar(
            point.x, point.y, _bar(point.y_sd), _bar(point.x_sd), linestyle="", markersize=size, elinewidth=1.0,
            capsize=2, zorder=3, **look, **_translucent(look),
        )  # fmt: skip
        of_seeds = _seeds(results, point.row, x, y)
        axes.plot(*of_seeds, ".", color=look["color"], markersize=3.5, alpha=0.8, zorder=2)
    tidy(axes, grid="both")
    axes.margins(0.12)
    across, up = results.describe(x), results.describe(y)
    span_what_is_printed(axes.xaxis, across)
    span_what_is_printed(axes.yaxis, up)
    axes.set_xlabel(explained(across, 70), fontsize=9)
    axes.set_ylabel(explained(up, 56), fontsize=9)
    put_title(figure, f"{results.title}: {up.title} against {across.title}", beside=_LEGEND)
    add_legend(figure, [_key(point.row, styles) for point in points])
    put_n(axes, n_said(point.n for point in points if not point.row.is_base))
    return figure


def _point(results: Results, row: Row, x: str, y: str) -> _Point:
    across, up = results.summary(row, x), results.summary(row, y)
    return _Point(row, across.mean, up.mean, across.sd, up.sd, up.n)


def _seeds(results: Results, row: Row, x: str, y: str) -> tuple[list[float], list[float]]:
    """The values of each seed that has both, where there are several."""
    across, up = results.values(row, x), results.values(row, y)
    both = [seed for seed in across if seed in up] if len(across) > 1 else []
    return [across[seed] for seed in both], [up[seed] for seed in both]


def _bar(sd: float) -> float | None:
    return sd if math.isfinite(sd) and sd > 0 else None


def _dials(results: Results) -> list[list[Row]]:
    """Rows that differ in one number alone, in its order."""
    dials = []
    for axis in results.settings.against or ():
        dials += [[row for _, row in line] for line in lines_along(results, axis).values() if len(line) > 1]
    return dials


def lines_along(results: Results, axis: str) -> dict[str, list[tuple[float, Row]]]:
    """The rows that have an axis, by the values of their other axes: label -> (number, row), by the number."""
    lines: dict[str, list[tuple[float, Row]]] = {}
    named = named_axes(results.axes)
    for row in results.trained:
        at = number(row.labels.get(axis, ""))
        if at is not None:
            others = {other: choice for other, choice in row.labels.items() if other != axis}
            lines.setdefault(label_of(others, named), []).append((at, row))
    return {label: sorted(line, key=lambda entry: entry[0]) for label, line in lines.items()}


def _key(row: Row, styles: Mapping[str, Mapping[str, Any]]) -> Line2D:
    """A row's entry of a legend."""
    look = styles[row.label]
    return Line2D([], [], linestyle="", markersize=7, label=wrapped(row.label), **look, **_translucent(look))


def _translucent(look: Mapping[str, Any]) -> dict[str, Any]:
    """Style of a marker that does not hide another one below it."""
    return {"markerfacecolor": to_rgba(look["color"], 0.3), "markeredgecolor": look["color"], "markeredgewidth": 1.2}


# Metric against hyper-parameter ---------------------------------------------------------------------------------


def against(results: Results, axis: str, names: Sequence[str]) -> Figure | None:
    """Values against a number: a line for each choice of the other axes; rows without the number are dashed lines.

    None if there is no line of at least two points.
    """
    lines = lines_along(results, axis)
    shown = [name for name in names if any(len(_drawn(results, line, name)) > 1 for line in lines.values())]
    if not shown:
        return None
    styles = styles_of(results.rows)
    references = [row for row in results.rows if number(row.labels.get(axis, "")) is None]
    rows, columns = layout(len(shown), at_most=2)
    figure = new_figure(min(1.0 + 3.6 * columns, TWO_COLUMNS), 1.5 + 2.6 * rows + 0.12 * (len(lines) + len(references)))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    handles: dict[str, Any] = {}
    for axes, name in zip(panels, shown, strict=False):
        for i, row in enumerate(references):
            mean = results.summary(row, name).mean
            if math.isfinite(mean):
                called = f"{row.label}, without {axis}" if row.label in lines else row.label
                style = {"color": styles[row.label]["color"], "linestyle": dashes(i), "linewidth": 1.3}
                handles[called] = axes.axhline(mean, **style, label=wrapped(called))
        for label, line in lines.items():
            points = _drawn(results, line, name)
            if points:
                called = label or axis
                handles[called] = _draw_line(axes, points, styles[line[0][1].label], called)
        put_n(axes, n_said(point.n for line in lines.values() for point in _drawn(results, line, name)))
        _scale(axes, results, axis)
        tidy(axes, grid="both")
        span_what_is_printed(axes.yaxis, results.describe(name))
        axes.set_ylabel(axis_label(results.describe(name)), fontsize=9)
        axes.set_xlabel(literal(axis), fontsize=9)
        axes.tick_params(labelbottom=True)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    put_title(figure, f"{results.title}: what {axis} does", beside=0 if columns > 1 else _LEGEND)
    add_legend(figure, list(handles.values()), at_side=columns == 1)
    return figure


def _drawn(results: Results, line: Sequence[tuple[float, Row]], name: str) -> list[_Point]:
    """The points of a line that have the value."""
    summaries = [(row, at, results.summary(row, name)) for at, row in line]
    points = [_Point(row, at, summary.mean, y_sd=summary.sd, n=summary.n) for row, at, summary in summaries]
    return [point for point in points if math.isfinite(point.y)]


def _draw_line(axes: Axes, points: Sequence[_Point], look: Mapping[str, Any], label: str) -> Any:
    bars = [_bar(point.y_sd) or 0.0 for point in points]
    return axes.errorbar(
        [point.x for point in points], [point.y for point in points], bars if any(bars) else None, **look,
        markersize=5, linewidth=1.4, elinewidth=1.0, capsize=2, label=wrapped(label),
    )  # fmt: skip


def _scale(axes: Axes, results: Results, axis: str) -> None:
    """Ticks at the choices; logarithmic where they range far."""
    used = {row.labels[axis] for row in results.trained if axis in row.labels}
    ticks = {choice: value for choice in results.axes[axis] if choice in used and (value := number(choice)) is not None}
    values = list(ticks.values())
    if min(values) > 0 and max(values) / min(values) >= _LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(values, [literal(choice) for choice in ticks])


# Learning curves ------------------------------------------------------------------------------------------------------


POINTS = 60
"""Points of a drawn curve, at most: of more steps the means over as many neighbours as it takes are drawn."""

_TICKS = 6  # steps of a panel, at most, that all have a tick

_NAMES = {
    "objective": "objective (nats)",
    "cross_entropy": "cross-entropy (nats)",
    "entropy": "entropy (nats)",
    "perplexity": "perplexity",
    "token_accuracy": "share of tokens got right",
    "gold_probability": "probability of the gold token",
    "gold_rank": "rank of the gold token",
    "gold_in_support": "share of gold tokens in the support",
    "support_size": "sparsemax support (tokens)",
    "tail_mass": "mass outside the support",
    "zero_gradient": "share of tokens without gradient",
    "gradient_norm": "gradient norm",
    "learning_rate": "learning rate",
    "top1": "probability of the 1st token",
    "top2": "probability of the 2nd token",
    "top3": "probability of the 3rd token",
    "peak_memory_gb": "peak memory (GB)",
    "supervised_tokens_per_second": "supervised tokens per second",
    "tokens_per_second": "tokens per second",
    "kl": "KL(base, model) (nats)",
}
"""What an axis says of a logged name, by its last part."""


def curves(results: Results, names: Sequence[str]) -> Figure | None:
    """A panel for each logged name, a line for each row. None if nothing was logged under them."""
    panels = {name: by_step_of(results, name) for name in names}
    panels = {name: rows for name, rows in panels.items() if rows}
    if not panels:
        return None
    styles = styles_of(results.rows)
    drawn = list(dict.fromkeys(label for rows in panels.values() for label in rows))
    rows, columns = layout(len(panels), at_most=2)
    figure = new_figure(min(1.0 + 3.8 * columns, TWO_COLUMNS), 1.0 + 2.5 * rows + 0.12 * len(drawn))
    every = figure.subplots(rows, columns, squeeze=False).flatten()
    last = max((int(steps.index.max()) for of in panels.values() for steps in of.values() if len(steps)), default=1)
    for axes, (name, of_rows) in zip(every, panels.items(), strict=False):
        for label, by_step in of_rows.items():
            _draw_curve(axes, by_step, styles[label]["color"], _dash(results, label))
        axes.set_title(wrapped(_title(name, of_rows.values()), 44 if columns == 1 else 36), fontsize=9, loc="left")
        axes.set_ylabel(_NAMES.get(name.rpartition("/")[2], literal(name)), fontsize=9)
        axes.set_xlabel("optimizer steps", fontsize=9)
        tidy(axes, grid="both")
        _span_training(axes, of_rows.values(), last)
        put_n(axes, n_said(steps.shape[1] for steps in of_rows.values()))
    for axes in every[len(panels) :]:
        axes.set_visible(False)
    put_title(figure, f"{results.title}: learning curves", beside=0 if columns > 1 else _LEGEND)
    called = {same[0].label: _training_label(same, named_axes(results.axes)) for same in by_runs(results.trained)}
    handles = [
        Line2D([], [], color=styles[label]["color"], linestyle=_dash(results, label), label=wrapped(called[label]))
        for label in drawn
    ]
    add_legend(figure, handles, at_side=columns == 1)
    return figure


def _span_training(axes: Axes, of_rows: Iterable[pd.DataFrame], last: int) -> None:
    """All panels span the whole training, so that what is logged rarely stands where it belongs; with ticks there."""
    axes.set_xlim(-0.02 * last, 1.02 * last)
    steps = sorted({int(step) for by_step in of_rows for step in by_step.index})
    if len(steps) <= _TICKS:
        axes.set_xticks([0, *steps])


def by_step_of(results: Results, name: str) -> dict[str, pd.DataFrame]:
    """Label -> steps by runs, at which all of its runs have a finite value; of rows that share trainings, the first."""
    table = results.curves(name)
    firsts = [same[0].label for same in by_runs(results.trained)]
    groups = table[table["row"].isin(firsts)].groupby("row", sort=False)
    wide = {str(label): group.pivot(index="step", columns="run", values="value") for label, group in groups}
    return {label: steps[np.isfinite(steps).all(axis=1)] for label, steps in wide.items()}


def _dash(results: Results, label: str) -> Any:
    """The pattern of a row's line: a colour alone is not told apart by everybody."""
    return dash_of([row.label for row in results.trained].index(label))


def _title(name: str, of_rows: Iterable[pd.DataFrame]) -> str:
    width = max(_width(len(by_step)) for by_step in of_rows)
    return name if width <= 1 else f"{name}, means over up to {width} logged steps"


def _width(steps: int) -> int:
    return -(-steps // POINTS)


def thinned(values: Sequence[float], width: int) -> list[float]:
    """Means over neighbours, at most `width` at a time and about as many each: a lone last one would stand out.

    Example:
        >>> thinned([1, 2, 3, 4, 9], 2)
        [1.5, 3.5, 9.0]
        >>> thinned(range(9), 4)
        [1.0, 4.0, 7.0]
    """
    return [float(part.mean()) for part in np.array_split(values, -(-len(values) // width))]


def _training_label(rows: Sequence[Row], named: Sequence[str]) -> str:
    """What a training is called that several rows are measured of: without the axis in which these differ."""
    along = measured_along(rows)
    if along is None:
        return " = ".join(row.label for row in rows)
    return label_of({axis: choice for axis, choice in rows[0].labels.items() if axis != along[0]}, named)


def _draw_curve(axes: Axes, by_step: pd.DataFrame, colour: str, dash: Any) -> None:
    """Mean and band of one row."""
    if by_step.empty:
        return
    width = _width(len(by_step))
    x = thinned(by_step.index.to_numpy(), width)
    values = np.array([thinned(by_step[run].to_numpy(), width) for run in by_step])
    mean = values.mean(0)
    marker = "o" if len(x) <= 10 else None
    axes.plot(x, mean, color=colour, linestyle=dash, linewidth=1.3, marker=marker, markersize=3.5)
    if len(values) > 1:
        spread = values.std(0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)

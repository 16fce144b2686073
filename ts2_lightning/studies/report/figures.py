"""The pictures of a report: results in, figures out."""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, ScalarFormatter

from ts2_lightning.evaluation.style import (
    PAPER_WIDTHS,
    PaperWidth,
    colour_of,
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
from ts2_lightning.studies.report.results import Results, Row, number
from ts2_lightning.studies.report.rows import label_of, named_axes
from ts2_lightning.values import Value

# How a row is drawn, the same in every picture ------------------------------------------------------------------------


_DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)))
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
    return value.title + _BETTER[value.better]


def explained(value: Value, width: int) -> str:
    """The title of a value with what it is, in lines for an axis that has room for them."""
    whole = f"{value.title}: {value.meaning}" if value.meaning else value.title
    better = _BETTER[value.better]
    *lines, last = textwrap.wrap(whole, width)
    ends = [last + better] if len(last + better) <= width else [last, better.strip()]
    return literal("\n".join([*lines, *ends]))


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


def wrapped(text: str, letters: int) -> str:
    """A label in lines of so many letters at most."""
    return literal("\n".join(textwrap.wrap(text, letters)))


def paper_width(results: Results) -> PaperWidth:
    """The width of the pictures of a report."""
    return PAPER_WIDTHS[results.settings.paper_columns]


def add_legend(figure: Figure, handles: Sequence[Artist], width: PaperWidth, at_side: bool, **style: Any) -> None:
    """A legend outside of the axes: beside them, or below. The figure becomes as high as it takes.

    Args:
        figure: Figure.
        handles: Entries.
        width: Width of the figure.
        at_side: Whether there is room beside the axes.
        style: Further arguments of matplotlib's legend.
    """
    if at_side:
        style |= {"loc": "outside right upper", "fontsize": width.points, "frameon": False}
        least = figure.legend(handles=handles, **style).get_window_extent().height / figure.dpi + 0.2
        figure.set_figheight(max(figure.get_figheight(), least))
        return
    below = legend_below(figure, handles, width.points, **style).get_window_extent().height / figure.dpi
    figure.set_figheight(figure.get_figheight() + below)


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
    width = paper_width(results)
    figure = new_figure(width.inches, 4.9 if width.legend else 3.0)
    axes = figure.subplots()
    for rows in rows_along_numbers(results):
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
    axes.set_xlabel(explained(across, width.axis_letters), fontsize=9)
    axes.set_ylabel(explained(up, width.height_letters), fontsize=9)
    put_title(figure, f"{results.title}: {up.title} against {across.title}", beside=width.legend)
    add_legend(figure, [_key(point.row, styles, width.letters) for point in points], width, at_side=width.legend > 0)
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


def rows_along_numbers(results: Results) -> list[list[Row]]:
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


def _key(row: Row, styles: Mapping[str, Mapping[str, Any]], letters: int) -> Line2D:
    """A row's entry of a legend."""
    look = styles[row.label]
    return Line2D([], [], linestyle="", markersize=7, label=wrapped(row.label, letters), **look, **_translucent(look))


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
    width = paper_width(results)
    rows, columns = layout(len(shown), at_most=width.abreast)
    figure = new_figure(min(1.0 + 3.6 * columns, width.inches), 1.0 + width.panel * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    handles: dict[str, Any] = {}
    for axes, name in zip(panels, shown, strict=False):
        for i, row in enumerate(references):
            mean = results.summary(row, name).mean
            if math.isfinite(mean):
                called = f"{row.label}, without {axis}" if row.label in lines else row.label
                style = {"color": styles[row.label]["color"], "linestyle": dashes(i), "linewidth": 1.3}
                handles[called] = axes.axhline(mean, **style, label=wrapped(called, width.letters))
        for label, line in lines.items():
            points = _drawn(results, line, name)
            if points:
                called = label or axis
                handles[called] = _draw_line(axes, points, styles[line[0][1].label], wrapped(called, width.letters))
        put_n(axes, n_said(point.n for line in lines.values() for point in _drawn(results, line, name)))
        _scale(axes, results, axis)
        tidy(axes, grid="both")
        span_what_is_printed(axes.yaxis, results.describe(name))
        axes.set_ylabel(wrapped(axis_label(results.describe(name)), width.beside_panel), fontsize=9)
        axes.set_xlabel(literal(axis), fontsize=9)
        axes.tick_params(labelbottom=True)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    at_side = columns < width.abreast
    put_title(figure, f"{results.title}: what {axis} does", beside=width.legend if at_side else 0)
    add_legend(figure, list(handles.values()), width, at_side)
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
        markersize=5, linewidth=1.4, elinewidth=1.0, capsize=2, label=label,
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

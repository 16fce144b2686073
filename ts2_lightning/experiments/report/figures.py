"""The pictures of a report: results in, figures out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from ts2_lightning.evaluation.registry import describe
from ts2_lightning.evaluation.style import layout, literal, new_figure, tidy
from ts2_lightning.experiments.report.grouping import label_of, named_axes
from ts2_lightning.experiments.report.looks import (
    add_legend,
    axis_label,
    dashes,
    explained,
    looks_of,
    span_what_is_printed,
    wrapped,
)
from ts2_lightning.experiments.report.results import Results, Row, number

_LOG_FROM = 10.0  # largest over smallest choice from which on an axis is logarithmic


@dataclass(frozen=True)
class Picture:
    """One picture of the report.

    Attributes:
        stem: of its files.
        figure: what is drawn.
        caption: what one sees, in a sentence or two.
    """

    stem: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class _Point:
    """A row's mean in one or two directions, and the standard deviations; nan or 0 where there is none."""

    row: Row
    x: float
    y: float
    x_sd: float = 0.0
    y_sd: float = 0.0


# Quality against diversity --------------------------------------------------------------------------------------


def plane(results: Results, x: str, y: str) -> Figure | None:
    """Quality against diversity: a point per row, with bars where there are several seeds. None for fewer than two."""
    points = [_point(row, x, y) for row in results.rows]
    points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if len(points) < 2:
        return None
    looks = looks_of(results.rows)
    figure = new_figure(8.2, 4.9)
    axes = figure.subplots()
    for rows in _dials(results):
        dialled = {point.row.label: point for point in points}
        there = [dialled[row.label] for row in rows if row.label in dialled]
        axes.plot([p.x for p in there], [p.y for p in there], color="0.75", linewidth=1.0, zorder=1)
    for point in points:
        look = looks[point.row.label]
        size = 12 if point.row.is_base else 8
        axes.errorbar(
            point.x, point.y, _bar(point.y_sd), _bar(point.x_sd), linestyle="", markersize=size, elinewidth=1.0,
            capsize=2, zorder=3, **look, **_translucent(look),
        )  # fmt: skip
        of_seeds = _seeds(point.row, x, y)
        axes.plot(*of_seeds, ".", color=look["color"], markersize=3.5, alpha=0.8, zorder=2)
    tidy(axes, grid="both")
    axes.margins(0.12)
    span_what_is_printed(axes.xaxis, x)
    span_what_is_printed(axes.yaxis, y)
    axes.set_xlabel(explained(x, 90), fontsize=9)
    axes.set_ylabel(explained(y, 56), fontsize=9)
    figure.suptitle(wrapped(f"{results.title}: {describe(y).title} against {describe(x).title}", 70), fontsize=10)
    add_legend(figure, [_key(point.row, looks) for point in points])
    return figure


def _point(row: Row, x: str, y: str) -> _Point:
    across, up = row.summary(x), row.summary(y)
    return _Point(row, across.mean, up.mean, across.sd, up.sd)


def _seeds(row: Row, x: str, y: str) -> tuple[list[float], list[float]]:
    """The values of each seed that has both, where there are several."""
    across, up = row.values(x), row.values(y)
    both = [seed for seed in across if seed in up] if len(across) > 1 else []
    return [across[seed] for seed in both], [up[seed] for seed in both]


def _bar(sd: float) -> float | None:
    return sd if math.isfinite(sd) and sd > 0 else None


def _dials(results: Results) -> list[list[Row]]:
    """Rows that differ in one number alone, in its order."""
    found = []
    for axis in results.settings.against or ():
        found += [[row for _, row in line] for line in _lines(results, axis).values() if len(line) > 1]
    return found


def _lines(results: Results, axis: str) -> dict[str, list[tuple[float, Row]]]:
    """The rows that have an axis, by the values of their other axes: label -> (number, row), by the number."""
    lines: dict[str, list[tuple[float, Row]]] = {}
    named = named_axes(results.axes)
    for row in results.trained:
        at = number(row.labels.get(axis, ""))
        if at is not None:
            others = {other: choice for other, choice in row.labels.items() if other != axis}
            lines.setdefault(label_of(others, named), []).append((at, row))
    return {label: sorted(line, key=lambda entry: entry[0]) for label, line in lines.items()}


def _key(row: Row, looks: Mapping[str, Mapping[str, Any]]) -> Line2D:
    """A row's entry of a legend."""
    look = looks[row.label]
    return Line2D([], [], linestyle="", markersize=7, label=wrapped(row.label), **look, **_translucent(look))


def _translucent(look: Mapping[str, Any]) -> dict[str, Any]:
    """Of a marker: so that one that lies on another does not hide it."""
    return {"markerfacecolor": to_rgba(look["color"], 0.3), "markeredgecolor": look["color"], "markeredgewidth": 1.2}


# Metric against hyper-parameter ---------------------------------------------------------------------------------


def against(results: Results, axis: str, names: Sequence[str]) -> Figure | None:
    """Values against a number: a line for each choice of the other axes; rows without the number are dashed lines.

    None if there is no line of at least two points.
    """
    lines = _lines(results, axis)
    shown = [name for name in names if any(len(_drawn(line, name)) > 1 for line in lines.values())]
    if not shown:
        return None
    looks = looks_of(results.rows)
    references = [row for row in results.rows if number(row.labels.get(axis, "")) is None]
    rows, columns = layout(len(shown), at_most=2)
    figure = new_figure(1.0 + 3.6 * columns, 1.5 + 2.6 * rows + 0.12 * (len(lines) + len(references)))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    handles: dict[str, Any] = {}
    for axes, name in zip(panels, shown, strict=False):
        for i, row in enumerate(references):
            mean = row.summary(name).mean
            if math.isfinite(mean):
                called = f"{row.label}, without {axis}" if row.label in lines else row.label
                style = {"color": looks[row.label]["color"], "linestyle": dashes(i), "linewidth": 1.3}
                handles[called] = axes.axhline(mean, **style, label=wrapped(called))
        for label, line in lines.items():
            points = _drawn(line, name)
            if points:
                called = label or axis
                handles[called] = _draw_line(axes, points, looks[line[0][1].label], called)
        _scale(axes, results, axis)
        tidy(axes, grid="both")
        span_what_is_printed(axes.yaxis, name)
        axes.set_ylabel(axis_label(name), fontsize=9)
        axes.set_xlabel(literal(axis), fontsize=9)
        axes.tick_params(labelbottom=True)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    figure.suptitle(wrapped(f"{results.title}: what {axis} does", 60 if columns > 1 else 36), fontsize=10)
    add_legend(figure, list(handles.values()), at_side=columns == 1)
    return figure


def _drawn(line: Sequence[tuple[float, Row]], name: str) -> list[_Point]:
    """The points of a line that have the value."""
    points = [_Point(row, at, row.summary(name).mean, y_sd=row.summary(name).sd) for at, row in line]
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

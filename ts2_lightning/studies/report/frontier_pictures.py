"""Pictures of frontiers: quality against diversity along dials, a colour for each curve."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from ts2_lightning.evaluation.style import literal, new_figure, tidy
from ts2_lightning.pages.colours import MODELS, REST
from ts2_lightning.studies.report.figures import Picture, explained, span_what_is_printed, wrapped
from ts2_lightning.studies.report.frontier_tables import frontier_title
from ts2_lightning.studies.report.frontiers import Cloud, Frontier, Place, frontiers_of
from ts2_lightning.studies.report.results import Results
from ts2_lightning.studies.report.statistics import Summary

FRONTIER = "frontier-"
"""Beginning of the names of the pictures' files."""

_MARKERS = "osD^vP<X"
_SIGNS = "●■◆▲▼✚◀✖"
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_FONT = 7.0
_DIRECTIONS = [(math.cos(turn), math.sin(turn)) for turn in (math.pi * eighth / 4 for eighth in range(8))]


def frontier_pictures(results: Results) -> list[Picture]:
    """A picture for each frontier."""
    drawn = []
    for place, frontier in enumerate(frontiers_of(results)):
        drawn.append(Picture(f"{FRONTIER}{place + 1}", _figure(results, frontier), caption(results, frontier)))
    return drawn


def caption(results: Results, frontier: Frontier) -> str:
    """What one sees."""
    dials = frontier.settings.dials
    quality, diversity = (results.describe(name).title for name in _names(frontier))
    seeds = _most_seeds(frontier)
    spread = f"bars: standard deviation over up to {seeds} seeds" if seeds > 1 else "one seed"
    if len(dials) > 1:
        what = (
            f"Thick lines: the Pareto front of all settings of {dials[0]} and {dials[1]}, its ends with their settings "
            f"in this order ({spread}); thin lines: the settings, along {dials[1]}."
        )
    else:
        what = f"Lines: along {dials[0]}, means with its setting at the ends ({spread})."
    order = _marked_choices(frontier)
    signs = ", ".join(f"{sign} {choice}" for sign, choice in zip(_SIGNS, order, strict=False))
    markers = f" Markers: {dials[0]} {signs}." if 1 < len(order) <= len(_SIGNS) else ""
    lines = " Dashed across: the quality at which diversities are compared." if _levels(frontier) else ""
    return f"Quality ({quality}) against diversity ({diversity}). {what}{markers}{lines}"


def _names(frontier: Frontier) -> tuple[str, str]:
    return frontier.settings.quality, frontier.settings.diversity


def _most_seeds(frontier: Frontier) -> int:
    return max((place.quality.n for cloud in frontier.clouds for place in cloud.places), default=0)


def _marked_choices(frontier: Frontier) -> tuple[str, ...]:
    """The choices of the first dial, which the markers stand for."""
    first = frontier.settings.dials[0]
    orders = [dict(zip(cloud.dials, cloud.orders, strict=True)).get(first, ()) for cloud in frontier.clouds]
    used = {dict(zip(c.dials, p.setting, strict=True)).get(first) for c in frontier.clouds for p in c.places}
    return tuple(choice for choice in max(orders, key=len, default=()) if choice in used)


def _levels(frontier: Frontier) -> list[float]:
    """Qualities that were named as numbers."""
    return [at for at in frontier.settings.at if isinstance(at, float)]


def _figure(results: Results, frontier: Frontier) -> Figure:
    figure = new_figure(8.2, 4.9)
    axes = figure.subplots()
    order = _marked_choices(frontier)
    lines: list[tuple[list[Place], str]] = []
    handles = []
    for index, cloud in enumerate(frontier.clouds):
        if not cloud.defined:
            continue
        colour, dash = MODELS[1 + index % (len(MODELS) - 1)], _DASHES[index // (len(MODELS) - 1) % len(_DASHES)]
        shown = _draw_cloud(axes, cloud, frontier, order, colour, dash)
        lines.append((shown, colour))
        handles.append(Line2D([], [], color=colour, linestyle=dash, linewidth=2.0, label=wrapped(cloud.label)))
    for level in _levels(frontier):
        axes.axhline(level, color="0.6", linestyle=(0, (3, 2)), linewidth=0.8, zorder=0)
    _draw_base(axes, results, frontier)
    tidy(axes, grid="both")
    axes.margins(0.1)
    quality, diversity = (results.describe(name) for name in _names(frontier))
    span_what_is_printed(axes.xaxis, diversity)
    span_what_is_printed(axes.yaxis, quality)
    axes.set_xlabel(explained(diversity, 90), fontsize=9)
    axes.set_ylabel(explained(quality, 56), fontsize=9)
    figure.suptitle(wrapped(f"{results.title}: {frontier_title(results, frontier)}", 70), fontsize=10)
    seeds = _most_seeds(frontier)
    said = f"n = {seeds} seed{'' if seeds == 1 else 's'}"
    legend = figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False, title=said)
    legend.get_title().set_fontsize(8)
    _name_ends(figure, axes, lines)
    return figure


def _draw_cloud(
    axes: Axes, cloud: Cloud, frontier: Frontier, order: Sequence[str], colour: str, dash: Any
) -> list[Place]:
    """Draws a curve, or the front of a cloud with its settings behind it; the places on the line that was drawn."""
    first = frontier.settings.dials[0]
    if len(cloud.dials) < 2:
        shown = cloud.defined
    else:
        shown = sorted((place for place in cloud.defined if place.on_front), key=lambda place: place.diversity.mean)
        by_setting = {place.setting: place for place in cloud.defined}
        for line in cloud.lines:
            there = [by_setting[setting] for setting in line if setting in by_setting]
            if len({setting[0] for setting in line}) == 1:  # along the last dial
                axes.plot(*_means(there), color=colour, linewidth=0.7, alpha=0.3, zorder=1)
        for place in cloud.defined:
            marker = _marker(cloud, place, first, order)
            axes.plot(*_means([place]), marker=marker, color=colour, markersize=3.5, alpha=0.35, zorder=1)
    axes.plot(*_means(shown), color=colour, linestyle=dash, linewidth=1.6, zorder=3)
    for place in shown:
        axes.errorbar(
            *_means([place]), _bar(place.quality), _bar(place.diversity), color=colour, elinewidth=0.9, capsize=1.5,
            marker=_marker(cloud, place, first, order), markersize=5.5, zorder=4,
        )  # fmt: skip
    return shown


def _means(places: Sequence[Place]) -> tuple[list[float], list[float]]:
    return [place.diversity.mean for place in places], [place.quality.mean for place in places]


def _bar(summary: Summary) -> float | None:
    return summary.sd if math.isfinite(summary.sd) and summary.sd > 0 else None


def _marker(cloud: Cloud, place: Place, first: str, order: Sequence[str]) -> str:
    """The marker of a setting: that of its choice of the first dial."""
    choice = dict(zip(cloud.dials, place.setting, strict=True)).get(first)
    return _MARKERS[order.index(choice) % len(_MARKERS)] if choice in order else "*"


def _draw_base(axes: Axes, results: Results, frontier: Frontier) -> None:
    """The model before training, with its name beside it: it is on no curve."""
    quality, diversity = _names(frontier)
    for row in results.rows:
        up, across = results.summary(row, quality).mean, results.summary(row, diversity).mean
        if row.is_base and math.isfinite(up) and math.isfinite(across):
            axes.plot([across], [up], marker="*", color=REST, markersize=11, linestyle="", zorder=4)
            axes.annotate(
                literal(row.label), (across, up), (7, 5), textcoords="offset points", fontsize=_FONT + 1, color="0.4"
            )


# Names of settings at the ends of curves ------------------------------------------------------------------------------


def _name_ends(figure: Figure, axes: Axes, lines: Sequence[tuple[Sequence[Place], str]]) -> None:
    """Writes the settings of the ends beside them, where they cover as little as possible.

    Args:
        figure: figure, with all that is drawn but these names.
        axes: its axes.
        lines: places of each line in their order, and its colour.
    """
    figure.canvas.draw()  # so that the axes have their place
    scale = figure.dpi / 72
    marks = axes.transData.transform([point for places, _ in lines for point in _covered(places)]) / scale
    frame = axes.get_window_extent()
    inside = np.array([[frame.x0, frame.y0], [frame.x1, frame.y1]]) / scale
    taken: list[np.ndarray] = []
    for places, colour in lines:
        for place in places if len(places) < 2 else (places[0], places[-1]):
            text = literal(", ".join(place.setting))
            if not text:
                continue
            at = (place.diversity.mean, place.quality.mean)
            anchor = axes.transData.transform(at) / scale
            box, offset = _free_place(anchor, len(text) * _FONT * 0.56, _FONT * 1.1, marks, taken, inside)
            taken.append(box)
            said = axes.annotate(
                text, at, tuple(offset), textcoords="offset points", ha="center", va="center", fontsize=_FONT,
                color=colour, zorder=5, path_effects=[withStroke(linewidth=1.5, foreground="white")],
            )  # fmt: skip
            said.set_in_layout(False)


def _covered(places: Sequence[Place]) -> list[tuple[float, float]]:
    """Points all along a line and its bars."""
    points = np.array([[place.diversity.mean, place.quality.mean] for place in places])
    bars = np.array([[_bar(place.diversity) or 0.0, _bar(place.quality) or 0.0] for place in places])
    along = [points[:-1] + share * (points[1:] - points[:-1]) for share in np.linspace(0, 1, 12)]
    signs = [np.array(sign) for sign in ((1, 0), (0.5, 0), (-1, 0), (-0.5, 0), (0, 1), (0, -1))]
    every = np.concatenate([points, *along, *(points + bars * sign for sign in signs)])
    return [(float(x), float(y)) for x, y in every]


def _free_place(
    anchor: np.ndarray, width: float, height: float, marks: np.ndarray, taken: Sequence[np.ndarray], inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The box of a name beside a point, of all directions and a few distances the one that covers least.

    Args:
        anchor: the point, [2], in points of 1/72 inch as all other lengths.
        width: width of the name.
        height: its height.
        marks: points that are better not covered, [n, 2].
        taken: boxes of other names, each [2, 2]: lower left, upper right.
        inside: box in which names must lie.

    Returns:
        The box, and the offset of its centre from the point.
    """
    best, best_cost = None, math.inf
    for distance in (6.0, 12.0, 20.0, 30.0):
        for x, y in _DIRECTIONS:
            offset = np.array([x * (distance + width / 2), y * (distance + height / 2)])
            half = np.array([width, height]) / 2
            box = np.array([anchor + offset - half, anchor + offset + half])
            outside = np.maximum(0, inside[0] - box[0]).sum() + np.maximum(0, box[1] - inside[1]).sum()
            covered = int(np.all((marks > box[0] - 1) & (marks < box[1] + 1), axis=1).sum())
            cost = 10 * outside + 12 * covered + sum(_overlap(box, other) for other in taken) + 0.3 * distance
            if cost < best_cost:
                best, best_cost = (box, offset), cost
    assert best is not None
    return best


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """The area that two boxes share."""
    sides = np.minimum(one[1], other[1]) - np.maximum(one[0], other[0])
    return float(np.prod(np.maximum(0, sides)))

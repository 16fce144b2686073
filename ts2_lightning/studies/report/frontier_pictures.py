"""Pictures of frontiers: quality against diversity along dials, a colour for each curve."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from ts2_lightning.evaluation.style import (
    colour_of,
    dash_of,
    layout,
    literal,
    n_said,
    new_figure,
    put_title,
    tidy,
)
from ts2_lightning.pages.colours import REST
from ts2_lightning.studies.report.figures import (
    Picture,
    add_legend,
    axis_label,
    explained,
    paper_width,
    span_what_is_printed,
    wrapped,
)
from ts2_lightning.studies.report.frontier_tables import frontier_title
from ts2_lightning.studies.report.frontiers import Cloud, Frontier, Place, frontiers_of
from ts2_lightning.studies.report.results import Results
from ts2_lightning.studies.report.statistics import Summary

FRONTIER = "frontier-"
"""Beginning of the names of the pictures' files."""

EACH = "-each"
"""Ending of the name of the picture that has a panel for each curve, where they are many."""

_MANY = 4  # curves in one picture, at most, behind which there is room for the settings that are on no front
_MARKERS = "osD^vP<X"
_SIGNS = "●■◆▲▼✚◀✖"
_SIZE, _SMALL, _LARGE = 5.0, 3.0, 7.5  # of markers: with one dial; of the first and the last choice of a second one
_IN_PANELS = 0.7  # of these sizes where panels are small


def frontier_pictures(results: Results) -> list[Picture]:
    """Pictures of each frontier: all curves in one; of many curves also a panel for each, before the others in grey."""
    drawn = []
    for place, frontier in enumerate(frontiers_of(results)):
        stem, look = f"{FRONTIER}{place + 1}", _Look.of(frontier)
        drawn.append(Picture(stem, _together(results, frontier, look), caption(results, frontier)))
        if sum(bool(cloud.defined) for cloud in frontier.clouds) > _MANY:
            drawn.append(Picture(f"{stem}{EACH}", _each(results, frontier, look), _caption_of_each(results, frontier)))
    return drawn


@dataclass(frozen=True)
class _Look:
    """How the settings of a frontier are drawn.

    Attributes:
        dials: one or two.
        markers: choice of the first dial -> marker; empty where there are more choices than markers.
        sizes: choice of the second dial -> size of its markers; empty where there is none.
    """

    dials: tuple[str, ...]
    markers: Mapping[str, str]
    sizes: Mapping[str, float]

    @classmethod
    def of(cls, frontier: Frontier) -> "_Look":
        orders = [_used_choices(frontier, dial) for dial in frontier.settings.dials]
        markers = dict(zip(orders[0], _MARKERS, strict=False)) if len(orders[0]) <= len(_MARKERS) else {}
        second = orders[1] if len(orders) > 1 else ()
        step = (_LARGE - _SMALL) / max(1, len(second) - 1)
        return cls(frontier.settings.dials, markers, {choice: _SMALL + i * step for i, choice in enumerate(second)})

    def of_place(self, cloud: Cloud, place: Place) -> tuple[str, float]:
        """Marker and size of a setting; a star for one without the dial."""
        setting = dict(zip(cloud.dials, place.setting, strict=True))
        if not setting:
            return "*", _LARGE
        marker = self.markers.get(setting.get(self.dials[0], ""), "o" if self.dials[0] in setting else "*")
        return marker, self.sizes.get(setting.get(self.dials[-1], ""), _SIZE)

    def handles(self) -> Iterator[tuple[str, list[Line2D]]]:
        """Of each dial its name and entries of a legend."""
        common: dict[str, Any] = {"color": "0.35", "linestyle": ""}
        if self.markers:
            entries = [
                Line2D([], [], marker=marker, markersize=_SIZE, label=literal(choice), **common)
                for choice, marker in self.markers.items()
            ]
            yield self.dials[0], entries
        if self.sizes:
            shown = (
                self.sizes.items()
                if len(self.sizes) <= len(_MARKERS)
                else [*self.sizes.items()][:: len(self.sizes) - 1]
            )
            yield (
                self.dials[1],
                [Line2D([], [], marker="o", markersize=size, label=literal(one), **common) for one, size in shown],
            )


def _used_choices(frontier: Frontier, dial: str) -> tuple[str, ...]:
    """The choices of a dial that any curve has, in their order."""
    orders = [dict(zip(cloud.dials, cloud.orders, strict=True)).get(dial, ()) for cloud in frontier.clouds]
    used = {dict(zip(c.dials, p.setting, strict=True)).get(dial) for c in frontier.clouds for p in c.places}
    return tuple(choice for choice in max(orders, key=len, default=()) if choice in used)


# Captions -------------------------------------------------------------------------------------------------------------


def caption(results: Results, frontier: Frontier) -> str:
    """What one sees."""
    dials = frontier.settings.dials
    if len(dials) > 1:
        lines = f"Lines: the Pareto front of each over all settings of {dials[0]} and {dials[1]}."
        if len(frontier.clouds) <= _MANY:
            lines += f" Thin and pale: all its settings, along {dials[1]}."
    else:
        lines = f"Lines: along {dials[0]}."
    levels = " Dashed across: the quality at which diversities are compared." if _levels(frontier) else ""
    base = " Star: the model before training." if any(row.is_base for row in results.rows) else ""
    return f"{_what(results, frontier)} {lines}{_markers_said(frontier)}{levels}{base}"


def _caption_of_each(results: Results, frontier: Frontier) -> str:
    settings = " Pale: its settings that are on no front." if len(frontier.settings.dials) > 1 else ""
    return (
        f"The same, a panel for each: in colour the one that the panel is named after, in grey the others."
        f"{settings}{_markers_said(frontier)}"
    )


def _what(results: Results, frontier: Frontier) -> str:
    quality, diversity = (results.describe(name).title for name in _names(frontier))
    seeds = _most_seeds(frontier)
    spread = f"means over up to {seeds} seeds, bars: a standard deviation to both sides" if seeds > 1 else "one seed"
    return f"Quality ({quality}) against diversity ({diversity}): {spread}."


def _markers_said(frontier: Frontier) -> str:
    """What markers and their sizes stand for."""
    look = _Look.of(frontier)
    signs = ", ".join(f"{_SIGNS[_MARKERS.index(marker)]} {choice}" for choice, marker in look.markers.items())
    said = f" Markers: {look.dials[0]} {signs}." if len(look.markers) > 1 else ""
    if len(look.sizes) > 1:
        first, *_, last = look.sizes
        said += f" Their size: {look.dials[1]}, from {first} (small) to {last} (large)."
    return said


def _names(frontier: Frontier) -> tuple[str, str]:
    return frontier.settings.quality, frontier.settings.diversity


def _most_seeds(frontier: Frontier) -> int:
    return max((place.quality.n for cloud in frontier.clouds for place in cloud.places), default=0)


def _seeds_said(cloud: Sequence[Cloud]) -> str:
    return n_said((place.quality.n for one in cloud for place in one.defined), "seed") or "n = 0 seeds"


def _levels(frontier: Frontier) -> list[float]:
    """Qualities that were named as numbers."""
    return [at for at in frontier.settings.at if isinstance(at, float)]


# Figures --------------------------------------------------------------------------------------------------------------


def _together(results: Results, frontier: Frontier, look: _Look) -> Figure:
    """All curves in one."""
    clouds = [(index, cloud) for index, cloud in enumerate(frontier.clouds) if cloud.defined]
    of_dials = list(look.handles())
    width = paper_width(results)
    figure = new_figure(width.inches, 4.9 if width.legend else 3.2)
    axes = figure.subplots()
    handles = []
    for index, cloud in clouds:
        colour, dash = colour_of(index), dash_of(index)
        if len(clouds) <= _MANY:
            _draw_settings(axes, cloud, look, colour)
        _draw_line(axes, cloud, look, colour, dash)
        handles.append(
            Line2D(
                [], [], color=colour, linestyle=dash, linewidth=2.0, label=wrapped(cloud.label, min(width.letters, 26))
            )
        )
    _draw_common(axes, results, frontier)
    quality, diversity = (results.describe(name) for name in _names(frontier))
    axes.set_xlabel(explained(diversity, width.axis_letters), fontsize=9)
    axes.set_ylabel(explained(quality, width.height_letters), fontsize=9)
    put_title(figure, f"{results.title}: {frontier_title(results, frontier)}", beside=width.legend)
    handles += [entry for name, of_dial in of_dials for entry in (_heading(name), *of_dial)]
    said = _seeds_said([cloud for _, cloud in clouds])
    style = {"alignment": "left", "title_fontsize": width.points, "title": said}
    add_legend(figure, handles, width, width.legend > 0, **style)
    return figure


def _heading(text: str) -> Line2D:
    """A line of a legend that names what is below it."""
    return Line2D([], [], linestyle="", label=literal(text))


def _each(results: Results, frontier: Frontier, look: _Look) -> Figure:
    """A panel for each curve."""
    clouds = [(index, cloud) for index, cloud in enumerate(frontier.clouds) if cloud.defined]
    width = paper_width(results)
    rows, columns = layout(len(clouds), at_most=width.small_abreast)
    figure = new_figure(width.inches, 1.1 + 1.5 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, (index, cloud) in zip(panels, clouds, strict=False):
        for _, other in clouds:
            if other is not cloud:
                axes.plot(*_means(_on_line(other)), color="0.8", linewidth=0.8, zorder=1)
        _draw_settings(axes, cloud, look, colour_of(index), scale=_IN_PANELS)
        _draw_line(axes, cloud, look, colour_of(index), "-", scale=_IN_PANELS)
        _draw_common(axes, results, frontier, named=False)
        axes.set_title(wrapped(cloud.label, 18), fontsize=8)
        axes.text(0.04, 0.04, _seeds_said([cloud]), transform=axes.transAxes, fontsize=6.5, color="0.35")
        axes.tick_params(labelsize=7, labelbottom=True)
    for axes in panels[len(clouds) :]:
        axes.set_visible(False)
    quality, diversity = (results.describe(name) for name in _names(frontier))
    figure.supxlabel(literal(axis_label(diversity)), fontsize=9)
    figure.supylabel(literal(axis_label(quality)), fontsize=9)
    put_title(figure, f"{results.title}: {frontier_title(results, frontier)}, each before the others")
    return figure


def _on_line(cloud: Cloud) -> list[Place]:
    """The settings along a dial; of two dials those on the front."""
    if len(cloud.dials) < 2:
        return cloud.defined
    return sorted((place for place in cloud.defined if place.on_front), key=lambda place: place.diversity.mean)


def _draw_line(axes: Axes, cloud: Cloud, look: _Look, colour: str, dash: Any, scale: float = 1.0) -> None:
    """Draws a curve, or the front of a cloud, with its deviations."""
    shown = _on_line(cloud)
    bars = [[_bar(summary) for summary in summaries] for summaries in _summaries(shown)]
    x, y = _means(shown)
    axes.errorbar(x, y, bars[1], bars[0], color=colour, linestyle=dash, linewidth=1.4, elinewidth=0.7, zorder=3)
    _draw_markers(axes, cloud, look, shown, {"color": colour, "zorder": 4}, scale)


def _draw_settings(axes: Axes, cloud: Cloud, look: _Look, colour: str, scale: float = 1.0) -> None:
    """Draws what is on no front, pale, with lines along the last of two dials."""
    if len(cloud.dials) < 2:
        return
    by_setting = {place.setting: place for place in cloud.defined}
    for line in cloud.lines:
        there = [by_setting[setting] for setting in line if setting in by_setting]
        if len({setting[0] for setting in line}) == 1:
            axes.plot(*_means(there), color=colour, linewidth=0.6, alpha=0.3, zorder=1)
    behind = [place for place in cloud.defined if not place.on_front]
    _draw_markers(axes, cloud, look, behind, {"color": colour, "alpha": 0.35, "zorder": 2}, scale)


def _draw_markers(
    axes: Axes, cloud: Cloud, look: _Look, places: Sequence[Place], style: Mapping[str, Any], scale: float
) -> None:
    """Draws the settings of one marker at a time: an SVG of single points is far larger."""
    alike: dict[str, list[Place]] = {}
    for place in places:
        alike.setdefault(look.of_place(cloud, place)[0], []).append(place)
    for marker, of_marker in alike.items():
        areas = [(scale * look.of_place(cloud, place)[1]) ** 2 for place in of_marker]
        axes.scatter(*_means(of_marker), s=areas, marker=marker, linewidths=0, **style)


def _means(places: Sequence[Place]) -> tuple[list[float], list[float]]:
    return [place.diversity.mean for place in places], [place.quality.mean for place in places]


def _summaries(places: Sequence[Place]) -> tuple[list[Summary], list[Summary]]:
    return [place.diversity for place in places], [place.quality for place in places]


def _bar(summary: Summary) -> float:
    return summary.sd if math.isfinite(summary.sd) else 0.0


def _draw_common(axes: Axes, results: Results, frontier: Frontier, named: bool = True) -> None:
    """Draws the levels, the model before training, and the grid."""
    for level in _levels(frontier):
        axes.axhline(level, color="0.6", linestyle=(0, (3, 2)), linewidth=0.8, zorder=0)
    quality, diversity = _names(frontier)
    for row in results.rows:
        up, across = results.summary(row, quality).mean, results.summary(row, diversity).mean
        if row.is_base and math.isfinite(up) and math.isfinite(across):
            axes.plot([across], [up], marker="*", color=REST, markersize=11 if named else 7, linestyle="", zorder=4)
            if named:
                axes.annotate(
                    literal(row.label), (across, up), (-7, 5), textcoords="offset points", ha="right", fontsize=8,
                    color="0.4", path_effects=[withStroke(linewidth=1.5, foreground="white")], zorder=5,
                )  # fmt: skip
    tidy(axes, grid="both")
    axes.margins(0.06)
    for axis, name in ((axes.xaxis, diversity), (axes.yaxis, quality)):
        span_what_is_printed(axis, results.describe(name))

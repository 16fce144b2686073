"""Charts as figures of plotly, as plain values: nothing is drawn before a browser does."""

import math
import textwrap
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from ts2_lightning.pages.colours import MODELS
from ts2_lightning.pages.packing import packed
from ts2_lightning.pages.sections import Cell, Chart, Series, Table
from ts2_lightning.pages.texts import readable, shortened

_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")
_HATCHES = ("", "/", ".", "x")
_SIZES = {"lines": 7, "points": 11, "paths": 8}
_OPACITY = 0.15
_LEGEND, _TICK, _LINE = 60, 24, 70
"""Characters of a name in a legend, of a name at an axis, and of a line of other texts, at most."""


class Bundle(NamedTuple):
    """The script that draws.

    Attributes:
        source: the script.
        packed: the same, compressed, in base 64: a third of its size.
    """

    source: str
    packed: str


@cache
def bundle() -> Bundle:
    """The script of plotly, from its package."""
    from plotly.offline import get_plotlyjs  # here: only pages with charts need it

    source = get_plotlyjs()
    return Bundle(source, packed(source))


def figure(chart: Chart) -> dict[str, Any]:
    """Data and layout for plotly, and names for the legend.

    Raises:
        ValueError: a series whose lists differ in their lengths.
    """
    traces: list[dict[str, Any]] = []
    for place, series in enumerate(chart.series):
        _check(chart, series)
        traces += _traces(chart, series, place)
    names = {str(place): shortened(readable(series.name), _LEGEND) for place, series in enumerate(chart.series)}
    return {"data": traces, "layout": _layout(chart), "names": names}


def numbers(chart: Chart) -> Table:
    """What a chart draws, as a table; columns in which there is nothing are left out."""
    head = ["", chart.x, chart.y, "low", "high", "x low", "x high", "remark"]
    rows: list[list[Cell]] = []
    for series in chart.series:
        ends = (series.low, series.high, series.x_low, series.x_high, series.labels or None)
        for place, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
            rows.append([series.name, x, y, *(None if column is None else column[place] for column in ends)])
    kept = [column for column in range(len(head)) if column < 3 or any(row[column] is not None for row in rows)]
    return Table("", [head[column] for column in kept], [[row[column] for column in kept] for row in rows])


def _check(chart: Chart, series: Series) -> None:
    lists = (series.low, series.high, series.x_low, series.x_high, series.labels or None)
    if any(values is not None and len(values) != len(series.y) for values in (series.x, *lists)):
        raise ValueError(f"chart {chart.title!r}, series {series.name!r}: its lists differ in their lengths")


def _traces(chart: Chart, series: Series, place: int) -> list[dict[str, Any]]:
    """The traces of a series, which share a group of the legend: the band below the line."""
    of_all = place if series.place is None else series.place
    colour, round_ = MODELS[of_all % len(MODELS)], of_all // len(MODELS)
    texts = [_hover(chart, series, point) for point in range(len(series.y))]
    common = {"legendgroup": str(place), "showlegend": False}
    trace: dict[str, Any] = {
        **common, "x": _coordinates(series.x), "y": _numbers(series.y), "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
    if chart.kind == "bars":
        pattern = {"shape": _HATCHES[round_ % len(_HATCHES)]}
        return [
            {**trace, "type": "bar", "textposition": "none", "marker": {"color": colour, "pattern": pattern}}
            | _whiskers(series)
        ]
    symbol = _SYMBOLS[(of_all + round_) % len(_SYMBOLS)]
    trace |= {
        "type": "scatter",
        "marker": {"color": colour, "symbol": symbol, "size": _SIZES[chart.kind]},
    }
    if chart.kind == "points":
        return [{**trace, "mode": "markers", **_whiskers(series)}]
    if chart.kind == "paths":
        dashed = {"color": colour, "dash": _DASHES[round_ % len(_DASHES)], "width": 2}
        return [{**trace, "mode": "lines+markers", "line": dashed, **_whiskers(series)}]
    line = {"color": colour, "dash": _DASHES[round_ % len(_DASHES)], "width": 2}
    trace |= {"mode": "lines+markers" if len(series.x) <= 100 else "lines", "line": line}
    return [*_band(series, common, colour), trace]


def _band(series: Series, common: dict[str, Any], colour: str) -> list[dict[str, Any]]:
    if series.low is None or series.high is None:
        return []
    ends = [
        (x, low, high)
        for x, low, high in zip(_coordinates(series.x), _numbers(series.low), _numbers(series.high), strict=True)
        if low is not None and high is not None
    ]
    return [
        {
            **common, "type": "scatter", "mode": "lines", "line": {"width": 0, "color": colour}, "hoverinfo": "skip",
            "x": [x for x, _, _ in ends] + [x for x, _, _ in reversed(ends)],
            "y": [low for _, low, _ in ends] + [high for _, _, high in reversed(ends)],
            "fill": "toself", "fillcolor": _faint(colour),
        }
    ]  # fmt: skip


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{_OPACITY})"


def _whiskers(series: Series) -> dict[str, Any]:
    """Intervals as plotly wants them: lengths to both sides."""
    bars: dict[str, Any] = {}
    for axis, values, lows, highs in (
        ("y", series.y, series.low, series.high),
        ("x", series.x, series.x_low, series.x_high),
    ):
        if lows is not None and highs is not None:
            above = [_length(value, high) for value, high in zip(values, highs, strict=True)]
            below = [_length(low, value) for value, low in zip(values, lows, strict=True)]
            shape = {"type": "data", "symmetric": False, "thickness": 1.5, "width": 4}
            bars[f"error_{axis}"] = {**shape, "array": above, "arrayminus": below}
    return bars


def _length(low: float | str, high: float | str) -> float:
    length = float(high) - float(low)
    return max(0.0, length) if math.isfinite(length) else 0.0


def _layout(chart: Chart) -> dict[str, Any]:
    x: dict[str, Any] = {"title": {"text": _title(chart.x)}, "automargin": True, "exponentformat": "power"}
    places = {place for series in chart.series for place in series.x}
    if any(isinstance(place, str) for place in places):
        x["type"] = "category"  # else plotly reads "16" and "2024-01-01" as something else than names
        names = list(dict.fromkeys(str(place) for series in chart.series for place in series.x))
        ticks = [_literal(shortened(readable(name), _TICK)) for name in names]
        x |= {"tickmode": "array", "tickvals": [_literal(name) for name in names], "ticktext": ticks}
    elif chart.log_x:
        x["type"] = "log"
        if len(places) <= 12:
            x |= {
                "tickmode": "array",
                "tickvals": sorted(places),
                "ticktext": [f"{place:g}" for place in sorted(places)],
            }
    return {
        "xaxis": x,
        "yaxis": {"title": {"text": _title(chart.y)}, "automargin": True, "exponentformat": "power"},
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "hovermode": "closest",
        "barmode": "group",
    }


def _title(text: str) -> str:
    """The title of an axis, in two lines at most."""
    return "<br>".join(map(_literal, textwrap.wrap(shortened(readable(text), 2 * _LINE - 20), _LINE)))


def _hover(chart: Chart, series: Series, place: int) -> str:
    lines = [series.name, f"{chart.x}: {_short(series.x[place])}", f"{chart.y}: {_short(series.y[place])}"]
    if series.low is not None and series.high is not None:
        lines[-1] += f" [{_short(series.low[place])}, {_short(series.high[place])}]"
    if series.labels:
        lines.append(series.labels[place])
    return "<br>".join(_literal(part) for line in lines for part in textwrap.wrap(readable(line), _LINE))


def _literal(text: str) -> str:
    """Text that plotly shows as it is: it reads a little HTML."""
    return readable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _coordinates(values: Sequence[float | str]) -> list[Any]:
    return [_literal(value) if isinstance(value, str) else _finite(value) for value in values]


def _numbers(values: Sequence[float]) -> list[float | None]:
    return [_finite(value) for value in values]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

"""How a row is drawn, the same in every picture of a report, and where names are written."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import ScalarFormatter
from matplotlib.transforms import Bbox

from ts2_lightning.evaluation.style import MODELS, REST, literal
from ts2_lightning.experiments.report.choices import known
from ts2_lightning.experiments.report.results import Row

_MARKERS = "osD^vP<X"
_DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)))
_WIDE = 34  # characters of a line of a legend
_BETTER = {"higher": "  (higher is better)", "lower": "  (lower is better)", None: ""}
_MARGIN = 2.0  # pixels between names and whatever else is there


def looks_of(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Label -> colour and marker; 56 rows are told apart by both together, and base models are grey stars."""
    looks: dict[str, dict[str, Any]] = {}
    trained = 0
    for row in rows:
        if row.is_base:
            looks[row.label] = {"color": REST, "marker": "*"}
            continue
        colour = MODELS[1 + trained % (len(MODELS) - 1)]
        looks[row.label] = {"color": colour, "marker": _MARKERS[trained % len(_MARKERS)]}
        trained += 1
    return looks


def dashes(index: int) -> Any:
    """A pattern for a line that stands for a row without a place on the axis."""
    return _DASHES[index % len(_DASHES)]


def axis_label(name: str) -> str:
    """The title of a value, and which way is better."""
    return literal(known(name).title) + _BETTER[known(name).better]


def span_what_is_printed(axis: Axis, name: str) -> None:
    """Plain numbers on an axis, which spans at least ten of the last digit that tables print: less is no difference.

    Args:
        axis: along which the value is drawn.
        name: of the value.
    """
    decimals = re.fullmatch(r"\.(\d+)f", known(name).format)
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
    longest = max(len(line) for handle in handles for line in str(handle.get_label()).splitlines())
    abreast = max(1, min(len(handles), int(figure.get_figwidth() * 13 / (longest + 7))))
    figure.legend(handles=handles, loc="outside lower center", ncols=abreast, fontsize=8, frameon=False)


def write_names(axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], taken: Sequence[Bbox]) -> bool:
    """Writes each name beside its point, where nothing else is. Writes none if there is no such place for one.

    Args:
        axes: whose limits and layout stay as they are.
        points: in data coordinates.
        names: one for each.
        taken: where nothing may be written, in pixels.

    Returns:
        Whether the names were written.
    """
    inside = axes.get_window_extent()
    boxes = list(taken)
    written: list[Annotation] = []
    for point, name in zip(points, names, strict=True):
        found = _written(axes, point, name, inside, boxes)
        if found is None:
            for text in written:
                text.remove()
            return False
        written.append(found)
        boxes.append(_padded(found.get_window_extent()))
    return True


def _written(
    axes: Axes, point: tuple[float, float], name: str, inside: Bbox, boxes: Sequence[Bbox]
) -> Annotation | None:
    """One name, at the nearest place that is free."""
    for distance in (6, 11):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            text = axes.annotate(
                literal(name),
                point,
                (dx * distance, dy * distance),
                textcoords="offset points",
                ha={1: "left", 0: "center", -1: "right"}[dx],
                va={1: "bottom", 0: "center", -1: "top"}[dy],
                fontsize=8,
                color="0.2",
            )
            text.set_in_layout(False)
            box = text.get_window_extent()
            within = box.x0 > inside.x0 and box.x1 < inside.x1 and box.y0 > inside.y0 and box.y1 < inside.y1
            if within and not any(_padded(box).overlaps(other) for other in boxes):
                return text
            text.remove()
    return None


def _padded(box: Bbox) -> Bbox:
    return box.padded(_MARGIN)

"""How a row is drawn, the same in every picture of a report."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from ts2_lightning.evaluation.registry import describe
from ts2_lightning.evaluation.style import MODELS, REST, legend_below, literal
from ts2_lightning.experiments.report.results import Row

_MARKERS = "osD^vP<X"
_DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)))
_WIDE = 34  # characters of a line of a legend
_BETTER = {"higher": "  (higher is better)", "lower": "  (lower is better)", None: ""}


def looks_of(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Label -> colour and marker; 72 rows are told apart by both together, and base models are grey stars."""
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


def places_of(rows: Iterable[Row]) -> dict[str, int]:
    """Label -> place of a model in the probes' pictures, `style.look`, where a row has its colour of `looks_of` too."""
    colours = len(MODELS) - 1
    trained = [row.label for row in rows if not row.is_base]
    return {label: 1 + i % colours + len(MODELS) * (i // colours) for i, label in enumerate(trained)}


def dashes(index: int) -> Any:
    """A pattern for a line that stands for a row without a place on the axis."""
    return _DASHES[index % len(_DASHES)]


def axis_label(name: str) -> str:
    """The title of a value, and which way is better."""
    return literal(describe(name).title) + _BETTER[describe(name).better]


def explained(name: str, width: int) -> str:
    """The title of a value with what it is, in lines for an axis that has room for them."""
    said = describe(name).meaning
    whole = f"{describe(name).title}: {said}" if said else describe(name).title
    return wrapped(whole + _BETTER[describe(name).better], width)


def span_what_is_printed(axis: Axis, name: str) -> None:
    """Plain numbers on an axis, which spans at least ten of the last digit that tables print: less is no difference.

    Args:
        axis: along which the value is drawn.
        name: of the value.
    """
    decimals = re.fullmatch(r"\.(\d+)f", describe(name).format)
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

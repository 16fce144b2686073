"""Pictures of protocols: score against samples, successes of each question, quality against diversity."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from ts2_lightning.evaluation.descriptions import describe
from ts2_lightning.evaluation.measure import PER_ITEM
from ts2_lightning.evaluation.protocols.tables import (
    Cell,
    Curve,
    Evaluated,
    Part,
    curves_of,
    own_descriptions,
    parts_of,
)
from ts2_lightning.evaluation.style import (
    layout,
    legend_below,
    literal,
    look,
    n_said,
    new_figure,
    put_n,
    save,
    tidy,
)

_STYLES: dict[str, Literal["-", "--", ":"]] = {
    "pass": "-", "majority": "--", "chance": ":", "win_rate": "-", "lc_win_rate": "--",
}  # fmt: skip
_BANDS = {"pass": 0.14, "majority": 0.06, "chance": 0.0, "win_rate": 0.14, "lc_win_rate": 0.06}
_NAMES = {
    "pass": "right in one of k", "majority": "vote of k", "chance": "k guesses", "win_rate": "best of k",
    "lc_win_rate": "best of k, at equal length",
}  # fmt: skip
_BARS = 33
"""Bars of a histogram, at most."""

_DIVERSITIES = ("self_bleu_diversity", "sentence_bert", "ngram", "distinct_answers")
"""Values that say how much responses differ, the most telling first."""

_QUALITIES = ("accuracy", "quality")
"""Values that say how good they are; a part has one of them."""


def draw_all(evaluated: Sequence[Evaluated], directory: Path) -> list[Path]:
    """Draws what there is to draw.

    Args:
        evaluated: models, in the order of their colours.
        directory: directory of the pictures, which is made if need be.

    Returns:
        The paths of the pictures: of each protocol `NAME-samples`, `NAME-successes` and `NAME-diversity`.
    """
    parts = parts_of(evaluated)
    paths: list[Path] = []
    for protocol in dict.fromkeys(part.protocol for part in parts):
        of_protocol = [part for part in parts if part.protocol == protocol]
        for name, draw, shown in (
            ("samples", _draw_curves, [part for part in of_protocol if _curves(part, evaluated)]),
            ("successes", _draw_successes, [part for part in of_protocol if _successes(part, evaluated)]),
            ("diversity", _draw_plane, [part for part in of_protocol if _plane(part, parts)]),
        ):
            if shown:
                paths += _figure(directory / f"{protocol}-{name}", shown, evaluated, draw, parts)
    return paths


Draw = Callable[[Axes, Part, Sequence[Evaluated], Sequence[Part]], None]


def _figure(
    place: Path, shown: Sequence[Part], evaluated: Sequence[Evaluated], draw: Draw, parts: Sequence[Part]
) -> list[Path]:
    """One panel for each part, and the models' names below."""
    rows, columns = layout(len(shown), at_most=3)
    figure = new_figure(max(5.4, 3.6 * columns), 3.4 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, part in zip(axes, shown, strict=False):
        panel.set_title(f"{literal(part.title)}\n", fontsize=10)  # n stands in the second line
        put_n(panel, _n_of(part))
        draw(panel, part, evaluated, parts)
    for unused in axes[len(shown) :]:
        unused.set_visible(False)
    handles: list[Artist] = [
        Patch(facecolor=str(look(number)["color"]), label=literal(model.title))
        for number, model in enumerate(evaluated)
    ]
    if draw is _draw_curves:
        there = dict.fromkeys(name for part in shown for curves in _curves(part, evaluated) for name in curves)
        handles += [Line2D([], [], color="0.3", linestyle=_STYLES[name], label=_NAMES[name]) for name in there]
    legend_below(figure, handles)
    return save(figure, place)


def _n_of(part: Part) -> str:
    """The number of questions and of responses behind the values of a part."""
    questions, samples = (
        [round(cells[name].mean) for cells in part.cells if name in cells] for name in ("questions", "samples")
    )
    responses = n_said(samples, "response").removeprefix("n = ")
    return ", ".join(filter(None, [n_said(questions, "question"), responses and f"{responses} each"]))


# Score against samples ------------------------------------------------------------------------------------------


def _curves(part: Part, evaluated: Sequence[Evaluated]) -> list[dict[str, Curve]]:
    """For each model its curves; empty unless one of them has several k."""
    drawn = [curves_of(part, model) for model in evaluated]
    return drawn if any(len(curve) > 1 for curves in drawn for curve in curves.values()) else []


def _draw_curves(axes: Axes, part: Part, evaluated: Sequence[Evaluated], parts: Sequence[Part]) -> None:
    ks: set[int] = set()
    for number, curves in enumerate(_curves(part, evaluated)):
        for name, curve in curves.items():
            ks |= curve.keys()
            x, (mean, low, high) = [*curve], np.array([*curve.values()]).T
            colour = "0.3" if name == "chance" else str(look(number)["color"])
            axes.plot(x, mean, _STYLES[name], color=colour, linewidth=1.6, marker="." if len(x) < 9 else "")
            axes.fill_between(x, low, high, color=colour, alpha=_BANDS[name], linewidth=0)
    tidy(axes, grid="both")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted(ks)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    is_share = all("win_rate" not in curves for curves in _curves(part, evaluated))
    axes.set_ylim(*((-0.02, 1.02) if is_share else (-2, 102)))  # a curve at 0 is seen
    axes.set_xlabel("responses k (logarithmic axis)", fontsize=9)
    axes.set_ylabel("share of questions" if is_share else "win rate", fontsize=9)


# Successes of each question -------------------------------------------------------------------------------------


def _successes(part: Part, evaluated: Sequence[Evaluated]) -> list[tuple[int, np.ndarray]]:
    """For each model its number of responses to each question, and how many of them are right."""
    counted = []
    for number, model in enumerate(evaluated):
        result, samples = model.results.get(part.protocol), part.cells[number].get("samples", Cell(0)).mean
        name = "/".join(filter(None, [part.label, "accuracy"]))
        shares = {} if result is None else result.documents.get(PER_ITEM, {}).get(name, {})
        counted.append((round(samples), np.rint(np.array([*shares.values()]) * samples)))
    return counted if any(samples > 1 and right.size for samples, right in counted) else []


def _draw_successes(axes: Axes, part: Part, evaluated: Sequence[Evaluated], parts: Sequence[Part]) -> None:
    counted = _successes(part, evaluated)
    most = max(samples for samples, _ in counted)
    together = -(-(most + 1) // _BARS)  # numbers of right responses that share a bar
    bars = most // together + 1
    width = 0.85 * together / len(counted)
    for number, (_, right) in enumerate(counted):
        if right.size:
            counts = np.bincount(right.astype(int) // together, minlength=bars) / right.size
            middle = np.arange(bars) * together + (together - 1) / 2
            axes.bar(middle + (number - (len(counted) - 1) / 2) * width, counts, width, **look(number))
    tidy(axes)
    axes.set_xticks(range(0, most + 1, max(1, most // 8)))
    axes.set_xlabel(f"right responses to a question, of {most}", fontsize=9)
    axes.set_ylabel("share of questions", fontsize=9)


# Quality against diversity --------------------------------------------------------------------------------------


def _plane(part: Part, parts: Sequence[Part]) -> tuple[Part, str] | None:
    """Where the diversity of a part's models is: in another protocol's texts, or else in the part's own answers."""
    if _quality(part) is None:
        return None
    for name in _DIVERSITIES:
        for other in (part, *(other for other in parts if name != "distinct_answers")):
            if any(name in cells for cells in other.cells):
                return other, name
    return None


def _quality(part: Part) -> str | None:
    return next((name for name in _QUALITIES if any(name in cells for cells in part.cells)), None)


def _draw_plane(axes: Axes, part: Part, evaluated: Sequence[Evaluated], parts: Sequence[Part]) -> None:
    plane = _plane(part, parts)
    assert plane is not None
    (other, name), quality = plane, str(_quality(part))
    for number in range(len(evaluated)):
        x, y = other.cells[number].get(name), part.cells[number].get(quality)
        if x is not None and y is not None:
            axes.errorbar(
                x.mean,
                y.mean,
                _whiskers(y),
                _whiskers(x),
                "o",
                color=str(look(number)["color"]),
                capsize=2,
                linewidth=1,
            )
    tidy(axes, grid="both")
    value = describe(f"{other.protocol}/{name}", own_descriptions(evaluated))
    axes.set_xlabel(literal(value.title), fontsize=9)
    axes.set_ylabel(literal(quality), fontsize=9)


def _whiskers(cell: Cell) -> list[list[float]] | None:
    """Lengths of the whiskers below and above, which matplotlib wants."""
    if cell.low is None or cell.high is None:
        return None
    return [[max(0.0, cell.mean - cell.low)], [max(0.0, cell.high - cell.mean)]]


class Plane(NamedTuple):
    """Quality against diversity, as it is drawn.

    Attributes:
        title: title of the part whose quality it is.
        x: title of the diversity.
        points: diversity and quality of each model; None where one of them is not there.
    """

    title: str
    x: str
    points: Sequence[tuple[Cell, Cell] | None]


def planes_of(evaluated: Sequence[Evaluated]) -> list[Plane]:
    """The planes of all parts that have one."""
    parts, planes = parts_of(evaluated), []
    for part in parts:
        if (plane := _plane(part, parts)) is not None:
            other, name = plane
            points: list[tuple[Cell, Cell] | None] = []
            for number, cells in enumerate(part.cells):
                x, y = other.cells[number].get(name), cells.get("accuracy", cells.get("quality"))
                points.append(None if x is None or y is None else (x, y))
            title = describe(f"{other.protocol}/{name}", own_descriptions(evaluated)).title
            planes.append(Plane(part.title, title, points))
    return planes

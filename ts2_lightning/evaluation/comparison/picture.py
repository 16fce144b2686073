"""Forest plots: the differences between models with their intervals, a panel for each value."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ts2_lightning.evaluation.comparison.pairs import LEVEL, Pair
from ts2_lightning.evaluation.comparison.ways import Entrant
from ts2_lightning.evaluation.style import layout, legend_below, literal, new_figure, save, tidy
from ts2_lightning.pages.colours import BLACK, BLUE, RED, REST

_LONG = 44
"""Characters of a row's name that there is room for."""
_TITLE = 48
"""Characters of a line of a title."""
_BETTER = {"higher": " (better →)", "lower": " (← better)", None: ""}


def draw_forest(pairs: Sequence[Pair], entrants: Sequence[Entrant], place: Path) -> list[Path]:
    """Draws the differences: to the right of the line the model has more, filled where its sign is sure.

    Args:
        pairs: pairs from `compare_all`.
        entrants: the models.
        place: path of the pictures without ending.

    Returns:
        The paths of the pictures; none where there is nothing to draw.
    """
    panels: dict[str, list[Pair]] = {}
    for pair in pairs:
        if pair.difference is not None:
            panels.setdefault(pair.title, []).append(pair)
    if not panels:
        return []
    rows, columns = layout(len(panels), at_most=3)
    tallest = max(map(len, panels.values()))
    drawn = [pair for of_panel in panels.values() for pair in of_panel]
    subtracted = {pair.first for pair in drawn}
    common = entrants[drawn[0].first].title if len(subtracted) == 1 else None
    longest = max(len(_name(pair, entrants, common)) for pair in drawn)
    figure = new_figure((2.6 + 0.055 * min(longest, _LONG)) * columns + 0.6, (0.95 + 0.27 * tallest) * rows + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (title, of_panel) in zip(axes, panels.items(), strict=False):
        _draw(panel, title, of_panel, entrants, common)
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    legend_below(figure, _legend(drawn, entrants))
    return save(figure, place)


def _name(pair: Pair, entrants: Sequence[Entrant], common: str | None) -> str:
    """What a row is called; what is subtracted in every row is said below."""
    second = entrants[pair.second].title
    return second if common is not None else f"{second} − {entrants[pair.first].title}"


def _draw(axes: Axes, title: str, pairs: Sequence[Pair], entrants: Sequence[Entrant], common: str | None) -> None:
    for place, pair in enumerate(pairs):
        assert pair.difference is not None
        mean, low, high = pair.difference.interval[:3]
        colour = _colour(pair)
        if not math.isnan(low):
            axes.plot([low, high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
        inside = colour if pair.is_sure else "white"
        axes.plot(mean, place, "o", markersize=6, markerfacecolor=inside, markeredgecolor=colour)
    tidy(axes, grid="x")
    axes.axvline(0, color="0.35", linewidth=0.9)
    reach = max(map(abs, axes.get_xlim()))
    axes.set_xlim(-reach, reach)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_yticks(range(len(pairs)), [literal(_name(pair, entrants, common)) for pair in pairs])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    lines = "\n".join(textwrap.wrap(title, _TITLE))
    axes.set_title(literal(lines), fontsize=9, loc="right")  # there is room above the names of the rows
    what = "difference" if common is None else literal(f"minus {common}")
    axes.set_xlabel(f"{what}{_BETTER[pairs[0].value.better]}", fontsize=8)


def _colour(pair: Pair) -> str:
    """Blue where the model is better than the one that is subtracted, red where it is worse, black where none is."""
    assert pair.difference is not None
    if not pair.is_sure:
        return REST
    if pair.value.better is None:
        return BLACK
    return BLUE if pair.ahead == pair.second else RED


def _legend(pairs: Sequence[Pair], entrants: Sequence[Entrant]) -> list[Artist]:
    kinds = {
        BLUE: f"better (p, Holm < {LEVEL:g})",
        RED: f"worse (p, Holm < {LEVEL:g})",
        BLACK: f"differs (p, Holm < {LEVEL:g})",
        REST: "not told apart",
    }
    drawn = {_colour(pair) for pair in pairs}
    return [
        Line2D([], [], color=colour, marker="o", markersize=6, markerfacecolor="white" if colour == REST else colour,
               markeredgecolor=colour, label=said)
        for colour, said in kinds.items()
        if colour in drawn
    ]  # fmt: skip

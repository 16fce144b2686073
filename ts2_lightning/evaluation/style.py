"""How pictures look, and how they are written: colours for any eye, text as text, nothing half-written."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from PIL import Image

from ts2_lightning.pages.colours import MODELS
from ts2_lightning.runs.writing import write_whole

HATCHES = ("", "////", "....", "xxxx")  # the others are for the second round of colours, and later ones
MARKERS = "osD^vP<X>ph"
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))


@dataclass(frozen=True)
class PaperWidth:
    """The width of a figure that is printed as it is, with texts of 6.5 to 10 points, and what has room in it.

    Attributes:
        inches: width of the figure.
        abreast: panels with axes of their own beside each other, at most.
        small_abreast: panels that share their axes beside each other, at most.
        panel: inches that a panel with axes of its own is high.
        legend: inches of a legend beside the axes; 0 where there is room only below them.
        letters: letters in a line of a legend.
        points: size of these letters.
        axis_letters: letters in a line below an axis that is alone.
        height_letters: letters in a line beside an axis that is alone.
    """

    inches: float
    abreast: int
    small_abreast: int
    panel: float
    legend: float
    letters: int
    points: float
    axis_letters: int
    height_letters: int

    def panel_letters(self, columns: int) -> int:
        """Letters in a line of the title of a panel, of so many beside each other."""
        return min(44, int(self.inches / columns * 10.3))

    @property
    def beside_panel(self) -> int:
        """Letters in a line beside a panel with axes of its own."""
        return int(12 * self.panel)


PAPER_WIDTHS: Mapping[int, PaperWidth] = MappingProxyType(
    {1: PaperWidth(3.4, 1, 2, 2.0, 0.0, 18, 7.0, 38, 28), 2: PaperWidth(7.0, 2, 5, 2.5, 2.1, 34, 8.0, 70, 56)}
)
"""Columns of a paper -> the width of a figure in them, on a page that has two."""

_TRAINED = len(MODELS) - 1  # colours without the base model's
DPI = 150
PICTURE_ENDINGS = (".png", ".svg")
_COLOURS = 256  # of a PNG's palette: few are in a picture, and a palette halves the file


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, whose parts make room for each other."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def n_said(counts: Iterable[int], what: str = "", plural: str = "") -> str:
    """What something is over: `n = 5 seeds`; `n = 4 to 5 seeds` where they differ; empty where there are none.

    Args:
        counts: numbers of what is drawn in a panel.
        what: what is counted, in the singular.
        plural: its plural; by default with an s.

    Example:
        >>> n_said([3]), n_said([1, 1], "seed"), n_said([20, 1319], "question")
        ('n = 3', 'n = 1 seed', 'n = 20 to 1,319 questions')
    """
    several = sorted({count for count in counts if count})
    if not several:
        return ""
    said = " to ".join(f"{count:,}" for count in dict.fromkeys((several[0], several[-1])))
    name = what if several[-1] == 1 else plural or f"{what}s"
    return f"n = {said} {name}" if what else f"n = {said}"


def put_n(axes: Axes, said: str) -> None:
    """Writes above the right corner of a panel of how many it is, see `n_said`."""
    axes.set_title(said, loc="right", fontsize=7, color="0.35", pad=3)


def layout(panels: int, at_most: int) -> tuple[int, int]:
    """Rows and columns for some panels, with no more columns than fit a page, and rows of like length.

    Example:
        >>> layout(3, at_most=4), layout(5, at_most=4)
        ((1, 3), (2, 3))
    """
    rows = -(-panels // at_most)
    return rows, -(-panels // rows)


def tidy(axes: Axes, grid: str = "y") -> None:
    """Only what helps to read values: a faint grid along one axis (x, y or both), no frame."""
    axes.grid(axis=grid, color="0.9", linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def look(index: int) -> dict[str, Any]:
    """Colour and hatch of the model at a place, told apart for at least 32."""
    return {"color": MODELS[index % len(MODELS)], "hatch": HATCHES[index // len(MODELS) % len(HATCHES)]}


def colour_of(index: int) -> str:
    """Colour of the training at a place, its own for twelve of them; grey is the base model's."""
    return MODELS[1 + index % _TRAINED]


def place_of(index: int) -> int:
    """Place among all models, for `look` and for charts, of the training at a place among the trained ones.

    Example:
        >>> all(look(place_of(index))["color"] == colour_of(index) for index in range(30))
        True
    """
    return 1 + index % _TRAINED + len(MODELS) * (index // _TRAINED)


def marker_of(index: int) -> str:
    """Marker of the training at a place, which together with its colour no other one has."""
    return MARKERS[index % len(MARKERS)]


def dash_of(index: int) -> Any:
    """Pattern of the line of the training at a place: neighbours differ in it, and so do those of one colour.

    Example:
        >>> [DASHES.index(dash_of(index)) for index in (0, 1, 12, 24)]
        [0, 1, 1, 2]
    """
    return DASHES[(index + index // _TRAINED) % len(DASHES)]


def legend_below(figure: Figure, handles: Sequence[Artist], points: float = 8.0, **style: Any) -> Legend:
    """Puts a legend below all axes, as many names in a line as there is room for.

    Args:
        figure: Figure.
        handles: Entries.
        points: Size of the letters.
        style: Further arguments of matplotlib's legend.
    """
    longest = max(len(line) for handle in handles for line in str(handle.get_label()).splitlines())
    abreast = max(1, min(len(handles), int(figure.get_figwidth() * 104 / points / (longest + 7))))
    return figure.legend(
        handles=handles, loc="outside lower center", ncols=abreast, fontsize=points, frameon=False, **style
    )


def put_title(figure: Figure, text: str, beside: float = 0.0, size: float = 10.0) -> None:
    """Puts a title at the left above all axes, in lines that end before what stands beside it.

    Args:
        figure: Figure.
        text: Title.
        beside: Inches at the right that a legend takes.
        size: Points of its letters.
    """
    width = int((figure.get_figwidth() - beside) * 72 / (0.57 * size))
    figure.suptitle(literal(textwrap.fill(text, max(width, 20))), x=0.01, ha="left", fontsize=size)


def literal(text: str) -> str:
    """Text that matplotlib draws as it is: a dollar would begin a formula.

    Example:
        >>> print(literal("$5"))
        \\$5
    """
    return text.replace("$", r"\$")


def save(figure: Figure, place: Path) -> list[Path]:
    """Writes `PLACE.png` and `PLACE.svg`, whose text stays text; each appears when it is whole. Returns their paths."""
    png, svg = (place.with_name(place.name + ending) for ending in PICTURE_ENDINGS)
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")  # everything has its place; to find it takes longest, and is done once
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    few = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    write_whole(png, lambda path: few.save(path, format="PNG", optimize=True))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ts2"}):  # no random names: equal runs, files
        write_whole(svg, lambda path: figure.savefig(path, format="svg", metadata={"Date": None}))
    return [png, svg]


def remove_pictures(out: Path, stems: Iterable[str]) -> None:
    """Removes pictures of these names that lie in a directory, in every format."""
    for stem in stems:
        for ending in PICTURE_ENDINGS:
            (out / f"{stem}{ending}").unlink(missing_ok=True)

"""The picture of a model card: how a training went, and what became of the token distributions."""

from collections.abc import Mapping
from pathlib import Path

from ts2_lightning.pages.colours import BLUE, RED

PICTURE = "training.png"
_PANELS = {
    "cross_entropy": "cross-entropy (nats)",
    "entropy": "entropy (nats)",
    "support_size": "support size (tokens)",
    "tail_mass": "tail mass",
}
_WIDTH, _HEIGHT, _DPI = 8.0, 4.8, 110
_MARGINS = {"left": 0.7, "right": 0.1, "top": 0.6, "bottom": 0.55}  # inches around the panels
_BETWEEN = {"wspace": 0.22, "hspace": 0.42}  # parts of a panel


def draw_training(curves: Mapping[str, Mapping[int, float]], directory: Path) -> str | None:
    """Draws training and validation over the optimizer steps.

    Args:
        curves: logged values, name -> step -> value.
        directory: directory to write to; it exists.

    Returns:
        Name of the picture in the directory; None if there is too little to draw.
    """
    panels = [name for name in _PANELS if len(curves.get(f"train/{name}", {})) > 1]
    if not panels:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second of imports, for exports of runs alone
    from matplotlib.figure import Figure

    height = _HEIGHT if len(panels) > 2 else _HEIGHT / 2
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    # To have matplotlib find room for every part takes longer than to draw them, and every export would wait for it.
    figure.subplots_adjust(
        left=_MARGINS["left"] / _WIDTH,
        right=1 - _MARGINS["right"] / _WIDTH,
        top=1 - _MARGINS["top"] / height,
        bottom=_MARGINS["bottom"] / height,
        **_BETWEEN,
    )
    grid = [*figure.subplots(-(-len(panels) // 2), 2 if len(panels) > 1 else 1, squeeze=False).flat]
    for axes, name in zip(grid, panels, strict=False):
        for split, look in (("train", {"color": BLUE, "linewidth": 1}), ("val", {"color": RED, "marker": "o"})):
            points = sorted(curves.get(f"{split}/{name}", {}).items())
            label = "training, each step" if split == "train" else "validation"
            axes.plot([step for step, _ in points], [value for _, value in points], label=label, **look)
        axes.set_title(_PANELS[name], fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("optimizer step", fontsize=9, y=0.1 / height)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="upper center", ncols=2, frameon=False)
    figure.savefig(directory / PICTURE)
    return PICTURE

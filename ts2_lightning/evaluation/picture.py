"""A picture of next-token distributions: the same prompt, several models side by side."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from torch import Tensor

from ts2_lightning.evaluation.distributions import support_mask
from ts2_lightning.evaluation.style import layout, literal, new_figure, tidy
from ts2_lightning.pages.colours import BLUE, RED, REST

PLAUSIBLE, OTHER = BLUE, RED
FLOOR = 1e-5
"""Where the axis begins: smaller probabilities are drawn as nothing."""

_DOT = 7.5  # points
_RING: dict[str, Any] = {"markersize": _DOT + 2, "markerfacecolor": "none", "markeredgecolor": "black"}
_TITLE = 40  # characters of a line of a panel's title


_MISSING = "nothing, or not among the tokens that were recorded"


class Panel(NamedTuple):
    """One model's dots.

    Attributes:
        title: the model's name, and its figures.
        values: probabilities of the shown tokens; None for one that was not recorded. Empty: nothing was.
        rest: probability of all other tokens together.
        in_support: which of the shown tokens sparsemax keeps.
    """

    title: str
    values: Sequence[float | None]
    rest: float
    in_support: Sequence[bool]


def shown_tokens(distributions: Mapping[str, Tensor], plausible: Tensor, top: int) -> list[int]:
    """The tokens worth a dot: those with the largest probability in any of the distributions.

    Args:
        distributions: name -> [K] probabilities.
        plausible: [K] bool.
        top: how many.

    Returns:
        Token ids: the plausible ones first, then the others, each by the first distribution's probability.
    """
    stacked = torch.stack(list(distributions.values()))
    chosen = stacked.amax(0).topk(min(top, stacked.shape[-1])).indices.tolist()
    return sorted(chosen, key=lambda token: (not bool(plausible[token]), -stacked[0, token].item()))


def draw_next_token(
    path: str | Path,
    distributions: Mapping[str, Sequence[float] | Tensor],
    tokens: Sequence[str],
    plausible: Sequence[bool] | Tensor,
    title: str,
    top: int = 15,
    marked: Mapping[str, str] | None = None,
) -> Path:
    """Draw next-token distributions side by side, as a PNG.

    One panel per model, the same tokens in each, so that a token can be followed from panel to panel; the dot below
    them is the mass of all tokens that have none. The axis is logarithmic, since head and tail differ by a
    factor of a thousand; each dot has its probability beside it, and a ring marks the tokens in the support of
    sparsemax (of the logits at scale 1, which the probabilities give).

    Args:
        path: path of the file; its directory is made if it is missing.
        distributions: name -> [K] probabilities (they sum to 1), in the order of the panels.
        tokens: the K token strings.
        plausible: [K] bool, drawn in blue; the others in vermilion.
        title: above all panels, for example the prompt.
        top: number of tokens with a dot of their own.
        marked: token string -> note behind its name, for example {"plum": "75%"} for fine-tuning answers.

    Returns:
        The path.

    Raises:
        ValueError: no distribution, or one whose length is not that of `tokens` and `plausible`.
    """
    rows = {name: torch.as_tensor(p, dtype=torch.float64).cpu() for name, p in distributions.items()}
    mask = torch.as_tensor(plausible, dtype=torch.bool).cpu()
    if not rows:
        raise ValueError("distributions: expected at least one, got none")
    for name, p in rows.items():
        if p.shape != (len(tokens),) or mask.shape != p.shape:
            raise ValueError(
                f"distributions[{name!r}]: expected one probability for each of {len(tokens)} tokens and a mask of "
                f"that length, got {tuple(p.shape)} and {tuple(mask.shape)}"
            )

    def named(token: int) -> str:
        note = (marked or {}).get(tokens[token])
        return tokens[token] if note is None else f"{tokens[token]}  {note}"

    figure = distributions_figure(rows, named, title, mask, top)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def distributions_figure(
    distributions: Mapping[str, Tensor],
    named: Callable[[int], str],
    title: str,
    plausible: Tensor | None = None,
    top: int = 15,
) -> Figure:
    """The figure of `draw_next_token`, from whole distributions.

    Args:
        distributions: name -> [K] probabilities, at least one, in the order of the panels.
        named: name of a token by its id; it is asked for the shown ones alone.
        title: above all panels.
        plausible: [K] bool; None where nobody knows.
        top: number of tokens with a bar of their own.
    """
    size = len(next(iter(distributions.values())))
    everything = torch.ones(size, dtype=torch.bool)
    shown = shown_tokens(distributions, everything if plausible is None else plausible, top)
    return next_token_figure(
        [_panel(name, p, plausible, shown) for name, p in distributions.items()],
        [named(token) for token in shown],
        None if plausible is None else [bool(plausible[token]) for token in shown],
        others=size - len(shown),
        title=title,
    )


def next_token_figure(
    panels: Sequence[Panel], labels: Sequence[str], plausible: Sequence[bool] | None, others: int, title: str
) -> Figure:
    """The figure of `draw_next_token`, from what it shows.

    Args:
        panels: at least one.
        labels: names of the shown tokens.
        plausible: whether each of them is; None where nobody knows.
        others: number of tokens that are not shown.
        title: above all panels.
    """
    rows, columns = layout(len(panels), at_most=4)
    figure = new_figure(1.2 + 3.1 * columns, 1.9 + 0.27 * (len(labels) + 1) * rows + 1.0 * (rows - 1))
    places = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes = places.flatten()[: len(panels)]
    for unused in places.flatten()[len(panels) :]:
        unused.set_visible(False)
    colours = [PLAUSIBLE if flag else OTHER for flag in plausible or [True] * len(labels)]
    for place, panel in zip(axes, panels, strict=True):
        _draw_panel(place, panel, colours)
        place.tick_params(axis="y", labelsize=9)
    axes[0].set_yticks(range(len(labels) + 1), [*map(literal, labels), f"{others} others"])
    axes[0].set_ylim(len(labels) + 0.6, -0.6)
    figure.suptitle(literal(_wrapped(title, figure.get_figwidth())), fontsize=11)
    places[-1, (len(panels) - 1) % columns // 2].set_xlabel(
        "probability of the next token (logarithmic axis)", fontsize=9
    )
    handles = _legend(plausible is not None, any(value is None for panel in panels for value in panel.values))
    abreast = len(handles) if columns > 2 else 2  # few panels are too narrow for them all
    figure.legend(handles=handles, loc="outside lower center", ncols=abreast, fontsize=9, frameon=False)
    return figure


def _wrapped(title: str, inches: float) -> str:
    """A title whose lines are no wider than the figure."""
    return "\n".join(textwrap.fill(line, int(11 * inches)) for line in title.splitlines())


def _panel(name: str, p: Tensor, plausible: Tensor | None, shown: list[int]) -> Panel:
    """What a whole distribution shows."""
    support = support_mask(p.clamp_min(torch.finfo(p.dtype).tiny).log()[None])[0]
    outside = "" if plausible is None else f"implausible mass {p[~plausible].sum().item():.3f}\n"
    return Panel(
        f"{name}\n{outside}support {int(support.sum())}, mass outside it {p[~support].sum().item():.3f}",
        p[shown].tolist(),
        max(0.0, 1.0 - p[shown].sum().item()),
        support[shown].tolist(),
    )


def _draw_panel(axes: Axes, panel: Panel, colours: Sequence[str]) -> None:
    """One model's dots, rings around those of its support, and its figures in the title."""
    lines = [line for part in panel.title.splitlines() for line in textwrap.wrap(part, _TITLE) or [""]]
    axes.set_title(literal("\n".join(lines)), fontsize=9)
    if not panel.values:
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelbottom=False)
        return
    values = [*panel.values, panel.rest]
    for i, (value, colour) in enumerate(zip(values, [*colours, REST], strict=True)):
        if value is not None and value >= FLOOR:
            axes.plot([value], [i], "o", color=colour, markersize=_DOT, zorder=3)
    axes.hlines(range(len(values)), FLOOR, 1.0, color="0.85", linewidth=0.6, linestyle=(0, (1, 2)), zorder=1)
    tidy(axes, grid="x")
    axes.set_xscale("log")
    axes.set_xlim(FLOOR, 8.0)  # room for the numbers behind the dots
    axes.set_xticks([10.0**e for e in range(round(math.log10(FLOOR)), 1)])
    axes.xaxis.set_minor_locator(NullLocator())  # the axis ends at 1, the room for the numbers has no ticks
    axes.tick_params(labelbottom=True)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.axhline(len(values) - 1.5, color="0.6", linewidth=0.8)
    for i, value in enumerate(values):
        at = 1.15 * FLOOR if value is None or value < FLOOR else 1.6 * value
        axes.text(
            at, i, _number(value), va="center", fontsize=7.5, color="0.25", zorder=2,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
        )  # fmt: skip
    inside = [i for i, kept in enumerate(panel.in_support) if kept]
    rings = [max(values[i] or 0.0, FLOOR) for i in inside]
    axes.plot(rings, inside, "o", **_RING)


def _number(probability: float | None) -> str:
    """Two significant digits, short enough to stand behind a dot."""
    if probability is None:
        return "-"
    return f"<{FLOOR:g}" if probability < FLOOR else f"{probability:#.2g}"


def _dot(colour: str, label: str) -> Artist:
    return Line2D([], [], marker="o", color=colour, markersize=_DOT, linestyle="", label=label)


def _legend(names_plausible: bool, some_missing: bool) -> list[Artist]:
    of_answers: list[Artist] = [_dot(PLAUSIBLE, "plausible"), _dot(OTHER, "not plausible")]
    return [
        *(of_answers if names_plausible else []),
        _dot(REST, "all other tokens together"),
        Line2D([], [], marker="o", linestyle="", label="in the sparsemax support", **_RING),
        *([Line2D([], [], marker="_", color="0.25", linestyle="", label=_MISSING)] if some_missing else []),
    ]

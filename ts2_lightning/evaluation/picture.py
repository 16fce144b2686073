"""A picture of next-token distributions: the same prompt, several models side by side."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator
from torch import Tensor

from ts2_lightning.evaluation.distributions import support_mask

PLAUSIBLE = "#0072B2"  # Okabe and Ito's blue, vermilion and grey: told apart with any colour vision
OTHER = "#D55E00"
REST = "#999999"
FLOOR = 1e-5
"""Where the bars begin: smaller probabilities are drawn as nothing."""

DPI = 150


def shown_tokens(distributions: Mapping[str, Tensor], plausible: Tensor, top: int) -> list[int]:
    """The tokens worth a bar: those with the largest probability in any of the distributions.

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

    One panel per model, the same tokens in each, so that a token can be followed from panel to panel; the bar below
    them is the mass of all tokens that have none. The axis is logarithmic, since head and tail differ by a
    factor of a thousand; each bar carries its probability, and a dot marks the tokens in the support of
    sparsemax (of the logits at scale 1, which the probabilities give).

    Args:
        path: of the file; its directory is made if it is missing.
        distributions: name -> [K] probabilities (they sum to 1), in the order of the panels.
        tokens: the K token strings.
        plausible: [K] bool, drawn in blue; the others in vermilion.
        title: above all panels, for example the prompt.
        top: number of tokens with a bar of their own.
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
    shown = shown_tokens(rows, mask, top)
    labels = [tokens[i] + (f"  {marked[tokens[i]]}" if marked and tokens[i] in marked else "") for i in shown]
    labels.append(f"{len(tokens) - len(shown)} others")
    figure = Figure(figsize=(1.2 + 3.1 * len(rows), 1.9 + 0.27 * len(labels)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(rows), sharex=True, sharey=True, squeeze=False)[0]
    for panel, (name, p) in zip(panels, rows.items(), strict=True):
        _draw_panel(panel, name, p, mask, shown)
    panels[0].set_yticks(range(len(labels)), labels, fontsize=9)
    panels[0].set_ylim(len(labels) - 0.4, -0.6)
    figure.suptitle(title, fontsize=11)
    panels[len(panels) // 2].set_xlabel("probability of the next token (logarithmic axis)", fontsize=9)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _draw_panel(panel: Axes, name: str, p: Tensor, plausible: Tensor, shown: list[int]) -> None:
    """One model's bars, its support's dots, and its figures in the title."""
    support = support_mask(p.clamp_min(torch.finfo(p.dtype).tiny).log()[None])[0]
    rest = max(0.0, 1.0 - p[shown].sum().item())
    values = [*p[shown].tolist(), rest]
    colours = [PLAUSIBLE if plausible[token] else OTHER for token in shown] + [REST]
    panel.barh(range(len(values)), [max(v - FLOOR, 0.0) for v in values], left=FLOOR, color=colours, height=0.72)
    panel.set_xscale("log")
    panel.set_xlim(FLOOR, 8.0)  # room for the numbers behind the bars
    panel.set_xticks([10.0**e for e in range(round(math.log10(FLOOR)), 1)])
    panel.xaxis.set_minor_locator(NullLocator())  # the axis ends at 1, the room for the numbers has no ticks
    panel.tick_params(axis="x", labelsize=8)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.axhline(len(shown) - 0.5, color="0.6", linewidth=0.8)
    for i, value in enumerate(values):
        panel.text(max(value, FLOOR) * 1.25, i, _number(value), va="center", fontsize=7.5, color="0.25")
    inside = [i for i, token in enumerate(shown) if support[token]]
    panel.plot([FLOOR * 1.6] * len(inside), inside, "o", color="white", markeredgecolor="black", markersize=5)
    outside = p[~plausible].sum().item()
    tail = p[~support].sum().item()
    panel.set_title(
        f"{name}\nimplausible mass {outside:.3f}\nsupport {int(support.sum())}, mass outside it {tail:.3f}", fontsize=9
    )


def _number(probability: float) -> str:
    """Two significant digits, short enough to stand behind a bar."""
    return f"<{FLOOR:g}" if probability < FLOOR else f"{probability:#.2g}"


def _legend() -> list[Artist]:
    return [
        Patch(color=PLAUSIBLE, label="plausible"),
        Patch(color=OTHER, label="not plausible"),
        Patch(color=REST, label="all other tokens together"),
        Line2D([], [], marker="o", color="white", markeredgecolor="black", linestyle="", label="sparsemax support"),
    ]

"""Draws docs/objectives.png: what every objective does to one row of logits, from the losses' own gradients.

python docs/plot_objectives.py
"""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image
from torch import Tensor

from ts2_lightning import losses
from ts2_lightning.losses import TokenLoss
from ts2_lightning.ops import LogitRows
from ts2_lightning.types import Targets

OUT = Path(__file__).with_name("objectives.png")
VOCABULARY = 1000
POSITION, LENGTH = 1, 100  # lambda-PR's weight depends on them
GOLD = 0.5  # of the panels that look at another token

# Okabe and Ito's colours, told apart with any colour vision; the dashes help where lines cross or in print.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
SOLID, DASHED, DOTTED, DASHDOT = "-", (0, (5, 2)), (0, (1, 1.3)), (0, (5, 1.5, 1, 1.5))


GOLD_TICKS = {1e-6: "1e-6", 1e-4: "1e-4", 0.01: ".01", 0.1: ".1", 0.5: ".5", 0.9: ".9", 0.99: ".99"}
PRESSURE_TICKS = {-10: "-10", -1: "-1", -0.5: "-.5", 0: "0", 0.25: ".25", 0.5: ".5", 1: "1", 2: "2"}


class Line(NamedTuple):
    """How one objective is drawn."""

    loss: TokenLoss
    colour: str
    dashes: object = SOLID


FAMILIES: dict[str, dict[str, Line]] = {
    "likelihood and its weights": {
        "label smoothing 0.2": Line(losses.LabelSmoothingLoss(), ORANGE, DASHED),
        "entropy bonus 0.1": Line(losses.EntropyBonusLoss(), RED, DOTTED),
        "focal 3": Line(losses.FocalLoss(), BLUE),
        "lambda-PR, t = 1 of L = 100": Line(losses.LambdaPRLoss(), GREEN, DASHDOT),
    },
    "temperature and inflation": {
        "GEM 0.7": Line(losses.GEMLoss(), BLUE),
        "GEM 0.7, logsigmoid": Line(losses.GEMLoss(h="logsigmoid"), SKY, DASHED),
        "TOFU 3, 0.8": Line(losses.TOFULoss(), GREEN, DASHDOT),
        "power inflation 2": Line(losses.PowerInflationLoss(), RED),
        "exponential inflation 4": Line(losses.ExponentialInflationLoss(), ORANGE, DASHED),
        "logarithmic inflation 0.01": Line(losses.LogarithmicInflationLoss(), PURPLE, DOTTED),
    },
    "sparse supports and suppression": {
        "sparsemax": Line(losses.SparsemaxLoss(), BLUE),
        "entmax 1.5": Line(losses.EntmaxLoss(), SKY, DASHED),
        "TS2 0.25": Line(losses.TS2Loss(), RED),
        "TS2 0.25, adaptive": Line(losses.TS2Loss(adaptive=True), PURPLE, DOTTED),
        "TS2 0.25, top 5": Line(losses.TS2Loss(top_k=5), ORANGE, DASHDOT),
        "Entmax+ 0.25": Line(losses.FenchelYoungPlusLoss(), GREEN, DASHED),
        "CE + 0.25 suppression": Line(losses.SuppressionOnlyLoss(), BLACK, DOTTED),
    },
}
REFERENCE = Line(losses.CrossEntropyLoss(), "0.72")


def gradient(loss: TokenLoss, probabilities: Tensor) -> Tensor:
    """dL/dz of rows of softmax probabilities [n, K] whose gold token is column 0: [n, K], in float64."""
    n = len(probabilities)
    labels = torch.zeros(n, dtype=torch.long)
    rows = LogitRows(probabilities.log(), Targets(labels, None, torch.full((n,), POSITION), torch.full((n,), LENGTH)))
    out = torch.empty_like(probabilities)
    loss.evaluate(rows).term.gradient.write_to(out)
    return out


def one_rival(gold: Tensor) -> Tensor:
    """[n, K] rows in which one other token has all but a billionth of what the gold token leaves."""
    rest = 1 - gold
    share = 1e-9 / (VOCABULARY - 2)
    tail = (rest * share)[:, None].expand(-1, VOCABULARY - 2)
    return torch.cat([gold[:, None], (rest * (1 - 1e-9))[:, None], tail], 1)


def even_tail(gold: Tensor) -> Tensor:
    """[n, K] rows in which all other tokens share what the gold token leaves."""
    return torch.cat([gold[:, None], ((1 - gold) / (VOCABULARY - 1))[:, None].expand(-1, VOCABULARY - 1)], 1)


def another_token(probability: Tensor) -> Tensor:
    """[n, K] rows: the gold token has 0.5, the token in column 1 the given probability, the others share the rest."""
    gold = torch.full_like(probability, GOLD)
    rest = (1 - GOLD - probability) / (VOCABULARY - 2)
    return torch.cat([gold[:, None], probability[:, None], rest[:, None].expand(-1, VOCABULARY - 2)], 1)


def draw(path: Path) -> Path:
    """Three families side by side; push on the gold token twice, and the pressure on another token."""
    figure = Figure(figsize=(12.6, 13.4), dpi=95, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, len(FAMILIES), sharex="row", sharey="row")
    gold = torch.sigmoid(torch.linspace(-14.5, 7.0, 700, dtype=torch.float64))
    other = torch.logspace(-8, -0.32, 700, dtype=torch.float64)
    sweeps: list[tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]] = [
        (gold, one_rival(gold), lambda g: -g[:, 0]),
        (gold, even_tail(gold), lambda g: -g[:, 0]),
        (other, another_token(other), lambda g: g[:, 1] / other),
    ]
    for row, (x, probabilities, pick) in zip(panels, sweeps, strict=True):
        for panel, lines in zip(row, FAMILIES.values(), strict=True):
            for label, line in {"cross-entropy": REFERENCE, **lines}.items():
                y = pick(gradient(line.loss, probabilities))
                width = 5.0 if line is REFERENCE else 2.4 if line.dashes == DOTTED else 1.8
                panel.plot(x, y, color=line.colour, linestyle=line.dashes, linewidth=width, label=label)
            panel.axhline(0, color="0.3", linewidth=0.8)
            panel.grid(color="0.92", linewidth=0.7)
            panel.spines[["top", "right"]].set_visible(False)
    _name(panels, FAMILIES)
    figure.suptitle("What one token's loss does to its logits (a descent step moves z against dL/dz)", fontsize=13)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    # Few colours are in it: a palette halves the file.
    Image.open(picture).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)
    return path


def _name(panels: Sequence[Sequence[Axes]], families: Mapping[str, object]) -> None:
    """Scales, titles, axes and legends."""
    titles = [
        "one rival has 1 - p_y",
        f"{VOCABULARY - 1} others share 1 - p_y evenly",
        f"gold has {GOLD}, one other p_j, {VOCABULARY - 2} share the rest",
    ]
    for i, row in enumerate(panels):
        for panel, family in zip(row, families, strict=True):
            panel.set_title(titles[i], fontsize=10)
            if i == 0:
                panel.annotate(family, (0.5, 1.13), xycoords="axes fraction", ha="center", fontsize=12, weight="bold")
            if i < 2:
                panel.set_xscale("logit")
                panel.set_xlim(1e-6, 0.999)
                panel.set_xticks(*zip(*GOLD_TICKS.items(), strict=True))
                panel.xaxis.set_minor_formatter(NullFormatter())
                panel.set_xlabel("gold probability p_y (logit scale)", fontsize=9)
            else:
                panel.set_xscale("log")
                panel.set_yscale("symlog", linthresh=1, linscale=1.6)
                panel.set_ylim(-30, 3)
                panel.set_yticks(*zip(*PRESSURE_TICKS.items(), strict=True))
                panel.set_xlabel("probability p_j of the other token (logarithmic)", fontsize=9)
                panel.legend(
                    loc="upper center", bbox_to_anchor=(0.5, -0.17), fontsize=9.5, frameon=False, handlelength=3
                )
            panel.tick_params(labelsize=8.5)
        row[0].set_ylabel(
            "push up on the gold logit: -dL/dz_y" if i < 2 else "push down on the other: (dL/dz_j) / p_j", fontsize=9.5
        )


if __name__ == "__main__":
    sys.stdout.write(f"{draw(OUT)}\n")

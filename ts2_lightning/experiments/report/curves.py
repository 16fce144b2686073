"""Learning curves: mean and band over the seeds, by step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ts2_lightning.evaluation.style import MODELS, layout, literal, new_figure, tidy
from ts2_lightning.experiments.report.looks import add_legend, looks_of, wrapped
from ts2_lightning.experiments.report.results import Curve, Results, Row

POINTS = 60
"""Of a drawn curve, at most: of more steps the means over as many neighbours as it takes are drawn."""

_NAMES = {
    "objective": "objective (nats)",
    "cross_entropy": "cross-entropy (nats)",
    "entropy": "entropy (nats)",
    "perplexity": "perplexity",
    "token_accuracy": "share of tokens got right",
    "gold_probability": "probability of the gold token",
    "gold_rank": "rank of the gold token",
    "gold_in_support": "share of gold tokens in the support",
    "support_size": "sparsemax support (tokens)",
    "tail_mass": "mass outside the support",
    "zero_gradient": "share of tokens without gradient",
    "gradient_norm": "gradient norm",
    "learning_rate": "learning rate",
    "top1": "probability of the 1st token",
    "top2": "probability of the 2nd token",
    "top3": "probability of the 3rd token",
    "peak_memory_gb": "peak memory (GB)",
    "supervised_tokens_per_second": "supervised tokens per second",
    "tokens_per_second": "tokens per second",
    "kl": "KL(base, model) (nats)",
}
"""What an axis says of a logged name, by its last part."""


def curves(results: Results, names: Sequence[str]) -> Figure | None:
    """A panel for each logged name, a line for each row. None if nothing was logged under them."""
    lines = {name: _lines(results.trained, name) for name in names}
    lines = {name: of_name for name, of_name in lines.items() if of_name}
    if not lines:
        return None
    looks = looks_of(results.rows)
    drawn = list(dict.fromkeys(label for of_name in lines.values() for label in of_name))
    rows, columns = layout(len(lines), at_most=2)
    figure = new_figure(1.0 + 3.8 * columns, 1.0 + 2.5 * rows + 0.12 * len(drawn))
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (name, of_name) in zip(panels, lines.items(), strict=False):
        for row, of_seeds in of_name.values():
            _draw(axes, of_seeds, looks[row.label]["color"], _dash(results, row))
        axes.set_title(literal(_title(name, of_name)), fontsize=9)
        axes.set_ylabel(_NAMES.get(name.rpartition("/")[2], literal(name)), fontsize=9)
        axes.set_xlabel("optimizer steps", fontsize=9)
        tidy(axes, grid="both")
    for axes in panels[len(lines) :]:
        axes.set_visible(False)
    figure.suptitle(wrapped(f"{results.title}: learning curves", 60 if columns > 1 else 36), fontsize=10)
    owners = {label: row for of_name in lines.values() for label, (row, _) in of_name.items()}
    handles = [
        Line2D([], [], color=looks[row.label]["color"], linestyle=_dash(results, row), label=wrapped(label))
        for label, row in owners.items()
    ]
    add_legend(figure, handles, at_side=columns == 1)
    return figure


def _lines(rows: Sequence[Row], name: str) -> dict[str, tuple[Row, list[Curve]]]:
    """Label -> row and its curves, one per seed. Rows that share their trainings have one line."""
    by_runs: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if any(name in run.curves for run in row.runs):
            by_runs.setdefault(tuple(str(run.directory) for run in row.runs), []).append(row)
    return {
        " = ".join(row.label for row in same): (
            same[0],
            [run.curves[name] for run in same[0].runs if name in run.curves],
        )
        for same in by_runs.values()
    }


def _dash(results: Results, row: Row) -> Any:
    """Where colours come again, they have other dashes."""
    place = results.trained.index(row) // (len(MODELS) - 1)
    return ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))[place % 4]


def _title(name: str, lines: Mapping[str, tuple[Row, list[Curve]]]) -> str:
    width = max(_width(len(shared_steps(of_seeds))) for _, of_seeds in lines.values())
    return name if width == 1 else f"{name}, means over up to {width} logged steps"


def _width(steps: int) -> int:
    return -(-steps // POINTS)


def shared_steps(of_seeds: Sequence[Curve]) -> list[int]:
    """The steps at which all curves have a finite value, ascending.

    Example:
        >>> shared_steps([{1: 0.5, 2: 0.4, 3: 0.3}, {1: 0.6, 3: 0.2, 5: 0.1}])
        [1, 3]
    """
    steps = set.intersection(*({s for s, value in curve.items() if math.isfinite(value)} for curve in of_seeds))
    return sorted(steps)


def thinned(values: Sequence[float], width: int) -> list[float]:
    """Means over neighbours, at most `width` at a time and about as many each: a lone last one would stand out.

    Example:
        >>> thinned([1, 2, 3, 4, 9], 2)
        [1.5, 3.5, 9.0]
        >>> thinned(range(9), 4)
        [1.0, 4.0, 7.0]
    """
    return [float(part.mean()) for part in np.array_split(values, -(-len(values) // width))]


def _draw(axes: Axes, of_seeds: Sequence[Curve], colour: str, dash: Any) -> None:
    """Mean and band of one row."""
    steps = shared_steps(of_seeds)
    if not steps:
        return
    width = _width(len(steps))
    x = thinned(steps, width)
    values = np.array([thinned([curve[step] for step in steps], width) for curve in of_seeds])
    mean = values.mean(0)
    marker = "o" if len(x) <= 10 else None
    axes.plot(x, mean, color=colour, linestyle=dash, linewidth=1.3, marker=marker, markersize=3.5)
    if len(values) > 1:
        spread = values.std(0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)

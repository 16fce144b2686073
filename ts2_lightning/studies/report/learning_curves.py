"""Learning curves of a report: a panel for each logged name, a line for each row."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ts2_lightning.evaluation.style import dash_of, layout, n_said, new_figure, put_n, put_title, tidy
from ts2_lightning.studies.report.figures import add_legend, paper_width, styles_of, wrapped
from ts2_lightning.studies.report.results import Results, Row, by_runs, measured_along
from ts2_lightning.studies.report.rows import label_of, named_axes

POINTS = 60
"""Points of a drawn curve, at most: of more steps the means over as many neighbours as it takes are drawn."""

_TICKS = 6  # steps of a panel, at most, that all have a tick

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
    panels = {name: by_step_of(results, name) for name in names}
    panels = {name: rows for name, rows in panels.items() if rows}
    if not panels:
        return None
    styles = styles_of(results.rows)
    drawn = list(dict.fromkeys(label for rows in panels.values() for label in rows))
    width = paper_width(results)
    rows, columns = layout(len(panels), at_most=width.abreast)
    figure = new_figure(min(1.0 + 3.8 * columns, width.inches), 0.8 + width.panel * rows)
    every = figure.subplots(rows, columns, squeeze=False).flatten()
    last = max((int(steps.index.max()) for of in panels.values() for steps in of.values() if len(steps)), default=1)
    for axes, (name, of_rows) in zip(every, panels.items(), strict=False):
        for label, by_step in of_rows.items():
            _draw_curve(axes, by_step, styles[label]["color"], _dash(results, label))
        axes.set_title(wrapped(_title(name, of_rows.values()), width.panel_letters(columns)), fontsize=9, loc="left")
        axes.set_ylabel(wrapped(_NAMES.get(name.rpartition("/")[2], name), width.beside_panel), fontsize=9)
        axes.set_xlabel("optimizer steps", fontsize=9)
        tidy(axes, grid="both")
        _span_training(axes, of_rows.values(), last)
        put_n(axes, n_said(steps.shape[1] for steps in of_rows.values()))
    for axes in every[len(panels) :]:
        axes.set_visible(False)
    at_side = columns < width.abreast
    put_title(figure, f"{results.title}: learning curves", beside=width.legend if at_side else 0)
    called = {same[0].label: _training_label(same, named_axes(results.axes)) for same in by_runs(results.trained)}
    handles = [
        Line2D(
            [],
            [],
            color=styles[label]["color"],
            linestyle=_dash(results, label),
            label=wrapped(called[label], width.letters),
        )
        for label in drawn
    ]
    add_legend(figure, handles, width, at_side)
    return figure


def _span_training(axes: Axes, of_rows: Iterable[pd.DataFrame], last: int) -> None:
    """All panels span the whole training, so that what is logged rarely stands where it belongs; with ticks there."""
    axes.set_xlim(-0.02 * last, 1.02 * last)
    steps = sorted({int(step) for by_step in of_rows for step in by_step.index})
    if len(steps) <= _TICKS:
        axes.set_xticks([0, *steps])


def by_step_of(results: Results, name: str) -> dict[str, pd.DataFrame]:
    """Label -> steps by runs, at which all of its runs have a finite value; of rows that share trainings, the first."""
    table = results.curves(name)
    firsts = [same[0].label for same in by_runs(results.trained)]
    groups = table[table["row"].isin(firsts)].groupby("row", sort=False)
    wide = {str(label): group.pivot(index="step", columns="run", values="value") for label, group in groups}
    return {label: steps[np.isfinite(steps).all(axis=1)] for label, steps in wide.items()}


def _dash(results: Results, label: str) -> Any:
    """The pattern of a row's line: a colour alone is not told apart by everybody."""
    return dash_of([row.label for row in results.trained].index(label))


def _title(name: str, of_rows: Iterable[pd.DataFrame]) -> str:
    width = max(_width(len(by_step)) for by_step in of_rows)
    return name if width <= 1 else f"{name}, means over up to {width} logged steps"


def _width(steps: int) -> int:
    return -(-steps // POINTS)


def thinned(values: Sequence[float], width: int) -> list[float]:
    """Means over neighbours, at most `width` at a time and about as many each: a lone last one would stand out.

    Example:
        >>> thinned([1, 2, 3, 4, 9], 2)
        [1.5, 3.5, 9.0]
        >>> thinned(range(9), 4)
        [1.0, 4.0, 7.0]
    """
    return [float(part.mean()) for part in np.array_split(values, -(-len(values) // width))]


def _training_label(rows: Sequence[Row], named: Sequence[str]) -> str:
    """What a training is called that several rows are measured of: without the axis in which these differ."""
    along = measured_along(rows)
    if along is None:
        return " = ".join(row.label for row in rows)
    return label_of({axis: choice for axis, choice in rows[0].labels.items() if axis != along[0]}, named)


def _draw_curve(axes: Axes, by_step: pd.DataFrame, colour: str, dash: Any) -> None:
    """Mean and band of one row."""
    if by_step.empty:
        return
    width = _width(len(by_step))
    x = thinned(by_step.index.to_numpy(), width)
    values = np.array([thinned(by_step[run].to_numpy(), width) for run in by_step])
    mean = values.mean(0)
    marker = "o" if len(x) <= 10 else None
    axes.plot(x, mean, color=colour, linestyle=dash, linewidth=1.3, marker=marker, markersize=3.5)
    if len(values) > 1:
        spread = values.std(0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)

"""Distributions of the rows side by side, drawn as the probes draw them."""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from matplotlib.figure import Figure

from ts2_lightning.evaluation.probes import PROBES
from ts2_lightning.experiments.report.figures import Picture
from ts2_lightning.experiments.report.looks import add_legend
from ts2_lightning.experiments.report.results import Results, Row, Run

_DRAWN = {
    "micro": "Next-token distributions at one point of an answer",
    "tail": "The three most probable tokens, and the mass outside the sparsemax support",
}
"""Probe -> what one sees. Several models are in one picture of each."""

PANELS = 8
"""Rows in one picture, at most; more rows take more pictures."""

_WIDE = 30  # characters of a line of a panel's title


def distributions(results: Results) -> list[Picture]:
    """Pictures of one run of each row, for the probes that were measured of at least two rows."""
    pictures = []
    for probe, what in _DRAWN.items():
        parts = list(_parts(results, probe))
        for number, part in enumerate(parts, start=1):
            ending, of_parts = (f"-part-{number}", f", part {number} of {len(parts)}") if len(parts) > 1 else ("", "")
            said = f"{what}: one run of each row{_seed(part)}, not a mean over seeds{of_parts}."
            models = {"\n".join(wrap(row.label, _WIDE)): run.probes[probe] for row, run in part}
            for stem, figure in PROBES[probe].figures({"models": models}).items():
                _legend_outside(figure)
                pictures.append(Picture(f"{stem}{ending}", figure, said))
    return pictures


def _legend_outside(figure: Figure) -> None:
    """Names of many rows have no room inside of the axes, where the probes, of few models, have them."""
    for axes in figure.axes:
        if (legend := axes.get_legend()) is not None:
            handles, _ = axes.get_legend_handles_labels()
            legend.remove()
            add_legend(figure, handles, at_side=False)


def _parts(results: Results, probe: str) -> Iterator[list[tuple[Row, Run]]]:
    """Rows that are drawn together, each with the run that stands for it."""
    comparable: dict[str, list[tuple[Row, Run]]] = {}
    for row in results.rows:
        run = _probed(row, probe, results)
        if run is not None:
            comparable.setdefault(_asked(run.probes[probe]), []).append((row, run))
    for shown in comparable.values():
        if len(shown) > 1:
            yield from (shown[i : i + PANELS] for i in range(0, len(shown), PANELS))


def _asked(numbers: Mapping[str, Any]) -> str:
    """Equal for models that were asked the same, in the same vocabulary."""
    return repr([(question["request"], question["vocabulary"]) for question in numbers.get("questions", ())])


def _probed(row: Row, probe: str, results: Results) -> Run | None:
    """The run of a row with the first seed, if it was probed."""
    first = [run for run in row.runs if row.is_base or not results.seeds or run.seed == results.seeds[0]]
    return next((run for run in first if probe in run.probes), None)


def _seed(shown: Sequence[tuple[Row, Run]]) -> str:
    seeds = {run.seed for row, run in shown if not row.is_base}
    return f" (seed {seeds.pop()})" if len(seeds) == 1 and None not in seeds else ""

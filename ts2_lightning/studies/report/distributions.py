"""Distributions of the rows side by side, drawn as the probes draw them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any

from ts2_lightning.evaluation.probes import PROBES
from ts2_lightning.studies.report.figures import Picture, places_of
from ts2_lightning.studies.report.results import Results, Row, Run

_DRAWN = {
    "micro": "Next-token distributions at one point of an answer, as the model is decoded",
    "tail": "Softmax probabilities of the three most probable tokens, and of all outside the sparsemax support",
}
"""Probe -> what one sees. Several models are in one picture of each."""

PANELS = 8
"""Rows in one picture, at most; more rows take more pictures."""

_WIDE = 30  # characters of a line of a panel's title


@dataclass(frozen=True)
class _Shown:
    """What is drawn of a row, or of several that say the same.

    Attributes:
        label: name in the picture.
        row: the first of the rows.
        run: the run that stands for them.
    """

    label: str
    row: Row
    run: Run

    @property
    def title(self) -> str:
        """The label in lines that are no wider than a panel."""
        return "\n".join(wrap(self.label, _WIDE))


def distributions(results: Results) -> list[Picture]:
    """Pictures of one run of each row, for the probes that were measured of at least two rows."""
    pictures = []
    places = places_of(results.rows)
    for probe, what in _DRAWN.items():
        parts = list(_parts(results, probe))
        for number, part in enumerate(parts, start=1):
            ending, of_parts = (f"-part-{number}", f", part {number} of {len(parts)}") if len(parts) > 1 else ("", "")
            which = f"one run of each row{_seed(part)}, not a mean over seeds{of_parts}"
            document = {
                "models": {one.title: one.run.probes[probe] for one in part},
                "places": {one.title: places.get(one.row.label, 0) for one in part},
            }
            for stem, figure in PROBES[probe].figures(document).items():
                title = " ".join(figure.get_suptitle().replace(r"\$", "$").split())
                pictures.append(Picture(f"{stem}{ending}", figure, f"{title}. {what}: {which}."))
    return pictures


def _parts(results: Results, probe: str) -> Iterator[list[_Shown]]:
    """Rows that are drawn together; those of one training with the same numbers of a probe are drawn once."""
    comparable: dict[str, list[_Shown]] = {}
    for row in results.rows:
        run = _probed(row, probe, results)
        if run is None:
            continue
        shown = comparable.setdefault(_asked(run.probes[probe]), [])
        for i, one in enumerate(shown):
            if one.run.directory == run.directory and one.run.probes[probe] == run.probes[probe]:
                shown[i] = replace(one, label=f"{one.label} = {row.label}")
                break
        else:
            shown.append(_Shown(row.label, row, run))
    for shown in comparable.values():
        if len(shown) > 1:
            size = -(-len(shown) // -(-len(shown) // PANELS))  # parts of like size
            yield from (shown[i : i + size] for i in range(0, len(shown), size))


def _asked(numbers: Mapping[str, Any]) -> str:
    """Equal for models that were asked the same, in the same vocabulary."""
    return repr([(question["request"], question["vocabulary"]) for question in numbers.get("questions", ())])


def _probed(row: Row, probe: str, results: Results) -> Run | None:
    """The run of a row with the first seed, if it was probed."""
    first = [run for run in row.runs if row.is_base or not results.seeds or run.seed == results.seeds[0]]
    return next((run for run in first if probe in run.probes), None)


def _seed(shown: Sequence[_Shown]) -> str:
    seeds = {one.run.seed for one in shown if not one.row.is_base}
    return f" (seed {seeds.pop()})" if len(seeds) == 1 and None not in seeds else ""

"""Probes of a trained model's distributions, several models side by side.

| probe | what is seen | source |
| --- | --- | --- |
| micro | the next-token distribution at one point of an answer, plausible tokens marked where they are known | TS2, figure 1 |
| macro | histogram of the mean selected-token probability of sampled responses | TS2, figure 5 |
| tail | the three most probable tokens, and the mass outside the sparsemax support | TS2, figure 7 |
| tspd | share of tokens with TSPD, entropy against gold probability, support sizes | TS2, definition 1 |

Each is measured (`micro`, `macro`, `tail`, `tspd`: a model in, numbers out), drawn (`figures`: numbers in, pictures out)
and reported (`report`) by functions that know nothing of each other; `PROBES` lists what belongs together. The measure
`evaluation.measures.Probes` reads what they need, and keeps what they return.
"""  # noqa: E501

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.figure import Figure

from ts2_lightning.evaluation.probes import figures, report
from ts2_lightning.evaluation.probes.figures import Document
from ts2_lightning.evaluation.style import save
from ts2_lightning.runs.writing import write_json

__all__ = ["PROBES", "Document", "Probe", "write_probe"]


class Probe(NamedTuple):
    """One probe.

    Attributes:
        reads: what it needs: questions, prompts or rows.
        by_token: whether models are compared token by token, so that they must have one vocabulary.
        figures: function that gives pictures by the stem of their files.
        line: function that says in a line what the numbers come to.
    """

    reads: Literal["questions", "prompts", "rows"]
    by_token: bool
    figures: Callable[[Document], dict[str, Figure]]
    line: Callable[[Document], str]


PROBES: dict[str, Probe] = {
    "micro": Probe("questions", True, figures.micro, report.micro_line),
    "macro": Probe("prompts", False, figures.macro, report.macro_line),
    "tail": Probe("rows", False, figures.tail, report.tail_line),
    "tspd": Probe("rows", False, figures.tspd, report.tspd_line),
}


def write_probe(name: str, models: Mapping[str, Any], settings: Mapping[str, Any], out: Path) -> list[Path]:
    """Writes a probe's pictures, `NAME.json`, and its line in `report.md`.

    Args:
        name: name of the probe.
        models: title of a model -> what the probe's `measure` returned for it, in the order of the pictures.
        settings: plain values that the numbers depend on, to be kept with them.
        out: directory, which is made if need be.

    Returns:
        The pictures, PNG and SVG of each, and the numbers.
    """
    document: dict[str, Any] = {"probe": name, "settings": settings, "models": models}
    drawn = PROBES[name].figures(document)
    pictures = [path for stem, figure in drawn.items() for path in save(figure, out / stem)]
    report.remove_stale(out, name, drawn)
    numbers = write_json(out / f"{name}.json", {**document, "pictures": list(drawn)})
    report.write_report(out, {probe: PROBES[probe].line for probe in PROBES})
    return [*pictures, numbers]

"""Probes of a trained model's distributions, several models side by side.

| probe | what is seen | source |
| --- | --- | --- |
| micro | the next-token distribution at one point of an answer, plausible tokens marked where they are known | TS2, figure 1 |
| macro | histogram of the mean selected-token probability of sampled responses | TS2, figure 5 |
| tail | the three most probable tokens, and the mass outside the sparsemax support | TS2, figure 7 |
| tspd | share of tokens with TSPD, entropy against gold probability, support sizes | TS2, definition 1 |

Each is measured (`micro`, `macro`, `tail`, `tspd`: models in, numbers out), drawn (`figures`: numbers in, pictures out)
and reported (`report`) by functions that know nothing of each other; `PROBES` lists what belongs together.
"""  # noqa: E501

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.figure import Figure

from ts2_lightning.evaluation.probes import figures, macro, micro, report, tail, tspd
from ts2_lightning.evaluation.probes.figures import Document
from ts2_lightning.evaluation.probes.subject import SETTING_RANGES, Prompt, Settings, Subject, is_toy_world
from ts2_lightning.evaluation.style import save

__all__ = [
    "PROBES",
    "SETTING_RANGES",
    "Document",
    "Probe",
    "Prompt",
    "Settings",
    "Subject",
    "is_toy_world",
    "write_probe",
]


class Probe(NamedTuple):
    """One probe.

    Attributes:
        reads: what it needs: questions, prompts or rows.
        by_token: whether models are compared token by token, so that they must have one vocabulary.
        measure: the numbers of one model, as plain values.
        figures: pictures by the stem of their files.
        line: what the numbers come to, in a line.
    """

    reads: Literal["questions", "prompts", "rows"]
    by_token: bool
    measure: Callable[[Subject, Settings], dict[str, Any]]
    figures: Callable[[Document], dict[str, Figure]]
    line: Callable[[Document], str]


PROBES: dict[str, Probe] = {
    "micro": Probe("questions", True, micro.measure, figures.micro, report.micro_line),
    "macro": Probe("prompts", False, macro.measure, figures.macro, report.macro_line),
    "tail": Probe("rows", False, tail.measure, figures.tail, report.tail_line),
    "tspd": Probe("rows", False, tspd.measure, figures.tspd, report.tspd_line),
}


def write_probe(name: str, models: Mapping[str, Any], settings: Mapping[str, Any], out: Path) -> list[Path]:
    """Writes a probe's pictures, `NAME.json`, and its line in `report.md`.

    Args:
        name: of the probe.
        models: name -> what its `measure` returned, in the order of the pictures.
        settings: what the numbers depend on, to be kept with them.
        out: directory, made if need be.

    Returns:
        The pictures, PNG and SVG of each, and the numbers.
    """
    document: dict[str, Any] = {"probe": name, "settings": settings, "models": models}
    drawn = PROBES[name].figures(document)
    pictures = [path for stem, figure in drawn.items() for path in save(figure, out / stem)]
    report.remove_stale(out, name, drawn)
    numbers = report.write_json(out / f"{name}.json", {**document, "pictures": list(drawn)})
    report.write_report(out, {probe: PROBES[probe].line for probe in PROBES})
    return [*pictures, numbers]

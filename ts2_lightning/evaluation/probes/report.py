"""What a probe leaves in a directory: its numbers, its pictures, and a line in `report.md`. Nothing is half-written."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ts2_lightning.evaluation.probes.figures import Document
from ts2_lightning.evaluation.style import remove_pictures
from ts2_lightning.runs.writing import write_whole

REPORT = "report.md"
_HEADING = "# Probes\n\nOne line for each probe: its numbers and pictures, and what they come to.\n\n"


def remove_stale(out: Path, probe: str, stems: Collection[str]) -> None:
    """Removes the pictures that an earlier run of a probe left in a directory and this one has not drawn again."""
    numbers = out / f"{probe}.json"
    before: list[str] = json.loads(numbers.read_text(encoding="utf-8"))["pictures"] if numbers.is_file() else []
    remove_pictures(out, set(before) - set(stems))


def write_report(out: Path, lines: Mapping[str, Callable[[Document], str]]) -> Path:
    """Writes `report.md` anew from the numbers of every probe that lies in a directory.

    Args:
        out: the directory.
        lines: probe -> what its numbers come to, in the order of the report.
    """
    text = _HEADING
    for probe, line in lines.items():
        numbers = out / f"{probe}.json"
        if numbers.is_file():
            document = json.loads(numbers.read_text(encoding="utf-8"))
            pictures = ", ".join(f"[{stem}]({stem}.png) ([SVG]({stem}.svg))" for stem in document["pictures"])
            text += f"- **{probe}**: {line(document)} [Numbers]({numbers.name}); {pictures}.\n"
    return write_whole(out / REPORT, lambda beside: beside.write_text(text, encoding="utf-8"))


def micro_line(document: Document) -> str:
    """The most probable token of each model, and the mass on what is not plausible; of the last question."""

    def said(numbers: Mapping[str, Any]) -> str:
        last = numbers["questions"][-1]
        if not last["records"]:
            return "no digit sampled"
        outside = last["implausible_mass"]
        mass = "" if outside is None else f", implausible mass {outside:.3f}"
        return f"`{last['tokens'][0]}` {last['probabilities'][0]:.3f}{mass}"

    request = " ".join(next(iter(document["models"].values()))["questions"][-1]["request"].split())
    return f'most probable next token, asked "{request[-60:]}": {_each(document, said)}.'


def macro_line(document: Document) -> str:
    """Mean and spread of the mean selected-token probability."""
    said = _each(document, lambda m: f"{m['mean']:.3f} ± {m['standard_deviation']:.3f}")
    return f"mean selected-token probability of a response (± s.d. over responses): {said}."


def tail_line(document: Document) -> str:
    """The most probable token and the tail."""
    said = _each(document, lambda m: f"{m['top1']:.3f}, tail {m['tail_mass']:.3f}")
    return f"most probable token, and softmax mass outside the sparsemax support: {said}."


def tspd_line(document: Document) -> str:
    """One cell of the grid, entropy and support."""
    m, head, tail = 2, 0.1, 0.2

    def said(numbers: Mapping[str, Any]) -> str:
        cell = next(c for c in numbers["grid"] if (c["m"], c["eps_head"], c["eps_tail"]) == (m, head, tail))
        return f"{cell['share']:.3f}, support {numbers['support_size/mean']:.2f}, entropy {numbers['entropy']:.3f}"

    what = f"share of tokens with TSPD({m}, {head}, {tail}), mean support size, mean entropy in nats"
    return f"{what}: {_each(document, said)}."


def _each(document: Document, say: Callable[[Mapping[str, Any]], str]) -> str:
    return "; ".join(f"{name} {say(numbers)}" for name, numbers in document["models"].items())

"""What models scored under protocols, side by side: as text, as Markdown, and as a table for programs."""

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ts2_lightning.evaluation.descriptions import describe
from ts2_lightning.evaluation.estimates import caution
from ts2_lightning.evaluation.measure import PER_ITEM
from ts2_lightning.evaluation.protocols.base import Protocol
from ts2_lightning.evaluation.protocols.differences import Compared, compare, main_values
from ts2_lightning.evaluation.protocols.right_answers import interval
from ts2_lightning.evaluation.results import Result
from ts2_lightning.values import Value

BESIDE = ("questions", "samples", "unparsed", "truncated", "chance")
"""What stands beside every score."""

CURVES = ("pass", "majority", "chance", "win_rate", "lc_win_rate")
"""Names of scores at each k."""

_LEFT_OUT = re.compile(r"(chance|wins|positive|reward)_at_.*|first_.*|accuracy_of_parsed|(pass|majority)_at_1")
"""Values that only the table for programs has; one response votes for itself."""
_MANY = 0.3
"""Share of responses without an answer, or of verdicts that could not be read, from which on scores are doubtful."""

_DIFFERENCE = ("difference", "difference_low", "difference_high", "difference_questions")
_CSV_HEAD = ("model", "protocol", "part", "value", "mean", "low", "high", *BESIDE, *_DIFFERENCE)


@dataclass(frozen=True)
class Evaluated:
    """What a model scored.

    Attributes:
        title: name of the model in tables and pictures.
        results: values and documents by the name of the protocol.
    """

    title: str
    results: Mapping[str, Result]


class Cell(NamedTuple):
    """One value with its interval over questions.

    Attributes:
        mean: the value.
        low: lower end; None where nothing is there for each question.
        high: upper end; None as well.
    """

    mean: float
    low: float | None = None
    high: float | None = None


class Part(NamedTuple):
    """The values of one part of a protocol.

    Attributes:
        protocol: name of the protocol.
        label: label of the part; empty where it has none.
        cells: value with its interval by its name, for each model; those that it lacks are left out.
    """

    protocol: str
    label: str
    cells: Sequence[Mapping[str, Cell]]

    @property
    def title(self) -> str:
        """Protocol and label."""
        return " ".join(filter(None, [self.protocol, self.label]))

    @property
    def names(self) -> list[str]:
        """The names of the values of any model: scores first, then what stands beside them."""
        names = list(dict.fromkeys(name for cells in self.cells for name in cells))
        return [name for name in names if name not in BESIDE] + [name for name in BESIDE if name in names]

    def whole(self, name: str) -> str:
        """The whole name of a value."""
        return "/".join(filter(None, [self.protocol, self.label, name]))


def parts_of(evaluated: Sequence[Evaluated]) -> list[Part]:
    """The parts of all protocols, in their order."""
    places: dict[tuple[str, str], list[dict[str, Cell]]] = {}
    for number, model in enumerate(evaluated):
        for protocol, result in model.results.items():
            for whole, value in result.values.items():
                label, _, name = whole.removeprefix(f"{protocol}/").rpartition("/")
                cells = places.setdefault((protocol, label), [{} for _ in evaluated])
                cells[number][name] = _cell(value, result, whole.removeprefix(f"{protocol}/"))
    return [Part(protocol, label, cells) for (protocol, label), cells in places.items()]


Curve = dict[int, tuple[float, float, float]]
"""Mean, lower and upper end at each k."""


def curves_of(part: Part, model: Evaluated) -> dict[str, Curve]:
    """The curves of a model in a part, by their names."""
    result = model.results.get(part.protocol)
    curves = {} if result is None else result.documents.get("curves", {})
    named = {name: curves.get("/".join(filter(None, [part.label, name]))) for name in CURVES}
    return {name: {int(k): (*ends,) for k, ends in curve.items()} for name, curve in named.items() if curve}


def own_descriptions(evaluated: Sequence[Evaluated]) -> dict[str, Value]:
    """Descriptions of the values of users' protocols, which no registered one describes."""
    results = [result for model in evaluated for result in model.results.values()]
    return {name: value for result in results for name, value in result.described.items()}


def _cell(value: float, result: Result, name: str) -> Cell:
    of_items = result.documents.get(PER_ITEM, {}).get(name)
    if not of_items:
        curve, _, k = name.partition("_at_")  # what is no mean over questions may have its interval there
        ends = result.documents.get("curves", {}).get(curve, {}).get(k or "1")
        return Cell(value) if ends is None else Cell(value, *ends[1:])
    _, low, high = interval(list(of_items.values()))
    return Cell(value, low, high)


def remarks(evaluated: Sequence[Evaluated], protocols: Sequence[Protocol]) -> list[str]:
    """What readers of the table have to know: how sure the values are, notes of protocols, and who answers nothing."""
    lines = ["In square brackets: the 95 % interval of the bootstrap over questions."]
    samples = {
        int(k): round(part.cells[number]["samples"].mean)
        for part in parts_of(evaluated)
        for number, model in enumerate(evaluated)
        for name, curve in curves_of(part, model).items()
        if name in ("pass", "win_rate")
        for k in curve
        if "samples" in part.cells[number]
    }
    cautions = [said for k, n in samples.items() if (said := caution(k, n))]
    doubts = [
        f"{model.title}, {part.title}: {cells['unparsed'].mean:.0%} of the responses have no answer that can be read, "
        f"and {cells['truncated'].mean:.0%} were cut off; read some of them before the scores."
        for part in parts_of(evaluated)
        for model, cells in zip(evaluated, part.cells, strict=True)
        if {"unparsed", "truncated", "questions"} <= cells.keys() and cells["unparsed"].mean > _MANY
    ]
    doubts += [
        f"{model.title}, {part.title}: {cells['judge_unparsed'].mean:.0%} of the judge's verdicts could not be read; "
        "read some of them before the values."
        for part in parts_of(evaluated)
        for model, cells in zip(evaluated, part.cells, strict=True)
        if "judge_unparsed" in cells and cells["judge_unparsed"].mean > _MANY
    ]
    lines += _remarks_on_differences(evaluated)
    return lines + cautions[-1:] + [*dict.fromkeys(protocol.note for protocol in protocols if protocol.note)] + doubts


def _remarks_on_differences(evaluated: Sequence[Evaluated]) -> list[str]:
    """What the differences are, and where they are not of all questions."""
    compared = [
        (part, name, model.title, one)
        for part in parts_of(evaluated)
        for name in _main_values(part, evaluated)
        for model, one in zip(evaluated[1:], _compared(part, name, evaluated)[1:], strict=True)
        if one is not None
    ]
    if not compared:
        return []
    first = evaluated[0].title
    lines = [
        f"Minus {first}: mean difference on the same questions, with the 95 % interval of the paired bootstrap over "
        "questions."
    ]
    partial = {
        f"{title}, {part.title}: of its {one.second:,} questions {one.common:,} are among the {one.first:,} of {first}"
        + ("; the difference is of those alone." if one.common else "; there is no difference to show.")
        for part, _, title, one in compared
        if not one.is_whole
    }
    return lines + sorted(partial)


def as_text(evaluated: Sequence[Evaluated]) -> str:
    """The table for people: a block for each part, models in columns."""
    rows = [["", *(model.title for model in evaluated)]]
    for part in parts_of(evaluated):
        rows += [[""], [part.title], *([f"  {title}", *cells] for title, cells in _lines(part, evaluated))]
    widths = [max((len(row[i]) for row in rows if i < len(row)), default=0) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows
    )


def as_markdown(evaluated: Sequence[Evaluated], remarked: Sequence[str] = ()) -> str:
    """The table in Markdown, a table for each part, and remarks below."""
    blocks = []
    for part in parts_of(evaluated):
        head = ["", *(model.title for model in evaluated)]
        lines = [
            head,
            ["---", *("---:" for _ in evaluated)],
            *([title, *cells] for title, cells in _lines(part, evaluated)),
        ]
        table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
        blocks.append(f"## {part.title}\n\n{table}")
    return "\n\n".join([*blocks, *remarked]) + "\n"


def as_csv(evaluated: Sequence[Evaluated]) -> str:
    """A line for each model and value, with what stands beside it, and of main values the difference to the first."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for part in parts_of(evaluated):
        differences = {
            name: dict(enumerate(_compared(part, name, evaluated))) for name in _main_values(part, evaluated)
        }
        for number, (model, cells) in enumerate(zip(evaluated, part.cells, strict=True)):
            beside = [cells[name].mean if name in cells else "" for name in BESIDE]
            for name in part.names:
                if name in cells and name not in BESIDE:
                    ends = ["" if end is None else end for end in cells[name]]
                    less = _difference_cells(differences.get(name, {}).get(number))
                    writer.writerow([model.title, part.protocol, part.label, name, *ends, *beside, *less])
    return stream.getvalue()


def _difference_cells(compared: Compared | None) -> list[object]:
    if compared is None:
        return [""] * len(_DIFFERENCE)
    if compared.difference is None:
        return ["", "", "", 0]
    mean, low, high = compared.difference.interval[:3]
    return [mean, *("" if math.isnan(end) else end for end in (low, high)), compared.common]


def _main_values(part: Part, evaluated: Sequence[Evaluated]) -> list[str]:
    """The values whose differences to the first model are shown; none where there is one model."""
    if len(evaluated) < 2 or part.protocol not in evaluated[0].results:
        return []
    per_item = evaluated[0].results[part.protocol].documents.get(PER_ITEM, {})
    return main_values([name for name in part.names if "/".join(filter(None, [part.label, name])) in per_item])


def _compared(part: Part, name: str, evaluated: Sequence[Evaluated]) -> list[Compared | None]:
    """Each model compared with the first; None for the first itself, and where there is nothing to compare."""
    first = evaluated[0].results[part.protocol]
    others = [model.results.get(part.protocol) for model in evaluated[1:]]
    return [None, *(None if one is None else compare(first, one, part.label, name) for one in others)]


def _lines(part: Part, evaluated: Sequence[Evaluated]) -> Iterator[tuple[str, list[str]]]:
    """Title and cells of each value that people see."""
    others, main = own_descriptions(evaluated), _main_values(part, evaluated)
    for name in part.names:
        if not _LEFT_OUT.fullmatch(name):
            value = describe(f"{part.protocol}/{name}", others)
            title = title_of(value, part.protocol, name)
            yield title + _chance(part, name), [_shown(cells.get(name), value.format) for cells in part.cells]
            if name in main:
                less = [_shown_difference(one, value.format) for one in _compared(part, name, evaluated)]
                yield f"{title}, minus {evaluated[0].title}", less


def title_of(value: Value, protocol: str, name: str) -> str:
    """The title of a value where the name of its protocol stands above.

    Args:
        value: its description.
        protocol: name of the protocol.
        name: name of the value within the part, which is shown where nobody has described it.
    """
    title = value.title if value.title != value.name else name.replace("_at_", "@")
    return title.removeprefix(f"{protocol}: ")


def _chance(part: Part, name: str) -> str:
    """What guessing would give, where it is of any help: for pass@k as often as there are samples."""
    guess = name.replace("pass_at_", "chance_at_") if name.startswith("pass_at_") else "chance"
    for cells in part.cells:
        if guess in cells and name not in BESIDE and ("accuracy" in name or "_at_" in name):
            return f" (chance {cells[guess].mean:.3f})"
    return ""


def _shown(cell: Cell | None, form: str) -> str:
    if cell is None:
        return "-"
    if cell.low is None or cell.high is None:
        return format(cell.mean, form)
    return f"{cell.mean:{form}} [{cell.low:{form}}, {cell.high:{form}}]"


def _shown_difference(compared: Compared | None, form: str) -> str:
    if compared is None or compared.difference is None:
        return "-"
    mean, low, high = (f"{number:+{form}}" for number in compared.difference.interval[:3])
    return mean if math.isnan(compared.difference.interval.low) else f"{mean} [{low}, {high}]"


class Column(NamedTuple):
    """A value of a part as a column of a table, whose rows are the models.

    Attributes:
        title: title of the value.
        meaning: what it means; empty where the title says it.
        numbers: its number for each model; None where there is none.
        texts: what is shown of it, with intervals.
    """

    title: str
    meaning: str
    numbers: Sequence[float | None]
    texts: Sequence[str]


def columns_of(part: Part, evaluated: Sequence[Evaluated]) -> list[Column]:
    """The values of a part that people see, in the order of the table, and behind main ones the differences to the
    first model.
    """
    lines, others, main = _lines(part, evaluated), own_descriptions(evaluated), _main_values(part, evaluated)
    columns = []
    for name in (name for name in part.names if not _LEFT_OUT.fullmatch(name)):
        title, texts = next(lines)
        means = [cells[name].mean if name in cells else None for cells in part.cells]
        columns.append(Column(title, describe(f"{part.protocol}/{name}", others).meaning, means, texts))
        if name in main:
            title, texts = next(lines)
            compared = [None if one is None else one.difference for one in _compared(part, name, evaluated)]
            less = [None if one is None else one.interval.mean for one in compared]
            columns.append(Column(title, "mean difference on the same questions", less, texts))
    return columns

"""Compared models as text, as Markdown, and as a table for programs."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ts2_lightning.evaluation.comparison.pairs import LEVEL, Pair
from ts2_lightning.evaluation.comparison.ways import Entrant

HEAD = ("", "model", "mean", "minus", "its mean", "difference", "p", "p, Holm", "questions", "ahead")
"""Titles of the columns."""

HINTS = (
    "protocol, part and value; ↑ more is better, ↓ less is",
    "",
    "mean over the common questions",
    "the model that is subtracted",
    "its mean over the same questions",
    "mean difference, with the 95 % interval of the paired bootstrap over questions",
    "two-sided sign-flip test of the mean difference",
    "p corrected for the number of rows by Holm's method",
    "number of questions that both were asked",
    f"the better model, where the corrected p is below {LEVEL:g}",
)
"""What the columns mean."""

_ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}
_CSV_HEAD = (
    "protocol", "part", "value", "better", "first", "second", "first_mean", "second_mean", "difference", "low", "high",
    "p", "p_holm", "test", "questions", "first_questions", "second_questions",
)  # fmt: skip


class Line(NamedTuple):
    """A row of the table: numbers to sort by, and cells as people see them."""

    cells: tuple[str | float | None, ...]
    shown: tuple[str, ...]


def lines_of(pairs: Sequence[Pair], entrants: Sequence[Entrant]) -> list[Line]:
    """The rows of the table, one for each pair."""
    return [_line(pair, entrants) for pair in pairs]


def _line(pair: Pair, entrants: Sequence[Entrant]) -> Line:
    first, second = (entrants[number].title for number in (pair.first, pair.second))
    title, form = titled(pair), pair.value.format
    asked = _questions(pair)
    if pair.difference is None:
        cells = (title, second, None, first, None, None, None, None, 0, "-")
        return Line(cells, (title, second, "-", first, "-", "-", "-", "-", asked, "-"))
    mean, low, high = pair.difference.interval[:3]
    before, after = pair.means
    less = f"{mean:+{form}}" + ("" if math.isnan(low) else f" [{low:+{form}}, {high:+{form}}]")
    ahead = "-" if pair.ahead is None else entrants[pair.ahead].title
    if pair.is_sure and pair.value.better is None:
        ahead = "they differ"
    shown = (
        title, second, f"{after:{form}}", first, f"{before:{form}}", less, p_text(pair.p), p_text(pair.corrected),
        asked, ahead,
    )  # fmt: skip
    return Line(
        (title, second, after, first, before, mean, pair.p, pair.corrected, len(pair.common.before), ahead), shown
    )


def titled(pair: Pair) -> str:
    """Protocol, part and value, with an arrow to where it is better."""
    return pair.title + _ARROWS[pair.value.better]


def _questions(pair: Pair) -> str:
    common, first, second = len(pair.common.before), pair.common.first, pair.common.second
    return f"{common:,}" if common == first == second else f"{common:,} of {second:,} and {first:,}"


def p_text(p: float) -> str:
    """A p value for people.

    Example:
        >>> p_text(0.0312), p_text(0.00001), p_text(1.0), p_text(float("nan"))
        ('0.031', '<0.001', '1.000', '-')
    """
    if math.isnan(p):
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def remarks(pairs: Sequence[Pair]) -> list[str]:
    """What readers of the table have to know."""
    tested = [pair for pair in pairs if pair.difference is not None]
    if not tested:
        return []
    drawn = sum(not pair.exact for pair in tested)
    how = "all of them counted" if not drawn else "counted where there are few, else 20,000 of them drawn"
    lines = [
        "Differences are means over the questions that both models were asked, in square brackets the 95 % interval of "
        "the paired bootstrap over questions.",
        "p: two-sided sign-flip permutation test of the mean: how often signs that are random for each question "
        f"({how}) give a mean as far from 0.",
        f"p, Holm: corrected for the {len(tested)} comparison{'' if len(tested) == 1 else 's'} shown here.",
        "This is about these trained models and questions. Whether training with another seed would say the same, "
        "`report` tells from several seeds.",
    ]
    if any(not (len(pair.common.before) == pair.common.first == pair.common.second) for pair in pairs):
        lines.append(
            "Questions: those that both were asked, of those of each model; questions of one id count as the same only "
            "if their text and right answer are."
        )
    return lines


def as_text(pairs: Sequence[Pair], entrants: Sequence[Entrant]) -> str:
    """The table for people: a block for each value, with its title above."""
    lines = lines_of(pairs, entrants)
    rows: list[tuple[str, ...]] = [HEAD[1:]]
    for place, line in enumerate(lines):
        if place == 0 or lines[place - 1].shown[0] != line.shown[0]:
            rows.append((line.shown[0],))
        rows.append(line.shown[1:])
    whole = [row for row in rows if len(row) > 1]
    widths = [max(len(row[i]) for row in whole) for i in range(len(HEAD) - 1)]
    return "\n".join(_spread(rows, widths))


def _spread(rows: Sequence[tuple[str, ...]], widths: Sequence[int]) -> Iterator[str]:
    for row in rows:
        if len(row) == 1:
            yield from ("", row[0])
        else:
            yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()


def as_markdown(pairs: Sequence[Pair], entrants: Sequence[Entrant], remarked: Sequence[str] = ()) -> str:
    """The table in Markdown, remarks below; rows that are told apart are bold."""
    lines = [list(HEAD), ["---", "---", "---:", "---", "---:", "---:", "---:", "---:", "---:", "---"]]
    for pair, line in zip(pairs, lines_of(pairs, entrants), strict=True):
        cells = [cell.replace("|", r"\|") for cell in line.shown]
        lines.append([f"**{cell}**" if place == 5 and pair.is_sure else cell for place, cell in enumerate(cells)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    said = [*remarked, *([f"Bold: the corrected p is below {LEVEL:g}."] if any(pair.is_sure for pair in pairs) else [])]
    return "\n\n".join([table, *said]) + "\n"


def as_csv(pairs: Sequence[Pair], entrants: Sequence[Entrant]) -> str:
    """A line for each pair, with all digits; what is not there is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for pair in pairs:
        ends = (math.nan,) * 3 if pair.difference is None else pair.difference.interval[:3]
        numbers = ["" if math.isnan(number) else number for number in (*pair.means, *ends, pair.p, pair.corrected)]
        writer.writerow([
            pair.way.title, pair.part, pair.name, pair.value.better or "", entrants[pair.first].title,
            entrants[pair.second].title, *numbers, "exact" if pair.exact else "drawn", len(pair.common.before),
            pair.common.first, pair.common.second,
        ])  # fmt: skip
    return stream.getvalue()

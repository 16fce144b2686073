"""Tables of results: cells first, then as Markdown, LaTeX or plain text."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ts2_lightning.studies.report.baselines import baseline_said, compared_rows
from ts2_lightning.studies.report.results import Results, Row
from ts2_lightning.studies.report.statistics import Difference, Summary
from ts2_lightning.values import Value

Mark = Literal["", "best", "near", "apart"]
"""`best`: of its column; `near`: not told apart from the best; `apart`: a difference that is told apart from zero."""

UNDEFINED = "-"
_LABEL = 36  # characters of a label in plain text, at most
_MARKDOWN = re.compile(r"[\\`*|]|\](?=[(\[])|(?<!\w)_|_(?!\w)")  # not the _ inside of a word
_ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}


@dataclass(frozen=True)
class Cell:
    """What stands in a place of a table."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Table:
    """Cells; the first column has the rows' labels.

    Attributes:
        header: titles of the columns.
        rows: rows of as many cells each.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def parts(self, columns: int) -> list["Table"]:
        """Tables with some columns each, beside the labels, about as many in each."""
        values = len(self.header) - 1
        count = -(-values // columns)
        size = -(-values // max(count, 1))
        starts = range(1, values + 1, max(size, 1))
        return [
            Table(
                (self.header[0], *self.header[i : i + size]),
                tuple((row[0], *row[i : i + size]) for row in self.rows),
            )
            for i in starts
        ]


# Cells ----------------------------------------------------------------------------------------------------------


def results_table(results: Results, names: Sequence[str]) -> Table:
    """Mean and standard deviation of each value, the best ones marked."""
    seeds = max(1, len(results.seeds))  # runs without a seed are one of each row
    columns = []
    for name in names:
        marks, spec = marks_of(results, name), results.describe(name).format
        texts = [mean_text(results.summary(row, name), spec, 1 if row.is_base else seeds) for row in results.rows]
        columns.append([Cell(text, marks.get(row.label, "")) for text, row in zip(texts, results.rows, strict=True)])
    return _table(["", *(titled(results.describe(name)) for name in names)], results.rows, columns)


def differences_table(results: Results, names: Sequence[str]) -> Table:
    """Paired differences of each row against its baseline, with their intervals."""
    pairs = compared_rows(results)
    columns = []
    for name in names:
        differences, spec = [results.difference(*pair, name) for pair in pairs], results.describe(name).format
        columns.append([Cell(difference_text(d, spec), told_apart_mark(d, spec)) for d in differences])
    titles = (titled(results.describe(name)) for name in names)
    return _table([f"minus {baseline_said(results)}", *titles], [row for row, _ in pairs], columns)


def told_apart_mark(difference: Difference, spec: str) -> Mark:
    """The mark of a difference. Less than what is printed is no difference, however sure."""
    return "apart" if difference.excludes_zero and float(format(difference.mean, spec)) != 0 else ""


def _table(header: Sequence[str], rows: Sequence[Row], columns: Sequence[Sequence[Cell]]) -> Table:
    cells = tuple((Cell(row.label), *(column[i] for column in columns)) for i, row in enumerate(rows))
    return Table(tuple(header), cells)


def titled(value: Value) -> str:
    """The title of a column, with an arrow to where it is better."""
    return value.title + _ARROWS[value.better]


def marks_of(results: Results, name: str) -> dict[str, Mark]:
    """Label -> mark, for rows of trainings; none where no direction is better, or all are equal.

    Best are the rows whose mean is, as printed, that of the best one. Another row is near it if the interval of the
    paired difference to the best includes zero: seeds alone could have made it so.
    """
    column, rows = results.describe(name), results.trained
    means = {row.label: results.summary(row, name).mean for row in rows}
    means = {label: mean for label, mean in means.items() if not math.isnan(mean)}
    if column.better is None or len({format(mean, column.format) for mean in means.values()}) < 2:
        return {}
    top = (max if column.better == "higher" else min)(means, key=means.__getitem__)
    best = next(row for row in rows if row.label == top)
    marks: dict[str, Mark] = {}
    for row in rows:
        if row.label not in means:
            continue
        if format(means[row.label], column.format) == format(means[top], column.format):
            marks[row.label] = "best"
            continue
        difference = results.difference(row, best, name)
        if difference.has_interval and not difference.excludes_zero:
            marks[row.label] = "near"
    return marks


def mean_text(summary: Summary, spec: str, n: int) -> str:
    """A mean with its standard deviation.

    Args:
        summary: summary of the values.
        spec: how a number is printed.
        n: how many values there should be; another number is said.

    Example:
        >>> mean_text(Summary(3, 0.5, 0.0123), ".2f", 3), mean_text(Summary(1, 0.5, math.nan), ".2f", 3)
        ('0.50 ± 0.01', '0.50 (n 1)')
    """
    if not summary.n:
        return ""
    if math.isnan(summary.mean):
        return UNDEFINED
    spread = "" if math.isnan(summary.sd) else f" ± {summary.sd:{spec}}"
    return f"{summary.mean:{spec}}{spread}" + (f" (n {summary.n})" if summary.n != n else "")


def difference_text(difference: Difference, spec: str) -> str:
    """A mean difference with its interval.

    Example:
        >>> difference_text(Difference(3, 0.5, 0.25, 0.75), ".2f"), difference_text(summary_of_one := Difference(
        ...     1, -0.5, math.nan, math.nan), ".2f")
        ('+0.50 [+0.25, +0.75]', '-0.50')
    """
    if not difference.n:
        return ""
    if math.isnan(difference.mean):
        return UNDEFINED
    interval = f" [{difference.low:+z{spec}}, {difference.high:+z{spec}}]" if difference.has_interval else ""
    return f"{difference.mean:+z{spec}}{interval}"


# Text -----------------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """Best values are bold, those near them have a degree sign; differences that are told apart from zero are bold."""
    styles: dict[Mark, str] = {"": "{}", "best": "**{}**", "near": "{}°", "apart": "**{}**"}
    lines = [
        _line([escape_markdown(title) for title in table.header]),
        "| --- |" + " ---: |" * (len(table.header) - 1),
        *(_line([styles[cell.mark].format(escape_markdown(cell.text)) for cell in row]) for row in table.rows),
    ]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def escape_markdown(text: str) -> str:
    """Text that shows as it is, also in a cell.

    Example:
        >>> print(escape_markdown("a|b *c* <d>"))
        a\\|b \\*c\\* &lt;d>
    """
    return _MARKDOWN.sub(r"\\\g<0>", text).replace("<", "&lt;")


def plain(table: Table, width: int) -> str:
    """Aligned columns, in blocks below each other that are no wider than some characters where that is possible."""
    signs: dict[Mark, str] = {"": " ", "best": "*", "near": "°", "apart": "*"}
    texts = [[table.header[0], *(f"{title} " for title in table.header[1:])]]
    texts += [[row[0].text, *(cell.text + signs[cell.mark] for cell in row[1:])] for row in table.rows]
    texts = [[shortened(first, _LABEL), *others] for first, *others in texts]
    widths = [max(len(row[i]) for row in texts) for i in range(len(table.header))]
    blocks, taken = [[0]], widths[0]
    for i, wide in enumerate(widths[1:], start=1):
        if taken + 2 + wide > width and len(blocks[-1]) > 1:
            blocks.append([0])
            taken = widths[0]
        blocks[-1].append(i)
        taken += 2 + wide
    return "\n\n".join(_block(texts, widths, block) for block in blocks)


def shortened(text: str, width: int) -> str:
    """The beginning and the end of a text that is too long.

    Example:
        >>> shortened("FenchelYoungPlusLoss, alpha 0.25", 21)
        'FenchelYou…alpha 0.25'
    """
    before = (width - 1) // 2
    return text if len(text) <= width else f"{text[:before]}…{text[before + 1 - width :]}"


def _block(texts: Sequence[Sequence[str]], widths: Sequence[int], columns: Sequence[int]) -> str:
    lines = []
    for row in texts:
        first, *others = columns
        cells = [row[first].ljust(widths[first]), *(row[i].rjust(widths[i]) for i in others)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def booktabs(tables: Sequence[Table], caption: str) -> str:
    """Tables for booktabs, long ones over pages, by longtable; best values are bold, those near them underlined."""
    if any(len(table.rows) > _LATEX_ROWS for table in tables):
        parts = [_longtable(table, caption) for table in tables]
        return "\n".join(["% needs \\usepackage{booktabs,longtable}", *parts, ""])
    blocks = []
    for table in tables:
        begin = rf"\begin{{tabular}}{{{_latex_columns(table)}}}"
        lines = [begin, r"\toprule", _latex_head(table), r"\midrule", *_latex_rows(table)]
        blocks.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    inner = "\n\n\\medskip\n\n".join(blocks)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            inner,
            rf"\caption{{{escape_latex(caption)}}}",
            r"\end{table}",
            "",
        ]
    )


_LATEX_ROWS = 40  # of a table that fits on a page
_LATEX_WIDE = 36  # characters from which on a column is broken into lines


def _longtable(table: Table, caption: str) -> str:
    head = [r"\toprule", _latex_head(table), r"\midrule"]
    begin = [rf"\begin{{longtable}}{{{_latex_columns(table)}}}", rf"\caption{{{escape_latex(caption)}}} \\"]
    rows = [*_latex_rows(table), r"\end{longtable}"]
    return "\n".join([*begin, *head, r"\endhead", r"\bottomrule", r"\endfoot", *rows])


def _latex_columns(table: Table) -> str:
    widths = [max((len(row[i].text) for row in table.rows), default=0) for i in range(1, len(table.header))]
    return "l" + "".join(r"p{0.3\linewidth}" if width > _LATEX_WIDE else "r" for width in widths)


def _latex_head(table: Table) -> str:
    return rf"{' & '.join(map(escape_latex, table.header))} \\"


def _latex_rows(table: Table) -> list[str]:
    styles: dict[Mark, Callable[[str], str]] = {
        "": str,
        "best": lambda text: rf"\textbf{{{text}}}",
        "near": lambda text: rf"\underline{{{text}}}",
        "apart": lambda text: rf"\textbf{{{text}}}",
    }
    lines = [" & ".join(styles[cell.mark](escape_latex(cell.text)) for cell in row) for row in table.rows]
    # A star or a bracket would belong to the end of the line before.
    return [rf"{'{}' if line.startswith(('*', '[')) else ''}{line} \\" for line in lines]


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "°": r"\textdegree{}", "|": r"\textbar{}",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "λ": r"$\lambda$", "τ": r"$\tau$", "×": r"$\times$",
    "≤": r"$\leq$", "≥": r"$\geq$", "−": r"$-$", "…": r"\dots{}",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is.

    Example:
        >>> print(escape_latex("50% of a_b ± 1"))
        50\\% of a\\_b $\\pm$ 1
    """
    return "".join(_LATEX.get(sign, sign) for sign in text).replace("--", "-{}-")

"""`report`: runs side by side, in a table, with differences, intervals and pictures."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from ts2_lightning.cli.terminal import OptionParser, check_out, page_width, put
from ts2_lightning.pages import PAGE
from ts2_lightning.studies.report import Results, collect, complete_settings, override_settings, write_report
from ts2_lightning.studies.report.markdown import seeds_said
from ts2_lightning.studies.report.tables import plain, results_table
from ts2_lightning.studies.report.write import LATEX, RESULTS, TABLE
from ts2_lightning.types import UserError

_ABOUT = """What runs have come to, side by side: means and standard deviations over seeds, paired differences against a
baseline with 95 % intervals, and pictures. Runs that differ in their seeds alone are one row. Values come from what
`measure` has left in the runs, or else from the last lines of their logs."""


def run(argv: Sequence[str]) -> int:
    """Writes a report and prints its table.

    Args:
        argv: the options after the command.

    Returns:
        The exit status, 0.

    Raises:
        UserError: no run, no such row or value, or a file that cannot be read.
    """
    options = _parser().parse_args(argv)
    planes = None if options.planes is None else [_plane(text) for text in _listed(options.planes)]
    columns = None if options.columns is None else _listed(options.columns)
    report(options.runs, options.out, options.baseline, columns, planes, options.latex)
    return 0


def report(
    runs: Sequence[str],
    out: str | None = None,
    baseline: str | None = None,
    columns: list[str] | None = None,
    planes: list[tuple[str, str]] | None = None,
    latex: bool = False,
) -> None:
    """Writes the report of some runs, and prints its table.

    Args:
        runs: grids, runs, directories of them, or patterns.
        out: directory of the report; by default beside a grid's runs, else `./report`.
        baseline: label of the row that differences are taken against.
        columns: values in the tables.
        planes: values that are drawn against each other, as (x, y).
        latex: also write the table for LaTeX.

    Raises:
        UserError: no run, no such row or value, or a file that cannot be read.
    """
    results = complete_settings(override_settings(collect(runs), baseline, columns, planes))
    directory = Path(out) if out else _usual_place(results)
    check_out(directory)
    paths = write_report(results, directory, latex)
    put(_summary(results))
    count = sum(path.suffix == ".png" for path in paths)
    pictures = f"{count} picture{'' if count == 1 else 's'}"
    put(f"\nReport:      {paths[0]} ({pictures})\nPage:        {directory / PAGE}")
    put(f"Data:        {directory / TABLE}, {directory / RESULTS}")
    if latex:
        put(f"LaTeX:       {directory / LATEX}")


def _summary(results: Results) -> str:
    """The title, the table, and what is missing."""
    table = plain(results_table(results, results.settings.columns), page_width())
    marks = "*: best of its column; °: not told apart from it by the seeds; -: not defined with every seed"
    missing = [f"missing: {entry.name}: {entry.reason}" for entry in results.missing]
    lines = [results.title, "", table, "", *wrap(f"{seeds_said(results)} {marks}.", page_width())]
    return "\n".join([*lines, *(["", *missing] if missing else [])])


def _usual_place(results: Results) -> Path:
    """Beside a grid's runs, else in the working directory."""
    return results.sources[0] / "report" if results.file else Path("report")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _plane(text: str) -> tuple[str, str]:
    """`Y:X` as (x, y)."""
    y, colon, x = text.partition(":")
    if not (y and x and colon):
        raise UserError(f"--planes {text}: write QUALITY:DIVERSITY, two values with a colon between them")
    return x, y


def _parser() -> OptionParser:
    parser = OptionParser("report", _ABOUT)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUNS",
        help="a grid (runs/alpha), a run (runs/ts2/1), all runs of a name (runs/ts2), a directory of these, "
        "or a pattern ('runs/ts2-*')",
    )
    parser.add_argument("--out", metavar="DIR", help="default: report/ in a grid's directory, else ./report")
    parser.add_argument("--baseline", metavar="LABEL", help="the row that differences are taken against")
    parser.add_argument("--columns", metavar="A,B", help="values in the tables, such as validation/cross_entropy")
    parser.add_argument("--planes", metavar="Y:X,...", help="pictures of one value against another, quality first")
    parser.add_argument("--latex", action="store_true", help="also write table.tex (booktabs)")
    return parser

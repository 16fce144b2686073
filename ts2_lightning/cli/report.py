"""`report`: runs side by side, in a table, with differences, intervals and pictures."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from ts2_lightning.cli.terminal import OptionParser, check_out, page_width, put
from ts2_lightning.pages import PAGE
from ts2_lightning.studies.grid.reported import PAPER_COLUMNS
from ts2_lightning.studies.report import Results, collect, complete_settings, override_settings, write_report
from ts2_lightning.studies.report.frontier_tables import frontier_title, matched_table
from ts2_lightning.studies.report.frontiers import frontiers_of
from ts2_lightning.studies.report.markdown import seeds_said
from ts2_lightning.studies.report.tables import plain, results_table
from ts2_lightning.studies.report.write import LATEX, RESULTS, TABLE
from ts2_lightning.types import UserError

_ROWS_SHOWN = 30  # of a table in the terminal, where there are tables along dials
_MISSING_SHOWN = 5  # of what is missing for the same reason, at most, that has a line each

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
    frontier = None if options.frontier is None else _frontier(options.frontier)
    dials = None if options.dials is None else _listed(options.dials)
    results = override_settings(
        collect(options.runs), options.baseline, columns, planes, frontier, dials, options.at, options.paper_columns
    )
    _write(results, options.out, options.latex)
    return 0


def report(
    runs: Sequence[str],
    out: str | None = None,
    baseline: str | None = None,
    columns: list[str] | None = None,
    planes: list[tuple[str, str]] | None = None,
    latex: bool = False,
    paper_columns: int | None = None,
) -> None:
    """Writes the report of some runs, and prints its table.

    Args:
        runs: grids, runs, directories of them, or patterns.
        out: directory of the report; by default beside a grid's runs, else `./report`.
        baseline: label of the row that differences are taken against.
        columns: values in the tables.
        planes: values that are drawn against each other, as (x, y).
        latex: also write the table for LaTeX.
        paper_columns: columns of a paper, 1 or 2, that the pictures are as wide as.

    Raises:
        UserError: no run, no such row or value, or a file that cannot be read.
    """
    _write(override_settings(collect(runs), baseline, columns, planes, paper_columns=paper_columns), out, latex)


def _write(results: Results, out: str | None, latex: bool) -> None:
    results = complete_settings(results)
    directory = Path(out) if out else _usual_place(results)
    check_out(directory)
    paths = write_report(results, directory, latex)
    put(_summary(results))
    count = sum(path.suffix == ".png" for path in paths)
    pictures = f"{count} picture{'' if count == 1 else 's'}"
    put(f"\nReport:      {paths[0]} ({pictures})\nPage:        {directory / PAGE}")
    data = [path for path in paths if path.name.startswith((TABLE, RESULTS))]
    put(f"Data:        {', '.join(map(str, sorted(data, reverse=True)))}")
    if latex:
        put(f"LaTeX:       {directory / LATEX}")


def _summary(results: Results) -> str:
    """The title, the diversities at matched quality, the table unless it is long, and what is missing."""
    count = len(results.rows)
    if results.settings.frontiers and count > _ROWS_SHOWN:
        table = f"{count} rows: see the report for their table"
    else:
        table = plain(results_table(results, results.settings.columns), page_width())
    marks = "*: best of its column; °: not told apart from it by the seeds; -: not defined with every seed"
    missing = _missing(results)
    lines = [results.title, "", *_matched(results), table, "", *wrap(f"{seeds_said(results)} {marks}.", page_width())]
    return "\n".join([*lines, *(["", *missing] if missing else [])])


def _missing(results: Results) -> list[str]:
    """What is missing, a line each; of many for one reason, such as runs of a grid that go on, the first two."""
    by_reason: dict[str, list[str]] = {}
    # Rows that are measured of one training miss the same run, which is one.
    for entry in {(entry.name, entry.reason): entry for entry in results.missing}.values():
        by_reason.setdefault(entry.reason, []).append(entry.name)
    lines = []
    for reason, names in by_reason.items():
        if len(names) > _MISSING_SHOWN:
            names = [f"{', '.join(names[:2])} and {len(names) - 2} more, which the report names"]
        lines += [f"missing: {name}: {reason}" for name in names]
    return lines


def _matched(results: Results) -> list[str]:
    """The tables of diversities at matched quality."""
    lines: list[str] = []
    for frontier in frontiers_of(results):
        lines += [*wrap(frontier_title(results, frontier), page_width()), ""]
        for target, matched in frontier.at:
            lines += [
                f"at the quality {target.said}",
                "",
                plain(matched_table(results, frontier, matched), page_width()),
            ]
            lines.append("")
    return lines


def _usual_place(results: Results) -> Path:
    """Beside a grid's runs, else in the working directory."""
    return results.sources[0] / "report" if results.file else Path("report")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _frontier(text: str) -> tuple[str, str]:
    """`QUALITY:DIVERSITY` as (quality, diversity)."""
    quality, colon, diversity = text.partition(":")
    if not (quality and diversity and colon):
        raise UserError(f"--frontier {text}: write QUALITY:DIVERSITY, two values with a colon between them")
    return quality, diversity


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
    parser.add_argument(
        "--baseline",
        metavar="LABEL|AXIS=CHOICE,...",
        help="the row that differences are taken against; or choices, for the row of these at each row's other axes",
    )
    parser.add_argument("--columns", metavar="A,B", help="values in the tables, such as validation/cross_entropy")
    parser.add_argument("--planes", metavar="Y:X,...", help="pictures of one value against another, quality first")
    parser.add_argument("--frontier", metavar="Y:X", help="a curve of quality against diversity along --dials")
    parser.add_argument("--dials", metavar="A[,B]", help="the axes of it, such as learning_rate,temperature")
    parser.add_argument(
        "--at",
        action="append",
        metavar="QUALITY|LABEL",
        help="where diversities are compared along dials: a quality, the label of a row whose quality it is, or "
        "`baseline`; several times for several",
    )
    parser.add_argument(
        "--paper-columns",
        type=int,
        choices=PAPER_COLUMNS,
        metavar="1|2",
        help="columns of a paper that planes, curves and frontiers are as wide as (default: the grid's, else 2)",
    )
    parser.add_argument("--latex", action="store_true", help="also write table.tex (booktabs)")
    return parser

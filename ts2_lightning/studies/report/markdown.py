"""`report.md`: what was run, the tables, the pictures, what is missing, and how to repeat a run."""

import re
from collections.abc import Iterable, Sequence

from ts2_lightning.evaluation import registered_measures
from ts2_lightning.studies.report import published
from ts2_lightning.studies.report.baselines import baseline_said, compared_rows, unmatched
from ts2_lightning.studies.report.best import best_said, best_tables, best_title
from ts2_lightning.studies.report.figures import Picture
from ts2_lightning.studies.report.frontier_pictures import EACH, FRONTIER
from ts2_lightning.studies.report.frontier_tables import (
    front_said,
    front_table,
    frontier_title,
    marks_said,
    matched_table,
    rule_said,
)
from ts2_lightning.studies.report.frontiers import frontiers_of
from ts2_lightning.studies.report.results import Results, Run, by_runs, measured_along
from ts2_lightning.studies.report.rows import label_of, named_axes
from ts2_lightning.studies.report.statistics import CONFIDENCE
from ts2_lightning.studies.report.tables import (
    Cell,
    Table,
    differences_table,
    escape_markdown,
    markdown,
    results_table,
)

COLUMNS = 8
"""Columns of values in one table; a page has no room for more."""

_DIFFERENCES = 5  # columns of a table of differences, which are wide
_NAMED = 4  # rows, or groups of rows, that are named in the text where there may be many
_RUNS_DIR = re.compile(r" --runs_dir ('[^']*'|\S+)")
_PERCENT = f"{CONFIDENCE:.0%}".replace("%", " %")


def as_markdown(results: Results, pictures: Sequence[Picture]) -> str:
    """The whole report, of results with complete settings."""
    title = f"# {escape_markdown(results.title)}"
    parts = [title, _about(results), _frontiers(results, pictures), _best(results)]
    parts += [_results(results), _columns(results), _differences(results)]
    rest = {
        "Beside the papers' figures": published.as_markdown(results),
        "Pictures": _pictures([picture for picture in pictures if not picture.stem.startswith(FRONTIER)]),
        "What is missing": _missing(results),
        "What the rows differ in": _settings(results),
        "Runs": _runs(results),
    }
    parts += [f"## {heading}\n\n{text}" for heading, text in rest.items() if text]
    return "\n\n".join(filter(None, parts)) + "\n"


# What was run ---------------------------------------------------------------------------------------------------


def _about(results: Results) -> str:
    runs = results.runs
    times = sorted(_minute(run.time) for run in runs if run.time)
    seconds = [run.seconds for run in runs if run.seconds is not None]
    lines = [
        f"Paper: {escape_markdown(results.paper)}" if results.paper else "",
        f"Grid: `{results.file}`"
        if results.file
        else f"From: {', '.join(f'`{source}`' for source in results.sources)}",
        f"{_counted(len(results.trained), 'row')}, {_counted(len(runs), 'training')}. {seeds_said(results)}",
        *_shared(results),
        *(
            f"{escape_markdown(row.label)}: a model as it was before these trainings, measured once"
            for row in results.rows
            if row.is_base
        ),
        f"Differences are taken against: {escape_markdown(baseline_said(results))}" if compares(results) else "",
        f"Software: {revisions_said(runs)}",
        f"Trainings began: {' to '.join(dict.fromkeys((times[0], times[-1])))}" if times else "",
        f"Training took {duration(sum(seconds))} in all" if seconds else "",
        *(f"**Note:** {note}" for note in notes(results)),
    ]
    return "\n".join(f"- {line}" for line in lines if line)


def _minute(time: str) -> str:
    """A time, ISO 8601, for people.

    Example:
        >>> _minute("2026-01-02T03:04:05+00:00")
        '2026-01-02 03:04 UTC'
    """
    return time[:16].replace("T", " ") + (" UTC" if time.endswith("+00:00") else "")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _shared(results: Results) -> list[str]:
    """Which rows are other measurements of the same trainings; in one line where all are so along one axis."""
    groups = [same for same in by_runs(results.trained) if len(same) > 1]
    along = {measured_along(same) for same in groups}
    if len(along) == 1 and (axis_and_choices := along.pop()) is not None:
        axis, choices = axis_and_choices
        what = "Every training" if len(groups) == len(by_runs(results.trained)) else f"{len(groups)} rows of trainings"
        return [f"{what} measured at {escape_markdown(axis)} {', '.join(map(escape_markdown, choices))}"]
    labels = [[escape_markdown(row.label) for row in same] for same in groups]
    said = [f"The same trainings, measured in several ways: {', '.join(same)}" for same in labels[:_NAMED]]
    more = len(labels) - _NAMED
    return [*said, f"The same of {more} more groups of rows; the list of runs below has them"] if more > 0 else said


def seeds_said(results: Results) -> str:
    """How many seeds there are, and what follows from it.

    Example:
        >>> seeds_said(Results("title", "", (), (), {}))
        'No run has come to its end.'
    """
    most = max((len(row.runs) for row in results.trained), default=0)
    named = f" ({', '.join(map(str, results.seeds))})" if results.seeds else ""
    if not most:
        return "No run has come to its end."
    if most == 1:
        return f"One seed{named}: no standard deviations and no intervals; any difference may be chance."
    return f"n = {len(results.seeds)} seeds{named}: mean ± standard deviation over them (divisor n - 1)."


def revisions_said(runs: Iterable[Run]) -> str:
    """By which software the runs were made."""
    revisions = sorted({run.revision or "not recorded" for run in runs})
    return " and ".join(f"`{one}`" for one in revisions) or "not recorded"


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    Example:
        >>> duration(42.3), duration(600), duration(9000)
        ('42 s', '10.0 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def notes(results: Results) -> list[str]:
    """What makes rows less comparable than they look."""
    lines = []
    if len({run.revision for run in results.runs}) > 1:
        lines.append("the runs were made by different revisions of the software; the list of runs below says which.")
    if any(run.revision and "with changes" in run.revision for run in results.runs):
        lines.append("a revision “with changes” had uncommitted ones, which it does not tell.")
    settings: dict[str, set[str]] = {}
    for run in results.runs:
        for measure, of_measure in run.settings.items():
            settings.setdefault(measure, set()).add(repr({k: v for k, v in of_measure.items() if k != "decoding"}))
    different = [measure for measure, several in settings.items() if len(several) > 1]
    if different:
        lines.append(f"not all runs were measured with the same settings of {', '.join(different)} (see results.json).")
    if results.missing:
        lines.append("something is missing, see below.")
    return lines


# Tables ---------------------------------------------------------------------------------------------------------


def _results(results: Results) -> str:
    names = results.settings.columns
    if not names:
        return "## Results\n\nNothing has been measured yet."
    tables = results_table(results, names).parts(COLUMNS)
    return "\n\n".join(["## Results", *map(markdown, tables), legend_said(results)])


def legend_said(results: Results) -> str:
    """What the marks in the tables mean, as far as there are any."""
    lines = []
    if any(results.describe(name).better for name in results.settings.columns):
        lines.append("Bold: the best mean of a column, and equal ones as printed; ↑ more is better, ↓ less is.")
        if max((len(row.runs) for row in results.trained), default=0) > 1:
            lines.append(
                f"°: not told apart from the best by the seeds: the {_PERCENT} interval of the paired difference "
                "includes zero."
            )
        if len(results.trained) < len(results.rows):
            lines.append("The base model is never marked.")
    lines.append("-: not defined with every seed; empty: not measured; n: seeds, where some are missing.")
    return " ".join(lines)


def compares(results: Results) -> bool:
    """Whether any row has a seed in common with its baseline."""
    seeds = {row.label: {run.seed for run in row.runs if run.seed is not None} for row in results.trained}
    return any(seeds[row.label] & seeds[base.label] for row, base in compared_rows(results))


def unmatched_said(results: Results) -> str:
    """Which rows are compared with nothing; empty if all are compared."""
    alone = [row.label for row in unmatched(results)]
    if not alone:
        return ""
    more = f" and {len(alone) - _NAMED} more" if len(alone) > _NAMED else ""
    said = label_of(results.settings.matched, named_axes(results.axes))
    return f"Compared with nothing, as there is no {said} at their other choices: {', '.join(alone[:_NAMED])}{more}."


def _differences(results: Results) -> str:
    if not compares(results) or not results.settings.columns:
        return escape_markdown(unmatched_said(results))
    tables = differences_table(results, results.settings.columns).parts(_DIFFERENCES)
    pairs = {results.difference(*pair, name).n for pair in compared_rows(results) for name in results.settings.columns}
    if max(pairs, default=0) > 1:
        said = (
            f"Mean differences over the seeds that both rows have, with Student's {_PERCENT} interval "
            f"(paired by seed, n = {max(pairs)} where nothing is missing). Bold: the interval excludes zero, and the "
            "mean is not printed as zero. The intervals are not corrected for their number: of twenty, one is expected "
            "to exclude zero by chance."
        )
    else:
        said = "Differences of single runs: without more seeds there is no interval, and any of them may be chance."
    heading = f"## Against {escape_markdown(baseline_said(results))}"
    return "\n\n".join(filter(None, [heading, *map(markdown, tables), said, escape_markdown(unmatched_said(results))]))


# Along dials ----------------------------------------------------------------------------------------------------------


def _frontiers(results: Results, pictures: Sequence[Picture]) -> str:
    """Each frontier with its picture, the diversities at matched quality, and the fronts."""
    drawn = {picture.stem: picture for picture in pictures}
    parts = []
    for place, frontier in enumerate(frontiers_of(results)):
        parts.append(f"## {escape_markdown(frontier_title(results, frontier))}")
        stems = (f"{FRONTIER}{place + 1}", f"{FRONTIER}{place + 1}{EACH}")
        parts.append(_pictures([drawn[stem] for stem in stems if stem in drawn]))
        quality, diversity = (
            results.describe(name) for name in (frontier.settings.quality, frontier.settings.diversity)
        )
        for target, matched in frontier.at:
            title = f"{diversity.title} where {quality.title} is {target.said}"
            parts += [f"### {escape_markdown(title)}", markdown(matched_table(results, frontier, matched))]
        if frontier.at:
            parts.append(escape_markdown(f"{rule_said(results, frontier)} {marks_said(frontier)}"))
        parts += ["### Fronts", markdown(front_table(results, frontier)), escape_markdown(front_said(frontier))]
        parts.append("\n".join(f"- {escape_markdown(remark)}" for remark in frontier.remarks))
    return "\n\n".join(filter(None, parts))


def _best(results: Results) -> str:
    """Best choices of axes, and what they come to on other numbers."""
    parts = []
    for best in results.settings.best:
        parts.append(f"## {escape_markdown(best_title(results, best))}")
        parts += [markdown(part) for table in best_tables(results, best) for part in table.parts(COLUMNS)]
        parts.append("\n".join(f"- {escape_markdown(said)}" for said in best_said(results, best)))
    return "\n\n".join(parts)


def _settings(results: Results) -> str:
    """The settings that tell rows apart, where no grid has given the rows their names."""
    if results.file or not results.axes:
        return ""
    cells = [[row.label, *(row.labels.get(axis, "") for axis in results.axes)] for row in results.trained]
    return markdown(Table(("row", *results.axes), tuple(tuple(map(Cell, row)) for row in cells)))


def _columns(results: Results) -> str:
    names = results.settings.columns
    if not names:
        return ""
    lines = ["| column | what it is | value in `results.json` |", "| --- | --- | --- |"]
    lines += [
        f"| {escape_markdown(value.title)} | {escape_markdown(value.meaning)} | `{value.name}` |"
        for value in map(results.describe, names)
    ]
    shown = {name.partition("/")[0] for name in names}
    notes = [measure.note for name, measure in registered_measures().items() if name in shown and measure.note]
    return "\n\n".join(["\n".join(lines), *notes])


# The rest -------------------------------------------------------------------------------------------------------


def _pictures(pictures: Sequence[Picture]) -> str:
    return "\n\n".join(
        f"![{escape_markdown(picture.caption)}]({picture.stem}.png)\n\n"
        f"{escape_markdown(picture.caption)} ([SVG]({picture.stem}.svg))"
        for picture in pictures
    )


def _missing(results: Results) -> str:
    return "\n".join(
        f"- `{entry.name}`{f' ({escape_markdown(entry.row)})' if entry.row else ''}: {escape_markdown(entry.reason)}"
        for entry in results.missing
    )


def _runs(results: Results) -> str:
    """Every run with what repeats it. Where the runs are to lie is not said: that is a matter of the machine."""
    revisions = len({run.revision for run in results.runs}) > 1
    lines = ["Each run can be repeated alone, by the command below its name."]
    for same in by_runs(results.trained):
        for run in same[0].runs:
            about = [f"`{run.name}`", *(escape_markdown(row.label) for row in same)]
            about += [f"seed {run.seed}"] if run.seed is not None else []
            about += [f"`{run.revision}`"] if run.revision and revisions else []
            lines.append(f"- {', '.join(about)}\n\n      {_RUNS_DIR.sub('', run.command)}")
    return "\n".join(lines) if len(lines) > 1 else ""

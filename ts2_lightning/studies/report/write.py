"""The files of a report: text, data, pictures. Each is there whole, or as it was."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from ts2_lightning.evaluation.probes.report import remove_stale
from ts2_lightning.evaluation.style import save
from ts2_lightning.json_files import read_json
from ts2_lightning.pages import PAGE
from ts2_lightning.runs.writing import write_whole
from ts2_lightning.studies.names import slug
from ts2_lightning.studies.report import published
from ts2_lightning.studies.report.baselines import baseline_of
from ts2_lightning.studies.report.distributions import distributions
from ts2_lightning.studies.report.figures import Picture, against, curves, plane
from ts2_lightning.studies.report.frontier_pictures import frontier_pictures
from ts2_lightning.studies.report.frontier_tables import (
    as_plain,
    frontier_title,
    matched_csv,
    matched_table,
    points_csv,
)
from ts2_lightning.studies.report.frontiers import frontiers_of
from ts2_lightning.studies.report.markdown import COLUMNS, as_markdown, seeds_said
from ts2_lightning.studies.report.page import as_page
from ts2_lightning.studies.report.results import Results, Row, Run
from ts2_lightning.studies.report.settings import complete_settings
from ts2_lightning.studies.report.statistics import summarise
from ts2_lightning.studies.report.tables import booktabs, results_table
from ts2_lightning.types import UserError

REPORT, TABLE, RESULTS, LATEX = "report.md", "table.csv", "results.json", "table.tex"
PUBLISHED, FRONTIERS, MATCHED = "published.csv", "frontiers.csv", "matched.csv"


def write_report(results: Results, out: Path, latex: bool = False) -> list[Path]:
    """Writes the report of some results.

    Args:
        results: what `collect` gives.
        out: directory, made if need be. Pictures of an earlier report that this one does not have are removed, and its
            `table.tex` if this one has none.
        latex: also write `table.tex`.

    Returns:
        The files: `report.md`, `table.csv`, `results.json`, `published.csv` where papers have published figures of the
        rows, `frontiers.csv` and `matched.csv` where there are dials, `table.tex` if it was asked for, `report.html`,
        and the pictures.

    Raises:
        UserError: a row or a value that the settings name is not there, or the directory has a `results.json` of
            something else.
    """
    results = complete_settings(results)
    is_new = _is_new(out)
    drawn = pictures(results)
    paths = [path for picture in drawn for path in save(picture.figure, out / picture.stem)]
    stems = [picture.stem for picture in drawn]
    remove_stale(out, Path(RESULTS).stem, stems)
    texts = {TABLE: as_csv(results), RESULTS: as_json(results, stems)}
    if any(row.published for row in results.rows):
        texts[PUBLISHED] = published.as_csv(results)
    if frontiers := frontiers_of(results):
        texts |= {FRONTIERS: points_csv(results, frontiers), MATCHED: matched_csv(results, frontiers)}
    if latex:
        texts[LATEX] = _latex(results)
    for name in (PUBLISHED, FRONTIERS, MATCHED, LATEX):
        if name not in texts and not is_new:
            (out / name).unlink(missing_ok=True)
    texts[REPORT] = as_markdown(results, drawn)
    written = [_write(out / name, text) for name, text in texts.items()]
    page = as_page(results).write(out / PAGE)
    return [*reversed(written), page, *paths]


def _latex(results: Results) -> str:
    """The table, and those of the diversities at matched quality."""
    parts = results_table(results, results.settings.columns).parts(COLUMNS)
    tables = [booktabs(parts, f"{results.title}. {seeds_said(results)}")]
    for frontier in frontiers_of(results):
        for target, matched in frontier.at:
            caption = f"{frontier_title(results, frontier)}: at the quality {target.said}."
            tables.append(booktabs([matched_table(results, frontier, matched)], caption))
    return "\n".join(tables)


def _is_new(out: Path) -> bool:
    """Whether a directory has no earlier report.

    Raises:
        UserError: its `results.json` is none's.
    """
    file = out / RESULTS
    if not file.is_file():
        return True
    try:
        content = read_json(file)
        ours = "rows" in content and all(Path(stem).name == stem for stem in content["pictures"])
    except (UserError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{file} is not a report's; name another --out")
    return False


def pictures(results: Results) -> list[Picture]:
    """All pictures for which there is something to show, of results with complete settings."""
    several = len(results.seeds) > 1
    spread = " Bars: standard deviation over the seeds." if several else " One seed."
    dots = " Small dots: the seeds. A bar may reach beyond what is possible." if several else ""
    shown = results.settings
    drawn = frontier_pictures(results)
    for i, (x, y) in enumerate(shown.planes):
        figure = plane(results, x, y)
        if figure:
            quality, diversity = results.describe(y).title, results.describe(x).title
            said = f"Quality ({quality}) against diversity ({diversity}), mean of each row."
            drawn.append(Picture(f"plane-{i + 1}", figure, f"{said}{spread}{dots}"))
    for axis, names in (shown.against or {}).items():
        figure = against(results, axis, names)
        if figure:
            said = f"What {axis} does. Dashed: rows without it.{spread}"
            drawn.append(Picture(f"against-{slug(axis)}", figure, said))
    figure = curves(results, shown.curves)
    if figure:
        many = "mean over the seeds, in a band of a standard deviation to both sides"
        drawn.append(Picture("curves", figure, f"Learning curves: {many if several else 'one seed'}."))
    return [*drawn, *distributions(results)]


def _write(path: Path, text: str) -> Path:
    return write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


# The results as data --------------------------------------------------------------------------------------------------


def as_json(results: Results, pictures: Sequence[str]) -> str:
    """Everything, as JSON; null stands for what is not there or not defined.

    Args:
        results: results with complete settings.
        pictures: stems of their files.
    """
    document = {
        "title": results.title,
        "paper": results.paper or None,
        "sources": [str(source) for source in results.sources],
        "seeds": results.seeds,
        "axes": results.axes,
        "settings": asdict(results.settings),
        "rows": [_row(results, row) for row in results.rows],
        "published": published.as_plain(results),
        "frontiers": as_plain(results, frontiers_of(results)),
        "pictures": list(pictures),
        "missing": [asdict(entry) for entry in results.missing],
    }
    return json.dumps(_plain(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _row(results: Results, row: Row) -> dict[str, Any]:
    names = list(dict.fromkeys(name for run in row.runs for name in run.values))
    baseline = baseline_of(results, row)
    return {
        "label": row.label,
        "labels": row.labels,
        "base": row.is_base,
        "baseline": baseline and baseline.label,
        "runs": [_run(run) for run in row.runs],
        "means": {name: asdict(results.summary(row, name)) for name in names},
        "differences": {name: asdict(results.difference(row, baseline, name)) for name in names} if baseline else {},
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "seed": run.seed,
        "values": run.values,
        "settings": run.settings,
        "revision": run.revision,
        "time": run.time,
        "seconds": run.seconds,
        "command": run.command or None,
    }


def _plain(value: Any) -> Any:
    """Plain values of which JSON knows all."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_csv(results: Results) -> str:
    """One line for each row and value: label, choices of the axes, value, mean, sd, n, and the value of each seed."""
    seeds: list[int | None] = [*results.seeds]
    if any(run.seed is None for row in results.rows for run in row.runs):
        seeds.append(None)
    labels = {row.label: [row.labels.get(axis, "") for axis in results.axes] for row in results.rows}
    lines = []
    for (row, name), values in results.by_seed.items():
        summary = summarise(list(values.values()))
        lines.append([row, *labels[row], name, summary.mean, summary.sd, summary.n, *map(values.get, seeds)])
    titles = ["seed none" if seed is None else f"seed {seed}" for seed in seeds]
    table = pd.DataFrame(lines, columns=["row", *results.axes, "metric", "mean", "sd", "n", *titles])
    return table.to_csv(index=False, lineterminator="\n")

"""The files of a report: text, data, pictures. Each is there whole, or as it was."""

import json
import lzma
from pathlib import Path

from ts2_lightning.evaluation.style import remove_pictures, save
from ts2_lightning.json_files import read_json
from ts2_lightning.pages import PAGE
from ts2_lightning.runs.writing import write_whole
from ts2_lightning.studies.names import slug
from ts2_lightning.studies.report import published
from ts2_lightning.studies.report.data import as_csv, as_json
from ts2_lightning.studies.report.distributions import distributions
from ts2_lightning.studies.report.figures import Picture, against, plane, rows_along_numbers
from ts2_lightning.studies.report.frontier_pictures import frontier_pictures
from ts2_lightning.studies.report.frontier_tables import (
    frontier_title,
    matched_csv,
    matched_table,
    points_csv,
)
from ts2_lightning.studies.report.frontiers import frontiers_of
from ts2_lightning.studies.report.learning_curves import curves
from ts2_lightning.studies.report.markdown import COLUMNS, as_markdown, seeds_said
from ts2_lightning.studies.report.page import as_page
from ts2_lightning.studies.report.results import Results
from ts2_lightning.studies.report.settings import complete_settings
from ts2_lightning.studies.report.tables import booktabs, results_table
from ts2_lightning.types import UserError

REPORT, TABLE, RESULTS, LATEX = "report.md", "table.csv", "results.json", "table.tex"
PUBLISHED, FRONTIERS, MATCHED = "published.csv", "frontiers.csv", "matched.csv"
_NAMES = (TABLE, RESULTS, LATEX, PUBLISHED, FRONTIERS, MATCHED)

LARGE = 2**20
"""Bytes from which on data are written compressed, with the ending `.xz`: their texts come again and again."""

_PACKED = ".xz"


def write_report(results: Results, out: Path, latex: bool = False) -> list[Path]:
    """Writes the report of some results.

    Args:
        results: what `collect` gives.
        out: directory, made if need be. Pictures and data of an earlier report that this one does not have are removed.
        latex: also write `table.tex`.

    Returns:
        The files: `report.md`, `table.csv`, `results.json`, `published.csv` where papers have published figures of the
        rows, `frontiers.csv` and `matched.csv` where there are dials, `table.tex` if it was asked for, `report.html`,
        and the pictures. Data over 1 MiB are compressed: `table.csv.xz`, which pandas reads as it reads `table.csv`.

    Raises:
        UserError: a row or a value that the settings name is not there, or the directory has a `results.json` of
            something else.
    """
    results = complete_settings(results)
    earlier = _earlier_pictures(out)
    drawn = pictures(results)
    paths = [path for picture in drawn for path in save(picture.figure, out / picture.stem)]
    stems = [picture.stem for picture in drawn]
    remove_pictures(out, set(earlier or ()) - set(stems))
    texts = {TABLE: as_csv(results), RESULTS: as_json(results, stems)}
    if any(row.published for row in results.rows):
        texts[PUBLISHED] = published.as_csv(results)
    if frontiers := frontiers_of(results):
        texts |= {FRONTIERS: points_csv(results, frontiers), MATCHED: matched_csv(results, frontiers)}
    if latex:
        texts[LATEX] = _latex(results)
    texts[REPORT] = as_markdown(results, drawn)
    written = [_write(out / name, text) for name, text in texts.items()]
    if earlier is not None:
        for name in {f"{name}{ending}" for name in _NAMES for ending in ("", _PACKED)} - {one.name for one in written}:
            (out / name).unlink(missing_ok=True)
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


def _earlier_pictures(out: Path) -> list[str] | None:
    """The stems of the pictures of an earlier report in a directory; None where there is none.

    Raises:
        UserError: its `results.json` is none's.
    """
    file = next(filter(Path.is_file, (out / RESULTS, out / f"{RESULTS}{_PACKED}")), None)
    if file is None:
        return None
    try:
        content = read_json(file) if file.name == RESULTS else json.loads(lzma.decompress(file.read_bytes()))
        ours = "rows" in content and all(Path(stem).name == stem for stem in content["pictures"])
    except (UserError, KeyError, TypeError, ValueError, EOFError, lzma.LZMAError):
        ours = False
    if not ours:
        raise UserError(f"{file} is not a report's; name another --out")
    return list(content["pictures"])


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
            said += " Grey lines: rows that differ in one number alone." if rows_along_numbers(results) else ""
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
    """Writes a text, compressed if it is one of large data; its path."""
    content = text.encode()
    if len(content) > LARGE and path.suffix != Path(REPORT).suffix:
        path, content = path.with_name(f"{path.name}{_PACKED}"), lzma.compress(content)
    return write_whole(path, lambda beside: beside.write_bytes(content))

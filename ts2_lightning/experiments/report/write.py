"""The files of a report: text, data, pictures. Each is there whole, or as it was."""

from pathlib import Path

from ts2_lightning.evaluation.probes.report import remove_stale
from ts2_lightning.evaluation.registry import describe
from ts2_lightning.evaluation.style import save
from ts2_lightning.experiments.names import slug
from ts2_lightning.experiments.report.choices import settled
from ts2_lightning.experiments.report.curves import curves
from ts2_lightning.experiments.report.distributions import distributions
from ts2_lightning.experiments.report.figures import Picture, against, plane
from ts2_lightning.experiments.report.markdown import COLUMNS, as_markdown, seeds_said
from ts2_lightning.experiments.report.records import as_csv, as_json
from ts2_lightning.experiments.report.results import Results
from ts2_lightning.experiments.report.tables import booktabs, results_table
from ts2_lightning.json_files import read_json
from ts2_lightning.runs.writing import write_whole
from ts2_lightning.types import UserError

REPORT, TABLE, RESULTS, LATEX = "report.md", "table.csv", "results.json", "table.tex"


def write_report(results: Results, out: Path, latex: bool = False) -> list[Path]:
    """Writes the report of some results.

    Args:
        results: from `collect`.
        out: directory, made if need be. Pictures of an earlier report that this one does not have are removed, and its
            `table.tex` if this one has none.
        latex: also write `table.tex`.

    Returns:
        The files: `report.md`, `table.csv`, `results.json`, `table.tex` if it was asked for, and the pictures.

    Raises:
        UserError: a row or a value that the settings name is not there, or the directory has a `results.json` of
            something else.
    """
    results = settled(results)
    is_new = _is_new(out)
    found = pictures(results)
    paths = [path for picture in found for path in save(picture.figure, out / picture.stem)]
    stems = [picture.stem for picture in found]
    remove_stale(out, Path(RESULTS).stem, stems)
    texts = {TABLE: as_csv(results), RESULTS: as_json(results, stems)}
    if latex:
        parts = results_table(results, results.settings.columns).parts(COLUMNS)
        texts[LATEX] = booktabs(parts, f"{results.title}. {seeds_said(results)}")
    elif not is_new:
        (out / LATEX).unlink(missing_ok=True)
    texts[REPORT] = as_markdown(results, found)
    written = [_write(out / name, text) for name, text in texts.items()]
    return [*reversed(written), *paths]


def _is_new(out: Path) -> bool:
    """Whether a directory has no earlier report.

    Raises:
        UserError: its `results.json` is none's.
    """
    file = out / RESULTS
    if not file.is_file():
        return True
    try:
        found = read_json(file)
        ours = "rows" in found and all(Path(stem).name == stem for stem in found["pictures"])
    except (UserError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{file} is not a report's; name another --out")
    return False


def pictures(results: Results) -> list[Picture]:
    """All pictures for which there is something to show, of results whose settings are settled."""
    several = len(results.seeds) > 1
    spread = " Bars: standard deviation over the seeds." if several else " One seed."
    dots = " Small dots: the seeds. A bar may reach beyond what is possible." if several else ""
    shown = results.settings
    found: list[Picture] = []
    for i, (x, y) in enumerate(shown.planes):
        figure = plane(results, x, y)
        if figure:
            said = f"Quality ({describe(y).title}) against diversity ({describe(x).title}), mean of each row."
            found.append(Picture(f"plane-{i + 1}", figure, f"{said}{spread}{dots}"))
    for axis, names in (shown.against or {}).items():
        figure = against(results, axis, names)
        if figure:
            said = f"What {axis} does. Dashed: rows without it.{spread}"
            found.append(Picture(f"against-{slug(axis)}", figure, said))
    figure = curves(results, shown.curves)
    if figure:
        many = "mean over the seeds, in a band of a standard deviation to both sides"
        found.append(Picture("curves", figure, f"Learning curves: {many if several else 'one seed'}."))
    return [*found, *distributions(results)]


def _write(path: Path, text: str) -> Path:
    return write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))

"""What a row is compared with: one row for all, or the baseline at the row's own choices of the other axes."""

from collections.abc import Iterable, Mapping

from ts2_lightning.studies.report.results import Results, Row
from ts2_lightning.studies.report.rows import label_of, named_axes


def match_of(labels: Mapping[str, str], wanted: Mapping[str, str], there: Iterable[Row]) -> Row | None:
    """The row with some choices whose further choices are those of another row; None where there is none.

    Args:
        labels: choices of the other row. It may have axes that the baseline lacks.
        wanted: choices of the baseline.
        there: rows to look among; of several that fit, the one with most axes in common.

    Example:
        >>> ce = [Row("CE", {"loss": "CE", "lr": lr}, ()) for lr in ("1", "2")]
        >>> match_of({"loss": "TS2", "lr": "2", "alpha": "0.25"}, {"loss": "CE"}, ce).labels["lr"]
        '2'
        >>> match_of({"loss": "TS2", "lr": "4"}, {"loss": "CE"}, ce)
    """
    fitting = [
        row
        for row in there
        if wanted.items() <= row.labels.items()
        and all(labels.get(axis) == choice for axis, choice in row.labels.items() if axis not in wanted)
    ]
    return max(fitting, key=lambda row: len(row.labels), default=None)


def named_baseline(rows: Iterable[Row], wanted: Mapping[str, str]) -> tuple[str, dict[str, str]] | None:
    """`Settings.baseline` and `Settings.matched` of a baseline that is named by its choices; None if no row has them.

    A row that has no further axes is the baseline of all rows.

    Args:
        rows: rows of the report.
        wanted: axis -> choice.

    Example:
        >>> rows = [Row(f"CE, lr {lr}", {"loss": "CE", "lr": lr}, ()) for lr in ("1", "2")]
        >>> named_baseline(rows, {"loss": "CE", "lr": "2"}), named_baseline(rows, {"loss": "CE"})
        (('CE, lr 2', {}), ('', {'loss': 'CE'}))
    """
    fitting = [row for row in rows if not row.is_base and wanted.items() <= row.labels.items()]
    if not fitting:
        return None
    fewest = min(fitting, key=lambda row: len(row.labels))
    if len(fitting) == 1 or fewest.labels == wanted:
        return fewest.label, {}
    return "", dict(wanted)


def is_baseline(results: Results, row: Row) -> bool:
    """Whether others are compared with a row."""
    matched = results.settings.matched
    if not matched:
        return row.label == results.settings.baseline
    return not row.is_base and matched.items() <= row.labels.items()


def baseline_of(results: Results, row: Row) -> Row | None:
    """The row that a row is compared with; None for a baseline itself, and where there is none."""
    if row.is_base or is_baseline(results, row):
        return None
    if matched := results.settings.matched:
        return match_of(row.labels, matched, results.trained)
    return next((other for other in results.trained if other.label == results.settings.baseline), None)


def compared_rows(results: Results) -> list[tuple[Row, Row]]:
    """Every row that is compared, with its baseline."""
    pairs = ((row, baseline_of(results, row)) for row in results.trained)
    return [(row, base) for row, base in pairs if base is not None]


def unmatched(results: Results) -> list[Row]:
    """Rows that have no baseline at their own choices of the other axes."""
    if not results.settings.matched:
        return []
    return [row for row in results.trained if not is_baseline(results, row) and baseline_of(results, row) is None]


def baseline_said(results: Results) -> str:
    """The name of the baseline: of one row its label, else the choices, and the axes on which it is matched."""
    matched = results.settings.matched
    if not matched:
        return results.settings.baseline
    rows = [row for row in results.trained if is_baseline(results, row)]
    axes = [axis for axis in results.axes if axis not in matched and any(axis in row.labels for row in rows)]
    return f"{label_of(matched, named_axes(results.axes))} at the same {' and '.join(axes) or 'setting'}"

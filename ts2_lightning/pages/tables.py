"""Tables as a page has them: rows of HTML; of a large table its columns, compressed, of which a script makes rows."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ts2_lightning.pages.packing import LARGE, packed
from ts2_lightning.pages.sections import Cell, Table
from ts2_lightning.pages.texts import as_script, readable

_DIGITS = 6  # by which the floats of a large table are sorted; four of them are shown


class Lines(NamedTuple):
    """The rows of a table.

    Attributes:
        rows: what is shown of each cell, and the number that it is sorted by; None in columns of texts. Empty where the
            table is large.
        packed: the columns of a large table, compressed; else None.
    """

    rows: list[list[tuple[str, str | None]]]
    packed: str | None


def lines(table: Table) -> Lines:
    """The rows of a table.

    Raises:
        ValueError: a row that has not as many cells as there are columns.
    """
    shown, columns = table.shown, len(table.head)
    if table.hints and len(table.hints) != columns:
        raise ValueError(f"table {table.title!r}: {columns} columns, {len(table.hints)} hints")
    if shown is not None and len(shown) != len(table.rows):
        raise ValueError(f"table {table.title!r}: {len(table.rows)} rows, {len(shown)} rows of shown cells")
    texts = []
    for place, row in enumerate(table.rows):
        texts.append([_shown(cell) for cell in row] if shown is None else list(shown[place]))
        if not columns == len(row) == len(texts[-1]):
            raise ValueError(
                f"table {table.title!r}, row {place}: {columns} columns, {len(row)} cells, {len(texts[-1])} shown"
            )
    if sum(len(text) for row in texts for text in row) > LARGE:
        return Lines([], _packed(table, texts))
    numeric = {place for row in table.rows for place, cell in enumerate(row) if isinstance(cell, int | float)}
    keys = [[_key(cell) if column in numeric else None for column, cell in enumerate(row)] for row in table.rows]
    return Lines([list(zip(*row, strict=True)) for row in zip(texts, keys, strict=True)], None)


def _packed(table: Table, texts: Sequence[Sequence[str]]) -> str:
    """Columns as JSON: texts, and numbers where they are sorted by them; the script writes floats as `_shown` does."""
    columns = []
    for place in range(len(table.head)):
        cells, shown = [row[place] for row in table.rows], [readable(row[place]) for row in texts]
        numbers = [_plain(cell) for cell in cells] if any(isinstance(cell, int | float) for cell in cells) else None
        floats = table.shown is None and all(cell is None or isinstance(cell, float) for cell in cells)
        columns.append({"numbers": numbers, "texts": None if floats and numbers else shown})
    return packed(as_script({"columns": columns}))


def _plain(cell: Cell) -> int | float | str | None:
    """A number of JSON, rounded; its name if JSON has none for it; None for no number."""
    if cell is None or isinstance(cell, str):
        return None
    if isinstance(cell, int):
        return cell
    return float(f"{cell:.{_DIGITS}g}") if math.isfinite(cell) else repr(cell)


def _key(cell: Cell) -> str | None:
    """A number as programs write it; nan where there is nothing, and None for a text."""
    return None if isinstance(cell, str) else repr(float("nan") if cell is None else cell)


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"

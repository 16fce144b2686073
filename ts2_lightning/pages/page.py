"""One file of HTML that needs neither a server nor a network."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ts2_lightning.pages.charts import bundle, figure, numbers
from ts2_lightning.pages.sections import Cell, Chart, Section, Table, Tokens
from ts2_lightning.pages.texts import as_script, readable
from ts2_lightning.pages.tokens import plain_tokens
from ts2_lightning.runs.writing import write_whole

PAGE = "report.html"
"""What commands call their page."""

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """A page to look at in a browser. Equal pages are equal bytes.

    Texts are shown as they are, whatever they hold: nothing of them is run or loaded, and characters that cannot be
    seen have signs. A policy in the file forbids the browser all loading, and every script but the page's own.

    Attributes:
        title: name of the page.
        sections: what it shows, in this order.
        intro: paragraphs above the sections.

    Example:
        >>> from ts2_lightning.pages import Table
        >>> page = Page("Two models", [Table("Scores", ["model", "score"], [["CE", 0.5], ["TS2", 0.625]])])
        >>> "<h2" in page.html(), page.html() == page.html()
        (True, True)
    """

    title: str
    sections: Sequence[Section]
    intro: Sequence[str] = ()

    def html(self) -> str:
        """The page as text.

        Raises:
            ValueError: a section whose lists differ in their lengths.
        """
        drawn = any(isinstance(section, Chart) and section.series for section in self.sections)
        seen = any(isinstance(section, Tokens) and section.texts for section in self.sections)
        names = ["page.js", *(["charts.js"] if drawn else []), *(["tokens.js"] if seen else [])]
        scripts = [_asset(name) for name in names]
        allowed = [*scripts, *([bundle().source] if drawn else [])]
        return _environment().get_template("page.html").render(
            page=self,
            style=_asset("page.css"),
            policy=_policy(allowed),
            scripts=scripts,
            plotly=bundle().packed if drawn else None,
        )  # fmt: skip

    def write(self, path: Path) -> Path:
        """Writes the page; the file appears when it is whole.

        Args:
            path: path of the file; its directory is made if need be.

        Returns:
            The path.
        """
        content = self.html().encode()
        return write_whole(path, lambda beside: beside.write_bytes(content))


def _policy(scripts: Sequence[str]) -> str:
    """Nothing is loaded, and only these scripts run. Styles may be set: they load nothing either."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _asset(name: str) -> str:
    return (_HERE / "assets" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "lines": _lines,
        "kind": lambda section: type(section).__name__.lower(),
        "figure": lambda chart: as_script(figure(chart)),
        "numbers": numbers,
        "tokens": lambda section: as_script(plain_tokens(section)),
    }
    return environment


def _finalize(value: Any) -> Any:
    """Every text on its way into the page, so that none is left out, but for those that are HTML or scripts already."""
    return readable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


# Tables -----------------------------------------------------------------------------------------------------------


def _lines(table: Table) -> list[list[tuple[str, str | None]]]:
    """The rows of a table: of each cell what is shown, and the number that it is sorted by; none in columns of texts.

    Raises:
        ValueError: a row that has not as many cells as there are columns.
    """
    shown, columns = table.shown, len(table.head)
    if table.hints and len(table.hints) != columns:
        raise ValueError(f"table {table.title!r}: {columns} columns, {len(table.hints)} hints")
    if shown is not None and len(shown) != len(table.rows):
        raise ValueError(f"table {table.title!r}: {len(table.rows)} rows, {len(shown)} rows of shown cells")
    numeric = {place for row in table.rows for place, cell in enumerate(row) if isinstance(cell, int | float)}
    lines = []
    for place, row in enumerate(table.rows):
        texts = [_shown(cell) for cell in row] if shown is None else shown[place]
        if not columns == len(row) == len(texts):
            raise ValueError(
                f"table {table.title!r}, row {place}: {columns} columns, {len(row)} cells, {len(texts)} shown"
            )
        keys = [_key(cell) if column in numeric else None for column, cell in enumerate(row)]
        lines.append(list(zip(texts, keys, strict=True)))
    return lines


def _key(cell: Cell) -> str | None:
    """A number as programs write it; nan where there is nothing, and None for a text."""
    return None if isinstance(cell, str) else repr(float("nan") if cell is None else cell)


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"

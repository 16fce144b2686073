"""One file of HTML that needs neither a server nor a network."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ts2_lightning.pages.charts import bundle, figure, numbers
from ts2_lightning.pages.packing import LARGE, packed
from ts2_lightning.pages.sections import Chart, Section, Tokens
from ts2_lightning.pages.tables import lines
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
        "lines": lines,
        "kind": lambda section: type(section).__name__.lower(),
        "figure": _figure,
        "numbers": numbers,
        "tokens": lambda section: as_script(plain_tokens(section)),
    }
    return environment


class _Script(NamedTuple):
    """Numbers of a chart.

    Attributes:
        text: JSON, compressed where it is large.
        is_packed: whether it is.
    """

    text: str
    is_packed: bool


def _figure(chart: Chart) -> _Script:
    text = as_script(figure(chart))
    return _Script(packed(text), True) if len(text) > LARGE else _Script(text, False)


def _finalize(value: Any) -> Any:
    """Every text on its way into the page, so that none is left out, but for those that are HTML or scripts already."""
    return readable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value

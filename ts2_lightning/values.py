"""Descriptions of numbers that are logged or measured.

A number is described where it is computed. Progress bars, tables, legends and documents read the description there.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Better = Literal["higher", "lower"] | None


@dataclass(frozen=True)
class Value:
    """Description of one number.

    Attributes:
        name: name under which it is logged or stored, such as `tail_mass` or `validation/chat/cross_entropy`.
        title: short name in tables and pictures.
        meaning: half a sentence for readers who have not measured it, with its unit; empty where the title says it.
        better: direction that is better; None where neither is by itself.
        format: format specification for printing, as for `format`.
        shown: whether tables show it where nobody has chosen their columns.
        short: name on a line with many others, such as that of a progress bar; empty for the title.
    """

    name: str
    title: str
    meaning: str = ""
    better: Better = None
    format: str = ".4g"
    shown: bool = False
    short: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be: descriptions are read from files, too."""
        texts = (self.name, self.title, self.meaning, self.format, self.short)
        are_texts = all(isinstance(text, str) and text.isprintable() for text in texts)
        if not are_texts or self.better not in ("higher", "lower", None) or not isinstance(self.shown, bool):
            raise ValueError(f"not the description of a value: {self}")
        if not re.fullmatch(r"\.\d{1,2}[efg]", self.format):
            raise ValueError(f"format must be like .3f, got {self.format!r}")

    def under(self, prefix: str, **changes: object) -> "Value":
        """The same description under a longer name, `PREFIX/NAME`.

        Args:
            prefix: text before the name.
            changes: other attributes that differ.

        Example:
            >>> Value("entropy", "entropy").under("val", title="val: entropy").name
            'val/entropy'
        """
        return replace(self, name=f"{prefix}/{self.name}", **changes)  # type: ignore[arg-type]


def by_name(values: Iterable[Value]) -> dict[str, Value]:
    """Descriptions by the names of their values, in the same order.

    Raises:
        ValueError: two descriptions of one name.

    Example:
        >>> list(by_name([Value("entropy", "entropy"), Value("perplexity", "perplexity")]))
        ['entropy', 'perplexity']
    """
    described: dict[str, Value] = {}
    for value in values:
        if value.name in described:
            raise ValueError(f"two descriptions of {value.name}")
        described[value.name] = value
    return described

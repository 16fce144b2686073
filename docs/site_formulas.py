"""Docstrings as the site shows them: formulas keep their lines, examples are code."""

import re
from typing import Any

import griffe

FORMULA = re.compile(r"^(?:d?L(?:/dz)?) = .*(?:\n\S.*)*", re.MULTILINE)
"""A paragraph that begins with `L = ` or `dL/dz = `."""


class Formulas(griffe.Extension):
    """Makes Markdown of the package's docstrings: formulas are indented, and `Example:` is griffe's `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites one docstring before it is parsed."""
        if obj.docstring:
            value = FORMULA.sub(lambda match: indented(match[0]), obj.docstring.value)
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", value, flags=re.MULTILINE)


def indented(paragraph: str) -> str:
    return "\n".join(f"    {line}" for line in paragraph.split("\n"))

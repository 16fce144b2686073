"""What the docstring of a loss says of it: it is the one home of its formula.

- the formula: from a line that begins with `L = ` to a blank line or a line that begins with `dL/dz`;
- its gradient: from the line that begins with `dL/dz` to a blank line;
- the paper: the paragraph that begins with `Source: `;
- the arguments: the section `Args:`.
"""

import inspect
import re
import textwrap

_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Examples?|Notes?):$", re.M)


def text_of(cls: type) -> str:
    """The docstring of a class up to its first section."""
    return _SECTION.split(own_docstring(cls), maxsplit=1)[0].strip()


def own_docstring(cls: type) -> str:
    """The docstring of the class itself: a parent's formula is not the child's."""
    return inspect.cleandoc(vars(cls).get("__doc__") or "")


def formula(text: str) -> str | None:
    """The value of one token's loss, on one line; None where the text has none.

    Example:
        >>> formula("Half of it.\\n\\nL = -log p_y\\n    / 2,\\ndL/dz = (p - e_y) / 2.")
        'L = -log p_y / 2'
    """
    return _paragraph(text, "L = ")


def gradient(text: str) -> str | None:
    """The gradient with respect to the logits, on one line; None where the text has none."""
    return _paragraph(text, "dL/dz")


def source(text: str) -> str | None:
    """The paper, with equation or section; None where the text names none."""
    paragraph = _paragraph(text, "Source: ")
    return paragraph.removeprefix("Source: ") if paragraph else None


def described_arguments(docstring: str) -> dict[str, str]:
    """Name -> description, from the section `Args:`."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.S | re.M)
    if not section:
        return {}
    items = re.findall(r"^(\w+)(?: \([^)]*\))?: (.*?)(?=^\w|\Z)", textwrap.dedent(section[1]), re.S | re.M)
    return {name: " ".join(description.split()) for name, description in items}


def _paragraph(text: str, beginning: str) -> str | None:
    """The lines from the one that begins so to a blank line or a gradient, as one line without its last comma or stop.

    A gradient that follows on the same line (`L = ..., dL/dz = ...`) is cut off; it has its own beginning to look for.
    """
    match = re.search(rf"(?:^|, )({re.escape(beginning)}.*?)(?=\n\s*\n|\n\s*dL/dz|, dL/dz|\Z)", text, re.S | re.M)
    return re.sub(r"[.,;]$", "", " ".join(match[1].split())) if match else None

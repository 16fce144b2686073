"""Names of the studies: labels as parts of files' names."""

import re


def slug(label: str) -> str:
    """A label as part of a name.

    >>> slug("CE, half rate")
    'ce-half-rate'
    """
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")

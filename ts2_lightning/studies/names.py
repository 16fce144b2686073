"""Names of the studies: labels as parts of files' names, and where the shipped configurations are."""

import re
from pathlib import Path

import ts2_lightning

_PACKAGE = Path(ts2_lightning.__file__).parent


def slug(label: str) -> str:
    """A label as part of a name.

    >>> slug("CE, half rate")
    'ce-half-rate'
    """
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")


def shipped_config(name: str) -> Path:
    """The path of a shipped configuration such as `experiment/quickstart.yaml`, or of a directory of them.

    In a checkout they lie beside the package, in an installed wheel inside it.
    """
    beside, inside = _PACKAGE.parent / "configs" / name, _PACKAGE / "configs" / name
    return inside if inside.exists() else beside

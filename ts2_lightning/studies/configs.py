"""Where the shipped configurations are."""

from pathlib import Path

import ts2_lightning

_PACKAGE = Path(ts2_lightning.__file__).parent


def shipped_config(name: str) -> Path:
    """The path of a shipped configuration such as `experiment/quickstart.yaml`, or of a directory of them.

    In a checkout they lie beside the package, in an installed wheel inside it.
    """
    beside, inside = _PACKAGE.parent / "configs" / name, _PACKAGE / "configs" / name
    return inside if inside.exists() else beside

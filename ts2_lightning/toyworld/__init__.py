"""The toy world as a plug-in: it comes in through the doors that any package has (`ts2_lightning.plugins`).

No other room says its name. What it needs of them it imports when a door is opened.
"""

from typing import Any


def measures() -> dict[str, Any]:
    """The exact measures of the world."""
    from ts2_lightning.toyworld.measure import ToyWorld

    return {ToyWorld.name: ToyWorld}


def domains() -> dict[str, Any]:
    """The world's requests, whose plausible answers are all known."""
    from ts2_lightning.toyworld.domain import ToyWorldDomain

    return {"toyworld": ToyWorldDomain()}

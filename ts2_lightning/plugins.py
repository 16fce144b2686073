"""Plug-ins: what packages add to the rooms of this one, through the same doors as the toy world that comes with it.

A plug-in is a module with functions that return what it adds, by name. Each function is a door, and may be left out:

| door | what it returns |
| --- | --- |
| `measures` | name -> subclass of `evaluation.Measure` |
| `domains` | name -> `evaluation.domains.Domain` |

A package declares its module in its `pyproject.toml`:

    [project.entry-points."ts2_lightning.plugins"]
    mine = "my_package.ts2_plugin"
"""

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

GROUP = "ts2_lightning.plugins"
SHIPPED = ("ts2_lightning.toyworld",)


@cache
def offered(door: str) -> dict[str, Any]:
    """What all plug-ins add at a door, by name; the one that comes with this package first.

    Args:
        door: name of a function of plug-ins.

    Raises:
        ValueError: two plug-ins add something of one name.

    Example:
        >>> list(offered("measures"))
        ['toyworld']
    """
    places = (*SHIPPED, *sorted(entry.value for entry in entry_points(group=GROUP)))
    things: dict[str, Any] = {}
    for place in places:
        function = getattr(import_module(place), door, None)
        added = {} if function is None else function()
        if twice := things.keys() & added.keys():
            raise ValueError(f"plug-in {place}: {door} {', '.join(sorted(twice))} are there already")
        things |= added
    return things

"""Plug-ins: what packages add to the rooms of this one, through the same doors as the toy world that comes with it.

A plug-in is a module with functions that return what it adds, by name. Each function is a door, and may be left out:

| door | what it returns |
| --- | --- |
| `sources` | name -> `SourceScheme`, of sources of rows that begin with `NAME:` |
| `models` | name -> `ModelScheme`, of models whose path is `NAME` or `NAME?...` |
| `measures` | name -> subclass of `evaluation.Measure` |
| `domains` | name -> `evaluation.domains.Domain` |

A plug-in that fails is left out with a warning that names it.

A package declares its module in its `pyproject.toml`:

    [project.entry-points."ts2_lightning.plugins"]
    mine = "my_package.ts2_plugin"
"""

import warnings
from abc import ABC, abstractmethod
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ts2_lightning.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PretrainedConfig, PreTrainedTokenizerBase

GROUP = "ts2_lightning.plugins"
SHIPPED = ("ts2_lightning.toyworld",)


class SourceScheme(ABC):
    """Sources of rows that begin with one name.

    Attributes:
        title: name of what makes the rows, in messages.
    """

    title: ClassVar[str]

    @abstractmethod
    def check(self, path: str) -> None:
        """Raises UserError for a source that there is not; nothing is made."""

    @abstractmethod
    def resolve(self, path: str) -> Path:
        """The file with the rows of a source, of a kind that the data room reads; it may be made on first use."""

    @abstractmethod
    def identity(self, path: str) -> Any:
        """Plain values that change when the rows do."""


class ModelScheme(ABC):
    """Models whose path begins with one name. All of them have one config and one tokenizer."""

    @abstractmethod
    def check(self, path: str) -> None:
        """Raises UserError for a path that there is not; nothing is made."""

    @abstractmethod
    def locate(self, path: str) -> Path:
        """The directory that transformers loads; it may be made on first use."""

    @abstractmethod
    def config(self) -> "PretrainedConfig":
        """The config of the models, without one being made."""

    @abstractmethod
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the models."""

    @abstractmethod
    def write_blank(self, directory: Path) -> Path:
        """Writes config and tokenizer into a directory, without weights, and returns it."""

    @abstractmethod
    def identity(self, path: str) -> Any:
        """Plain values that change when the model does."""

    text_template: "Callable[[PreTrainedTokenizerBase], Any] | None" = None
    """Gives the `ChatTemplate` with which models that have never seen a chat are asked; None if they have seen one."""


@cache
def offered(door: str) -> dict[str, Any]:
    """What all plug-ins add at a door, by name; the one that comes with this package first.

    A plug-in of another package that fails is left out with a warning: what is asked for may need nothing of it.

    Args:
        door: name of a function of plug-ins.

    Raises:
        UserError: two plug-ins add something of one name.

    Example:
        >>> list(offered("measures"))
        ['toyworld', 'toyworld_decoded']
    """
    places = (*SHIPPED, *sorted(entry.value for entry in entry_points(group=GROUP)))
    things: dict[str, Any] = {}
    for place in places:
        added = _added(place, door)
        if twice := things.keys() & added.keys():
            raise UserError(
                f"plug-in {place}: {door} {', '.join(sorted(twice))} are there already; uninstall its package"
            )
        things |= added
    return things


def _added(place: str, door: str) -> dict[str, Any]:
    """What one plug-in adds at a door."""
    try:
        function = getattr(import_module(place), door, None)
        added = {} if function is None else dict(function())
        kind = {"sources": SourceScheme, "models": ModelScheme}.get(door, object)
        if wrong := [name for name, thing in added.items() if not isinstance(thing, kind)]:
            raise TypeError(f"{door} {', '.join(map(str, wrong))} must be a {kind.__name__}")
        return added
    except (Exception, SystemExit) as error:  # the code of another package may raise anything
        if place in SHIPPED:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        warnings.warn(f"plug-in {place} is left out, mend it or uninstall its package ({reason})", stacklevel=2)
        return {}


def source_scheme(path: str) -> SourceScheme | None:
    """The scheme of a source of rows; None if it is a file or something else.

    Example:
        >>> source_scheme("toyworld:train").title, source_scheme("rows.jsonl")
        ('the toy world', None)
    """
    name, colon, _ = path.partition(":")
    scheme: SourceScheme | None = offered("sources").get(name) if colon else None
    return scheme


def model_scheme(path: str) -> ModelScheme | None:
    """The scheme of a model's or tokenizer's path; None if it is a directory or a name on the hub.

    Example:
        >>> model_scheme("toyworld?seed=1").config().model_type, model_scheme("./toyworld")
        ('llama', None)
    """
    scheme: ModelScheme | None = offered("models").get(path.partition("?")[0])
    return scheme

"""Names that users type: suggestions for misspelt ones, and objects named by import path."""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

from ts2_lightning.types import UserError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'X'?"` for the nearest of the known names, or the empty string.

    Example:
        >>> did_you_mean("chatlm", ["chatml", "llama3"])
        " Did you mean 'chatml'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is none of the known ones."""
    known = sorted(known)
    return UserError(f"unknown {what} {name!r}; known: {', '.join(known)}.{did_you_mean(name, known)}")


def import_object(path: str, what: str) -> Any:
    """Import `package.module.name`.

    Args:
        path: dotted path whose last part is an attribute of the module.
        what: what it is needed for, for the error.

    Raises:
        UserError: if the module or the attribute does not exist.
    """
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that exists but lacks one of its own imports is the user's to see as it is.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"{what} {path!r}: there is no module {error.name!r} on the Python path") from None
    if not hasattr(module, name):
        raise UserError(f"{what} {path!r}: {module_name} has no {name!r}.{did_you_mean(name, vars(module))}")
    return getattr(module, name)

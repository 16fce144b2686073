"""Names that users type: suggestions for misspelt ones, and objects named by import path."""

import importlib
from collections.abc import Iterable
from typing import Any

from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is none of the known ones."""
    known = sorted(known)
    return UserError(f"unknown {what} {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}")


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
        raise UserError(f"{what} {path!r}: {module_name} has no {name!r}{did_you_mean(name, vars(module))}")
    return getattr(module, name)

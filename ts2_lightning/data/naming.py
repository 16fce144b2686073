"""Names that users type: suggestions for misspelt ones, and objects named by import path."""

import importlib
import traceback
from collections.abc import Iterable
from typing import Any

from ts2_lightning.data.files import reason_of
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
        UserError: if the module or the attribute does not exist, or the module fails when it is imported.
    """
    module_name, _, name = path.rpartition(".")
    if not all(part.isidentifier() for part in path.split(".")):
        raise UserError(f"{what} {path!r}: an import path is package.module.name")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(f"{what} {path!r}: there is no module {error.name!r} on the Python path") from None
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" at {place.filename}:{place.lineno}"
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise UserError(f"{what} {path!r}: {module_name} fails when it is imported{where} ({reason})") from error
    if not hasattr(module, name):
        raise UserError(f"{what} {path!r}: {module_name} has no {name!r}{did_you_mean(name, vars(module))}")
    return getattr(module, name)

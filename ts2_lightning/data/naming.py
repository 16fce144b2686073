"""Names that users type: suggestions for misspelt ones, and objects named by import path."""

import importlib
import traceback
from collections.abc import Iterable
from typing import Any, get_args

from ts2_lightning.data.files import reason_of
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError


def unknown_name(kind: str, name: str, names: Iterable[str]) -> UserError:
    """The error for a name that is not in a table.

    Args:
        kind: kind of thing that is named, for the message.
        name: name that the user typed.
        names: names in the table.
    """
    names = sorted(names)
    return UserError(f"unknown {kind} {name!r}; known: {', '.join(names)}{did_you_mean(name, names)}")


def check_literal(setting: str, value: str, literal: Any) -> None:
    """Make sure that a setting has one of the values of a `Literal`.

    Raises:
        UserError: if it has not, with the nearest one.

    Example:
        >>> from typing import Literal
        >>> check_literal("data.train_on", "first", Literal["all", "last"])
        Traceback (most recent call last):
        ts2_lightning.types.UserError: unknown data.train_on 'first'; known: all, last
    """
    if value not in get_args(literal):
        raise unknown_name(setting, value, get_args(literal))


def import_object(path: str, kind: str) -> Any:
    """Import `package.module.name`.

    Args:
        path: dotted path whose last part is an attribute of the module.
        kind: kind of thing that is named, for the message.

    Raises:
        UserError: if the module or the attribute does not exist, or the module fails when it is imported.
    """
    module_name, _, name = path.rpartition(".")
    if not all(part.isidentifier() for part in path.split(".")):
        raise UserError(f"{kind} {path!r}: an import path is package.module.name")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(f"{kind} {path!r}: there is no module {error.name!r} on the Python path") from None
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" at {place.filename}:{place.lineno}"
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise UserError(f"{kind} {path!r}: {module_name} fails when it is imported{where} ({reason})") from error
    if not hasattr(module, name):
        raise UserError(f"{kind} {path!r}: {module_name} has no {name!r}{did_you_mean(name, vars(module))}")
    return getattr(module, name)

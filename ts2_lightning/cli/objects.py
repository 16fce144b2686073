"""Objects of the user's choice (loggers, callbacks, a strategy) made of their settings, each by itself.

Made with all other objects, one that cannot be would only be said to be none of what the setting may be.
"""

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ts2_lightning.cli.guard import one_line, users_error
from ts2_lightning.cli.parser import Parser
from ts2_lightning.types import UserError


def built(given: Any, base: type, setting: str) -> Any:
    """The objects that settings describe.

    Args:
        given: settings of an object, or a list of them; whatever is none stays as it is.
        base: what each is an instance of.
        setting: where they are given, such as `trainer.callbacks`.

    Raises:
        UserError: a value that one of them refuses, or a package that is not installed.
    """
    if isinstance(given, list):
        return [built(one, base, setting) for one in given]
    if not isinstance(given, Namespace):
        return given
    parser = Parser()
    parser.add_subclass_arguments(base, "object")
    try:
        return parser.instantiate(Namespace(object=given)).object
    except ValueError as error:
        if users := users_error(error):
            raise users from error
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        if isinstance(reason, ImportError | MisconfigurationException | ValueError | TypeError):
            raise UserError(f"{setting}: {given.class_path}: {one_line(str(reason))}") from error
        raise

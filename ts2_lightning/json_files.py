"""JSON files, which may come from elsewhere: an object, or one line that says what is wrong."""

import json
from pathlib import Path
from typing import Any

from ts2_lightning.types import UserError


def read_json(file: Path) -> dict[str, Any]:
    """Reads the object in a JSON file that a user can mend.

    Args:
        file: The file.

    Raises:
        UserError: The file cannot be read, is not JSON in UTF-8, or holds something else than an object.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     _ = Path(directory, "state.json").write_text('{"step": 3}')
        ...     read_json(Path(directory, "state.json"))
        {'step': 3}
    """
    try:
        return read_object(file, f"{file}:")
    except ValueError as error:
        raise UserError(str(error)) from error


def read_object(file: Path, name: str) -> dict[str, Any]:
    """Reads the object in a JSON file that is a part of something else, such as a model, which the caller names.

    Args:
        file: The file.
        name: Beginning of every message, such as `its config.json`.

    Raises:
        ValueError: As `read_json`, in one line.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error}); fetch or write it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} must hold an object, got {type(content).__name__}; fetch or write it again")
    return content

"""What a user is told: one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ts2_lightning.types import UserError


@contextmanager
def refused(message: str) -> Iterator[None]:
    """Expects an error of the user, whose one line a regular expression is found in."""
    with pytest.raises(UserError, match=message) as error:
        yield
    assert "\n" not in str(error.value)

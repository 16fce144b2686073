"""Checks of hyper-parameters."""

from ts2_lightning.types import UserError


def require(condition: bool, owner: str, *, must: str, **argument: object) -> None:
    """Raises a `UserError` (a ValueError) that names the argument, what came and what it must be.

    Args:
        condition: what must hold.
        owner: the class whose argument it is.
        must: completes "NAME must ...".
        **argument: the argument, by name.
    """
    if not condition:
        ((name, value),) = argument.items()
        raise UserError(f"{owner}: {name} must {must}, got {value!r}")

"""How long a row may be, where the user leaves it to the model, and whether the model takes what the user wants."""

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ts2_lightning.model_limits import ModelLimits
from ts2_lightning.types import UserError

USUAL_LENGTH = 2048
"""Tokens of a row, at most, where neither the user nor the model says less; the papers'."""


def row_length(max_length: int | None, limits: ModelLimits | None) -> int:
    """The number of tokens that a row has, at most.

    Args:
        max_length: what the user has set; None: the smaller of `USUAL_LENGTH` and the model's context.
        limits: of the model; None if they are not known.

    Example:
        >>> gpt2 = ModelLimits("gpt2", 1024, is_table=True, embeddings=50257)
        >>> row_length(None, None), row_length(None, gpt2), row_length(512, gpt2)
        (2048, 1024, 512)
    """
    if max_length is not None:
        return max_length
    context = None if limits is None else limits.context
    return USUAL_LENGTH if context is None else min(USUAL_LENGTH, context)


def check_length(max_length: int | None, limits: ModelLimits | None, setting: str = "data.max_length") -> None:
    """Whether a model takes rows of a length. Where it computes on behind its context, a warning says so.

    Args:
        max_length: as in `row_length`.
        limits: as in `row_length`.
        setting: how the user knows the number, for messages.

    Raises:
        UserError: it is more than the model has positions for.

    Example:
        >>> check_length(1024, ModelLimits("gpt2", 1024, is_table=True, embeddings=50257))
    """
    if max_length is None or limits is None or limits.context is None or max_length <= limits.context:
        return
    beyond = f"{setting} is {max_length:,}, more than {limits.said}"
    if limits.is_behind(max_length):
        raise UserError(
            f"{beyond}, and there is no position behind it; set it to {limits.context} at most, or to null, which is "
            "the model's"
        )
    rank_zero_warn(
        f"{beyond}: positions behind it were never trained, so that longer rows may teach little; null is the model's "
        "context, at most 2,048"
    )

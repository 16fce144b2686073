"""The largest length of a row: the user's, or the model's; and a check of the one against the other."""

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ts2_lightning.model_limits import ModelLimits
from ts2_lightning.types import SettingError

USUAL_LENGTH = 2048
"""The largest number of tokens in a row where neither the user nor the model sets a smaller one; as in the papers."""


def row_length(max_length: int | None, limits: ModelLimits | None) -> int:
    """The largest number of tokens in a row.

    Args:
        max_length: setting of the user; None takes the smaller of `USUAL_LENGTH` and the model's context.
        limits: limits of the model; None if unknown.

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
    """Make sure that a model takes rows of a length. If it only was not trained on such positions, warn.

    Args:
        max_length: setting of the user; None needs no check.
        limits: limits of the model; None if unknown.
        setting: name of the setting, for messages.

    Raises:
        UserError: if it is more than the model has positions for.

    Example:
        >>> check_length(1024, ModelLimits("gpt2", 1024, is_table=True, embeddings=50257))
    """
    if max_length is None or limits is None or limits.context is None or max_length <= limits.context:
        return
    beyond = f" is {max_length:,}, more than {limits.context_text}"
    if limits.is_behind(max_length):
        raise SettingError(
            setting,
            f"{beyond}, and there is no position behind it; set it to {limits.context} at most, or to null, which is "
            "the model's",
        )
    rank_zero_warn(
        f"{setting}{beyond}: positions behind it were never trained, so that longer rows may teach little; null is the "
        "model's context, at most 2,048"
    )

"""The few small types that the rooms hand to each other. Imports nothing but torch."""

from typing import NamedTuple, TypedDict

from torch import Tensor

IGNORE_INDEX = -100
"""Label of a token that is not supervised."""

TOKEN_STATISTICS = (
    "cross_entropy",
    "entropy",
    "gold_probability",
    "gold_in_support",
    "support_size",
    "tail_mass",
    "top1",
    "top2",
    "top3",
)
"""What every engine measures at every supervised token when it is asked to (see `ops.statistics`)."""


class UserError(ValueError):
    """Something the user can mend: the message is one line that says what came and what to do.

    The command line prints it and exits with status 2; it never shows a traceback for it.
    """


class Batch(TypedDict, total=False):
    """One micro-batch, as collate yields it. All values are tensors.

    B rows of T tokens, right-padded; N supervised tokens. The shift by one is already done.
    """

    input_ids: Tensor  # [B, T] int64
    attention_mask: Tensor  # [B, T] int64, 1 for tokens, 0 for padding
    supervised: Tensor  # [N] int64, flat index b * T + t of the positions whose next token is supervised
    labels: Tensor  # [N] int64, the gold next tokens at those positions
    token_rows: Tensor  # [N] int64, the batch row b of each supervised token
    positions: Tensor  # [N] int64, 1-based position of the token within its assistant turn
    lengths: Tensor  # [N] int64, number of supervised tokens of that assistant turn
    weights: Tensor  # [N] float32, factor on each token's loss: its row's weight (the divisor is the number of tokens)
    row_index: Tensor  # [B] int64, index of the row in the dataset; -1 for the filler of an empty micro-batch
    divisor: Tensor  # [] int64, supervised tokens of the whole optimizer step, over micro-batches and ranks


class LossOutput(NamedTuple):
    """What an engine returns.

    Attributes:
        total: [] differentiable sum of the tokens' losses, not divided by anything.
        tokens: per supervised token and detached, each [N] in the dtype of the loss: `"objective"`, `"objective/PART"`
            for each part of a composite loss and, if asked for, every name of `TOKEN_STATISTICS`.
    """

    total: Tensor
    tokens: dict[str, Tensor]

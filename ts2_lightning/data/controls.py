"""Tokens that only a template may write; their text inside a content is text."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ts2_lightning.types import UserError


class Control(NamedTuple):
    """A token that only a template may write."""

    number: int
    lstrip: bool = False  # whether it takes in white space before it, as Phi 4's do
    rstrip: bool = False  # and after it


def special_tokens(tokenizer: PreTrainedTokenizerBase, controls: Sequence[str], template: str) -> dict[str, Control]:
    """The tokens that only a template may write: the tokenizer's special ones and the template's own.

    Args:
        tokenizer: tokenizer that has the tokens.
        controls: control strings of the template, which must be single tokens.
        template: name of the template, for messages.

    Returns:
        The text of each token -> the token.

    Raises:
        UserError: if a control string of the template is not a single token.
    """
    added = tokenizer.added_tokens_decoder
    special = {
        token.content: Control(number, token.lstrip, token.rstrip) for number, token in added.items() if token.special
    }
    for control in controls:
        ids = tokenizer.encode(control, add_special_tokens=False)
        if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != control:
            raise UserError(
                f"template {template!r} needs {control} to be a single token, but the tokenizer makes {len(ids)} "
                "of it; use a tokenizer that has it, or the template 'plain'"
            )
        token = added.get(ids[0])
        special[control] = Control(ids[0]) if token is None else Control(ids[0], token.lstrip, token.rstrip)
    return special

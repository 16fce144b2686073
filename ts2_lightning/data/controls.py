"""Tokens that only a template may write; their text inside a content is text."""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from ts2_lightning.data.alignment import PieceTokens, tokenizing
from ts2_lightning.data.rendering import Rendering, Span
from ts2_lightning.types import RowError, UserError


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


class TextEncoder:
    """Encodes what a template has written: its control tokens as such, and nothing in a content as one.

    Args:
        tokenizer: a fast tokenizer.
        special: text of each token that only the template may write -> the token, see `special_tokens`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: Mapping[str, Control]) -> None:
        self._tokenizer = tokenizer
        self._special = special

    def encode(self, texts: list[str], as_text: bool = False) -> list[Encoding]:
        """Encodings of texts; `as_text` leaves special tokens unparsed.

        They are those of `tokenizer(texts)`, which would also make lists of the ids of all texts.
        """
        tokenizer: Any = self._tokenizer
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()  # rows that are too long are cut afterwards
        backend.no_padding()
        backend.encode_special_tokens = as_text
        with tokenizing():
            return backend.encode_batch(texts, add_special_tokens=False)

    @cached_property
    def _inside(self) -> Tokenizer:
        """Encodes a part of a text, special tokens unparsed, without the space that SentencePiece puts first."""
        tokenizer: Any = self._tokenizer
        source = tokenizer.backend_tokenizer.to_str()
        backend = Tokenizer.from_str(source.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"'))
        backend.encode_special_tokens = True
        return backend

    def encode_pieces(self, rendering: Rendering, cuts: list[int]) -> PieceTokens:
        """Encode the text between the template's control tokens as nothing but text, cut at `cuts` too."""
        text, position = rendering.text, 0
        ids: list[int] = []
        offsets: list[Span] = []
        for start, end in [*rendering.controls, (len(text), len(text))]:
            control = self._special.get(text[start:end])
            end_of_text = start
            if control is not None and control.lstrip:
                end_of_text = position + len(text[position:start].rstrip())
            inside = cuts[bisect_right(cuts, position) : bisect_left(cuts, end_of_text)]
            edges = [position, *inside, end_of_text]
            for left, right in itertools.pairwise(edges):
                part = text[left:right]
                with tokenizing():
                    encoding = (
                        self._inside.encode(part, add_special_tokens=False)
                        if left
                        else self.encode([part], as_text=True)[0]
                    )
                ids += encoding.ids
                offsets += [(left + first, left + last) for first, last in encoding.offsets]
            position = end
            if control is not None:
                if control.rstrip:
                    kept = next((cut for cut in cuts if cut >= end), len(text))
                    position = kept - len(text[end:kept].lstrip())
                ids.append(control.number)
                offsets.append((end_of_text, position))
        self._check_text(ids, len(rendering.controls))
        return PieceTokens(ids, offsets)

    def _check_text(self, ids: list[int], written: int) -> None:
        """Make sure that no control token came from a content. Characters that are unknown may well do."""
        forbidden = {control.number for control in self._special.values()} - {self._tokenizer.unk_token_id}
        occurring = sum(number in forbidden for number in ids)
        if occurring != written:
            reason = "a content has the text of a control token, which this tokenizer cannot encode as text"
            raise RowError(reason, "template")

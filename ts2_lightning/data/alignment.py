"""The tokens of a text, and which characters each of them covers."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

from tokenizers import Encoding

from ts2_lightning.data.files import reason_of
from ts2_lightning.data.rendering import Span
from ts2_lightning.types import RowError

_MANY_TURNS = 64  # turns of a conversation, above which a list of all offsets is faster than single look-ups


class PieceTokens(NamedTuple):
    """Tokens of a text that was encoded in pieces."""

    ids: list[int]
    offsets: list[Span]  # the characters of each token; white space may be in none, a character in several

    def at(self, position: int) -> int:
        """Index of the first token that reaches beyond a character's start."""
        return bisect_right(self.offsets, position, key=lambda offset: offset[1])

    def start_of(self, token: int) -> int:
        """The first character of a token."""
        if token >= len(self.ids):
            raise _missing()
        return self.offsets[token][0]


class WholeTokens:
    """Tokens of a text that was encoded at once, as `PieceTokens`.

    Single tokens are looked up in the backend: to make Python's list of all offsets takes a good part of the time that
    tokenising takes.
    """

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding

    @cached_property
    def ids(self) -> list[int]:
        """Ids of all tokens."""
        return self._encoding.ids

    def at(self, position: int) -> int:
        """The token at a character; see `PieceTokens`."""
        token = self._encoding.char_to_token(position)
        return PieceTokens(self.ids, self._encoding.offsets).at(position) if token is None else token

    def start_of(self, token: int) -> int:
        """The first character of a token."""
        covered = self._encoding.token_to_chars(token)
        if covered is None:
            raise _missing()
        return covered[0]


def aligned(encoding: Encoding, turns: int) -> WholeTokens | PieceTokens:
    """The tokens of a text, looked up for each of so many turns."""
    # The backend goes through all tokens for each character that is looked up.
    return WholeTokens(encoding) if turns <= _MANY_TURNS else PieceTokens(encoding.ids, encoding.offsets)


def _missing() -> RowError:
    return RowError("the tokenizer makes no token of the end of the text", "template")


@contextmanager
def tokenizing() -> Iterator[None]:
    """Turn errors of the tokenizer, such as a character without a token, into a `RowError`."""
    try:
        yield
    except RowError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's, which is none
            raise
        raise RowError(f"the tokenizer fails on this text ({reason_of(error)})", "other") from None

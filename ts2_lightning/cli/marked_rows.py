"""A row as a person reads it: which tokens are learnt, and which are no text."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from rich.cells import cell_len
from transformers import PreTrainedTokenizerBase

from ts2_lightning.data import EncodedRow

LEGEND = "⟦ ⟧ enclose what is learnt, ⟨ ⟩ what is no text: control tokens, invisible characters; ↵ newline, ⇥ tab"
COLOUR_LEGEND = "green is learnt, bold are control tokens; ⟨ ⟩ enclose invisible characters; ↵ newline, ⇥ tab"

_SIGNS = "⟦⟧⟨⟩↵⇥"
_LEARNT, _CONTROL = "32", "1"  # ANSI: green, bold


class Piece(NamedTuple):
    """Neighbouring tokens of a kind.

    Attributes:
        text: Text of the tokens.
        turn: Number of the learnt turn of the row that they belong to; -1 for none.
        control: Whether it is one token that is no text, such as the end of a turn.
    """

    text: str
    turn: int = -1
    control: bool = False


class Segment(NamedTuple):
    """Text in one style: ANSI codes, or nothing."""

    text: str
    style: str = ""


def read_pieces(
    row: EncodedRow, tokenizer: PreTrainedTokenizerBase | None, end_of_turn_ids: Sequence[int] = ()
) -> list[Piece]:
    """A row's tokens as text.

    Args:
        row: the row.
        tokenizer: without one the text is the ids.
        end_of_turn_ids: ids that are control tokens, whatever the tokenizer says of them.

    Example:
        >>> row = EncodedRow(np.array([5, 6, 7], dtype=np.int32), np.array([[1, 3]], dtype=np.int32))
        >>> read_pieces(row, None)
        [Piece(text='5 ', turn=-1, control=False), Piece(text='6 7', turn=0, control=False)]
    """
    turns = np.full(len(row.ids), -1)
    for turn, (start, end) in enumerate(row.spans):
        turns[start:end] = turn
    controls = control_tokens(tokenizer, end_of_turn_ids)
    pieces = []
    tokens = zip(row.ids.tolist(), turns.tolist(), strict=True)
    for (turn, control), group in itertools.groupby(tokens, key=lambda token: (token[1], controls.get(token[0]))):
        ids = [number for number, _ in group]
        if control is not None:
            pieces += [Piece(control, turn, control=True)] * len(ids)
        elif tokenizer is None:
            pieces.append(Piece(" ".join(map(str, ids)) + " ", turn))
        else:
            text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            pieces.append(Piece(str(text), turn))
    if tokenizer is None and pieces:
        pieces[-1] = pieces[-1]._replace(text=pieces[-1].text.rstrip())
    return pieces


def control_tokens(tokenizer: PreTrainedTokenizerBase | None, end_of_turn_ids: Iterable[int] = ()) -> dict[int, str]:
    """Id -> text of the tokens that are no text: special ones, others that were added, ends of turns.

    Runs of white space that were added, as some tokenizers for code have, are text.
    """
    if tokenizer is None:
        return {}
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    named = {number: text for number, text in added.items() if text.strip()}
    ends = {number: str(tokenizer.convert_ids_to_tokens(number)) for number in end_of_turn_ids}
    return {**ends, **named}


def marked(pieces: Iterable[Piece]) -> list[Segment]:
    """Pieces with signs for what is learnt and what is no text.

    A sign that is itself in the text is written as its number, so that the signs can be undone.

    Example:
        >>> [segment] = marked([Piece("Hi\\n"), Piece("Hey ⟦", 0), Piece("<|end|>", 0, control=True)])
        >>> print(segment.text)
        Hi↵
        ⟦Hey ⟨U+27E6⟩⟨<|end|>⟩⟧
    """
    text = ""
    for turn, group in itertools.groupby(pieces, key=lambda piece: piece.turn):
        inner = "".join(f"⟨{visible(p.text)}⟩" if p.control else visible(p.text) for p in group)
        text += inner if turn < 0 else f"⟦{inner}⟧"
    return [Segment(text)]


def painted(pieces: Iterable[Piece]) -> list[Segment]:
    """Pieces in colours."""
    segments = []
    for piece in pieces:
        styles = [_LEARNT] * (piece.turn >= 0) + [_CONTROL] * piece.control
        segments.append(Segment(visible(piece.text), ";".join(styles)))
    return segments


def visible(text: str) -> str:
    """Text in which every character can be seen, and none moves the cursor but a newline behind its sign.

    >>> visible("a\\tb\\x1b[2J")
    'a⇥b⟨U+001B⟩[2J'
    """
    return "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    if character == "\n":
        return "↵\n"
    if character == "\t":
        return "⇥"
    return character if character.isprintable() and character not in _SIGNS else f"⟨U+{ord(character):04X}⟩"


def laid_out(segments: Sequence[Segment], width: int) -> str:
    """Segments in lines of at most so many columns, broken between words where that is possible.

    Not a blank is lost: taking out the line breaks without the sign ↵ gives the text back.
    """
    breaks = list(_breaks("".join(segment.text for segment in segments), width))
    lines, position = "", 0
    for text, style in segments:
        inside = [place - position for place in breaks if position <= place < position + len(text)]
        parts = [text[start:end] for start, end in itertools.pairwise([0, *inside, len(text)])]
        lines += "\n".join(_painted(part, style) for part in parts)
        position += len(text)
    return lines


def _painted(text: str, style: str) -> str:
    """Text in a style, line by line, as pagers want it."""
    lines = text.split("\n")
    return "\n".join(f"\x1b[{style}m{line}\x1b[0m" if style and line else line for line in lines)


def _breaks(text: str, width: int) -> Iterator[int]:
    """Places before which a line must be broken."""
    columns = 0
    for match in re.finditer(r"\n|[^ \n]+ *| +", text):
        word = match[0]
        size = 0 if word == "\n" else cell_len(word)
        if columns and columns + size > width:
            yield match.start()
            columns = 0
        if word == "\n":
            columns = 0
        elif size <= width:
            columns += size
        else:
            for place, character in enumerate(word, start=match.start()):
                if columns + cell_len(character) > width:
                    yield place
                    columns = 0
                columns += cell_len(character)

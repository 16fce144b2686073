"""Which characters of a rendered conversation are contents: pure functions over strings.

A chat template is arbitrary jinja. To find the contents in its output without searching for their text, the
template is rendered once per sequence of roles with a private-use sentinel in place of each content. The output
then splits into the template's own pieces, `piece_0 content_0 piece_1 ... content_n-1 piece_n`, and the rendering
of a real conversation must be exactly those pieces around the contents, as they are or stripped. A template that
drops, repeats, reorders or rewrites a content fails that test and is refused.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ts2_lightning.data.formats import Message
from ts2_lightning.types import RowError

_SENTINEL = re.compile("\ue000\\d+\ue001")

Span = tuple[int, int]
"""Start and end (exclusive)."""

Render = Callable[[list[Message]], str]
"""From messages to the template's output."""


class Turn(NamedTuple):
    """Where an assistant turn lies in the rendering, in characters."""

    start: int  # of the content
    close: int  # of the control token that closes the turn
    control: str  # that control token


class Rendering(NamedTuple):
    """A rendered conversation.

    Attributes:
        text: the template's output.
        controls: the control tokens that the template itself wrote; the same strings inside contents are text.
        turns: the assistant's turns.
        plain: whether no other part of the text looks like a control token.
    """

    text: str
    controls: tuple[Span, ...]
    turns: tuple[Turn, ...]
    plain: bool


def template_pieces(render: Render, roles: Sequence[str]) -> tuple[str, ...]:
    """What the template writes around contents of messages with these roles.

    Args:
        render: the template.
        roles: R roles.

    Returns:
        R + 1 strings, any of which may be empty.

    Raises:
        RowError: if a content does not come out exactly once and in its place.
    """
    sentinels = [f"\ue000{number}\ue001" for number in range(len(roles))]
    text = render([{"role": role, "content": mark} for role, mark in zip(roles, sentinels, strict=True)])
    times = Counter(_SENTINEL.findall(text))  # all at once: there may be thousands of messages
    pieces, position = [], 0
    for number, (role, mark) in enumerate(zip(roles, sentinels, strict=True), start=1):
        if times[mark] != 1:
            fate = "repeats" if times[mark] else "drops"
            raise RowError(f"the chat template {fate} the content of message {number} ({role})", "template")
        start = text.find(mark, position)
        if start < 0:
            raise RowError(f"the chat template moves the content of message {number} ({role})", "template")
        pieces.append(text[position:start])
        position = start + len(mark)
    return (*pieces, text[position:])


def _as_rendered(content: str) -> Iterator[str]:
    """What templates make of a content without changing its words: itself, or stripped in one of the usual ways."""
    yield content
    yield content.strip()
    yield content.lstrip("\n")
    yield content.lstrip()
    yield content.rstrip()
    yield content.rstrip("\n")
    yield content.strip("\n")


def locate_contents(text: str, pieces: Sequence[str], messages: Sequence[Message]) -> list[Span]:
    """Where the contents lie in the template's output.

    Args:
        text: the rendering of `messages`.
        pieces: `template_pieces` for their roles.
        messages: R messages.

    Returns:
        R spans of characters.

    Raises:
        RowError: if the text is not exactly the pieces around the contents.
    """
    spans = []
    position = len(pieces[0])
    whole = text.startswith(pieces[0])
    for number, message in enumerate(messages, start=1):
        following, last = pieces[number], number == len(messages)
        for content in _as_rendered(message["content"]):
            end = position + len(content)
            fits = text.startswith(content, position) and text.startswith(following, end)
            if whole and fits and (not last or end + len(following) == len(text)):
                spans.append((position, end))
                position = end + len(following)
                break
        else:
            raise RowError(
                f"the chat template rewrites the content of message {number} ({message['role']})", "template"
            )
    return spans


def find_turns(text: str, contents: Sequence[Span], messages: Sequence[Message], control: re.Pattern[str]) -> Rendering:
    """Find the template's control tokens and the assistant's turns.

    Args:
        text: the rendering of `messages`.
        contents: `locate_contents` of it.
        messages: R messages.
        control: matches any control token.

    Raises:
        RowError: if no control token closes a turn of the assistant, or different ones do.
    """
    edges = [(0, 0), *contents, (len(text), len(text))]
    between = [
        [match.span() for match in control.finditer(text, before[1], after[0])]
        for before, after in itertools.pairwise(edges)
    ]
    turns = []
    for number, (message, (start, _)) in enumerate(zip(messages, contents, strict=True), start=1):
        if message["role"] != "assistant":
            continue
        closing = between[number]
        if not closing:
            raise RowError(
                f"the chat template does not close the assistant's turn (message {number}) with a special token "
                "of the tokenizer, so a model could not learn to stop",
                "template",
            )
        turns.append(Turn(start, closing[0][0], text[slice(*closing[0])]))
    if len({turn.control for turn in turns}) > 1:
        kinds = " and ".join(sorted({turn.control for turn in turns}))
        raise RowError(f"the chat template closes the assistant's turns with different tokens: {kinds}", "template")
    controls = tuple(span for spans in between for span in spans)
    plain = tuple(match.span() for match in control.finditer(text)) == controls
    return Rendering(text, controls, tuple(turns), plain)

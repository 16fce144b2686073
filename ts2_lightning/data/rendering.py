"""The characters of a rendered conversation that come from its messages: pure functions over strings.

A chat template is arbitrary jinja. To find contents and thoughts in its output without searching for their text, the
template is rendered once per kind of conversation with a private-use sentinel in place of each. The output then splits
into the template's own pieces, `piece_0 text_0 piece_1 ... text_n-1 piece_n`, and the rendering of a real conversation
must be exactly those pieces around the texts, as they are or stripped. A template that drops, repeats, reorders or
rewrites a content fails that test and is refused.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ts2_lightning.data.thoughts import CLOSING, FIELDS, WAYS_ON
from ts2_lightning.types import RowError

Span = tuple[int, int]
"""Start and end (exclusive)."""

TemplateMessage = dict[str, Any]
"""A message as a chat template receives it."""

Slot = tuple[int, str]
"""A text of a conversation: the place of its message, and the field of it."""

_SENTINEL = re.compile("\ue000\\d+\ue001")


class Turn(NamedTuple):
    """The place of an assistant turn in the rendering, in characters."""

    start: int  # start of what is learnt
    close: int  # start of the control token that closes the turn
    control: str  # that control token


class Rendering(NamedTuple):
    """A rendered conversation.

    Attributes:
        text: output of the template.
        controls: the control tokens that the template itself wrote; the same strings inside contents are text.
        turns: the assistant's turns that are learnt.
        plain: whether no other part of the text looks like a control token.
    """

    text: str
    controls: tuple[Span, ...]
    turns: tuple[Turn, ...]
    plain: bool


class SentinelText(NamedTuple):
    """The output of a template for a conversation whose texts are sentinels.

    Attributes:
        text: output of the template.
        slots: texts of the conversation that are in it, in their order.
        spans: span of each of them in `text`.
    """

    text: str
    slots: tuple[Slot, ...]
    spans: tuple[Span, ...]

    @property
    def pieces(self) -> tuple[str, ...]:
        """The parts of the output around the texts: one more than there are texts; any of them may be empty."""
        edges = [0, *(edge for span in self.spans for edge in span), len(self.text)]
        return tuple(self.text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))

    def of(self, message: int) -> list[Span]:
        """The spans of the texts of a message."""
        return [span for slot, span in zip(self.slots, self.spans, strict=True) if slot[0] == message]


def slots_of(message: TemplateMessage) -> tuple[str, ...]:
    """The fields of a message that are texts of the row: the thought before the content; no content beside calls."""
    thoughts = tuple(name for name in FIELDS if message.get(name))
    return thoughts if message.get("tool_calls") and not message["content"] else (*thoughts, "content")


def with_sentinels(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """The messages with a sentinel in place of each text."""
    return [
        {**message, **{name: _sentinel((place, name)) for name in slots_of(message)}}
        for place, message in enumerate(messages)
    ]


def _sentinel(slot: Slot) -> str:
    return f"\ue000{2 * slot[0] + (slot[1] == 'content')}\ue001"  # no letters: a template may change their case


def written(text: str, messages: Sequence[TemplateMessage], needed: int | None = None) -> SentinelText:
    """Find the sentinels in a template's output.

    Args:
        text: the rendering of `with_sentinels(messages)`.
        messages: any with the same fields.
        needed: place of the message whose thought must be there; from others a template may take the thoughts out.

    Raises:
        RowError: if a text does not come out exactly once and in its place.
    """
    times = Counter(_SENTINEL.findall(text))  # all at once: there may be thousands of messages
    slots, spans, position = list[Slot](), list[Span](), 0
    for place, message in enumerate(messages):
        for name in slots_of(message):
            mark = _sentinel((place, name))
            text_name = (
                f"the {'content' if name == 'content' else 'thought'} of message {place + 1} ({message['role']})"
            )
            if not times[mark] and name != "content" and place != needed:
                continue
            if times[mark] != 1:
                fate = "repeats" if times[mark] else "drops"
                raise RowError(f"the chat template {fate} {text_name}", "template")
            start = text.find(mark, position)
            if start < 0:
                raise RowError(f"the chat template moves {text_name}", "template")
            position = start + len(mark)
            slots.append((place, name))
            spans.append((start, position))
    return SentinelText(text, tuple(slots), tuple(spans))


def _as_rendered(content: str) -> Iterator[str]:
    """The forms that a template may give a content: as it is, or stripped in one of the usual ways."""
    yield content
    yield content.strip()
    yield content.lstrip("\n")
    yield content.lstrip()
    yield content.rstrip()
    yield content.rstrip("\n")
    yield content.strip("\n")


def locate(text: str, pieces: Sequence[str], slots: Sequence[Slot], messages: Sequence[TemplateMessage]) -> list[Span]:
    """The spans of the texts in the template's output.

    Args:
        text: rendering of `messages`.
        pieces: pieces of their `SentinelText`.
        slots: places of R texts in the messages.
        messages: messages that have them.

    Returns:
        R spans of characters.

    Raises:
        RowError: if the text is not exactly the pieces around the contents.
    """
    spans = []
    position = len(pieces[0])
    whole = text.startswith(pieces[0])
    for number, (place, name) in enumerate(slots, start=1):
        following, last = pieces[number], number == len(slots)
        for content in _as_rendered(messages[place][name]):
            end = position + len(content)
            fits = text.startswith(content, position) and text.startswith(following, end)
            if whole and fits and (not last or end + len(following) == len(text)):
                spans.append((position, end))
                position = end + len(following)
                break
        else:
            raise rewritten(messages, place)
    return spans


def rewritten(messages: Sequence[TemplateMessage], place: int) -> RowError:
    """The error for a message whose content comes out as another one."""
    message = messages[place]
    thinks = message["role"] == "assistant" and CLOSING in message["content"]
    way = f"; what lies before {CLOSING} is no thought at its beginning: {WAYS_ON}" if thinks else ""
    reason = f"the chat template rewrites the content of message {place + 1} ({message['role']}){way}"
    return RowError(reason, "template")

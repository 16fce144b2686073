"""The texts in which the turns of a conversation are learnt, each after the prompt that it has in generation.

A template may write a turn otherwise once others follow it: Qwen 3 takes the thoughts out of all turns before the last
question, and puts an empty thinking block before the last answer only. A turn that was learnt as it stands there would
be learnt after a prompt that generation never makes. So each learnt turn is examined as the last one of a conversation.
Where the whole conversation begins with just that text, the turn is learnt in the whole; where it does not, the
conversation up to that turn becomes a text of its own. Of most templates there is one text.

All of this follows from what a template writes of sentinels, and is the same for all conversations of a kind.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ts2_lightning.data.rendering import (
    Rendering,
    SentinelText,
    Slot,
    Span,
    TemplateMessage,
    Turn,
    locate,
    rewritten,
    with_sentinels,
    written,
)
from ts2_lightning.data.thoughts import FIELDS, OPENING
from ts2_lightning.types import RowError

KEPT = 64
"""Messages of a conversation up to which each turn is examined by itself; of longer ones only a few turns are."""

Arguments = Mapping[str, Any]

Write = Callable[[Sequence[TemplateMessage], Arguments, bool], str]
"""From messages, template arguments and whether it is a prompt for generation to the template's output."""

_Place = tuple[int, int]
"""A place in a template's output: the number of the piece, and that of the character in it."""


class LearntTurn(NamedTuple):
    """A turn that is learnt, in places of the template's pieces."""

    start: _Place
    close: _Place
    control: str


class TextLayout(NamedTuple):
    """A text that a conversation becomes, or its beginning.

    Attributes:
        messages: number of messages in it.
        arguments: arguments of the template.
        slots: texts of the row that it contains.
        pieces: texts of the template around them.
        controls: spans of the control tokens in each piece.
        turns: turns that are learnt in it.
    """

    messages: int
    arguments: Arguments
    slots: tuple[Slot, ...]
    pieces: tuple[str, ...]
    controls: tuple[tuple[Span, ...], ...]
    turns: tuple[LearntTurn, ...]


class _TurnSpan(NamedTuple):
    """A learnt turn in the output of a template, in characters."""

    start: int
    close: int
    end: int  # end of the control token that closes it


class LayoutMaker:
    """Decides in which texts the turns of a conversation are learnt.

    Args:
        write: function that renders messages.
        control: pattern of any control token.
        has_prompts: whether the template writes a generation prompt.
    """

    def __init__(self, write: Write, control: re.Pattern[str], has_prompts: bool) -> None:
        self._write = write
        self._control = control
        self._has_prompts = has_prompts

    def layouts(self, messages: Sequence[TemplateMessage], learnt: Mapping[int, Arguments]) -> list[TextLayout]:
        """The texts of a conversation, in the order of the turns that are learnt in them.

        Args:
            messages: messages whose texts are sentinels.
            learnt: place of each learnt turn -> the arguments with which it is written; at least one.

        Raises:
            RowError: if a content does not come out once and in its place, or a turn has no closing control token.
        """
        last = max(learnt)
        whole = self._written(messages, learnt[last], last)
        texts = [(len(messages), learnt[last], whole, list[_TurnSpan]())]
        examined = _examined(messages, sorted(learnt))
        lead = 0
        for place in sorted(learnt, reverse=True):
            _, _, current, turns = texts[-1]
            if place not in examined:  # as the one after it
                turns.append(self._turn_span(current, messages, place, None, lead))
                continue
            alone = self._alone(messages, place, learnt[place], texts[-1])
            turn = self._turn_span(alone, messages, place, self._prompt(messages, place, learnt[place]))
            lead = _content(alone, place, turn) - turn.start
            if alone is current or current.text.startswith(alone.text[: turn.end]):
                turns.append(turn)
            elif len(messages) > KEPT and place != last:
                raise RowError(
                    f"the chat template writes message {place + 1} otherwise once others follow, so that each turn "
                    f"becomes a text of its own; of {len(messages)} messages that is too much: split the conversation, "
                    "or let data.train_on be last",
                    "template",
                )
            else:
                texts.append((place + 1, learnt[place], alone, [turn]))
        layouts = [self._layout(*text) for text in texts if text[3]]
        return layouts[::-1]

    def _alone(
        self, messages: Sequence[TemplateMessage], place: int, arguments: Arguments, text: tuple
    ) -> SentinelText:
        """The conversation up to a turn; the text at hand if it ends there."""
        count, its_arguments, current, _ = text
        if count == place + 1 and its_arguments == arguments:
            return current
        return self._written(messages[: place + 1], arguments, place)

    def _written(self, messages: Sequence[TemplateMessage], arguments: Arguments, needed: int) -> SentinelText:
        text = self._write(messages, arguments, False)
        return written(text, messages, needed if needed == len(messages) - 1 else None)

    def _prompt(self, messages: Sequence[TemplateMessage], place: int, arguments: Arguments) -> str | None:
        """The generation prompt before a turn; None if the template cannot write it."""
        try:
            return self._write(messages[:place], arguments, True)
        except RowError:
            return None

    def _turn_span(
        self,
        text: SentinelText,
        messages: Sequence[TemplateMessage],
        place: int,
        prompt: str | None,
        lead: int | None = None,
    ) -> _TurnSpan:
        """The span in which a turn is learnt: from the end of its prompt to the control token that closes it.

        An empty thinking block of the template's own between them is not learnt. If the template never writes a prompt
        of its own, nothing before the texts is, but for the white space after the prompt.
        """
        message, spans = messages[place], text.of(place)
        before = spans[0][0] if spans else len(text.text)
        has_extras = bool(message.get("tool_calls")) or any(message.get(name) for name in FIELDS)
        start = before if lead is None else before - lead
        prompted = prompt is not None and text.text.startswith(prompt) and len(prompt) <= before
        between = text.text[len(prompt) : before] if prompt is not None and prompted else ""
        if prompted and (not between.strip() or (self._has_prompts and (has_extras or OPENING not in between))):
            start = before - len(between)
        elif has_extras and lead is None:
            opening = text.text.rfind(OPENING, 0, before)
            if not spans:
                raise self._unknown(place)
            if opening >= 0 and not text.text[opening + len(OPENING) : before].strip():
                start = opening
        return self._closed(text, message, place, start, spans[-1][1] if spans else start)

    def _unknown(self, place: int) -> RowError:
        return RowError(
            f"message {place + 1} (assistant) is a call, and the chat template has no prompt that it follows; write it "
            "as content",
            "template",
        )

    def _closed(self, text: SentinelText, message: TemplateMessage, place: int, start: int, after: int) -> _TurnSpan:
        following = next((span[0] for slot, span in zip(text.slots, text.spans, strict=True) if slot[0] > place), None)
        closings = [match.span() for match in self._control.finditer(text.text, after, following or len(text.text))]
        if not closings:
            raise RowError(
                f"the chat template does not close the assistant's turn (message {place + 1}) with a special token "
                "of the tokenizer, so a model could not learn to stop",
                "template",
            )
        close, end = closings[-1 if message.get("tool_calls") else 0]
        return _TurnSpan(start, close, end)

    def _layout(self, count: int, arguments: Arguments, text: SentinelText, turns: list[_TurnSpan]) -> TextLayout:
        pieces = text.pieces
        controls = tuple(tuple(match.span() for match in self._control.finditer(piece)) for piece in pieces)
        starts = [0, *(end for _, end in text.spans)]
        placed = [
            LearntTurn(_placed(starts, turn.start), _placed(starts, turn.close), text.text[turn.close : turn.end])
            for turn in turns
        ]
        return TextLayout(count, arguments, text.slots, pieces, controls, tuple(placed[::-1]))

    def rendering(self, layout: TextLayout, messages: Sequence[TemplateMessage]) -> Rendering:
        """The rendering of real messages.

        Raises:
            RowError: if the template writes something else around their texts than around sentinels.
        """
        text = self._write(messages[: layout.messages], layout.arguments, False)
        try:
            spans = locate(text, layout.pieces, layout.slots, messages)
        except RowError as error:
            raise self._culprit(layout, messages) or error from None
        starts = [0, *(end for _, end in spans)]
        if not spans and text != layout.pieces[0]:
            raise RowError("the chat template writes the same conversation in different ways", "template")
        controls = tuple(
            (start + first, start + end)
            for start, inside in zip(starts, layout.controls, strict=True)
            for first, end in inside
        )
        turns = tuple(
            Turn(starts[turn.start[0]] + turn.start[1], starts[turn.close[0]] + turn.close[1], turn.control)
            for turn in layout.turns
        )
        plain = tuple(match.span() for match in self._control.finditer(text)) == controls
        return Rendering(text, controls, turns, plain)

    def _culprit(self, layout: TextLayout, messages: Sequence[TemplateMessage]) -> RowError | None:
        """The error for the first message that alone, among sentinels, makes the template write something else."""
        marks = with_sentinels(messages[: layout.messages])
        for place in range(min(layout.messages, KEPT)):
            mixed = [*marks[:place], messages[place], *marks[place + 1 :]]
            try:
                locate(self._write(mixed, layout.arguments, False), layout.pieces, layout.slots, mixed)
            except RowError:
                return rewritten(messages, place)
        return None


def _examined(messages: Sequence[TemplateMessage], places: Sequence[int]) -> set[int]:
    """The learnt turns that are examined by themselves: all, or some from the beginning, the middle and the end."""
    if len(messages) <= KEPT:
        return set(places)
    calls = [place for place in places if messages[place].get("tool_calls")]
    return {*places[:2], *places[-2:], *places[:: max(len(places) // 8, 1)], *calls}


def _content(text: SentinelText, place: int, turn: _TurnSpan) -> int:
    """The start of a turn's texts or, if it has none, of what is learnt of it."""
    spans = text.of(place)
    return spans[0][0] if spans else turn.start


def _placed(starts: Sequence[int], position: int) -> _Place:
    """The place of a character: the last piece that begins at or before it."""
    piece = bisect_right(starts, position) - 1
    return piece, position - starts[piece]

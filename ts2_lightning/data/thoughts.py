"""The thoughts of an assistant before its answers: their places in rows, and their forms for templates.

Rows have a thought beside the answer (`reasoning_content`, `reasoning`, `thinking`, or a part of the content), or in
front of it, between `<think>` and `</think>`; of some models, whose prompt already opens the thought, without the
opening. Templates differ as much. One that reads a field gets the field; one that writes an answer as it is gets the
thought in front of it; for one whose prompt opens the thought, or that removes thoughts from every answer, prompt,
thought and answer are joined, as in generation.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ts2_lightning.data.formats import Message
from ts2_lightning.types import RowError

Thinking = Literal["keep", "drop", "refuse"]
"""Treatment of thoughts: learnt with the answers, left out, or a reason to refuse a row."""

OPENING, CLOSING = "<think>", "</think>"
FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Names under which templates take a thought."""

SWITCHES = ("enable_thinking", "thinking")
"""Arguments with which templates switch a model's thoughts on and off."""

WAYS_ON = (
    "data.thinking drop leaves thoughts out; a template that writes contents as they are, such as chatml, learns them"
)


class ThoughtPlace(NamedTuple):
    """The place at which a template writes a thought.

    Attributes:
        kind: kind of place: a `field` of the message, its `content`, after the `prompt`, or `nowhere`.
        field: name of the field.
    """

    kind: Literal["field", "content", "prompt", "nowhere"]
    field: str = FIELDS[0]


def split_thought(content: str) -> tuple[str, str] | None:
    """Thought and answer of a content; None if it does not begin with a thought.

    Example:
        >>> split_thought("<think>\\nhm\\n</think>\\n\\n2"), split_thought("hm</think>2"), split_thought("2")
        (('hm', '2'), ('hm', '2'), None)
    """
    opened = content.lstrip().startswith(OPENING)
    before, closing, answer = content.partition(CLOSING)
    if not closing or (not opened and (OPENING in content or CLOSING in answer)):
        return None
    thought = before.lstrip()[len(OPENING) :] if opened else before
    return thought.strip(), answer.lstrip()


def composed(thought: str, answer: str) -> str:
    """A content that begins with a thought.

    >>> composed("hm", "2")
    '<think>\\nhm\\n</think>\\n\\n2'
    """
    return f"{OPENING}\n{thought.strip()}\n{CLOSING}\n\n{answer.lstrip()}"


def settled(messages: Sequence[Message], thinking: Thinking, place: ThoughtPlace) -> list[dict[str, Any]]:
    """The messages in the form in which a template takes them.

    Args:
        messages: messages of a conversation.
        thinking: treatment of thoughts.
        place: place at which the template writes thoughts.

    Raises:
        RowError: for a thought where none may be, two of them in one turn, or no answer after it.

    Example:
        >>> thought = [{"role": "assistant", "content": "2", "reasoning_content": "hm"}]
        >>> settled(thought, "keep", ThoughtPlace("content"))[0]["content"]
        '<think>\\nhm\\n</think>\\n\\n2'
        >>> settled(thought, "drop", ThoughtPlace("field"))
        [{'role': 'assistant', 'content': '2'}]
    """
    return [_settled(message, number, thinking, place) for number, message in enumerate(messages, start=1)]


def _settled(message: Message, number: int, thinking: Thinking, place: ThoughtPlace) -> dict[str, Any]:
    kept: dict[str, Any] = {key: value for key, value in message.items() if key not in ("trained", "reasoning_content")}
    if message["role"] != "assistant":
        return kept
    beside, inside = message.get("reasoning_content", "").strip(), split_thought(message["content"])
    if not beside and inside is None:
        return kept
    turn_name = f"message {number} (assistant)"
    thought, answer = inside or ("", message["content"])
    if beside and thought and beside != thought:
        raise RowError(f"{turn_name} has different thoughts, in its content and beside it; remove one of them", "other")
    if not answer.strip() and not message.get("tool_calls"):
        raise RowError(f"{turn_name} has a thought and no answer after it", "empty answer")
    thought = beside or thought
    if thought and thinking == "refuse":
        raise RowError(
            f"{turn_name} has a thought, and data.thinking is refuse; keep learns thoughts, drop leaves them out",
            "other",
        )
    if thinking == "drop" or not thought:
        verbatim = thinking != "drop" and place.kind == "content"  # an empty block is what the row wants to be learnt
        return kept if verbatim else {**kept, "content": answer}
    if place.kind == "nowhere":
        raise RowError(f"{turn_name} has a thought, but the chat template has no place for it; {WAYS_ON}", "template")
    if place.kind == "content":
        return kept if inside and not beside else {**kept, "content": composed(thought, answer)}
    return {**kept, "content": answer, place.field: thought}

"""What an assistant thinks before it answers: where rows have it, and what of it a template is handed.

Rows have a thought beside the answer (`reasoning_content`, `reasoning`, `thinking`, or a part of the content), or in
front of it, between `<think>` and `</think>`; of some models, whose prompt already opens the thought, without the
opening. Templates differ as much. One that takes a field is handed it; in one that writes an answer as it is, the
thought stands in front of it; and for one whose prompt opens the thought, or that takes thoughts out of every answer,
prompt, thought and answer are laid behind one another, as in generation.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ts2_lightning.data.formats import Message
from ts2_lightning.types import RowError

Thinking = Literal["keep", "drop", "refuse"]
"""What becomes of thoughts: learnt with the answers, left out, or a reason to refuse a row."""

OPENING, CLOSING = "<think>", "</think>"
FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Names under which templates take a thought."""

SWITCHES = ("enable_thinking", "thinking")
"""Arguments with which templates let a model think, or keep it from that."""

WAYS_ON = (
    "data.thinking drop leaves thoughts out; a template that writes contents as they are, such as chatml, learns them"
)


class Place(NamedTuple):
    """Where a template has a thought.

    Attributes:
        kind: in a `field` of the message, in its `content`, after the `prompt`, or `nowhere`.
        field: the name of the field.
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


def settled(messages: Sequence[Message], thinking: Thinking, place: Place) -> list[dict[str, Any]]:
    """The messages as a template is handed them.

    Args:
        messages: of a conversation.
        thinking: what becomes of thoughts.
        place: where the template has them.

    Raises:
        RowError: for a thought where none may be, two of them in one turn, or no answer after it.

    Example:
        >>> thought = [{"role": "assistant", "content": "2", "reasoning_content": "hm"}]
        >>> settled(thought, "keep", Place("content"))[0]["content"]
        '<think>\\nhm\\n</think>\\n\\n2'
        >>> settled(thought, "drop", Place("field"))
        [{'role': 'assistant', 'content': '2'}]
    """
    return [_settled(message, number, thinking, place) for number, message in enumerate(messages, start=1)]


def _settled(message: Message, number: int, thinking: Thinking, place: Place) -> dict[str, Any]:
    handed: dict[str, Any] = {
        key: value for key, value in message.items() if key not in ("trained", "reasoning_content")
    }
    if message["role"] != "assistant":
        return handed
    beside, inside = message.get("reasoning_content", "").strip(), split_thought(message["content"])
    if not beside and inside is None:
        return handed
    what = f"message {number} (assistant)"
    thought, answer = inside or ("", message["content"])
    if beside and thought and beside != thought:
        raise RowError(f"{what} has different thoughts, in its content and beside it; remove one of them", "other")
    if not answer.strip() and not message.get("tool_calls"):
        raise RowError(f"{what} has a thought and no answer after it", "empty answer")
    thought = beside or thought
    if thought and thinking == "refuse":
        raise RowError(
            f"{what} has a thought, and data.thinking is refuse; keep learns thoughts, drop leaves them out", "other"
        )
    if thinking == "drop" or not thought:
        verbatim = thinking != "drop" and place.kind == "content"  # an empty block is what the row wants to be learnt
        return handed if verbatim else {**handed, "content": answer}
    if place.kind == "nowhere":
        raise RowError(f"{what} has a thought, but the chat template has no place for it; {WAYS_ON}", "template")
    if place.kind == "content":
        return handed if inside and not beside else {**handed, "content": composed(thought, answer)}
    return {**handed, "content": answer, place.field: thought}

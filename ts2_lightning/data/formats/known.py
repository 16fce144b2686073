"""The formats that come with the package, in the order of the table in `ts2_lightning.data.formats`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ts2_lightning.data.formats.base import (
    WEIGHT,
    Message,
    TokenRow,
    checked_text,
    named,
    register_format,
    shown,
)
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import RowError

BEST_SCORE = 7.0
"""The least score of a best completion of UltraFeedback (TOFU, appendix B)."""

_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}
_GUANACO = re.compile(r"### (Human|Assistant):")


@register_format("tokens", "input_ids")
def tokens(fields: Mapping[str, Any]) -> TokenRow:
    """Rows already tokenised: `input_ids`, and `labels` that repeat them or are -100 where nothing is learnt.

    Without labels every token is supervised. No template is applied and nothing is added.
    """
    ids = _field(fields, "input_ids")
    return TokenRow(ids, ids if fields.get("labels") is None else fields["labels"])


@register_format("messages", "messages")
def messages(fields: Mapping[str, Any]) -> list[Message]:
    """`messages`: a list of objects with `role` (system, user, assistant, tool) and `content`."""
    return _field(fields, "messages")


def _turns_are_objects(fields: Mapping[str, Any]) -> bool:
    """a list of objects"""
    return not _turns_are_strings(fields)


@register_format("sharegpt", "conversations", fits=_turns_are_objects)
def sharegpt(fields: Mapping[str, Any]) -> list[Message]:
    """`conversations`: a list of objects with `from` (human, gpt, system, tool and their synonyms) and `value`."""
    system = _optional("system", fields, "system")
    turns = enumerate(_objects(fields, "conversations"), start=1)
    return [*system, *(_sharegpt_message(turn, f"turn {number}") for number, turn in turns)]


@register_format("sharegpt_chosen", "conversations", "chosen", "rejected")
def sharegpt_chosen(fields: Mapping[str, Any]) -> list[Message]:
    """`conversations` that end before the answer, and `chosen`, the answer that was preferred."""
    return [*sharegpt(fields), _sharegpt_message(_object(_field(fields, "chosen"), "chosen"), "chosen")]


def _turns_are_strings(fields: Mapping[str, Any]) -> bool:
    """a list of strings"""
    turns = fields["conversations"]
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, str) for turn in turns)


@register_format("lima", "conversations", fits=_turns_are_strings)
def lima(fields: Mapping[str, Any]) -> list[Message]:
    """`conversations`: a list of strings, the user's and the assistant's in turn."""
    turns = _list(fields, "conversations")
    return [
        _message(("assistant", "user")[number % 2], turn, f"turn {number}")
        for number, turn in enumerate(turns, start=1)
    ]


def _not_judged(fields: Mapping[str, Any]) -> bool:
    """and no label"""
    return fields.get("label") is None  # KTO's rows say with it whether the completion is good or bad


@register_format("prompt_completion", "prompt", "completion", fits=_not_judged)
def prompt_completion(fields: Mapping[str, Any]) -> list[Message]:
    """`prompt` and `completion`: both strings, or both lists of messages."""
    return _prompt_and(fields, "completion")


@register_format("prompt_response", "prompt", "response")
def prompt_response(fields: Mapping[str, Any]) -> list[Message]:
    """`prompt` and `response`: both strings, or both lists of messages."""
    return _prompt_and(fields, "response")


@register_format("alpaca", "instruction", "output")
def alpaca(fields: Mapping[str, Any]) -> list[Message]:
    """`instruction`, `output` and, if there is one, `input`, which follows the instruction after a blank line.

    Also, as LLaMA-Factory writes them (LIMA too), a `system` prompt and a `history` of pairs of earlier turns.
    """
    return [*_history(fields), *_instruction(fields, ("input",), "output")]


def _by_name(fields: Mapping[str, Any]) -> bool:
    """only by name"""
    return False


@register_format("alpaca_tofu", "instruction", "output", fits=_by_name)
def alpaca_tofu(fields: Mapping[str, Any]) -> list[Message]:
    """As `alpaca`, but the `input` is a user turn of its own, as the template `tofu` wants it."""
    user, answer = _instruction(fields, (), "output")
    return [*_history(fields), user, *_optional("user", fields, "input"), answer]


@register_format("dolly", "instruction", "response")
def dolly(fields: Mapping[str, Any]) -> list[Message]:
    """`instruction`, `response` and, if there is one, `context` or `input`, which follows after a blank line."""
    return _instruction(fields, ("context", "input"), "response")


def _nothing_else(fields: Mapping[str, Any]) -> bool:
    """and nothing else"""
    return {key for key, value in fields.items() if value is not None} <= {"question", "answer", WEIGHT}


@register_format("gsm8k", "question", "answer", fits=_nothing_else)
def gsm8k(fields: Mapping[str, Any]) -> list[Message]:
    """`question` and `answer`. Rows with more fields, such as choices, are often something else: name the format."""
    return [
        _message("user", _filled(fields, "question"), "question"),
        _message("assistant", _field(fields, "answer"), "answer"),
    ]


@register_format("ultrafeedback_binarized", "messages", "chosen", "rejected")
def ultrafeedback_binarized(fields: Mapping[str, Any]) -> list[Message]:
    """`messages`, which end in the chosen answer; without them `chosen`, the same list in the rows of TRL."""
    turns = _objects(fields, "chosen" if fields.get("messages") is None else "messages")
    if not turns or turns[-1].get("role") != "assistant":
        raise RowError("the messages do not end in an answer of the assistant", "no supervised token")
    return list(turns)  # type: ignore[arg-type]  # `parse` checks them


@register_format("ultrafeedback", "instruction", "completions")
def ultrafeedback(fields: Mapping[str, Any]) -> list[Message]:
    """`instruction` and the one of its `completions` with the best `overall_score`, the first of equals.

    A row whose best score is below 7 is left out.
    """
    completions = _objects(fields, "completions")
    scores = [_number(completion, "overall_score") for completion in completions]
    if not scores or max(scores) < BEST_SCORE:
        highest = f"{max(scores):g}" if scores else "that of no completion"
        raise RowError(f"the best overall_score is {highest}, below {BEST_SCORE:g}", "left out")
    best = completions[scores.index(max(scores))]
    return [
        _message("user", _filled(fields, "instruction"), "instruction"),
        _message("assistant", _field(best, "response"), "response"),
    ]


@register_format("numina_math", "messages", "problem", "solution")
def numina_math(fields: Mapping[str, Any]) -> list[Message]:
    r"""`problem` and `solution`; a row whose solution has no `\boxed{` is left out."""
    solution = _message("assistant", _field(fields, "solution"), "solution")
    if "\\boxed{" not in solution["content"]:
        raise RowError("the solution has no \\boxed{}", "left out")
    return [_message("user", _filled(fields, "problem"), "problem"), solution]


def _has_markers(fields: Mapping[str, Any]) -> bool:
    """from ### Human: on, and no messages"""
    text = fields["text"]
    return isinstance(text, str) and text.startswith("### Human:") and fields.get("messages") is None


@register_format("guanaco", "text", fits=_has_markers)
def guanaco(fields: Mapping[str, Any]) -> list[Message]:
    """`text`: OASST threads in one string, each turn after `### Human:` or `### Assistant:`."""
    before, *parts = _GUANACO.split(_message("user", _field(fields, "text"), "text")["content"])
    if before.strip() or not parts:
        raise RowError(f"text must begin with ### Human:, got {shown(before)}", "wrong type")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[marker], "content": content.strip()}
        for marker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


@register_format("oasst", "message_tree_id", "prompt")
def oasst(fields: Mapping[str, Any]) -> list[Message]:
    """A tree of OASST: from `prompt` down, the reply of the best `rank` each time, to the last of the assistant.

    Messages have `role` (prompter, assistant), `text` and `replies`. Deleted replies are passed over; replies without a
    rank come after those with one.
    """
    thread: list[Message] = []
    following = [_object(_field(fields, "prompt"), "prompt")]
    while following:
        message = min(following, key=_rank)
        role = "user" if _field(message, "role") == "prompter" else message["role"]
        thread.append(_message(role, _field(message, "text"), f"message {len(thread) + 1}"))
        replies = _objects(message, "replies") if message.get("replies") is not None else []
        following = [reply for reply in replies if not reply.get("deleted")]
    while thread and thread[-1]["role"] != "assistant":
        thread.pop()
    if not thread:
        raise RowError("the best-ranked thread has no answer of the assistant", "no supervised token")
    return thread


def _rank(reply: Mapping[str, Any]) -> float:
    return float("inf") if reply.get("rank") is None else _number(reply, "rank")


def _prompt_and(fields: Mapping[str, Any], key: str) -> list[Message]:
    prompt, answer = _field(fields, "prompt"), _field(fields, key)
    if isinstance(prompt, list) and isinstance(answer, list):
        return [*prompt, *answer]
    return [_message("user", _filled(fields, "prompt"), "prompt"), _message("assistant", answer, key)]


def _instruction(fields: Mapping[str, Any], extras: Sequence[str], answer: str) -> list[Message]:
    user = _message("user", _filled(fields, "instruction"), "instruction")
    for extra in extras:
        for message in _optional("user", fields, extra):
            user["content"] += "\n\n" + message["content"]
    return [user, _message("assistant", _field(fields, answer), answer)]


def _history(fields: Mapping[str, Any]) -> list[Message]:
    """What comes before an instruction: a system prompt and earlier turns, if there are any."""
    messages = _optional("system", fields, "system")
    pairs = [] if fields.get("history") is None else _list(fields, "history")
    for place, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f"history[{place}] must be a question and an answer, got {shown(pair)}", "wrong type")
        messages += [
            _message(role, text, f"history[{place}]") for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    return messages


def _sharegpt_message(turn: Mapping[str, Any], what: str) -> Message:
    role = _field(turn, "from")
    if not isinstance(role, str) or role not in _SHAREGPT_ROLES:
        hint = did_you_mean(role[:40], _SHAREGPT_ROLES) if isinstance(role, str) else ""
        raise RowError(f"{what}: unknown role {shown(role)}; known: {', '.join(_SHAREGPT_ROLES)}{hint}", "unknown role")
    return _message(_SHAREGPT_ROLES[role], _field(turn, "value"), f"{what}: value")


def _field(fields: Mapping[str, Any], key: str) -> Any:
    if fields.get(key) is None:
        what = "is null" if key in fields else "is missing"
        raise RowError(f"the field {key} {what}; the row has {named(fields)}", "missing field")
    return fields[key]


def _filled(fields: Mapping[str, Any], key: str) -> Any:
    """A field that must not be an empty text: an answer to nothing teaches nothing."""
    value = _field(fields, key)
    if isinstance(value, str) and not value.strip():
        raise RowError(f"the field {key} is empty", "missing field")
    return value


def _optional(role: str, fields: Mapping[str, Any], key: str) -> list[Message]:
    """The message of a field that may be absent, null or empty."""
    return [] if fields.get(key) in (None, "") else [_message(role, fields[key], key)]


def _message(role: str, content: Any, field: str) -> Message:
    return {"role": role, "content": checked_text(content, field)}


def _list(fields: Mapping[str, Any], key: str) -> list[Any]:
    value = _field(fields, key)
    if not isinstance(value, list):
        raise RowError(f"{key} must be a list, got {shown(value)}", "wrong type")
    return value


def _objects(fields: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return [_object(item, f"{key}[{place}]") for place, item in enumerate(_list(fields, key))]


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RowError(f"{what} must be an object, got {shown(value)}", "wrong type")
    return value


def _number(fields: Mapping[str, Any], key: str) -> float:
    value = _field(fields, key)
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        raise RowError(f"{key} must be a number, got {shown(value)}", "wrong type")
    return value

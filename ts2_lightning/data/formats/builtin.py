"""The formats that come with the package, in the order of the table in `ts2_lightning.data.formats`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ts2_lightning.data.formats.base import WEIGHT, register_format
from ts2_lightning.data.formats.tokens import TokenRow, read_tokens
from ts2_lightning.data.formats.turns import Message
from ts2_lightning.data.formats.values import checked_text, is_filled, named, shown
from ts2_lightning.types import RowError

BEST_SCORE = 7.0
"""The least score of a best completion of UltraFeedback (TOFU, appendix B)."""

_GSM8K = {"question", "answer", "system", "system_prompt", "chat_template_kwargs", WEIGHT}
_PAIR = ("user", "bot")
_GUANACO = re.compile(r"### (Human|Assistant):")


@register_format("tokens", "input_ids", reads=())
def tokens(fields: Mapping[str, Any]) -> TokenRow:
    """Rows already tokenised: `input_ids`, and `labels` that repeat them or are -100 where nothing is learnt.

    Without labels every token is supervised, but for those that a mask leaves out. No template is applied and nothing
    is added.
    """
    _field(fields, "input_ids")
    return read_tokens(fields)


@register_format("messages", "messages", reads=())
def messages(fields: Mapping[str, Any]) -> list[Message]:
    """`messages`: a list of objects with `role` (system, user, assistant, tool) and `content`; see `turns`."""
    return _field(fields, "messages")


def _turns_are_objects(fields: Mapping[str, Any]) -> bool:
    """a list of objects"""
    return not _turns_are_strings(fields)


@register_format("sharegpt", "conversations", fits=_turns_are_objects, reads=())
def sharegpt(fields: Mapping[str, Any]) -> list[Message]:
    """`conversations`: a list of objects with `from` (human, gpt, ... or as `messages`) and `value`; see `turns`."""
    turns: Any = _objects(fields, "conversations")
    return turns  # `parse` checks them


@register_format("sharegpt_chosen", "conversations", "chosen", "rejected", reads=())
def sharegpt_chosen(fields: Mapping[str, Any]) -> list[Message]:
    """`conversations` that end before the answer, and `chosen`, the answer that was preferred."""
    turns: Any = [*_objects(fields, "conversations"), _object(_field(fields, "chosen"), "chosen")]
    return turns


def _turns_are_strings(fields: Mapping[str, Any]) -> bool:
    """a list of strings"""
    turns = fields["conversations"]
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, str) for turn in turns)


@register_format("lima", "conversations", fits=_turns_are_strings, reads=())
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


@register_format("prompt_completion", "prompt", "completion", fits=_not_judged, reads=("history",), asks=True)
def prompt_completion(fields: Mapping[str, Any]) -> list[Message]:
    """`prompt` and `completion`: both strings, or both lists of messages."""
    return _prompt_and(fields, "completion")


@register_format("prompt_response", "prompt", "response", reads=("history",), asks=True)
def prompt_response(fields: Mapping[str, Any]) -> list[Message]:
    """`prompt` and `response`: both strings, or both lists of messages."""
    return _prompt_and(fields, "response")


@register_format("alpaca", "instruction", "output", reads=("input", "history"), asks=True)
def alpaca(fields: Mapping[str, Any]) -> list[Message]:
    """`instruction`, `output` and, if there is one, `input`, which follows the instruction after a blank line.

    Also, as LLaMA-Factory writes it (LIMA too), a `history` of pairs of earlier turns.
    """
    return [*_history(fields), *_instruction(fields, ("input",), "output")]


def _by_name(fields: Mapping[str, Any]) -> bool:
    """only by name"""
    return False


@register_format("alpaca_tofu", "instruction", "output", fits=_by_name, reads=("input", "history"), asks=True)
def alpaca_tofu(fields: Mapping[str, Any]) -> list[Message]:
    """As `alpaca`, but the `input` is a user turn of its own, as the template `tofu` wants it."""
    user, answer = _instruction(fields, (), "output")
    return [*_history(fields), user, *_optional("user", fields, "input"), answer]


@register_format("dolly", "instruction", "response", reads=("context", "input", "history"), asks=True)
def dolly(fields: Mapping[str, Any]) -> list[Message]:
    """`instruction`, `response` and, if there is one, `context` or `input`, which follows after a blank line."""
    return [*_history(fields), *_instruction(fields, ("context", "input"), "response")]


def _nothing_else(fields: Mapping[str, Any]) -> bool:
    """and nothing else"""
    return {key for key, value in fields.items() if value is not None} <= _GSM8K


@register_format("gsm8k", "question", "answer", fits=_nothing_else, reads=())
def gsm8k(fields: Mapping[str, Any]) -> list[Message]:
    """`question` and `answer`. Rows with more fields, such as choices, are often something else: name the format."""
    return [
        _message("user", _filled(fields, "question"), "question"),
        _message("assistant", _field(fields, "answer"), "answer"),
    ]


@register_format("ultrafeedback_binarized", "messages", "chosen", "rejected", reads=())
def ultrafeedback_binarized(fields: Mapping[str, Any]) -> list[Message]:
    """`messages`, which end in the chosen answer; without them `chosen`, the same list in the rows of TRL."""
    turns = _objects(fields, "chosen" if fields.get("messages") is None else "messages")
    if not turns or turns[-1].get("role") != "assistant":
        raise RowError("the messages do not end in an answer of the assistant", "no supervised token")
    return list(turns)  # type: ignore[arg-type]  # `parse` checks them


@register_format("ultrafeedback", "instruction", "completions", reads=(), asks=True)
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


@register_format("numina_math", "messages", "problem", "solution", reads=())
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


@register_format("guanaco", "text", fits=_has_markers, reads=())
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


@register_format("oasst", "message_tree_id", "prompt", reads=())
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


def _has_pairs(fields: Mapping[str, Any]) -> bool:
    """a list of objects with user and bot, and no instruction or prompt"""
    turns = fields["history"]
    alone = not any(is_filled(fields.get(name)) for name in ("instruction", "prompt"))
    return alone and isinstance(turns, list) and bool(turns) and all(_is_pair(turn) for turn in turns)


def _is_pair(turn: Any) -> bool:
    return isinstance(turn, Mapping) and all(key in turn for key in _PAIR)


@register_format("mt_bench_101", "history", fits=_has_pairs, reads=())
def mt_bench_101(fields: Mapping[str, Any]) -> list[Message]:
    """`history`: a list of objects with `user` and `bot`, a question and its answer each."""
    return _history({"history": _field(fields, "history")})


def _rank(reply: Mapping[str, Any]) -> float:
    return float("inf") if reply.get("rank") is None else _number(reply, "rank")


def _prompt_and(fields: Mapping[str, Any], key: str) -> list[Message]:
    prompt, answer = _field(fields, "prompt"), _field(fields, key)
    if isinstance(prompt, list) and isinstance(answer, list):
        return [*_history(fields), *prompt, *answer]
    question = _message("user", _filled(fields, "prompt"), "prompt")
    return [*_history(fields), question, _message("assistant", answer, key)]


def _instruction(fields: Mapping[str, Any], extras: Sequence[str], answer: str) -> list[Message]:
    user = _message("user", _filled(fields, "instruction"), "instruction")
    for extra in extras:
        for message in _optional("user", fields, extra):
            user["content"] += "\n\n" + message["content"]
    return [user, _message("assistant", _field(fields, answer), answer)]


def _history(fields: Mapping[str, Any]) -> list[Message]:
    """The earlier turns of a row, if there are any: pairs of a question and an answer."""
    pairs = [] if fields.get("history") in (None, "") else _list(fields, "history")
    turns: list[Message] = []
    for place, pair in enumerate(pairs):
        texts = [pair.get(key) for key in _PAIR] if isinstance(pair, Mapping) else pair
        if not isinstance(texts, list) or len(texts) != 2 or None in texts:
            raise RowError(f"history[{place}] must be a question and an answer, got {shown(pair)}", "wrong type")
        if isinstance(pair, Mapping) and (more := [key for key in pair if key not in _PAIR and is_filled(pair[key])]):
            raise RowError(f"history[{place}] has {named(more)} besides {' and '.join(_PAIR)}; remove it", "other")
        turns += [
            _message(role, text, f"history[{place}]") for role, text in zip(("user", "assistant"), texts, strict=True)
        ]
    return turns


def _field(fields: Mapping[str, Any], key: str) -> Any:
    if fields.get(key) is None:
        state = "is null" if key in fields else "is missing"
        raise RowError(f"the field {key} {state}; the row has {named(fields)}", "missing field")
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


def _object(value: Any, subject: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RowError(f"{subject} must be an object, got {shown(value)}", "wrong type")
    return value


def _number(fields: Mapping[str, Any], key: str) -> float:
    value = _field(fields, key)
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        raise RowError(f"{key} must be a number, got {shown(value)}", "wrong type")
    return value

"""The template arguments that switch thoughts on and off, so that the prompt in training is that of generation."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ts2_lightning.data.formats import Conversation
from ts2_lightning.data.formats.values import shown
from ts2_lightning.data.rendering import TemplateMessage
from ts2_lightning.data.text_layout import Arguments, Write
from ts2_lightning.data.thoughts import CLOSING, FIELDS, OPENING, SWITCHES, WAYS_ON, ThoughtPlace, composed
from ts2_lightning.types import RowError

_QUESTION: TemplateMessage = {"role": "user", "content": "Hello"}
_THOUGHT, _ANSWER = "\ue0000\ue001", "\ue0001\ue001"


class ThoughtSwitches:
    """A template's treatment of thoughts, and of the arguments that switch them on and off.

    Args:
        write: function that renders messages.
        names: names of the variables that the template reads.

    Attributes:
        place: place at which the template writes thoughts.
        has_prompts: whether the template writes a generation prompt.
    """

    def __init__(self, write: Write, names: frozenset[str]) -> None:
        self._write = write
        self.names = names
        self.has_prompts = self._text([_QUESTION], {}, True) != self._text([_QUESTION], {}, False)
        self.place = self._find_place()
        self._fitting = lru_cache(maxsize=32)(self._find_fitting)  # each with up to 2^20 characters

    def _text(self, messages: Sequence[TemplateMessage], arguments: Arguments, prompt: bool) -> str | None:
        try:
            return self._write(messages, arguments, prompt)
        except RowError:
            return None

    def _find_place(self) -> ThoughtPlace:
        for switch in [{}, *({name: True} for name in self._switches({}))]:
            for field in FIELDS:
                text = self._text([_QUESTION, _answer(**{field: _THOUGHT})], switch, False) or ""
                if text.count(_THOUGHT) == text.count(_ANSWER) == 1 and text.index(_THOUGHT) < text.index(_ANSWER):
                    return ThoughtPlace("field", field)
        prompt = self._text([_QUESTION], {}, True) if self.has_prompts else None
        if prompt is not None and prompt.rstrip().endswith(OPENING):
            return ThoughtPlace("prompt")
        whole = composed(_THOUGHT, _ANSWER)
        if whole in (self._text([_QUESTION, {"role": "assistant", "content": whole}], {}, False) or ""):
            return ThoughtPlace("content")
        return ThoughtPlace("nowhere") if prompt is None else ThoughtPlace("prompt")

    def _switches(self, arguments: Arguments) -> list[str]:
        return [name for name in SWITCHES if name in self.names and name not in arguments]

    def switch_for(self, thinks: bool, arguments: Arguments) -> dict[str, Any] | None:
        """The switch to add to arguments so that a turn follows the prompt that the template makes with them.

        Args:
            thinks: whether the turn has a thought.
            arguments: arguments of the row and of the settings.

        Returns:
            The switch and its value, or nothing if none is needed; None if the template never prompts for such a turn.
        """
        return self._fitting(thinks, json.dumps(arguments, sort_keys=True))

    def _find_fitting(self, thinks: bool, key: str) -> dict[str, Any] | None:
        arguments = json.loads(key)
        default = self._text([_QUESTION], arguments, True)
        for name in self._switches(arguments):
            switched = {**arguments, name: thinks}
            if self._text([_QUESTION], switched, True) != default and self._fits(thinks, switched):
                return {name: thinks}
        return {} if self._fits(thinks, arguments) else None

    def _fits(self, thinks: bool, arguments: Arguments) -> bool:
        prompt = self._text([_QUESTION], arguments, True)
        answer = _answer(**{self.place.field: _THOUGHT}) if thinks else _answer()
        if thinks and self.place.kind == "content":
            answer = {"role": "assistant", "content": composed(_THOUGHT, _ANSWER)}
        text = self._text([_QUESTION, answer], arguments, False)
        if prompt is None or text is None or not text.startswith(prompt):
            return False
        first = composed(_THOUGHT, _ANSWER) if thinks and self.place.kind == "content" else _ANSWER
        if thinks and self.place.kind != "content":
            first = _THOUGHT
        between, at, _ = text[len(prompt) :].partition(first)
        block = CLOSING in between or (OPENING in between and not thinks)
        return bool(at) and (not between.strip() or (self.has_prompts and not block))

    def arguments(self, thinks: bool, conversation: Conversation, own: Arguments) -> dict[str, Any]:
        """The arguments with which a turn of a conversation is written.

        Args:
            thinks: whether the turn has a thought.
            conversation: conversation whose own arguments take precedence.
            own: arguments of the settings.

        Raises:
            RowError: if they ask for a thought where there is none, or for none where there is one.
        """
        merged = {**own, **{name: value for name, value in conversation.arguments.items() if name in self.names}}
        switch = self.switch_for(thinks, merged)
        if switch is not None:
            return {**merged, **switch}
        switches = [name for name in SWITCHES if name in merged]
        others = {name: value for name, value in merged.items() if name not in switches}
        if switches and self.switch_for(thinks, others) is not None:
            expected, actual = ("none", "one") if thinks else ("a thought", "none")
            raise RowError(
                f"the template argument {switches[0]} is {shown(merged[switches[0]])}, which asks for {expected}, but "
                f"the answer has {actual}; remove the argument",
                "template",
            )
        if thinks and self.has_prompts:
            raise RowError(f"an answer has a thought, which the chat template never prompts for; {WAYS_ON}", "template")
        return merged

    def prompts_by_itself(self, own: Arguments) -> bool:
        """Whether the template, with the arguments of the settings alone, prompts for a thought."""
        return self.switch_for(False, own) != {} and self.switch_for(True, own) == {}


def _answer(**more: str) -> TemplateMessage:
    return {"role": "assistant", "content": _ANSWER, **more}


def with_defaults(source: str, arguments: Mapping[str, Any]) -> str:
    """The source of a template in which these values are the defaults of its arguments.

    The new lines that it begins with are taken out by transformers' settings of jinja (`trim_blocks`).

    Example:
        >>> with_defaults("{{ messages }}", {"enable_thinking": False})
        '{%- if enable_thinking is not defined %}{%- set enable_thinking = false %}{%- endif %}\\n{{ messages }}'
    """
    lines = [
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}\n"
        for name, value in sorted(arguments.items())
    ]
    return "".join(lines) + source


def _literal(value: Any) -> str:
    """A plain value in jinja.

    >>> _literal({"a": [True, None, 1.5, "x'{% y %}"]})
    '{"a": [true, none, 1.5, "x\\\\u0027\\\\u007b% y %\\\\u007d"]}'
    """
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return "".join(f"\\u{ord(letter):04x}" if letter in "'{}" else letter for letter in text)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return repr(value)

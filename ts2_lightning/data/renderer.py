"""From a conversation to the text that a chat template writes of it, with the places of the learnt turns."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError

from ts2_lightning.data.formats import Conversation
from ts2_lightning.data.rendering import Rendering, TemplateMessage, slots_of, with_sentinels
from ts2_lightning.data.sandbox import compiled, names_taken, reason_of_failure
from ts2_lightning.data.text_layout import KEPT, Arguments, LayoutMaker, TextLayout
from ts2_lightning.data.thought_switches import ThoughtSwitches
from ts2_lightning.data.thoughts import CLOSING, OPENING, Thinking, ThoughtPlace, settled, split_thought
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import RowError, UserError

TrainOn = Literal["all", "last"]
"""Whether every turn of the assistant is learnt, or only the last one of a conversation."""

_NAMED = 20  # roles that an error names
_ASIDE = ("name", "tool_call_id")  # fields of a turn that a template may write
_MARK = "\ue000\ue001"
_Flags = tuple[tuple[int, bool], ...]  # place of each learnt turn, and whether it has a thought


class Rendered(NamedTuple):
    """A rendered conversation.

    Attributes:
        renderings: texts of the conversation, in the order of the turns that are learnt in them; mostly one.
        thinks: whether the last learnt turn has a thought.
        fits: whether the template prompts for that turn as it was written.
        unused: names of fields and arguments of the conversation that the template does not use.
    """

    renderings: tuple[Rendering, ...]
    thinks: bool
    fits: bool
    unused: tuple[str, ...]


class Renderer:
    """A chat template that renders conversations in the sandbox.

    Args:
        source: source of the template, in jinja.
        special_names: special tokens of the tokenizer, by the names that a template has for them.
        control: pattern of any control token.
        train_on: turns that are learnt: `all` of the assistant, or the `last` one.
        thinking: treatment of thoughts: learnt, left out or refused.
        arguments: arguments of the template for rows that give no others.

    Raises:
        UserError: for an argument that the template does not take; anything else for invalid jinja.
    """

    def __init__(
        self,
        source: str,
        special_names: Mapping[str, Any],
        control: re.Pattern[str],
        train_on: TrainOn,
        thinking: Thinking,
        arguments: Arguments,
    ) -> None:
        self._compiled = compiled(source)
        self._special_names = special_names
        self._control = control
        self._train_on = train_on
        self._thinking: Thinking = thinking
        self._own = dict(arguments)
        self._place = ThoughtPlace("field")
        names = names_taken(source)
        self._check_arguments(names)
        self.switches = ThoughtSwitches(self.write, names)
        self._place = self.switches.place
        self._maker = LayoutMaker(self.write, control, self.switches.has_prompts)
        self._usual = lru_cache(maxsize=2)(self._find_usual)
        self._kept = lru_cache(maxsize=1024)(lambda kind, flags: self._new_layouts(_marks(kind), flags))

    def _check_arguments(self, names: frozenset[str]) -> None:
        for name in self._own:
            if name not in names:
                hint = did_you_mean(name, sorted(names))
                raise UserError(f"data.chat_template_kwargs: the template takes no argument {name!r}{hint}")

    # Writing ---------------------------------------------------------------------------------------------------

    def write(
        self,
        messages: Sequence[TemplateMessage],
        arguments: Arguments,
        prompt: bool,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
    ) -> str:
        """The text that `tokenizer.apply_chat_template` would write, within the bounds of the sandbox.

        A thought of the last turn for which the template has no field follows the prompt, as in generation.

        Args:
            messages: messages, with thoughts in the field that the template takes.
            arguments: arguments of the template.
            prompt: whether to end with the generation prompt.
            tools: functions that may be called.
            documents: texts to answer from.

        Raises:
            RowError: if the template fails.
        """
        last = messages[-1] if messages else {}
        thought = last.get(self._place.field) if self._place.kind == "prompt" and not prompt else None
        if not thought:
            return self._write(messages, arguments, prompt, tools, documents)
        before = messages[:-1]
        opened = self._write(before, arguments, True, tools, documents)
        marked = [*before, {"role": last["role"], "content": _MARK}]
        tail = self._write(marked, arguments, False, tools, documents).partition(_MARK)[2]
        opening = "" if opened.rstrip().endswith(OPENING) else OPENING
        line = "" if not opening and opened.endswith("\n") else "\n"
        return f"{opened}{opening}{line}{thought}\n{CLOSING}\n\n{last['content']}{tail}"

    def _write(
        self,
        messages: Sequence[TemplateMessage],
        arguments: Arguments,
        prompt: bool,
        tools: Sequence[Any] | None,
        documents: Sequence[Any] | None,
    ) -> str:
        try:
            return self._compiled.render(
                **arguments,
                messages=list(messages),
                tools=tools,
                documents=documents,
                add_generation_prompt=prompt,
                **self._special_names,
            )
        except Exception as error:  # a template may fail in any way
            verb = "refuses" if type(error) is TemplateError else "fails on"
            roles = ", ".join(message["role"] for message in messages[:_NAMED]) + (" ..." if messages[_NAMED:] else "")
            reason = f"the chat template {verb} messages of the roles {roles} ({reason_of_failure(error)})"
            raise RowError(reason, "template") from None

    # Conversations ---------------------------------------------------------------------------------------------

    def render(self, conversation: Conversation) -> Rendered:
        """Render a conversation, with the places of its learnt turns.

        Raises:
            RowError: if the template refuses the conversation, does more to a content than to strip it, or writes
                nothing of its functions or calls.
        """
        messages = settled(conversation.messages, self._thinking, self._place)
        flags = tuple((place, self._thinks(messages[place])) for place in self._learnt(conversation))
        thinks, unused = flags[-1][1], set[str]()
        if _is_simple(conversation):
            maker, layouts = self._maker, self._text_layouts(messages, flags)
        else:
            own, switches = self._own, self.switches
            learnt = {place: switches.arguments(flag, conversation, own) for place, flag in flags}
            unused = {f"chat_template_kwargs.{name}" for name in conversation.arguments if name not in switches.names}
            self._check_used(conversation, messages, learnt[flags[-1][0]], unused)
            maker = self._with_tools(conversation)
            layouts = maker.layouts(with_sentinels(messages), learnt)
        texts = tuple(maker.rendering(layout, messages) for layout in layouts)
        # Arguments of a row that do not fit have been refused.
        return Rendered(texts, thinks, self._usual(thinks)[1], tuple(sorted(unused)))

    def _learnt(self, conversation: Conversation) -> list[int]:
        places = [place for place, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        selected = places if self._train_on == "all" else places[-1:]
        learnt = [place for place in selected if conversation.messages[place].get("trained", True)]
        if not learnt:
            which = "the last turn" if self._train_on == "last" else "every turn"
            raise RowError(f"{which} of the assistant is marked as not to be learnt", "no supervised token")
        return learnt

    def _thinks(self, message: TemplateMessage) -> bool:
        if self._place.kind != "content":
            return bool(message.get(self._place.field))
        thought = split_thought(message["content"])
        return thought is not None and bool(thought[0])

    def _find_usual(self, thinks: bool) -> tuple[Arguments, bool]:
        """The arguments of a turn of a row that gives none, and whether the template prompts for such a turn."""
        arguments = self.switches.arguments(thinks, Conversation([]), self._own)
        return arguments, self.switches.switch_for(thinks, arguments) is not None

    def _text_layouts(self, messages: Sequence[TemplateMessage], flags: _Flags) -> list[TextLayout]:
        if len(messages) > KEPT:
            return self._new_layouts(with_sentinels(messages), flags)
        return self._kept(tuple((message["role"], *slots_of(message)) for message in messages), flags)

    def _new_layouts(self, messages: Sequence[TemplateMessage], flags: _Flags) -> list[TextLayout]:
        return self._maker.layouts(messages, {place: self._usual(thinks)[0] for place, thinks in flags})

    def _with_tools(self, conversation: Conversation) -> LayoutMaker:
        """A maker of layouts for this one conversation, whose functions and calls are in the template's output."""

        def write(messages: Sequence[TemplateMessage], arguments: Arguments, prompt: bool) -> str:
            return self.write(messages, arguments, prompt, conversation.tools, conversation.documents)

        return LayoutMaker(write, self._control, self.switches.has_prompts)

    def _check_used(
        self, conversation: Conversation, messages: Sequence[TemplateMessage], arguments: Arguments, unused: set[str]
    ) -> None:
        """Make sure that the template writes functions and calls, and that none of them looks like a control token."""
        tools, documents = conversation.tools, conversation.documents
        whole = self.write(messages, arguments, False, tools, documents)
        if tools and whole == self.write(messages, arguments, False, None, documents):
            raise RowError(f"the row has tools, of which {_WRITES_NOTHING}", "template")
        ignored = [
            name
            for name in ("tool_calls", *_ASIDE)
            if any(name in message for message in messages)
            and whole == self.write(_without(messages, name), arguments, False, tools, documents)
        ]
        if "tool_calls" in ignored:
            raise RowError(f"the row has tool_calls, of which {_WRITES_NOTHING}; or write them as content", "template")
        unused.update(f"turns.{name}" for name in ignored)
        if documents and whole == self.write(messages, arguments, False, tools, None):
            unused.add("documents")
        foreign: list[Any] = [tools, documents, conversation.arguments]
        foreign += [[message.get(name) for name in ("tool_calls", *_ASIDE)] for message in messages]
        if control := self._control.search(json.dumps(foreign, ensure_ascii=False)):
            raise RowError(f"{control[0]}, a control token, stands in its functions, calls or arguments", "template")


_WRITES_NOTHING = "the chat template writes nothing; name a template that writes them, or remove the field"


def _marks(kind: tuple[tuple[str, ...], ...]) -> list[TemplateMessage]:
    """Messages of a kind, with sentinels."""
    return with_sentinels([{"role": role, "content": "", **dict.fromkeys(slots, "?")} for role, *slots in kind])


def _is_simple(conversation: Conversation) -> bool:
    """Whether the conversation consists of texts alone, so that others are written in the same way."""
    more = conversation.tools or conversation.documents or conversation.arguments
    return not more and not any(name in m for m in conversation.messages for name in ("tool_calls", *_ASIDE))


def _without(messages: Sequence[TemplateMessage], field: str) -> list[TemplateMessage]:
    return [{key: value for key, value in message.items() if key != field} for message in messages]

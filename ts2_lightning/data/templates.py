"""Chat templates: from a conversation to token ids, and to the spans of them that are learnt.

Supervised is, in every turn of the assistant, what the model is to produce: from the end of the prompt for generation
up to and including the control token that closes the turn, so the thought and the calls of functions where the row has
them, and the content; never a text of the template's own before the content (an empty thinking block), or what follows
the closing token (a newline). See `text_layout` for turns that a template writes differently once others follow them.
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from ts2_lightning.data.alignment import PieceTokens, WholeTokens, aligned
from ts2_lightning.data.bundled import TEMPLATES
from ts2_lightning.data.controls import TextEncoder, special_tokens
from ts2_lightning.data.formats import Conversation, Message, arguments_of
from ts2_lightning.data.naming import check_literal
from ts2_lightning.data.renderer import Rendered, Renderer, TrainOn
from ts2_lightning.data.rendering import Rendering, Span, Turn
from ts2_lightning.data.sandbox import reason_of_failure
from ts2_lightning.data.template_sources import find_template
from ts2_lightning.data.thought_switches import with_defaults
from ts2_lightning.data.thoughts import Thinking
from ts2_lightning.types import RowError, UserError


class Encoded(NamedTuple):
    """Tokens of one row and the spans of them that are learnt, one span per learnt turn of the assistant."""

    ids: list[int]
    spans: list[Span]


class ChatTemplate:
    """A chat template together with the tokenizer that encodes it.

    The ids are those of `tokenizer.apply_chat_template` with the same jinja, but for two things: strings inside
    contents that look like control tokens are encoded as text, and where white space at the start of the
    assistant's content would merge with white space before it, the two are kept apart, as they are in generation.

    Args:
        name: name for messages and records.
        jinja: source of the template.
        tokenizer: a fast tokenizer.
        controls: strings that must be single tokens of the tokenizer.
        train_on: turns that are learnt: `all` of the assistant, or the `last` one.
        train_on_end: whether the token that closes a turn is learnt. A model that has not learnt it elsewhere does
            not stop.
        thinking: whether the thoughts of the assistant are learnt (`keep`), left out (`drop`), or refused (`refuse`).
        arguments: arguments of the template for rows that give no others.

    Attributes:
        end_of_turn_ids: ids of the tokens that close a turn of the assistant; generation stops at them, learnt here
            or not.

    Raises:
        UserError: if the template cannot be masked, its control strings are no single tokens, it does not take the
            arguments, or `train_on` or `thinking` is neither.

    Example:
        >>> from ts2_lightning.toyworld import build_tokenizer
        >>> template = ChatTemplate("toyworld", build_tokenizer().chat_template, build_tokenizer())
        >>> question = [{"role": "user", "content": "name a fruit"}]
        >>> rendering = template.render([*question, {"role": "assistant", "content": "the answer is plum ."}])
        >>> [(ids, spans)] = template.encode([rendering])
        >>> [template.tokenizer.decode(ids[start:end]) for start, end in spans]
        ['the answer is plum . <|end|>']
    """

    def __init__(
        self,
        name: str,
        jinja: str,
        tokenizer: PreTrainedTokenizerBase,
        controls: Sequence[str] = (),
        train_on: TrainOn = "all",
        train_on_end: bool = True,
        thinking: Thinking = "keep",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        check_literal("train_on", train_on, TrainOn)
        check_literal("thinking", thinking, Thinking)
        if not tokenizer.is_fast:
            raise UserError(
                f"the tokenizer {type(tokenizer).__name__} is not a fast one (tokenizer.json), "
                "so it does not say which characters a token covers"
            )
        self.name = name
        self.tokenizer = tokenizer
        self.train_on: TrainOn = train_on
        self.train_on_end = train_on_end
        self.thinking: Thinking = thinking
        self.arguments = arguments_of(arguments, "data.chat_template_kwargs")
        self._source = jinja
        self._controls = tuple(controls)
        self._special = special_tokens(tokenizer, self._controls, name)
        self._texts = TextEncoder(tokenizer, self._special)
        longest_first = sorted(self._special, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._lead = 0  # characters of white space before what is learnt that belong to its first token
        self._probed = ""
        self._recorded = self.arguments  # what the source of the trained model says
        self._unfit_seen = False
        self.end_of_turn_ids: tuple[int, ...] = ()
        try:
            self._renderer = self._made_renderer(tokenizer.special_tokens_map)
        except UserError as error:
            raise UserError(f"template {name!r}: {error}") from None
        except Exception as error:  # of any kind: the source nests too deeply, for one
            raise UserError(f"template {name!r} is not valid jinja ({reason_of_failure(error)}); mend it") from None
        try:
            self._probe()
        except UserError as error:
            raise UserError(f"template {name!r} cannot be used with this tokenizer: {error}") from None

    def _made_renderer(self, special_names: Mapping[str, Any]) -> Renderer:
        return Renderer(self._source, special_names, self._control, self.train_on, self.thinking, self.arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.name, self._source, self.tokenizer, self._controls, self.train_on, self.train_on_end)
        made = (*arguments, self.thinking, self.arguments)
        return type(self), made, {"_recorded": self._recorded, "_prompts_thought": self._prompts_thought}

    @property
    def jinja(self) -> str:
        """Source that plain transformers can use for the trained model.

        It is the template's own, with the trained arguments as defaults.
        """
        return with_defaults(self._source, self._recorded)

    @property
    def recorded(self) -> dict[str, Any]:
        """The default arguments in the source of the trained model."""
        return dict(self._recorded)

    @cached_property
    def identity(self) -> str:
        """A digest that changes with whatever changes ids or spans, but for the code: source, tokenizer, options.

        The rendering of a conversation belongs to it: some templates write the day's date.
        """
        tokenizer: Any = self.tokenizer
        parts = [
            self._source,
            self._probed,
            {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
            self._special,
            self.train_on,
            self.train_on_end,
            self.thinking,
            self.arguments,
            tokenizer.backend_tokenizer.to_str(),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def prompts_differ(self) -> bool:
        """Whether its prompt for an answer with a thought differs from that for one without."""
        switches = self._renderer.switches
        return self.thinking == "keep" and switches.switch_for(True, self.arguments) != switches.switch_for(
            False, self.arguments
        )

    def prompting(self, thoughts: bool) -> "ChatTemplate":
        """A copy of the template whose prompts are those of turns with a thought, or of turns without.

        Its source (`jinja`) gets the argument, if there is one, with which the template prompts for such turns.

        Args:
            thoughts: whether most of the trained turns have a thought.
        """
        switch = self._renderer.switches.switch_for(thoughts, self.arguments)
        other = copy.copy(self)
        other._prompts_thought = thoughts if switch is not None else self._prompts_thought
        other._recorded = {**self.arguments, **(switch or {})}
        return other

    def _probe(self) -> None:
        """Encode a conversation to learn how turns end, and whether prompts for generation fit the training."""
        switches = self._renderer.switches
        self._prompts_thought = switches.prompts_by_itself(self.arguments)
        unfit = switches.switch_for(False, self.arguments) is None
        thought = (
            {"reasoning_content": "Hello"} if unfit and switches.switch_for(True, self.arguments) is not None else {}
        )
        prompt: list[Message] = [{"role": "user", "content": "Hello"}]
        answer: Message = {"role": "assistant", "content": "Hello", **thought}  # type: ignore[typeddict-item]
        rendering = self._probing([*prompt, answer])
        self._probed = rendering.text
        self._lead = 0
        [probed] = self.encode([rendering])
        if sum(end - start for start, end in probed.spans) == self.train_on_end:
            raise UserError("the tokenizer makes no token of 'Hello'; is its vocabulary empty?")
        self._lead = self._leading_space(rendering)
        self.end_of_turn_ids = self._ends(rendering, prompt)
        if unfit and not thought:
            self._warn_of_prompt()

    def _ends(self, answered: Rendering, prompt: list[Message]) -> tuple[int, ...]:
        """The tokens that close an answer and, if the template writes calls and closes them otherwise, a call."""
        call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
        controls = [answered.turns[0].control]
        try:
            calling = self._probing([*prompt, {"role": "assistant", "content": "", "tool_calls": [call]}])
            controls.append(calling.turns[0].control)
        except RowError:  # it writes none
            pass
        return tuple(dict.fromkeys(self._special[control].number for control in controls))

    def _probing(self, messages: list[Message]) -> Rendering:
        """A rendering of one's own messages, whatever the settings do with thoughts."""
        renderer = self._renderer
        if self.thinking != "keep":
            special_names = self.tokenizer.special_tokens_map
            renderer = Renderer(self._source, special_names, self._control, self.train_on, "keep", self.arguments)
        return renderer.render(Conversation(messages)).renderings[-1]

    def _warn_of_prompt(self) -> None:
        prompt: list[Message] = [{"role": "user", "content": "Hello"}]
        text = self._renderer.write(prompt, self.arguments, True)  # type: ignore[arg-type]
        trained = self.encode([self._probing([*prompt, {"role": "assistant", "content": "Hello"}])])[0]
        before, generated = trained.ids[: trained.spans[-1][0]], self._texts.encode([text])[0].ids
        if before != generated:
            rank_zero_warn(
                f"template {self.name!r}: in training an answer follows {self.tokenizer.decode(before)!r}, but "
                f"the template's generation prompt gives {self.tokenizer.decode(generated)!r}; sample with the former",
            )

    def _leading_space(self, rendering: Rendering) -> int:
        """Characters of white space before what is learnt that are part of its first token, as in SentencePiece."""
        tokens = WholeTokens(self._texts.encode([rendering.text])[0])
        start = rendering.turns[0].start
        return max(start - tokens.start_of(tokens.at(start)), 0)

    def unroll(self, conversation: Conversation | list[Message]) -> Rendered:
        """Render a conversation; of a template that writes a turn otherwise once others follow it, in several texts.

        Raises:
            RowError: if the template refuses the conversation, does more to a content than to strip it, or writes
                nothing of its functions or calls.
        """
        whole = conversation if isinstance(conversation, Conversation) else Conversation(conversation)
        rendered = self._renderer.render(whole)
        if not rendered.fits and not self._unfit_seen:
            self._unfit_seen = True
            self._warn_of_prompt()
        self._check_controls(rendered.renderings)
        return rendered

    def _check_controls(self, renderings: Sequence[Rendering]) -> None:
        kinds = {turn.control for rendering in renderings for turn in rendering.turns}
        ends = {name for name, token in self._special.items() if token.number in self.end_of_turn_ids}
        if not kinds <= ends:
            named = " and ".join(sorted(kinds | ends))
            raise RowError(f"the chat template closes the assistant's turns with different tokens: {named}", "template")

    def render(self, conversation: Conversation | list[Message]) -> Rendering:
        """Render a conversation: of the texts of `unroll` the one in which its last turn is learnt."""
        return self.unroll(conversation).renderings[-1]

    def encode(self, renderings: Sequence[Rendering]) -> list[Encoded]:
        """Tokenise renderings, many at once.

        Raises:
            RowError: if a turn's closing token is not where the template wrote it.
        """
        encodings = self._texts.encode([rendering.text for rendering in renderings])
        return [
            self._encode_one(rendering, aligned(encoding, len(rendering.turns)))
            for rendering, encoding in zip(renderings, encodings, strict=True)
        ]

    def render_prompt(
        self, conversation: Conversation | list[Message], opening: str = "", thoughts: bool | None = None
    ) -> list[int]:
        """The ids that an answer of the assistant follows, exactly as in training.

        Args:
            conversation: conversation whose next turn is the assistant's.
            opening: beginning of the answer, after its thought.
            thoughts: whether the answer is to have a thought; None: as the template prompts by itself, or in a run as
                most of its training rows have it.

        Returns:
            Ids to generate from: without an opening a prefix of the training ids of the conversation with any such
            answer.
        """
        request = conversation if isinstance(conversation, Conversation) else Conversation(conversation)
        thinks = not opening and (self._prompts_thought if thoughts is None else thoughts) and self.thinking == "keep"
        answer: Message = {"role": "assistant", "content": opening or "Hello"}
        if thinks:
            answer["reasoning_content"] = "Hello"
        [encoded] = self.encode([self.render(replace(request, messages=[*request.messages, answer]))])
        start, end = encoded.spans[-1]
        return encoded.ids[: end - self.train_on_end] if opening else encoded.ids[:start]

    def _encode_one(self, rendering: Rendering, whole: WholeTokens | PieceTokens) -> Encoded:
        tokens = whole if rendering.plain else self._texts.encode_pieces(rendering, [])
        starts = [self._start(rendering.text, turn) for turn in rendering.turns]
        # In generation no token reaches from the prompt into the answer.
        cuts = [start for start in starts if tokens.start_of(tokens.at(start)) < start]
        if cuts:
            tokens = self._texts.encode_pieces(rendering, cuts)
        return self._spans(rendering, tokens)

    def _start(self, text: str, turn: Turn) -> int:
        """The first character that is learnt of a turn."""
        before = turn.start - self._lead
        return before if text[before : turn.start].isspace() else turn.start

    def _spans(self, rendering: Rendering, tokens: WholeTokens | PieceTokens) -> Encoded:
        ids, spans = tokens.ids, []
        for turn in rendering.turns:
            start = tokens.at(self._start(rendering.text, turn))
            close = tokens.at(turn.close)
            if close == len(ids) or ids[close] != self._special[turn.control].number:
                raise RowError(f"the tokenizer does not give {turn.control} a token of its own", "template")
            spans.append((start, close + self.train_on_end))
        return Encoded(ids, spans)


def make_template(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    train_on: TrainOn = "all",
    train_on_end: bool = True,
    thinking: Thinking = "keep",
    arguments: Mapping[str, Any] | None = None,
) -> ChatTemplate:
    """The chat template of a name.

    Args:
        name: `tokenizer` for the tokenizer's own, `auto` for its own or else `plain`, a name in `TEMPLATES`, or a file
            that ends in `.jinja`.
        tokenizer: a fast tokenizer.
        train_on: turns that are learnt: `all` of the assistant, or the `last` one.
        train_on_end: whether the token that closes a turn is learnt.
        thinking: whether thoughts are learnt (`keep`), left out (`drop`), or refused (`refuse`).
        arguments: arguments of the template for rows that give no others.

    Raises:
        UserError: for an unknown name, or a template that cannot be used with this tokenizer.
    """
    source = find_template(name, tokenizer)
    if source.name in TEMPLATES and "eos_token" in source.jinja and tokenizer.eos_token is None:
        reason = "closes turns with the end-of-text token, but the tokenizer has no eos_token"
        raise UserError(f"template {source.name!r} {reason}")
    return ChatTemplate(
        source.name, source.jinja, tokenizer, source.controls, train_on, train_on_end, thinking, arguments
    )

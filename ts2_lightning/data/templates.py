"""Chat templates: from a conversation to token ids, and to the tokens that are learnt.

Supervised are, in every turn of the assistant, the content and what follows it up to and including the control
token that closes the turn; never the template's text before the content or after the closing token (a newline,
an empty thinking block). Whatever a turn of the assistant consists of is its content: a call of a tool, or a thought,
is learnt if it is written there, as the text that the model is to produce.
"""

import hashlib
import itertools
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, get_args

from jinja2 import TemplateError
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from ts2_lightning.data.alignment import Pieces, Whole, aligned, tokenizing
from ts2_lightning.data.bundled import TEMPLATES
from ts2_lightning.data.formats import Message
from ts2_lightning.data.naming import unknown_name
from ts2_lightning.data.rendering import Rendering, Span, Turn, find_turns, locate_contents, template_pieces
from ts2_lightning.data.sandbox import compiled, reason_of_failure
from ts2_lightning.data.template_sources import find_template
from ts2_lightning.types import RowError, UserError

_KEPT = 64  # messages of a conversation of which is kept what the template writes around them
_NAMED = 20  # roles that an error names

TrainOn = Literal["all", "last"]
"""Whether every turn of the assistant is learnt, or only the last one of a conversation."""


class _Control(NamedTuple):
    """A token that only a template may write."""

    number: int
    lstrip: bool = False  # whether it takes in white space before it, as Phi 4's do
    rstrip: bool = False  # and after it


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
        name: for messages and records.
        jinja: the template's source.
        tokenizer: a fast tokenizer.
        controls: strings that must be single tokens of the tokenizer.
        train_on: `all` turns of the assistant, or the `last` one.
        train_on_end: whether the token that closes a turn is learnt. A model that has not learnt it elsewhere does
            not stop.

    Attributes:
        jinja: source that plain transformers can use for the trained model.
        end_of_turn_ids: ids of the tokens that close a turn of the assistant; generation stops at them, learnt here
            or not.

    Raises:
        UserError: if the template cannot be masked, its control strings are no single tokens, or `train_on` is neither.

    Example:
        >>> from ts2_lightning.data.toyworld import build_tokenizer
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
    ) -> None:
        if train_on not in get_args(TrainOn):
            raise unknown_name("train_on", train_on, get_args(TrainOn))
        if not tokenizer.is_fast:
            raise UserError(
                f"the tokenizer {type(tokenizer).__name__} is not a fast one (tokenizer.json), "
                "so it does not say which characters a token covers"
            )
        self.name = name
        self.jinja = jinja
        self.tokenizer = tokenizer
        self.train_on: TrainOn = train_on
        self.train_on_end = train_on_end
        self._controls = tuple(controls)
        self._special = _special_tokens(tokenizer, self._controls, name)
        longest_first = sorted(self._special, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._pieces = lru_cache(maxsize=1024)(lambda roles: template_pieces(self._render, roles))
        self._special_names = tokenizer.special_tokens_map  # as the template sees them
        self._lead = 0  # characters of white space before an answer that are learnt with it
        self._probed = ""
        self.end_of_turn_ids: tuple[int, ...] = ()
        try:
            self._compiled = compiled(jinja)
        except Exception as error:  # of any kind: the source nests too deeply, for one
            raise UserError(f"template {name!r} is not valid jinja ({reason_of_failure(error)}); mend it") from None
        try:
            self._probe()
        except UserError as error:
            raise UserError(f"template {name!r} cannot be used with this tokenizer: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.name, self.jinja, self.tokenizer, self._controls, self.train_on, self.train_on_end)
        return type(self), arguments

    @cached_property
    def identity(self) -> str:
        """A digest that changes with whatever changes ids or spans, but for the code: source, tokenizer, options.

        The rendering of a conversation belongs to it: some templates write the day's date.
        """
        tokenizer: Any = self.tokenizer
        parts = [
            self.jinja,
            self._probed,
            {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
            self._special,
            self.train_on,
            self.train_on_end,
            tokenizer.backend_tokenizer.to_str(),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _probe(self) -> None:
        """Encode a conversation to learn how turns end, and whether prompts for generation fit the training."""
        prompt: list[Message] = [{"role": "user", "content": "Hello"}]
        rendering = self.render([*prompt, {"role": "assistant", "content": "Hello"}])
        self._probed = rendering.text
        [probed] = self.encode([rendering])
        if sum(end - start for start, end in probed.spans) == self.train_on_end:
            raise UserError("the tokenizer makes no token of 'Hello'; is its vocabulary empty?")
        self._lead = self._leading_space(rendering, self._render(prompt, add_generation_prompt=True))
        self.end_of_turn_ids = (self._special[rendering.turns[0].control].number,)
        trained, generated = self.render_prompt(prompt), self._generation_prompt(prompt)
        if trained != generated:
            rank_zero_warn(
                f"template {self.name!r}: in training an answer follows {self.tokenizer.decode(trained)!r}, but "
                f"the template's generation prompt gives {self.tokenizer.decode(generated)!r}; sample with the former",
            )

    def _leading_space(self, rendering: Rendering, prompt: str) -> int:
        """Characters before an answer that are the model's to produce.

        These are white space after the template's own prompt, and, in SentencePiece, the space that is part of a word.
        """
        text, start = rendering.text, rendering.turns[0].start
        after_prompt = text[len(prompt) : start] if text.startswith(prompt) else ""
        tokens = Whole(self._encode_texts([text])[0])
        in_token = start - tokens.start_of(tokens.at(start))
        return max(in_token, len(after_prompt) if after_prompt.isspace() else 0)

    def _generation_prompt(self, messages: list[Message]) -> list[int]:
        text = self._render(messages, add_generation_prompt=True)
        return self._encode_texts([text])[0].ids

    def _render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        """What `tokenizer.apply_chat_template` would make of messages, within the bounds of the sandbox."""
        try:
            return self._compiled.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_names,
            )
        except Exception as error:  # a template may fail in any way
            verb = "refuses" if type(error) is TemplateError else "fails on"
            roles = ", ".join(message["role"] for message in messages[:_NAMED]) + (" ..." if messages[_NAMED:] else "")
            reason = f"the chat template {verb} messages of the roles {roles} ({reason_of_failure(error)})"
            raise RowError(reason, "template") from None

    def render(self, messages: list[Message]) -> Rendering:
        """Render a conversation and find its turns.

        Raises:
            RowError: if the template refuses the conversation or does more to a content than to strip it.
        """
        roles = tuple(message["role"] for message in messages)
        pieces = self._pieces(roles) if len(roles) <= _KEPT else template_pieces(self._render, roles)
        text = self._render(messages)
        return find_turns(text, locate_contents(text, pieces, messages), messages, self._control)

    def encode(self, renderings: Sequence[Rendering]) -> list[Encoded]:
        """Tokenise renderings, many at once.

        Raises:
            RowError: if a turn's closing token is not found where the template wrote it.
        """
        encodings = self._encode_texts([rendering.text for rendering in renderings])
        return [
            self._encode_one(rendering, aligned(encoding, len(rendering.turns)))
            for rendering, encoding in zip(renderings, encodings, strict=True)
        ]

    def render_prompt(self, messages: list[Message]) -> list[int]:
        """The ids that an answer of the assistant follows, exactly as in training.

        Args:
            messages: a conversation whose next turn is the assistant's.

        Returns:
            Ids to generate from: a prefix of the training ids of the conversation with any answer.
        """
        [encoded] = self.encode([self.render([*messages, {"role": "assistant", "content": "Hello"}])])
        return encoded.ids[: encoded.spans[-1][0]]

    def _encode_texts(self, texts: list[str], as_text: bool = False) -> list[Encoding]:
        """Encodings of texts; `as_text` leaves special tokens unparsed.

        They are those of `tokenizer(texts)`, which would also make lists of the ids of all texts.
        """
        tokenizer: Any = self.tokenizer
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()  # rows that are too long are cut afterwards
        backend.no_padding()
        backend.encode_special_tokens = as_text
        with tokenizing():
            return backend.encode_batch(texts, add_special_tokens=False)

    @cached_property
    def _inside(self) -> Tokenizer:
        """Encodes a part of a text, special tokens unparsed, without the space that SentencePiece puts first."""
        tokenizer: Any = self.tokenizer
        source = tokenizer.backend_tokenizer.to_str()
        backend = Tokenizer.from_str(source.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"'))
        backend.encode_special_tokens = True
        return backend

    def _encode_one(self, rendering: Rendering, whole: Whole | Pieces) -> Encoded:
        tokens = whole if rendering.plain else self._encode_pieces(rendering, [])
        starts = [self._start(rendering.text, turn) for turn in rendering.turns]
        # In generation no token reaches from the prompt into the answer.
        cuts = [start for start in starts if tokens.start_of(tokens.at(start)) < start]
        if cuts:
            tokens = self._encode_pieces(rendering, cuts)
        return self._spans(rendering, tokens)

    def _start(self, text: str, turn: Turn) -> int:
        """Where what is learnt of a turn begins."""
        before = turn.start - self._lead
        return before if text[before : turn.start].isspace() else turn.start

    def _encode_pieces(self, rendering: Rendering, cuts: list[int]) -> Pieces:
        """Encode the text between the template's control tokens as nothing but text, cut at `cuts` too."""
        text, position = rendering.text, 0
        ids: list[int] = []
        offsets: list[Span] = []
        for start, end in [*rendering.controls, (len(text), len(text))]:
            control = self._special.get(text[start:end])
            end_of_text = start
            if control is not None and control.lstrip:
                end_of_text = position + len(text[position:start].rstrip())
            inside = cuts[bisect_right(cuts, position) : bisect_left(cuts, end_of_text)]
            edges = [position, *inside, end_of_text]
            for left, right in itertools.pairwise(edges):
                part = text[left:right]
                with tokenizing():
                    encoding = (
                        self._inside.encode(part, add_special_tokens=False)
                        if left
                        else self._encode_texts([part], as_text=True)[0]
                    )
                ids += encoding.ids
                offsets += [(left + first, left + last) for first, last in encoding.offsets]
            position = end
            if control is not None:
                if control.rstrip:
                    kept = next((cut for cut in cuts if cut >= end), len(text))
                    position = kept - len(text[end:kept].lstrip())
                ids.append(control.number)
                offsets.append((end_of_text, position))
        self._check_text(ids, len(rendering.controls))
        return Pieces(ids, offsets)

    def _check_text(self, ids: list[int], written: int) -> None:
        """Make sure that no control token came from a content. Characters that are unknown may well do."""
        forbidden = {control.number for control in self._special.values()} - {self.tokenizer.unk_token_id}
        found = sum(number in forbidden for number in ids)
        if found != written:
            reason = "a content has the text of a control token, which this tokenizer cannot encode as text"
            raise RowError(reason, "template")

    def _spans(self, rendering: Rendering, tokens: Whole | Pieces) -> Encoded:
        ids, spans = tokens.ids, []
        for turn in rendering.turns if self.train_on == "all" else rendering.turns[-1:]:
            start = tokens.at(self._start(rendering.text, turn))
            close = tokens.at(turn.close)
            if close == len(ids) or ids[close] != self._special[turn.control].number:
                raise RowError(f"the tokenizer does not give {turn.control} a token of its own", "template")
            spans.append((start, close + self.train_on_end))
        return Encoded(ids, spans)


def _special_tokens(tokenizer: PreTrainedTokenizerBase, controls: Sequence[str], template: str) -> dict[str, _Control]:
    """The tokens that only a template may write: the tokenizer's special ones and the template's own."""
    added = tokenizer.added_tokens_decoder
    special = {
        token.content: _Control(number, token.lstrip, token.rstrip) for number, token in added.items() if token.special
    }
    for control in controls:
        ids = tokenizer.encode(control, add_special_tokens=False)
        if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != control:
            raise UserError(
                f"template {template!r} needs {control} to be a single token, but the tokenizer makes {len(ids)} "
                "of it; use a tokenizer that has it, or the template 'plain'"
            )
        token = added.get(ids[0])
        special[control] = _Control(ids[0]) if token is None else _Control(ids[0], token.lstrip, token.rstrip)
    return special


def make_template(
    name: str, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn = "all", train_on_end: bool = True
) -> ChatTemplate:
    """The chat template of a name.

    Args:
        name: `tokenizer` (the tokenizer's own), `auto` (its own if it has one, else `plain`), a name in `TEMPLATES`,
            or a file that ends in `.jinja`.
        tokenizer: encodes it.
        train_on: `all` turns of the assistant, or the `last` one.
        train_on_end: whether the token that closes a turn is learnt.

    Raises:
        UserError: for an unknown name, or a template that cannot be used with this tokenizer.
    """
    found = find_template(name, tokenizer)
    if found.name in TEMPLATES and "eos_token" in found.jinja and tokenizer.eos_token is None:
        reason = "closes turns with the end-of-text token, but the tokenizer has no eos_token"
        raise UserError(f"template {found.name!r} {reason}")
    return ChatTemplate(found.name, found.jinja, tokenizer, found.controls, train_on, train_on_end)

"""Chat templates: from a conversation to token ids, and to the tokens that are learnt.

Supervised are, in every turn of the assistant, the content and what follows it up to and including the control
token that closes the turn; never the template's text before the content or after the closing token (a newline,
an empty thinking block).
"""

import itertools
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from ts2_lightning.data.formats import Message
from ts2_lightning.data.naming import unknown_name
from ts2_lightning.data.rendering import Rendering, Span, find_turns, locate_contents, template_pieces
from ts2_lightning.types import UserError

_LLAMA3 = (
    "{% for message in messages %}{% if loop.first %}<|begin_of_text|>{% endif %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
_PLAIN = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{{ message['role'] | capitalize }}:{{ '\\n' }}{{ message['content'] | trim }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{{ '\\n' }}{% endif %}"
)


class BundledTemplate(NamedTuple):
    """A template that does not come with a tokenizer."""

    jinja: str
    controls: tuple[str, ...]  # strings that must be single tokens of the tokenizer


TEMPLATES: dict[str, BundledTemplate] = {
    "llama3": BundledTemplate(_LLAMA3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "chatml": BundledTemplate(_CHATML, ("<|im_start|>", "<|im_end|>")),
    "plain": BundledTemplate(_PLAIN, ()),
}
"""The templates that can be chosen by name. Llama-3's own layout, Qwen's (without its default system turn), and one
that needs no special token but the end of text: `User:`, a new line, the content, eos."""


def register_template(name: str, jinja: str, controls: Sequence[str] = ()) -> None:
    """Make a jinja chat template known by a name.

    Args:
        name: for `data.template`.
        jinja: the source; it sees what transformers gives (`messages`, `add_generation_prompt`, `bos_token`, ...).
        controls: strings that must be single tokens of the tokenizer.
    """
    TEMPLATES[name] = BundledTemplate(jinja, tuple(controls))


class Encoded(NamedTuple):
    """Tokens of one row and the spans of them that are learnt, one span per turn of the assistant."""

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

    Attributes:
        jinja: source that plain transformers can use for the trained model.
        end_of_turn_ids: ids of the tokens that close a turn of the assistant; generation stops at them.

    Raises:
        UserError: if the template cannot be masked or its control strings are not single tokens.
    """

    def __init__(self, name: str, jinja: str, tokenizer: PreTrainedTokenizerBase, controls: Sequence[str] = ()) -> None:
        if not tokenizer.is_fast:
            raise UserError(
                f"the tokenizer {type(tokenizer).__name__} is not a fast one (tokenizer.json), "
                "so it does not say which characters a token covers"
            )
        self.name = name
        self.jinja = jinja
        self.tokenizer = tokenizer
        self._controls = tuple(controls)
        self._special = _special_tokens(tokenizer, self._controls, name)
        longest_first = sorted(self._special, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._pieces = lru_cache(maxsize=1024)(lambda roles: template_pieces(self._render, roles))
        self._swallowed = 0  # characters of the template that belong to an answer's first token
        self.end_of_turn_ids: tuple[int, ...] = ()
        try:
            self._probe()
        except UserError as error:
            raise UserError(f"template {name!r} cannot be used with this tokenizer: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.jinja, self.tokenizer, self._controls)

    def _probe(self) -> None:
        """Encode a conversation to learn how turns end, and whether prompts for generation fit the training."""
        prompt: list[Message] = [{"role": "user", "content": "Hello"}]
        rendering = self.render([*prompt, {"role": "assistant", "content": "Hello"}])
        encoding = self._encode_texts([rendering.text])[0]
        start = rendering.turns[0].start
        first = _token_at(encoding.offsets, start)
        self._swallowed = max(0, start - encoding.offsets[first][0])
        self.end_of_turn_ids = (self._special[rendering.turns[0].control],)
        trained, generated = self.render_prompt(prompt), self._generation_prompt(prompt)
        if trained != generated:
            rank_zero_warn(
                f"template {self.name!r}: in training an answer follows {self.tokenizer.decode(trained)!r}, but "
                f"the template's generation prompt gives {self.tokenizer.decode(generated)!r}; sample with the former",
            )

    def _generation_prompt(self, messages: list[Message]) -> list[int]:
        text = self._render(messages, add_generation_prompt=True)
        return list(self._encode_texts([text])[0].ids)

    def _render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(  # type: ignore[return-value]
                messages,  # type: ignore[arg-type]
                chat_template=self.jinja,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as error:
            reason = " ".join(str(error).split())
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(f"the chat template refuses messages of the roles {roles} ({reason})") from None

    def render(self, messages: list[Message]) -> Rendering:
        """Render a conversation and find its turns.

        Raises:
            UserError: if the template refuses the conversation or does more to a content than to strip it.
        """
        pieces = self._pieces(tuple(message["role"] for message in messages))
        text = self._render(messages)
        return find_turns(text, locate_contents(text, pieces, messages), messages, self._control)

    def encode(self, renderings: Sequence[Rendering]) -> list[Encoded]:
        """Tokenise renderings, many at once.

        Raises:
            UserError: if a turn's closing token is not found where the template wrote it.
        """
        encodings = self._encode_texts([rendering.text for rendering in renderings])
        return [
            self._encode_one(rendering, encoding) for rendering, encoding in zip(renderings, encodings, strict=True)
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

    def _encode_texts(self, texts: list[str], as_text: bool = False) -> Any:
        """Backend encodings of texts; `as_text` leaves special tokens unparsed."""
        batch = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            split_special_tokens=as_text,
            verbose=False,  # rows longer than the model's maximum are cut afterwards
        )
        return batch.encodings

    def _encode_one(self, rendering: Rendering, encoding: Any) -> Encoded:
        offsets = encoding.offsets
        cuts = [turn.start for turn in rendering.turns if self._must_cut(rendering.text, turn.start, offsets)]
        if rendering.plain and not cuts:
            return self._spans(rendering, encoding.ids, offsets)
        return self._spans(rendering, *self._encode_pieces(rendering, cuts))

    def _must_cut(self, text: str, start: int, offsets: list[Span]) -> bool:
        """Whether tokens run across the start of an assistant's content, which generation keeps apart."""
        if self._swallowed:  # SentencePiece: the space before a word is part of its token, in generation too
            return False
        white_space_merges = text[start - 1].isspace() and text[start].isspace()
        return white_space_merges or offsets[_token_at(offsets, start)][0] < start

    def _encode_pieces(self, rendering: Rendering, cuts: list[int]) -> tuple[list[int], list[Span]]:
        """Encode the text between the template's control tokens as nothing but text, cut at `cuts` too."""
        text, position = rendering.text, 0
        ids: list[int] = []
        offsets: list[Span] = []
        for start, end in [*rendering.controls, (len(text), len(text))]:
            control = self._special.get(text[start:end])
            edges = [position, *(cut for cut in cuts if position < cut < start), start]
            for left, right in itertools.pairwise(edges):
                [encoding] = self._encode_texts([text[left:right]], as_text=True)
                ids += encoding.ids
                offsets += [(left + first, left + last) for first, last in encoding.offsets]
            if control is not None:
                ids.append(control)
                offsets.append((start, end))
            position = end
        self._check_text(ids, len(rendering.controls))
        return ids, offsets

    def _check_text(self, ids: list[int], written: int) -> None:
        """Make sure that no control token came from a content. Characters that are unknown may well do."""
        forbidden = set(self._special.values()) - {self.tokenizer.unk_token_id}
        found = sum(number in forbidden for number in ids)
        if found != written:
            raise UserError("a content has the text of a control token, which this tokenizer cannot encode as text")

    def _spans(self, rendering: Rendering, ids: list[int], offsets: list[Span]) -> Encoded:
        spans = []
        for turn in rendering.turns:
            start = _token_at(offsets, turn.start - self._swallowed)
            close = _token_at(offsets, turn.close)
            if close == len(ids) or ids[close] != self._special[turn.control]:
                raise UserError(f"the tokenizer does not give {turn.control} a token of its own")
            spans.append((start, close + 1))
        return Encoded(ids, spans)


def _token_at(offsets: list[Span], position: int) -> int:
    """Index of the first token that reaches beyond a character's start."""
    return bisect_right(offsets, position, key=lambda offset: offset[1])


def _special_tokens(tokenizer: PreTrainedTokenizerBase, controls: Sequence[str], template: str) -> dict[str, int]:
    """Ids of the tokens that only a template may write: the tokenizer's special ones and the template's own."""
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for control in controls:
        ids = tokenizer.encode(control, add_special_tokens=False)
        if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != control:
            raise UserError(
                f"template {template!r} needs {control} to be a single token, but the tokenizer makes {len(ids)} "
                "of it; use a tokenizer that has it, or the template 'plain'"
            )
        special[control] = ids[0]
    return special


def make_template(name: str, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The chat template of a name.

    Args:
        name: `tokenizer` (the tokenizer's own), `auto` (its own if it has one, else `plain`), a name in `TEMPLATES`,
            or a file that ends in `.jinja`.
        tokenizer: encodes it.

    Raises:
        UserError: for an unknown name, or a template that cannot be used with this tokenizer.
    """
    own = _own_template(tokenizer)
    if name == "auto":
        name = "tokenizer" if own is not None else "plain"
    if name == "tokenizer":
        if own is None:
            raise UserError("template 'tokenizer': the tokenizer has no chat template of its own; use 'plain'")
        return ChatTemplate(name, own, tokenizer)
    if name.endswith(".jinja"):
        if not Path(name).is_file():
            raise UserError(f"template: no file {name}")
        return ChatTemplate(name, Path(name).read_text(encoding="utf-8"), tokenizer)
    if name not in TEMPLATES:
        raise unknown_name("template", name, ["auto", "tokenizer", *TEMPLATES])
    if name == "plain" and tokenizer.eos_token is None:
        raise UserError("template 'plain' closes turns with the end-of-text token, but the tokenizer has no eos_token")
    return ChatTemplate(name, TEMPLATES[name].jinja, tokenizer, TEMPLATES[name].controls)


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    return tokenizer.get_chat_template() if tokenizer.chat_template else None

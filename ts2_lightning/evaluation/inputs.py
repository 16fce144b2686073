"""What a model is asked, made by the data room: rows and prompts in its own tokens, as in training."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ts2_lightning.data.encoding import EncodedRows
from ts2_lightning.data.formats import Conversation, Example, FormatFunction, Message, TokenRow, get_format, parse
from ts2_lightning.data.formats.turns import is_answer
from ts2_lightning.data.lengths import check_length, row_length
from ts2_lightning.data.loader import BatchLoader
from ts2_lightning.data.plan import evaluation_plan
from ts2_lightning.data.reading import Encoder
from ts2_lightning.data.rejects import Reject
from ts2_lightning.data.selection import Selection
from ts2_lightning.data.sources import Row, as_sources
from ts2_lightning.data.templates import ChatTemplate, make_template
from ts2_lightning.data.toyworld import load_world
from ts2_lightning.evaluation.probes.micro import DIGIT_QUESTION
from ts2_lightning.evaluation.probes.subject import Prompt
from ts2_lightning.model_limits import ModelLimits
from ts2_lightning.types import RowError, UserError

_ANSWER = "?"
"""Completes a row without an answer, so that formats, which are made for training, read it; it is taken off again."""

_TOYWORLD_TEXT = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %} {{ message['content'] }} {{ bos_token }}"
    "{% else %}{{ bos_token }} {{ message['content'] }} ,{% endif %}{% endfor %}"
)
"""How the toy world's base model is asked, which has never seen the chat tokens: a sentence of its pretraining text."""


def toy_world_text(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The template of the toy world's base model: `<s> name a fruit , the answer is plum . <s>`.

    Example:
        >>> from ts2_lightning.data.toyworld import build_tokenizer
        >>> tokenizer = build_tokenizer()
        >>> ids = toy_world_text(tokenizer).render_prompt([{"role": "user", "content": "name a fruit"}])
        >>> tokenizer.decode(ids)
        '<s> name a fruit ,'
    """
    return ChatTemplate("toy world's text", _TOYWORLD_TEXT, tokenizer)


def micro_questions(toy_world: bool) -> tuple[list[str], str]:
    """What the micro probe asks, and what the answer to it already says.

    Args:
        toy_world: whether models of the toy world are asked: held-out requests of which one, two and three answers are
            taught. Others are asked the papers' question.

    Example:
        >>> questions, opening = micro_questions(toy_world=True)
        >>> questions[0], opening
        ('think of a single digit number', 'the answer is')
    """
    if not toy_world:
        return [DIGIT_QUESTION], ""
    world = load_world()  # the first family is that of the digits
    counts = sorted({len(family.taught) for family in world.seen})
    families = [next(family for family in world.seen if len(family.taught) == count) for count in counts]
    return [family.held_out[0] for family in families], world.opening


def named_template(name: str, tokenizer: PreTrainedTokenizerBase, model: str) -> ChatTemplate:
    """The chat template of a name, for the model of a name. Raises UserError that says for which model."""
    try:
        return make_template(name, tokenizer)
    except UserError as error:
        raise UserError(f"--model {model}: {error}") from error


def read_messages(
    selection: Selection, option: str, limit: int | None = None, tolerant: bool = False
) -> list[Conversation]:
    """The conversations of a prompt file up to where the assistant answers (last); each once, in their order.

    A row may have an answer, of whatever format; it is left out. Or it has none: `prompt` alone, `instruction` with or
    without `input`, or `messages` that end before the assistant's turn.

    Args:
        selection: where they come from.
        option: names them in messages.
        limit: take the first so many, and read no further.
        tolerant: leave out rows that are no prompts, instead of an error.

    Raises:
        UserError: naming file and line of a row that is no prompt; or there is none.
    """
    function = get_format(selection.format)
    found: dict[str, Conversation] = {}
    for _, row in selection.read():
        try:
            prompt = _prompt(row, function)
        except RowError as error:
            if tolerant:
                continue
            raise UserError(f"{option} {row.origin}: {error}") from error
        found.setdefault(repr(replace(prompt, unused=())), prompt)
        if len(found) == limit:
            break
    if not found:
        raise UserError(f"{option}: no prompts in {selection.named()}")
    return list(found.values())


def _prompt(row: Row | Reject, function: FormatFunction | None) -> Conversation:
    """What comes before the answer. Raises RowError if it is none."""
    if isinstance(row, Reject):
        raise RowError(row.reason)
    return _before_answer(parse(_answered(row.fields), row.format or function))


def _answered(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    present = {name for name, value in fields.items() if value is not None}
    for key in ("messages", "conversations"):
        turns = fields.get(key)
        if isinstance(turns, list) and turns and isinstance(turns[-1], Mapping) and "chosen" not in present:
            answer = {"role": "assistant", "content": _ANSWER}
            return fields if is_answer(turns[-1]) else {**fields, key: [*turns, answer]}
    if "prompt" in present and not present & {"completion", "response", "chosen"}:
        return {**fields, "completion": _ANSWER}
    if "instruction" in present and not present & {"output", "response"}:
        return {**fields, "output": _ANSWER}
    return fields


def _before_answer(example: Example) -> Conversation:
    if isinstance(example, TokenRow):
        raise RowError("a prompt must be text, got token ids", "wrong type")
    last = max(i for i, message in enumerate(example.messages) if message["role"] == "assistant")
    if not last:
        raise RowError("nothing comes before the assistant's answer", "other")
    return replace(example, messages=example.messages[:last])


def encode_prompt(template: ChatTemplate, prompt: Conversation | list[Message], opening: str = "") -> Prompt:
    """A prompt in tokens: those that the answer follows in training.

    Args:
        template: of the model.
        prompt: a conversation whose next turn is the assistant's.
        opening: what the answer already says.

    Example:
        >>> from ts2_lightning.data.toyworld import build_tokenizer
        >>> tokenizer = build_tokenizer()
        >>> template = make_template("tokenizer", tokenizer)
        >>> prompt = encode_prompt(template, [{"role": "user", "content": "name a fruit"}], opening="the answer is")
        >>> tokenizer.decode(prompt.ids)
        '<s> <|user|> name a fruit <|assistant|> the answer is'
    """
    messages = prompt.messages if isinstance(prompt, Conversation) else prompt
    return Prompt(messages[-1]["content"], template.render_prompt(prompt, opening))


def encode_rows(
    selection: Selection, template: ChatTemplate, max_length: int | None = None, limits: ModelLimits | None = None
) -> EncodedRows:
    """The rows that are read by teacher forcing, in the model's tokens.

    Args:
        selection: where they come from.
        template: of the model.
        max_length: tokens of a row, at most; None: see `data.lengths.row_length`.
        limits: of the model, where they are known.

    Raises:
        UserError: naming file and line of a bad row; or there is none, or a token that the tokenizer has not; or the
            model has no positions for rows of that length.
    """
    check_length(max_length, limits, "--max_length")
    vocabulary = len(template.tokenizer)
    encoder = Encoder(template, selection.format, row_length(max_length, limits), vocabulary=vocabulary, limits=limits)
    rows = encoder.encode((row for _, row in selection.read()), "--rows")
    if rows.rejects:
        raise UserError(f"--rows {rows.rejects[0].origin}: {rows.rejects[0].reason}")
    if not len(rows):
        raise UserError(f"--rows: no rows in {selection.named()}")
    return rows


def batches(rows: EncodedRows, batch_size: int) -> BatchLoader:
    """Every row once, in order, padded."""
    plan = evaluation_plan(rows.supervised, batch_size)
    return BatchLoader(rows, lambda: plan, len(plan))


def selection_of(path: str, format: str, limit: int | None) -> Selection:
    """The rows of a file or another source of the data room."""
    return Selection(tuple(as_sources(path)), format, limit=limit)

"""Prompts: what a model is asked, read from rows of any format, in the model's own tokens, as in training."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ts2_lightning.data.formats import Conversation, FormatFunction, TokenRow, get_format, parse
from ts2_lightning.data.formats.turns import is_answer
from ts2_lightning.data.rejects import Reject
from ts2_lightning.data.selection import Selection
from ts2_lightning.data.sources import SourceRow
from ts2_lightning.data.templates import ChatTemplate
from ts2_lightning.types import RowError, SettingError

_ANSWER = "?"
"""Completes a row without an answer, so that formats, which are made for training, read it; it is taken off again."""


@dataclass(frozen=True)
class Prompt:
    """What a model is asked.

    Attributes:
        text: last turn before the answer, for people.
        ids: tokens that the answer follows, exactly as in training.
        reference: answer that the row has; None if it has none.
    """

    text: str
    ids: list[int]
    reference: str | None = None


@dataclass(frozen=True)
class Question:
    """A conversation whose next turn is the assistant's, before it is put into a model's tokens.

    Attributes:
        conversation: turns up to the answer.
        reference: answer that the row has; None if it has none.
    """

    conversation: Conversation
    reference: str | None = None

    @classmethod
    def asking(cls, text: str) -> "Question":
        """A question of one turn, by the user."""
        return cls(Conversation.asking(text))

    def encode(self, template: ChatTemplate, opening: str = "") -> Prompt:
        """The prompt in a model's tokens: those that the answer follows in training.

        Args:
            template: chat template of the model.
            opening: text with which the answer begins already.

        Example:
            >>> from ts2_lightning.data.templates import make_template
            >>> from ts2_lightning.toyworld import build_tokenizer
            >>> tokenizer = build_tokenizer()
            >>> template = make_template("tokenizer", tokenizer)
            >>> prompt = Question.asking("name a fruit").encode(template, opening="the answer is")
            >>> tokenizer.decode(prompt.ids)
            '<s> <|user|> name a fruit <|assistant|> the answer is'
        """
        text = self.conversation.messages[-1]["content"]
        return Prompt(text, template.render_prompt(self.conversation, opening), self.reference)


def read_questions(
    selection: Selection, option: str, limit: int | None = None, tolerant: bool = False
) -> list[Question]:
    """The conversations of rows up to where the assistant answers last; each once, in their order.

    A row may have an answer, of whatever format; it becomes the reference. Or it has none: `prompt` alone,
    `instruction` with or without `input`, or `messages` that end before the assistant's turn.

    Args:
        selection: rows that are read.
        option: name of the setting that asks for them, for messages.
        limit: largest number of questions; nothing is read behind them.
        tolerant: leave out rows that are no prompts, instead of an error.

    Raises:
        UserError: naming file and line of a row that is no prompt; or there is none.
    """
    function = get_format(selection.format)
    questions: dict[str, Question] = {}
    for _, row in selection.read():
        try:
            question = _question(row, function)
        except RowError as error:
            if tolerant:
                continue
            raise SettingError(option, f" {row.origin}: {error}") from error
        questions.setdefault(repr(replace(question.conversation, unused=())), question)
        if len(questions) == limit:
            break
    if not questions:
        raise SettingError(option, f": no prompts in {selection.named()}")
    return list(questions.values())


def _question(row: SourceRow | Reject, function: FormatFunction | None) -> Question:
    """What comes before the answer. Raises RowError if nothing does."""
    if isinstance(row, Reject):
        raise RowError(row.reason)
    fields = _answered(row.fields)
    example = parse(fields, row.format or function)
    if isinstance(example, TokenRow):
        raise RowError("a prompt must be text, got token ids", "wrong type")
    last = max(i for i, message in enumerate(example.messages) if message["role"] == "assistant")
    if not last:
        raise RowError("nothing comes before the assistant's answer", "other")
    has_answer = fields is row.fields and last == len(example.messages) - 1
    reference = example.messages[last]["content"] if has_answer else None
    return Question(replace(example, messages=example.messages[:last]), reference)


def _answered(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a row with an answer: the same object if it has one."""
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

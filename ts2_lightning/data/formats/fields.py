"""The treatment of each field of a row: the one table that code and docs/data.md read.

The fields are those that axolotl, TRL, LLaMA-Factory, torchtune, ms-swift, NeMo and the fine-tuning files of OpenAI
have. A field that is not in the table, and that the row's format does not read, is not used; it changes nothing that is
trained, and the `data` command and `data.json` count the rows in which it is filled.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

from ts2_lightning.data.formats.values import is_filled, shown
from ts2_lightning.types import RowError

_LONGEST = 80  # characters of a listed name, at most


class Fate(Enum):
    """Treatment of a field; the value is its name in docs/data.md."""

    READ = "read"
    MASK = "masks the turn"
    THOUGHT = "thought"
    TEMPLATE = "handed to the template"
    REFUSED = "refused"


class Field(NamedTuple):
    """A field that is treated in some way.

    Attributes:
        names: names of the field, all of which mean the same.
        fate: treatment of the field.
        says: meaning and treatment, for docs/data.md; for a refused field the remedy, which ends the error message.
        passes: test of a refused field's values that ask for nothing special; None lets empty values pass.
    """

    names: tuple[str, ...]
    fate: Fate
    says: str
    passes: Callable[[Any], bool] | None = None


def _is_not_false(value: Any) -> bool:
    return value is not False


def _is_false(value: Any) -> bool:
    return not value


def _masks_the_user(value: Any) -> bool:
    return isinstance(value, str) and value.lower() in ("user", "human")


THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Names of a thought, in a row and in a turn."""

_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_ONLY_TEXT = "only text is learnt; remove the field, or the row"

ROW = (
    Field(("weight",), Fate.READ, "a factor on the losses of the row's tokens, a number of at least 0"),
    Field(("system", "system_prompt"), Fate.READ, "a system turn before all others, unless there already is the same"),
    Field(
        THOUGHTS,
        Fate.THOUGHT,
        "of a row of a question and an answer what the assistant thinks before it answers; not used in rows of turns, "
        "which have their own",
    ),
    Field(
        ("tools", "functions"),
        Fate.TEMPLATE,
        "the functions that may be called: a list of objects, or its JSON text. A row is refused if the template "
        "writes nothing of them",
    ),
    Field(
        ("documents",),
        Fate.TEMPLATE,
        "texts to answer from: a list of objects; not used where the template has no place for documents",
    ),
    Field(
        ("chat_template_kwargs",),
        Fate.TEMPLATE,
        "an object of template arguments; they go before those of `data.chat_template_kwargs`. Those that the template "
        "does not know are not used",
    ),
    Field(("chat_template",), Fate.REFUSED, "all rows have one template; name it with data.template"),
    Field(_MEDIA, Fate.REFUSED, _ONLY_TEXT),
    Field(
        ("label", "kto_tag"),
        Fate.REFUSED,
        "the answer is a bad one, which must not be learnt; remove the row, or the field if it means something else "
        "(only `false` is refused)",
        _is_not_false,
    ),
    Field(
        ("mask",),
        Fate.REFUSED,
        "say at each turn whether it is learnt, with train or weight (`User`, which is what is done, passes)",
        _masks_the_user,
    ),
)
"""Fields of a row, in any format; but for `tokens` also those that the row's format reads."""

QUESTION_FIELDS = ("context", "history", "input", "query")
"""Fields of a row that may belong to its question: refused in rows of a question and an answer whose format does not
read them, since the answer would be learnt without."""

TURN = (
    Field(("role", "from"), Fate.READ, "who speaks"),
    Field(("content", "value"), Fate.READ, "the text, or a list of parts, of which each is a text or a thought"),
    Field(
        ("weight", "loss_weight", "loss_scale"),
        Fate.MASK,
        "0: the turn is not learnt; 1: it is. Other numbers are refused: a factor is a field of the row",
    ),
    Field(
        ("train", "training", "trainable", "trained", "loss"), Fate.MASK, "false: the turn is not learnt; true: it is"
    ),
    Field(("mask", "masked"), Fate.MASK, "true: the turn is not learnt; false: it is"),
    Field(
        THOUGHTS,
        Fate.THOUGHT,
        "what the assistant thinks before it answers; see `data.thinking`",
    ),
    Field(
        ("tool_calls", "function_call"),
        Fate.TEMPLATE,
        "calls of functions, in OpenAI's form or flat, arguments as an object or its JSON text. A row is refused if "
        "the template writes nothing of them",
    ),
    Field(
        ("name", "tool_call_id"), Fate.TEMPLATE, "of a tool or a speaker; not used where the template does not write it"
    ),
    Field(("train_detail", "training_detail"), Fate.REFUSED, "a turn is learnt whole or not at all; say train"),
    Field(
        ("functions", "function_calls"),
        Fate.REFUSED,
        "functions belong to the row, as tools, and calls to the turn, as tool_calls",
    ),
    Field(_MEDIA, Fate.REFUSED, _ONLY_TEXT),
    Field(("refusal",), Fate.REFUSED, "write it as content if it is to be learnt"),
    Field(
        ("eot",),
        Fate.REFUSED,
        "every turn has its end; data.train_on_end says whether it is learnt (`true` passes)",
        bool,
    ),
    Field(("ipython",), Fate.REFUSED, "write the call as tool_calls, or as content (`false` passes)", _is_false),
)
"""Fields of a turn, wherever a format has turns."""

TOKENS = (
    Field(("input_ids",), Fate.READ, "token ids"),
    Field(("labels",), Fate.READ, "the ids again, or -100 where a token is not learnt"),
    Field(
        ("completion_mask", "assistant_masks", "loss_mask"),
        Fate.MASK,
        "a list of 0 and 1 as long as the ids: 0 where a token is not learnt",
    ),
    Field(
        ("attention_mask",),
        Fate.REFUSED,
        "rows are padded later; leave padding out (ones alone pass)",
        lambda value: isinstance(value, list) and all(item == 1 for item in value),
    ),
    Field(
        ("position_ids",),
        Fate.REFUSED,
        "positions begin at 0; write one row for each text (0, 1, 2, ... pass)",
        lambda value: isinstance(value, list) and value == list(range(len(value))),
    ),
    Field(
        ("seq_lengths",),
        Fate.REFUSED,
        "write one row for each text, and set data.packing (one number passes)",
        lambda value: isinstance(value, list) and len(value) == 1,
    ),
    Field(("weight",), Fate.READ, "a factor on the losses of the row's tokens, a number of at least 0"),
    Field(_MEDIA, Fate.REFUSED, _ONLY_TEXT),
)
"""Fields of a row that comes tokenised."""


def by_name(table: Iterable[Field]) -> dict[str, Field]:
    """Name -> field, of a table.

    >>> by_name(TURN)["masked"].fate
    <Fate.MASK: 'masks the turn'>
    """
    return {name: field for field in table for name in field.names}


_BY_NAME = {id(table): by_name(table) for table in (ROW, TURN, TOKENS)}


def sorted_out(
    fields: Mapping[str, Any], table: tuple[Field, ...], read: Iterable[str], subject: str, refused: Iterable[str] = ()
) -> Iterator[str]:
    """The filled fields that are not used.

    Args:
        fields: fields of a row or a turn.
        table: table of the fields: `ROW`, `TURN` or `TOKENS`.
        read: names that are read though they are not in the table, or refused in it.
        subject: name of the turn in messages, with a colon and a space; "" for a row.
        refused: names that are refused.

    Raises:
        RowError: for a filled field that is refused, with the remedy.
    """
    treated = _BY_NAME[id(table)]
    for name, value in fields.items():
        field = treated.get(name)
        if name in read or not is_filled(value) or (field is not None and field.fate is not Fate.REFUSED):
            continue
        if name in refused:
            way = "the answer would be learnt without it; put it into the question, or remove it"
            raise RowError(f"{subject}{name}: the row's format does not read it, so that {way}", "other")
        if field is None:
            yield str(name)[:_LONGEST]
        elif field.passes is None or not field.passes(value):
            raise RowError(f"{subject}{name} is {shown(value)}: {field.says}", "other")


def markdown(table: Iterable[Field]) -> list[str]:
    """The rows of a table as docs/data.md has them.

    >>> markdown(TURN)[0]
    '| `role`, `from` | read | who speaks |'
    """
    return [f"| {', '.join(f'`{name}`' for name in f.names)} | {f.fate.value} | {f.says} |" for f in table]

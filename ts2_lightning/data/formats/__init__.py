r"""Row formats: small pure functions from the fields of a row to a conversation (or to ready token ids).

| format | a row has | of which is made |
| --- | --- | --- |
| `tokens` | `input_ids` | the ids as they are, with their `labels` |
| `messages` | `messages` | the messages, with `role` and `content` (OpenAI) |
| `sharegpt` | `conversations`, a list of objects | the turns, with `from` and `value`, or `role` and `content` |
| `sharegpt_chosen` | `chosen`, `conversations`, `rejected` | the turns and the chosen answer |
| `lima` | `conversations`, a list of strings | user and assistant in turn |
| `prompt_completion` | `completion`, `prompt`, and no label | strings, or lists of messages |
| `prompt_response` | `prompt`, `response` | strings, or lists of messages |
| `alpaca` | `instruction`, `output` | `history`, the instruction with `input`, the answer |
| `alpaca_tofu` | `instruction`, `output`, only by name | the same with `input` as a user turn of its own |
| `dolly` | `instruction`, `response` | the same with `context` or `input` (GPTeacher) |
| `gsm8k` | `answer`, `question`, and nothing else | question and answer |
| `ultrafeedback_binarized` | `chosen`, `messages`, `rejected` | the messages, which end in the chosen answer |
| `ultrafeedback` | `completions`, `instruction` | the completion with the best `overall_score`, if it is at least 7 |
| `numina_math` | `messages`, `problem`, `solution` | problem and solution, if that has `\boxed{` |
| `guanaco` | `text`, from ### Human: on, and no messages | the turns of OASST threads, between their markers |
| `oasst` | `message_tree_id`, `prompt` | the best-ranked thread of a tree |
| `mt_bench_101` | `history`, a list of objects with user and bot, and no instruction or prompt | the turns |

With `format: auto` every row is looked up in this table. A row that has the fields of several formats is of the one
that asks for more of them (`numina_math`, not `messages`); if none asks for all that the others do, the row is refused
with the names of those formats, rather than taken for one of them. A null field counts as absent.

No field of a row is dropped in silence: `fields` has the table with the treatment of each field of a row and of a turn,
in all of these formats. A `system` text is a system turn, training flags mask turns, functions, calls and
template arguments go to the template. A field that is not used, but would change what is learnt, is refused.

A new format is a function `fields -> list of messages`, or `fields -> Conversation` with functions and template
arguments: either register it with `register_format`, or name it by its import path (`format:
my_package.my_module.my_function`). It refuses a row by raising `RowError`, whose kind `left out` says that the row is
good but left out on purpose. It alone decides which fields it uses; but a row may have a `weight`, a factor on its loss
(`row_weight`), whatever its format.
"""

from ts2_lightning.data.formats import builtin as builtin  # registers them
from ts2_lightning.data.formats.base import (
    FORMATS,
    WEIGHT,
    Format,
    FormatFunction,
    detect,
    detected,
    get_format,
    parse,
    register_format,
    row_weight,
)
from ts2_lightning.data.formats.parsing import Conversation, Example, arguments_of, checked_messages
from ts2_lightning.data.formats.tokens import TokenRow
from ts2_lightning.data.formats.turns import ROLES, Message

__all__ = [
    "FORMATS",
    "ROLES",
    "WEIGHT",
    "Conversation",
    "Example",
    "Format",
    "FormatFunction",
    "Message",
    "TokenRow",
    "arguments_of",
    "checked_messages",
    "detect",
    "detected",
    "get_format",
    "parse",
    "register_format",
    "row_weight",
]

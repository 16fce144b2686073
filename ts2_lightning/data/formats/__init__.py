r"""Row formats: small pure functions from the fields of a row to a conversation (or to ready token ids).

| format | a row has | of which is made |
| --- | --- | --- |
| `tokens` | `input_ids` | the ids as they are, with their `labels` |
| `messages` | `messages` | the messages, with `role` and `content` (OpenAI) |
| `sharegpt` | `conversations`, a list of objects | the turns, with `from` and `value` |
| `sharegpt_chosen` | `chosen`, `conversations`, `rejected` | the turns and the chosen answer |
| `lima` | `conversations`, a list of strings | user and assistant in turn |
| `prompt_completion` | `completion`, `prompt`, and no label | strings, or lists of messages |
| `prompt_response` | `prompt`, `response` | strings, or lists of messages |
| `alpaca` | `instruction`, `output` | `system`, `history`, the instruction with `input`, the answer |
| `alpaca_tofu` | `instruction`, `output`, only by name | the same with `input` as a user turn of its own |
| `dolly` | `instruction`, `response` | the same with `context` or `input` (GPTeacher) |
| `gsm8k` | `answer`, `question`, and nothing else | question and answer |
| `ultrafeedback_binarized` | `chosen`, `messages`, `rejected` | the messages, which end in the chosen answer |
| `ultrafeedback` | `completions`, `instruction` | the completion with the best `overall_score`, if it is at least 7 |
| `numina_math` | `messages`, `problem`, `solution` | problem and solution, if that has `\boxed{` |
| `guanaco` | `text`, from ### Human: on, and no messages | the turns of OASST threads, between their markers |
| `oasst` | `message_tree_id`, `prompt` | the best-ranked thread of a tree |

With `format: auto` every row is looked up in this table. A row that has the fields of several formats is of the one
that asks for more of them (`numina_math`, not `messages`); if none asks for all that the others do, the row is refused
with the names of those formats, rather than taken for one of them. A null field counts as absent.

A new format is a function `fields -> list of messages`: either register it with `register_format`, or name it by its
import path (`format: my_package.my_module.my_function`). It refuses a row by raising `RowError`, whose kind `left out`
says that the row is good but not wanted. Whatever its format, a row may have a `weight`, a factor on its loss
(`row_weight`).
"""

from ts2_lightning.data.formats import known as known  # registers them
from ts2_lightning.data.formats.base import (
    FORMATS,
    ROLES,
    WEIGHT,
    Example,
    Format,
    FormatFunction,
    Message,
    TokenRow,
    checked_messages,
    detect,
    detected,
    get_format,
    parse,
    register_format,
    row_weight,
)

__all__ = [
    "FORMATS",
    "ROLES",
    "WEIGHT",
    "Example",
    "Format",
    "FormatFunction",
    "Message",
    "TokenRow",
    "checked_messages",
    "detect",
    "detected",
    "get_format",
    "parse",
    "register_format",
    "row_weight",
]

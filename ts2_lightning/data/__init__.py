"""From the rows that people have to batches: sources, formats, chat templates, the plan, and the datamodule.

`SFTData` is the datamodule. New row formats and chat templates are added with `register_format` and
`register_template`, or named by import path and by file.
"""

from ts2_lightning.data.bundled import TEMPLATES, register_template
from ts2_lightning.data.collate import collate
from ts2_lightning.data.datamodule import SFTData, load_tokenizer
from ts2_lightning.data.encoded_rows import EncodedRow, EncodedRows
from ts2_lightning.data.encoding import encode_rows
from ts2_lightning.data.formats import FORMATS, Message, TokenRow, parse, register_format
from ts2_lightning.data.plan import MicroBatch, Shape, epoch_plan, evaluation_plan
from ts2_lightning.data.rejects import Reject
from ts2_lightning.data.sources import Row, Source, read_rows, resolve_sources
from ts2_lightning.data.templates import ChatTemplate, make_template

__all__ = [
    "FORMATS",
    "TEMPLATES",
    "ChatTemplate",
    "EncodedRow",
    "EncodedRows",
    "Message",
    "MicroBatch",
    "Reject",
    "Row",
    "SFTData",
    "Shape",
    "Source",
    "TokenRow",
    "collate",
    "encode_rows",
    "epoch_plan",
    "evaluation_plan",
    "load_tokenizer",
    "make_template",
    "parse",
    "read_rows",
    "register_format",
    "register_template",
    "resolve_sources",
]

"""From files of rows to batches: sources, row formats, chat templates, encoding, the batch plan, the datamodule.

In: files, data sets of the hub, a tokenizer; out: `Batch`es, and a record of the data. `SFTData` is the datamodule,
`register_format` and `register_template` add formats and templates. It may import only `suggestions` (and what every
room may). Not here: anything that knows a network's weights, a loss or generated text.
"""

from ts2_lightning.data.batch_plan import PlannedBatch, StepShape, epoch_plan, evaluation_plan
from ts2_lightning.data.bundled import TEMPLATES, register_template
from ts2_lightning.data.collate import collate
from ts2_lightning.data.datamodule import SFTData, load_tokenizer
from ts2_lightning.data.encoded_rows import EncodedRow, EncodedRows
from ts2_lightning.data.encoding import encode_rows
from ts2_lightning.data.formats import FORMATS, Message, TokenRow, parse, register_format
from ts2_lightning.data.rejects import Reject
from ts2_lightning.data.sources import Source, SourceRow, read_rows, resolve_sources
from ts2_lightning.data.templates import ChatTemplate, make_template

__all__ = [
    "FORMATS",
    "TEMPLATES",
    "ChatTemplate",
    "EncodedRow",
    "EncodedRows",
    "Message",
    "PlannedBatch",
    "Reject",
    "SFTData",
    "Source",
    "SourceRow",
    "StepShape",
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

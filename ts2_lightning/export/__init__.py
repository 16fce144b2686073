"""Trained models as transformers directories, from a model or from a checkpoint of any strategy, in bounded memory.

In: a model or a checkpoint, and `ExportSettings`; out: a directory. It may import only `checkpoint_files` and `modules`
(and what every room may). Not here: training, callbacks, and generation with the exported model.

hub_names          the names and shapes of the hub's checkpoints, ties once
averaging          the mean of several checkpoints
interpolation      weights between the base model and the tuned one
rounding           the part of the training's changes that an export rounds away
shards             weights as they are written, in safetensors files of bounded size
companions         config.json, generation settings, tokenizer, chat template
adapter_files      an adapter by itself
output_directory   a directory that appears when it is complete
export             all of it together
"""

from ts2_lightning.export.companions import tokenizer_files
from ts2_lightning.export.export import (
    WEIGHT_DTYPES,
    ExportSettings,
    checkpoint_step,
    export_checkpoint,
    export_model,
    is_sharded,
)

__all__ = [
    "WEIGHT_DTYPES",
    "ExportSettings",
    "checkpoint_step",
    "export_checkpoint",
    "export_model",
    "is_sharded",
    "tokenizer_files",
]

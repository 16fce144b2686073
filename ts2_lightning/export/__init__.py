"""Trained models as transformers directories, from a model or from a checkpoint of any strategy, in bounded memory.

In: a model or a checkpoint, and `ExportSettings`; out: a directory, and that directory on the hub. Of runs it reads
what their records say, for the model card. Not here: training, callbacks, and generation with the exported model.

hub_names          the names and shapes of the hub's checkpoints, ties once
averaging          the mean of several checkpoints
interpolation      weights between the base model and the tuned one
rounding           the part of the training's changes that an export rounds away
shards             weights as they are written, in safetensors files of bounded size
companions         config.json, generation settings, tokenizer, chat template
adapter_files      an adapter by itself
run_facts          what a run's records say of a model
model_card         README.md, with card_picture's picture
output_directory   a directory that appears when it is complete
export             all of it together
hub                the export as a repository on the hub
"""

from ts2_lightning.export.companions import tokenizer_files
from ts2_lightning.export.export import (
    checkpoint_step,
    export_checkpoint,
    export_model,
    is_sharded,
)
from ts2_lightning.export.settings import WEIGHT_DTYPES, ExportSettings

__all__ = [
    "WEIGHT_DTYPES",
    "ExportSettings",
    "checkpoint_step",
    "export_checkpoint",
    "export_model",
    "is_sharded",
    "tokenizer_files",
]

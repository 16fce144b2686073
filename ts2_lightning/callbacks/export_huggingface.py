"""Writes the fine-tuned model as a transformers directory when training ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ts2_lightning.callbacks.export import WEIGHT_DTYPES, export_model
from ts2_lightning.types import UserError


class ExportHuggingFace(Callback):
    """Writes a transformers directory at the end of `fit`: weights, tokenizer, chat template, generation
    config.

    See `export_model` for what is in it. A fit that is interrupted, or that fails, exports nothing and leaves
    an earlier export as it was; so does a `fast_dev_run`.

    Args:
        directory: where to write; null: `export` in the trainer's `default_root_dir`.
        which: `last` exports the weights at the end of training, `best` those of the best checkpoint (of the
            trainer's checkpoint callback; the last ones where no validation has chosen a best).
        dtype: `float32`, `bfloat16` or `float16`; null: bfloat16 if the base model on disk is bfloat16, else
            the dtype that the trained weights have.

    Raises:
        UserError: if `which` or `dtype` is none of these.
    """

    def __init__(
        self,
        directory: str | None = None,
        which: Literal["last", "best"] = "last",
        dtype: str | None = None,
    ) -> None:
        super().__init__()
        if which not in ("last", "best"):
            raise UserError(f"ExportHuggingFace(which) must be last or best, got {which!r}")
        if dtype is not None and dtype not in WEIGHT_DTYPES:
            options = ", ".join(WEIGHT_DTYPES)
            raise UserError(f"ExportHuggingFace(dtype) must be null or one of {options}, got {dtype!r}")
        self.directory = directory
        self.which = which
        self.dtype = dtype

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export on rank 0. Runs also when a resumed run finds that its training was over."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        module: Any = pl_module
        data: Any = getattr(trainer, "datamodule", None)
        template = getattr(data, "template", None)
        model = module.language_model
        with _tokenizer_source(getattr(data, "tokenizer", None)) as source:
            out = export_model(
                model,
                self.directory or Path(trainer.default_root_dir) / "export",
                tokenizer_source=source or model.name_or_path,
                chat_template=getattr(template, "jinja", None),
                end_of_turn_ids=getattr(template, "end_of_turn_ids", ()),
                dtype=self.dtype,
                revision=getattr(module.lm, "revision", None),
                state_dict=self._best_weights(trainer, pl_module) if self.which == "best" else None,
            )
        rank_zero_info(f"Exported the model to {out}")

    def _best_weights(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor] | None:
        checkpoint = trainer.checkpoint_callback
        path = checkpoint.best_model_path if isinstance(checkpoint, ModelCheckpoint) else ""
        if not path:
            rank_zero_info("No validation has chosen a best checkpoint: exporting the last weights")
            return None
        if Path(path).is_dir():
            raise UserError(f"cannot export {path}: it is sharded over ranks, so choose which: last")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
        wanted: Any = pl_module
        place = next(name for name, part in pl_module.named_modules() if part is wanted.language_model) + "."
        return {name.removeprefix(place): state[name] for name in state if name.startswith(place)}


@contextmanager
def _tokenizer_source(tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str | None]:
    """Where the data's tokenizer was loaded from: a directory, or its name on the hub."""
    if tokenizer is None or tokenizer.name_or_path:
        yield tokenizer.name_or_path if tokenizer is not None else None
        return
    with TemporaryDirectory() as directory:  # it was built, not loaded: there are no files but those it writes
        tokenizer.save_pretrained(directory)
        yield directory

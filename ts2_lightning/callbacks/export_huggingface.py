"""Writes the fine-tuned model as a transformers directory when training ends."""

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from ts2_lightning.export import (
    ExportSettings,
    checkpoint_step,
    export_checkpoint,
    export_model,
    is_sharded,
    tokenizer_files,
)
from ts2_lightning.types import UserError


class ExportHuggingFace(Callback):
    """Writes a transformers directory at the end of `fit`: weights, tokenizer, chat template, generation config, and a
    model card.

    See `ts2_lightning.export` for what is in it. A fit that is interrupted, or that fails, exports nothing and leaves
    an earlier export as it was; so does a `fast_dev_run`. Where the strategy shards the weights, rank 0 exports the
    checkpoint that has just been written, while the other ranks are done.

    Args:
        directory: directory to write; null: `export` in the trainer's `default_root_dir`.
        which: weights to export: `last` for those at the end of training, `best` for those of the best checkpoint of
            the trainer's checkpoint callback (the last ones where no validation has chosen a best).
        dtype: dtype of the exported weights: `float32`, `bfloat16` or `float16`; null: bfloat16 if the base model on
            disk is bfloat16, else the dtype that the trained weights have.
        adapter: form of an adapter's export: `merged` into whole weights, or `separate`, in PEFT's format.

    Raises:
        UserError: if an argument has another value.
    """

    def __init__(
        self,
        directory: str | None = None,
        which: Literal["last", "best"] = "last",
        dtype: str | None = None,
        adapter: Literal["merged", "separate"] = "merged",
    ) -> None:
        super().__init__()
        if which not in ("last", "best"):
            raise UserError(f"ExportHuggingFace(which) must be last or best, got {which!r}")
        ExportSettings("", dtype=dtype, adapter=adapter)  # says now what would be wrong with them in the end
        self.directory = directory
        self.which = which
        self.dtype = dtype
        self.adapter: Literal["merged", "separate"] = adapter

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export on rank 0. Runs also when a resumed run finds that its training was over."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        module: Any = pl_module
        data: Any = getattr(trainer, "datamodule", None)
        template = getattr(data, "template", None)
        out = Path(self.directory or Path(trainer.default_root_dir) / "export")
        checkpoint = self._checkpoint(trainer, module)
        with tokenizer_files(getattr(data, "tokenizer", None)) as source:
            settings = ExportSettings(
                source or module.language_model.name_or_path,
                getattr(template, "jinja", None),
                getattr(template, "end_of_turn_ids", ()),
                self.dtype,
                self.adapter,
                module.lm.written_path or module.lm.path,
                run=Path(trainer.default_root_dir),
                step=trainer.global_step,
            )
            if checkpoint is None:
                export_model(module.language_model, out, settings, module.lm.revision)
            else:
                export_checkpoint(checkpoint, module.lm, out, settings)
        rank_zero_info(f"Exported the model to {out}")

    def _checkpoint(self, trainer: Trainer, module: Any) -> Path | None:
        """The checkpoint with the weights to export; None if they are in memory."""
        callback = trainer.checkpoint_callback
        if self.which == "best":
            if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
                return Path(callback.best_model_path)
            rank_zero_info("No validation has chosen a best checkpoint: exporting the last weights")
        if not any(is_sharded(parameter) for parameter in module.language_model.parameters()):
            return None
        written = callback.last_model_path if isinstance(callback, ModelCheckpoint) else ""
        for path in (written, trainer.ckpt_path):
            if path and checkpoint_step(Path(path)) == trainer.global_step:
                return Path(path)
        raise UserError(
            "ExportHuggingFace: the weights are sharded over ranks, and there is no checkpoint of the last step to "
            "export them from; add the callback Checkpoints"
        )

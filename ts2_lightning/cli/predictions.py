"""Where `predict` leaves what the module says about each row."""

import json
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer

from ts2_lightning.data import SFTData


class PredictionFile(Callback):
    """Writes the dictionaries that `predict_step` returns to `predictions.jsonl`, one line per row, in the rows' order.

    Where rows have become several texts (see `data.text_layout`), there is a line for each text, and `place` says which
    of the rows that were read it is of, from 0.

    Every rank writes its share as it goes; at the end rank 0 puts them together.

    Args:
        directory: where to write.
    """

    NAME = "predictions.jsonl"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stream: TextIO | None = None
        self._has_own_rows = True
        self._places: Any = None  # of the rows that the texts are of

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens this rank's share."""
        # Ranks of a tensor-parallel group, which are neighbours, have the same rows.
        replicas = (trainer.distributed_sampler_kwargs or {"num_replicas": 1})["num_replicas"]
        self._has_own_rows = trainer.global_rank % (trainer.world_size // replicas) == 0
        data: Any = getattr(trainer, "datamodule", None)
        texts = data.rows("predict") if isinstance(data, SFTData) else None
        self._places = texts.places if texts is not None and texts.counts.unrolled else None
        self.directory.mkdir(parents=True, exist_ok=True)
        self._stream = self._share(trainer.global_rank).open("w", encoding="utf-8")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes one batch's rows."""
        assert self._stream is not None
        for row in (outputs or []) if self._has_own_rows else []:
            if self._places is not None:
                row = {"place": int(self._places[row["row"]]), **row}
            self._stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the shares together, sorted by row."""
        assert self._stream is not None
        self._stream.close()
        trainer.strategy.barrier("predictions")
        if not trainer.is_global_zero:
            return
        shares = [self._share(rank) for rank in range(trainer.world_size)]
        lines = [line for share in shares for line in share.read_text(encoding="utf-8").splitlines()]
        lines.sort(key=lambda line: json.loads(line).get("row", 0))  # stable: rows without a number keep their order
        (self.directory / self.NAME).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        for share in shares:
            share.unlink()

    def _share(self, rank: int) -> Path:
        return self.directory / f".predictions-{rank}.jsonl"

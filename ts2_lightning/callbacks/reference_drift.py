"""The distance of a model from its base: of its distributions on fixed rows, and of its weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ts2_lightning.callbacks.forward_logits import read_logits
from ts2_lightning.ops import LogitRows, divergence, rows_per_block
from ts2_lightning.ranges import COUNT, COUNT_OR_ZERO, check_numbers
from ts2_lightning.types import Batch, UserError


class ReferenceDrift(Callback):
    """Logs the distance to the base model.

    - `drift/kl` and `drift/l2`: mean over the supervised tokens of fixed validation rows of KL(base || model), in nats,
      and of the l2 distance between the two distributions. The base's log-probabilities are exact: they are computed
      once, before the first step, and kept in float32 in `reference/` in the run's directory, from where they are
      mapped; 4 bytes for each token and word of the vocabulary (1,024 tokens of 128,256 words: 525 MB), and no second
      model anywhere. Rank 0 keeps and compares them, while all ranks compute the logits.
    - `drift/weights`: l2 distance of the trained weights from the start (GEM's figure of forgetting), tied ones once.
      The start is mapped from the base model's own files, of which every rank reads what it needs of its shard.

    The forward pass is that of an evaluation, as the loss would see it. A run that is resumed goes on with the base's
    distributions of before.

    Args:
        every_n_steps: interval of measuring: whenever a multiple of so many optimizer steps is done, and at the end.
        tokens: number of supervised tokens of validation rows to compare, of each set an equal share; 0 leaves the
            distributions out.
        weights: whether to measure the distance of the weights.

    Raises:
        UserError: if an argument is out of its range; in training, if there are no validation rows, or no start to
            compare the weights with.
    """

    def __init__(self, every_n_steps: int = 100, tokens: int = 1024, weights: bool = True) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self.tokens = tokens
        self.weights = weights
        check_numbers("ReferenceDrift: ", self, every_n_steps=COUNT, tokens=COUNT_OR_ZERO)
        self.latest: dict[str, float] = {}
        """The values that were logged last."""
        self._batches: list[Batch] = []
        self._last_step = 0
        self._measured_at: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the base's distributions, or open those of the run that goes on."""
        self._last_step, self._measured_at = trainer.global_step, None
        if self.tokens:
            self._batches = _fixed_batches(trainer, self.tokens)
            self._reference = ReferenceFile(Path(trainer.default_root_dir) / "reference", self._batches)
            if trainer.global_step == 0:
                read_logits(trainer, pl_module, self._batches, self._reference.write)
                self._reference.finish(trainer.is_global_zero)
            else:
                trouble = self._reference.trouble() if trainer.is_global_zero else ""
                if trouble := trainer.strategy.broadcast(trouble):
                    raise UserError(trouble)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measure, if a step was completed after which it is due."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        if trainer.global_step % self.every_n_steps == 0:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the trained model."""
        if self._measured_at != trainer.global_step:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: Any) -> None:
        self._measured_at = trainer.global_step
        distances: dict[str, float] = {}
        if self.tokens:
            self._reference.begin()
            read_logits(trainer, pl_module, self._batches, self._reference.compare)
            distances |= self._reference.means() if trainer.is_global_zero else {}
        if self.weights:
            distances["weights"] = pl_module.distance_from_start()
        self.latest = {f"drift/{name}": value for name, value in distances.items()}
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(self.latest, step=trainer.global_step)


class ReferenceFile:
    """The base's log-probabilities of the held-out tokens, in a file.

    Args:
        directory: directory of the file.
        batches: batches of the held-out rows.
    """

    def __init__(self, directory: Path, batches: list[Batch]) -> None:
        self._file = directory / "log_probabilities.f32"
        self._about = directory / "about.json"
        digest = hashlib.sha256()
        for batch in batches:
            for name in ("input_ids", "supervised", "labels"):
                digest.update(batch[name].numpy().tobytes())
        self._digest = digest.hexdigest()
        self._tokens = sum(len(batch["labels"]) for batch in batches)
        self._vocabulary = 0
        self._stored: Any = None
        self.begin()

    def begin(self) -> None:
        """Go back to the first token."""
        self._place = 0
        self._sums = torch.zeros(2, dtype=torch.float64)

    def write(self, logits: Tensor, labels: Tensor) -> None:
        """Keep the log-probabilities of the next tokens."""
        if self._stored is None:
            self._vocabulary = logits.shape[-1]
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._about.unlink(missing_ok=True)
            self._stored = self._map("w+")
        for block in logits.split(rows_per_block(self._vocabulary, logits.device)):
            self._stored[self._place : self._place + len(block)] = block.log_softmax(-1).float().cpu().numpy()
            self._place += len(block)

    def finish(self, mine: bool) -> None:
        """Say what the file holds, once it is complete, if it is this rank's."""
        if mine:
            self._stored.flush()
            about = {"tokens": self._tokens, "vocabulary": self._vocabulary, "rows": self._digest}
            self._about.write_text(json.dumps(about), encoding="utf-8")
            self._stored = self._map("r")

    def trouble(self) -> str:
        """The reason why a resumed run cannot go on with the file; empty if it can."""
        if not self._about.is_file():
            return (
                f"ReferenceDrift: this run did not begin with it ({self._about} is not there), and the base's "
                "distributions are known before the first step only; set tokens to 0, or begin a new run"
            )
        about = json.loads(self._about.read_text(encoding="utf-8"))
        if (about["tokens"], about["rows"]) != (self._tokens, self._digest):
            return (
                f"ReferenceDrift: {self._file.parent} is of other validation rows, or of other `tokens`, than this run "
                "has now; set them as they were, or begin a new run"
            )
        self._vocabulary = about["vocabulary"]
        self._stored = self._map("r")
        return ""

    def _map(self, mode: Any) -> Any:
        return np.memmap(self._file, np.float32, mode, shape=(self._tokens, self._vocabulary))

    def compare(self, logits: Tensor, labels: Tensor) -> None:
        """Add the distances at the next tokens."""
        block = rows_per_block(self._vocabulary, logits.device)
        for z, y in zip(logits.split(block), labels.split(block), strict=True):
            base = torch.from_numpy(np.array(self._stored[self._place : self._place + len(z)])).to(z.device)
            kl, l2 = divergence(LogitRows(z.contiguous(), y), base.to(z.dtype))
            self._sums += torch.stack([kl.sum(), l2.sum()]).double().cpu()
            self._place += len(z)

    def means(self) -> dict[str, float]:
        """Mean distances over all tokens."""
        kl, l2 = (self._sums / self._tokens).tolist()
        return {"kl": kl, "l2": l2}


def _fixed_batches(trainer: Trainer, tokens: int) -> list[Batch]:
    data: Any = getattr(trainer, "datamodule", None)
    if not (hasattr(data, "sets") and data.sets.of("validation")):
        raise UserError("ReferenceDrift compares distributions on validation rows; set data.validation, or tokens to 0")
    batches: list[Batch] = data.fixed_batches("validation", tokens)
    return batches

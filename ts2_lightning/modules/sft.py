"""The LightningModule: it wires model, loss and engine, normalises, and publishes."""

import math
import resource
import sys
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import PreTrainedModel

from ts2_lightning.engines import ChunkedEngine, LossEngine
from ts2_lightning.losses import TokenLoss, TS2Loss
from ts2_lightning.metrics import TokenMeans
from ts2_lightning.modules.config import AdamWConfig, LanguageModelConfig, ScheduleConfig
from ts2_lightning.modules.head import check_head
from ts2_lightning.modules.isolation import check_isolation
from ts2_lightning.modules.language_model import load_language_model
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.modules.optimization import make_optimizer, make_schedule
from ts2_lightning.types import Batch, LossOutput, UserError


class SFTModule(L.LightningModule):
    """Supervised fine-tuning of a causal language model under any objective.

    The loss of an optimizer step is the sum over all its supervised tokens, in all micro-batches and on all
    ranks, divided by their number.

    Args:
        lm: the model.
        loss: the objective. Default: TS2.
        engine: how logits come to be. Default: a chunk at a time.
        optimizer: AdamW's settings.
        schedule: the learning rate over the run.
    """

    network: SFTNetwork

    def __init__(
        self,
        lm: LanguageModelConfig,
        loss: TokenLoss | None = None,
        engine: LossEngine | None = None,
        optimizer: AdamWConfig = AdamWConfig(),  # noqa: B008
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.lm = lm
        self.loss = loss or TS2Loss()
        self.engine = engine or ChunkedEngine()
        self.optimizer = optimizer
        self.schedule = schedule
        self._step_means = TokenMeans()
        self._padding = TokenMeans()
        self._isolation_checked = False
        self._evaluation_means = TokenMeans()
        self._step_started = 0.0
        self._statistics_requested = False

    @property
    def language_model(self) -> PreTrainedModel:
        """The model that is trained, as transformers knows it."""
        return self.network.language_model

    def configure_model(self) -> None:
        """Loads the model, once."""
        if hasattr(self, "network"):
            return
        model = load_language_model(self.lm)
        check_head(model)
        self.network = SFTNetwork(model, self.loss, self.engine)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its schedule over all optimizer steps of the run."""
        optimizer = make_optimizer(self.network, self.optimizer)
        scheduler = make_schedule(optimizer, self.schedule, self._total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _total_steps(self) -> float:
        """Optimizer steps of the whole run; infinite where only time ends it.

        Lightning's own estimate makes it fetch the loader before it restores a checkpoint's progress. Ours starts where
        the training stands, so a resumed run would begin with the wrong rows: ask a loader that nobody iterates.
        """
        trainer: Any = self.trainer
        loader = trainer.datamodule and trainer.datamodule.train_dataloader()
        if not hasattr(loader, "steps_per_epoch"):
            return float(trainer.estimated_stepping_batches)
        by_epochs = math.inf if trainer.max_epochs == -1 else loader.steps_per_epoch * max(trainer.max_epochs, 1)
        return min(by_epochs, math.inf if trainer.max_steps == -1 else trainer.max_steps)

    # -- training

    def request_statistics(self) -> None:
        """Has the next training step measure and publish `TOKEN_STATISTICS`, which it would otherwise leave out.

        For callbacks, in `on_train_batch_start`: what nobody asks for costs nothing.
        """
        self._statistics_requested = True

    def on_train_start(self) -> None:
        """Starts the clock of the first step."""
        self._step_started = time.perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One micro-batch. Publishes what was measured at its supervised tokens, for callbacks to read."""
        output = self._forward(batch, self._statistics_requested)
        self._statistics_requested = False
        self._step_means.update({"objective": output.tokens["objective"]})
        self._padding.update({"padding": padding(batch)})
        # Lightning divides by the micro-batches of a step, and the strategy by the ranks: neither is the divisor.
        shares = self.trainer.accumulate_grad_batches * self.trainer.world_size
        loss = output.total * (shares / batch["divisor"].clamp(min=1))
        return {"loss": loss, "tokens": output.tokens}

    def _forward(self, batch: Batch, statistics: bool = True) -> LossOutput:
        """Before anything is learnt from packed rows, the model has to show that it keeps them apart."""
        if "position_ids" in batch and not self._isolation_checked:
            check_isolation(self.network, self.trainer.strategy)
            self._isolation_checked = True
        output: LossOutput = self.network(batch, statistics)
        return output

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measures the gradient's norm, stops before a step that would ruin the weights, and clips."""
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # A loss scaler (float16) meets overflows on its way to its scale, and skips those steps itself.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if not scaled and not torch.isfinite(norm):
            raise UserError(
                f"step {self.trainer.global_step + 1}: the gradient norm is {norm.item()}; stopped before the update, "
                "the weights are those of the step before"
            )
        self._gradient_norm = norm
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        elif gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Keeps the learning rate with which the step is made."""
        self._learning_rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs the optimizer step that this micro-batch completed, if it did."""
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches and not self.trainer.is_last_batch:
            return
        means = self._step_means.compute(self.trainer.strategy) | self._padding.compute(self.trainer.strategy)
        count = self._step_means.count
        self._step_means.reset()
        self._padding.reset()
        now = time.perf_counter()
        seconds, self._step_started = now - self._step_started, now
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or self.trainer.global_step % every:
            return
        metrics = means | {
            "learning_rate": self._learning_rate,
            "gradient_norm": self._gradient_norm.item(),
            "supervised_tokens_per_second": count / seconds,
            "peak_memory_gb": peak_memory_gb(self.device),
        }
        self._log({f"train/{name}": value for name, value in metrics.items()})

    # -- evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds the micro-batch's tokens to the sums."""
        tokens = self._forward(batch).tokens
        correct = (tokens["gold_probability"] >= tokens["top1"]).float()
        self._evaluation_means.update(tokens | {"token_accuracy": correct})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As `validation_step`."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        """Starts from nothing."""
        self._evaluation_means.reset()

    def on_test_epoch_start(self) -> None:
        """Starts from nothing."""
        self._evaluation_means.reset()

    def on_validation_epoch_end(self) -> None:
        """Logs means over all tokens of all rows, each counted once."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Logs means over all tokens of all rows, each counted once."""
        self._log_evaluation("test")

    def _log_evaluation(self, prefix: str) -> None:
        means = self._evaluation_means.compute(self.trainer.strategy)
        if not means:
            raise UserError(f"no supervised token in the {prefix} rows")
        # Infinite where a diverged model's exceeds the largest float; math.exp would raise.
        means["perplexity"] = torch.tensor(means["cross_entropy"], dtype=torch.float64).exp().item()
        metrics = {f"{prefix}/{name}": value for name, value in means.items()}
        self.log_dict(metrics, logger=False, sync_dist=True)  # for checkpoints and the caller; equal on all ranks
        self._log(metrics)

    def _log(self, metrics: dict[str, float]) -> None:
        """One row in every logger, at the number of optimizer steps done; Lightning's own would be one behind."""
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)

    # -- prediction

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Per-token statistics of every row: its index, the supervised tokens, and each statistic as a list."""
        tokens = self._forward(batch).tokens
        columns = {"token": batch["labels"], "position": batch["positions"]} | tokens
        rows = batch["row_index"].tolist()
        return [
            {"row": row} | {name: values[batch["token_rows"] == b].tolist() for name, values in columns.items()}
            for b, row in enumerate(rows)
            if row >= 0
        ]


def padding(batch: Batch) -> Tensor:
    """One number for each of the B x T places of a batch, of which as many are 1 as there are places of no row."""
    places = torch.arange(batch["input_ids"].numel(), device=batch["input_ids"].device)
    return (places >= batch["row_spans"].diff().sum()).float()


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory in GB (1e9 bytes): of the GPU's tensors, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

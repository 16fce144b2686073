"""The LightningModule: it wires model, loss and engine, normalises, and publishes."""

import math
import time
from collections.abc import Collection, Mapping
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import PreTrainedModel

from ts2_lightning.engines import ChunkedEngine, LossEngine
from ts2_lightning.losses import CrossEntropyLoss, TokenLoss, TS2Loss
from ts2_lightning.metrics import BySet, TokenMeans
from ts2_lightning.model_limits import ModelLimits, limits_of
from ts2_lightning.modules.adapters import check_trained_state, trained_state
from ts2_lightning.modules.config import AdamWConfig, LanguageModelConfig, ScheduleConfig
from ts2_lightning.modules.cost import padded_places, peak_memory_gb, time_losses
from ts2_lightning.modules.distance import squared_distance, start_weights
from ts2_lightning.modules.isolation import check_isolation
from ts2_lightning.modules.language_model import check_model_files, read_limits, settle_embeddings
from ts2_lightning.modules.network import NetworkOutput, SFTNetwork
from ts2_lightning.modules.nonfinite import StepWatch, spreading, way_on
from ts2_lightning.modules.optimization import make_optimizer, make_schedule, renew_settings
from ts2_lightning.modules.places import located
from ts2_lightning.modules.reference import check_reference, read_by
from ts2_lightning.modules.sharding import make_network
from ts2_lightning.ops import widest_float
from ts2_lightning.strategies import DeepSpeed, clip_gradients
from ts2_lightning.types import TOKEN_STATISTICS, Batch, SharedError, UserError, check_instance


class SFTModule(L.LightningModule):
    """Supervised fine-tuning of a causal language model under any objective.

    The loss of an optimizer step is the sum over all its supervised tokens, in all micro-batches and on all
    ranks, divided by their number. `model.lm.router_aux_loss_coef` may add the loss of a mixture's routers.

    Args:
        lm: the model.
        loss: the objective. Default: TS2.
        engine: how logits come to be. Default: a chunk at a time.
        optimizer: AdamW's settings.
        schedule: the learning rate over the run.
        nonfinite: what to do when a loss or the gradient of a step is not finite: `stop` before the update; `skip` the
            step, on all ranks, and count it; `ignore` it, whatever becomes of the weights (DeepSpeed leaves the step
            out in any case).
        reference: directory or hub name of another model than the base, for the loss to be anchored to.
    """

    network: SFTNetwork

    def __init__(
        self,
        lm: LanguageModelConfig,
        loss: TokenLoss | None = None,
        engine: LossEngine | None = None,
        optimizer: AdamWConfig = AdamWConfig(),  # noqa: B008
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        nonfinite: Literal["stop", "skip", "ignore"] = "stop",
        reference: str | None = None,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.loss = loss or TS2Loss()
        self.engine = engine or ChunkedEngine()
        check_instance("lm", lm, LanguageModelConfig, 'LanguageModelConfig("Qwen/Qwen2.5-0.5B")')
        check_instance("loss", self.loss, TokenLoss, "TS2Loss()")
        check_instance("engine", self.engine, LossEngine, "ChunkedEngine()")
        self.optimizer = optimizer
        self.schedule = schedule
        self.nonfinite = nonfinite
        self.reference = read_by(self.loss, reference)
        self.skipped_steps = 0
        self._steps_without_update = 0
        self._first_step = 0
        self._watch = StepWatch()
        self._step_means = TokenMeans()
        self._padding = TokenMeans()
        self._isolation_checked = False
        self._evaluation_means: BySet[TokenMeans] = BySet("val", None, TokenMeans)
        self._step_started = 0.0
        self._requested: set[str] = set()
        self._row: dict[str, float] = {}
        self._start_weights: dict[str, Tensor] | None = None
        # A checkpoint does not have what is frozen; `load_state_dict` is strict about the rest.
        self.strict_loading = lm.adapter is None and not self.loss.needs_reference

    @property
    def language_model(self) -> PreTrainedModel:
        """The model that is trained, as transformers knows it."""
        return self.network.language_model

    def prepare_data(self) -> None:
        """Looks at the model's files, in one process per node and before any row is read.

        Raises:
            UserError: there is nothing that can be loaded.
        """
        if not hasattr(self, "network"):
            self._locate_models()
            check_model_files(self.lm)
            check_reference(self.lm, self.loss, self.reference)

    def model_limits(self) -> ModelLimits:
        """What the model takes, by its config, or its files where it is not loaded yet; with rows for new tokens.

        Raises:
            UserError: there is nothing that can be loaded.
        """
        if hasattr(self, "network"):
            return limits_of(self.language_model.config)
        self._locate_models()
        return read_limits(self._settled())

    def _locate_models(self) -> None:
        """Puts directories in the place of names of plug-ins, such as `toyworld`; the command line has done so before.

        A model that is made on first use is made by one process, for which the others wait.
        """
        self.lm = located(self.lm)
        if self.reference is not None:
            self.reference = located(LanguageModelConfig(self.reference)).path

    def _settled(self) -> LanguageModelConfig:
        """The model's config with the number of rows that `resize_embeddings: true` means."""
        data = None if self._trainer is None else getattr(self._trainer, "datamodule", None)
        tokenizer = getattr(data, "tokenizer", None)
        return settle_embeddings(self.lm, None if tokenizer is None else len(tokenizer))

    def setup(self, stage: str) -> None:
        """Settles how many rows the embedding has, once the tokenizer is there; whoever loads the model has to know.

        Raises:
            UserError: that is not known, or fewer than there are, or not as many as another reference has.
        """
        self._locate_models()
        self.lm = self._settled()
        if not hasattr(self, "network"):
            check_reference(self.lm, self.loss, self.reference)

    def configure_model(self) -> None:
        """Loads the model, once; sharded as the strategy wants it."""
        if hasattr(self, "network"):
            return
        strategy = self.trainer.strategy if self._trainer is not None else None
        self.network = make_network(self.lm, self.loss, self.engine, strategy, self.reference)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What a checkpoint holds, and what is asked of one: all weights but frozen ones, which the base model has."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        return state if self.lm.adapter is None else trained_state(state, self)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Takes over all weights but frozen ones.

        Raises:
            UserError: they are not those of this model, whatever `strict` says.
        """
        check_trained_state(state_dict, self)
        return super().load_state_dict(state_dict, strict=False, assign=assign)

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

    def request_statistics(self, names: Collection[str] = TOKEN_STATISTICS) -> None:
        """Has the next training step measure and publish statistics, which it would otherwise leave out.

        For callbacks, in `on_train_batch_start`: what nobody asks for costs nothing. Evaluation steps measure and
        publish `TOKEN_STATISTICS` in any case, and what was asked for beside them.

        Args:
            names: see `ops.token_statistics`.
        """
        self._requested |= set(names)

    def add_to_row(self, metrics: Mapping[str, float]) -> None:
        """Adds values to the row that is logged at the end of this optimizer step, or of this evaluation.

        For callbacks that measure, in `on_train_batch_end`, `on_validation_epoch_end` and `on_test_epoch_end`, which
        come before the module's own. The module alone writes `train/`, `val/` and `test/`; of what both have measured
        it takes its own value.

        Args:
            metrics: Values under their full names, the same on every rank.
        """
        self._row.update(metrics)

    def _take_row(self, own: Mapping[str, float]) -> dict[str, float]:
        row, self._row = {**self._row, **own}, {}
        return row

    def _take_requested(self) -> list[str]:
        """What was asked for, in one order on every rank."""
        names, self._requested = sorted(self._requested), set()
        return names

    def on_train_start(self) -> None:
        """Gives a training that goes on its present settings, and starts the clock of the first step."""
        for scheduled in self.trainer.lr_scheduler_configs:
            renew_settings(scheduled.scheduler, self.network, self.optimizer)
        self._step_started = time.perf_counter()
        self._first_step, self._steps_without_update = self.trainer.global_step, 0

    def on_train_end(self) -> None:
        """Refuses to call a training finished that has changed nothing.

        Raises:
            SharedError: every step since its start was left out.
        """
        steps = self.trainer.global_step - self._first_step
        if 0 < steps <= self._steps_without_update:
            raise SharedError(
                f"each of the {steps} steps was left out, as none had a finite gradient: nothing was learnt; lower "
                "model.optimizer.lr or look at the rows, and set model.nonfinite to stop to see the first of them"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One micro-batch. Publishes what was measured at its supervised tokens, for callbacks to read."""
        output = self._forward(batch, self._take_requested())
        router = {} if output.router is None else {"router_loss": output.router}
        self._step_means.update({"objective": output.tokens["objective"], **router})
        self._padding.add_sums({"padding": padded_places(batch)}, batch["input_ids"].numel())
        self._watch.add(batch["row_index"], output.total)
        total = output.total if self.nonfinite == "ignore" else spreading(output.total)
        # Lightning divides by the micro-batches of a step, and the strategy by the ranks: neither is the divisor.
        shares = self.trainer.accumulate_grad_batches * self._replicas
        return {"loss": total * (shares / batch["divisor"].clamp(min=1)), "tokens": output.tokens}

    @property
    def _replicas(self) -> int:
        """Ranks that have rows of their own."""
        kwargs = self.trainer.distributed_sampler_kwargs
        return 1 if kwargs is None else int(kwargs["num_replicas"])

    def _forward(self, batch: Batch, statistics: Collection[str] = TOKEN_STATISTICS) -> NetworkOutput:
        """Before anything is learnt from packed rows, the model has to show that it keeps them apart."""
        if "position_ids" in batch and not self._isolation_checked:
            check_isolation(self.network, self.trainer.strategy)
            self._isolation_checked = True
        output: NetworkOutput = self.network(batch, statistics)
        return output

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measures the gradient's norm, clips, and refuses a step that would ruin the weights."""
        by_norm = gradient_clip_algorithm in (None, "norm")
        strategy = self.trainer.strategy
        trained = (parameter for group in optimizer.param_groups for parameter in group["params"])
        self._gradient_norm = clip_gradients(strategy, trained, gradient_clip_val if by_norm else None).item()
        # A loss scaler (float16) meets overflows on its way to its scale, and skips those steps itself.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        is_finite = math.isfinite(self._gradient_norm)
        if not is_finite and (self.nonfinite == "skip" or scaled or isinstance(strategy, DeepSpeed)):
            self._steps_without_update += 1
        if self.nonfinite != "ignore" and not scaled and not is_finite:
            self._refuse_step()
        elif gradient_clip_val and not by_norm:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _refuse_step(self) -> None:
        """On all ranks, since the norm is that of the gradient of all."""
        trouble = f"step {self.trainer.global_step + 1}: {self._watch.trouble(self._gradient_norm)}"
        if self.nonfinite == "stop":
            raise SharedError(
                f"{trouble}; stopped before the update, the weights are those of the step before. "
                f"{way_on(self.trainer)}, or set model.nonfinite to skip"
            )
        self.skipped_steps += 1
        rank_zero_warn(f"{trouble}; the step is left out, as model.nonfinite says")
        for parameter in self.network.parameters():
            parameter.grad = None  # what has none is not updated, nor its moments

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Keeps the learning rate with which the step is made."""
        self._learning_rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs the optimizer step that this micro-batch completed, if it did."""
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches and not self.trainer.is_last_batch:
            return
        means = self._step_means.compute(self.trainer.strategy) | self._padding.compute(self.trainer.strategy)
        count = self._step_means.count * self._replicas / self.trainer.world_size  # tensor-parallel ranks share rows
        self._step_means.reset()
        self._padding.reset()
        self._watch.reset()
        now = time.perf_counter()
        seconds, self._step_started = now - self._step_started, now
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or self.trainer.global_step % every:
            self._row.clear()
            return
        metrics = means | {
            "learning_rate": self._learning_rate,
            "gradient_norm": self._gradient_norm,
            "supervised_tokens_per_second": count / seconds,
            "peak_memory_gb": peak_memory_gb(self.device),
        }
        if self.nonfinite == "skip":
            metrics["skipped_steps"] = self.skipped_steps
        row = self._take_row({f"train/{name}": value for name, value in metrics.items()})
        # Not `self.log_dict`, which costs several milliseconds in every step.
        for logger in self.trainer.loggers:
            logger.log_metrics(row, step=self.trainer.global_step)

    # -- evaluation

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Adds the micro-batch's tokens to the sums, and publishes what was measured, for callbacks to read."""
        others = [name for name in self._take_requested() if name not in TOKEN_STATISTICS]
        tokens = self._forward(batch, (*TOKEN_STATISTICS, *others)).tokens
        correct = (tokens["gold_probability"] >= tokens["top1"]).float()
        measured = {name: values for name, values in tokens.items() if name not in others}
        for means in self._evaluation_means.of(dataloader_idx):
            means.update(measured | {"token_accuracy": correct})
        return {"tokens": tokens}

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """As `validation_step`."""
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def on_validation_epoch_start(self) -> None:
        """Starts from nothing."""
        self._evaluation_means = BySet("val", self.trainer.val_dataloaders, TokenMeans)

    def on_test_epoch_start(self) -> None:
        """Starts from nothing."""
        self._evaluation_means = BySet("test", self.trainer.test_dataloaders, TokenMeans)

    def on_validation_epoch_end(self) -> None:
        """Logs means over all tokens of all rows, and of each named set, each token counted once."""
        self._log_evaluation()

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        self._log_evaluation()

    def _log_evaluation(self) -> None:
        metrics: dict[str, float] = {}
        for prefix, sums in self._evaluation_means.items():
            means = sums.compute(self.trainer.strategy)
            if not means:
                raise UserError(f"no supervised token in the {prefix} rows")
            # Infinite where a diverged model's exceeds the largest float; math.exp would raise.
            means["perplexity"] = torch.tensor(means["cross_entropy"], dtype=torch.float64).exp().item()
            metrics |= {f"{prefix}/{name}": value for name, value in means.items()}
        self._log_with_lightning(self._take_row(metrics))

    def _log_with_lightning(self, row: Mapping[str, float]) -> None:
        """One row for loggers, checkpoints and the caller of `Trainer.validate`, at the number of optimizer steps done.

        Lightning's own step is one behind in a validation within training; a metric called `step` takes its place. All
        ranks have the same values, of which the maximum over ranks is every digit.
        """
        dtype = widest_float(self.device)
        values = {**row, "step": float(self.trainer.global_step)}
        tensors = {name: torch.tensor(value, dtype=dtype, device=self.device) for name, value in values.items()}
        self.log_dict(tensors, sync_dist=True, reduce_fx="max")

    # -- for callbacks

    def time_losses(self, batch: Batch) -> dict[str, float]:
        """Seconds of the loss head on a micro-batch, with the objective and with cross-entropy; see `time_losses`."""
        losses: dict[str, TokenLoss] = {type(self.loss).__name__: self.loss, "CrossEntropyLoss": CrossEntropyLoss()}
        with self.trainer.precision_plugin.forward_context():
            return time_losses(self.network, batch, losses)

    def distance_from_start(self) -> float:
        """The l2 distance of the weights from where the training started. Every rank must call; all get the same.

        Raises:
            UserError: the start is not in a file.
        """
        model, strategy = self.language_model, self.trainer.strategy
        if self._start_weights is None:
            self._start_weights = start_weights(self.lm, model)
        share = squared_distance(model, self._start_weights, self.trainer.world_size)
        device = strategy.root_device
        return float(strategy.reduce(share.to(device, widest_float(device)), reduce_op="sum")) ** 0.5

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

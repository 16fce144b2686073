"""Objectives in transformers' `Trainer` and TRL's `SFTTrainer`.

`TokenLossMixin` computes the loss with an engine, so that the logits [N, K] never exist, and logs the statistics.
`compute_loss_func` is an argument of `Trainer` that needs no class, and lets the model form all its logits.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ts2_lightning.engines import ChunkedEngine, LossEngine
from ts2_lightning.integrations.answering import LossRequest, add_loss_head
from ts2_lightning.losses import TokenLoss
from ts2_lightning.metrics import TokenMeans
from ts2_lightning.model_limits import limits_of
from ts2_lightning.ops import check_gold, check_logits, checked_statistics, supervised_tokens, widest_float
from ts2_lightning.types import LossOutput, UserError, check_instance

__all__ = ["LOGGED", "TokenLossMixin", "compute_loss_func"]

LOGGED = ("cross_entropy", "entropy", "support_size", "tail_mass")
"""What `TokenLossMixin` logs beside the loss, see `ops.token_statistics`."""


def compute_loss_func(loss: TokenLoss, engine: LossEngine | None = None) -> Callable[..., Tensor]:
    """The argument `compute_loss_func` of transformers' `Trainer`, with which it trains an objective.

    The model forms its logits [N, K] as ever; of what the objective needs beside them, a chunk of tokens is there at a
    time. Exact under gradient accumulation and on several ranks, as `Trainer` counts the supervised tokens of a step.

    Args:
        loss: The objective.
        engine: How the rows are taken. Default: a chunk at a time.

    Returns:
        A function of a model's outputs, labels [B, T] that repeat its input, and `num_items_in_batch`.

    Raises:
        UserError: the objective needs a reference model, of which the function hears nothing.

    Example:
        >>> from ts2_lightning.losses import TS2Loss
        >>> function = compute_loss_func(TS2Loss())
        >>> logits, labels = torch.zeros(1, 3, 4, requires_grad=True), torch.tensor([[-100, 0, 1]])
        >>> round(function({"logits": logits}, labels, num_items_in_batch=2).item(), 4)
        0.375
    """
    check_instance("compute_loss_func", loss, TokenLoss, "TS2Loss()")
    if loss.needs_reference:
        raise UserError(
            f"compute_loss_func: {type(loss).__name__} needs a reference model, which is not told of here; use "
            "TokenLossMixin with a LoRA adapter"
        )
    used = engine or ChunkedEngine()
    check_instance("engine", used, LossEngine, "ChunkedEngine()")

    def function(outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
        if labels is None:
            raise UserError("compute_loss_func: the batch has no labels; have the data collator make them")
        check_logits(logits, labels)
        places, targets = supervised_tokens(labels, shift=True)
        check_gold(targets.labels, logits.shape[-1])
        rows = logits.reshape(-1, logits.shape[-1]).index_select(0, places)
        # Rows of logits are the engine's hidden states, and its head leaves them as they are.
        total = used(loss, nn.Identity(), rows, targets, statistics=()).total
        return total / _divisor(len(places) if num_items_in_batch is None else num_items_in_batch)

    return function


def _divisor(tokens: Tensor | int) -> Tensor | int:
    return tokens.clamp(min=1) if isinstance(tokens, Tensor) else max(1, tokens)


class _Ranks(NamedTuple):
    """The ranks of an accelerator, as `TokenMeans` sums over them."""

    accelerator: Any

    @property
    def root_device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def reduce(self, tensor: Tensor, group: object = None, reduce_op: str = "sum") -> Tensor:
        reduced: Tensor = self.accelerator.reduce(tensor, reduction=reduce_op)
        return reduced


class TokenLossMixin:
    """Has transformers' `Trainer`, or TRL's `SFTTrainer`, train an objective, by an engine: no logits [N, K].

    The loss of an optimizer step is the sum over its supervised tokens, in all micro-batches and on all ranks, divided
    by their number. Every log has means over the supervised tokens since the last one, next to the trainer's `loss`; an
    evaluation has exact means over its tokens, `eval_loss` among them, where `Trainer` averages means of batches.

    Args:
        token_loss: The objective. One that needs a reference is anchored to the model without its LoRA adapter.
        engine: How logits come to be. Default: a chunk at a time.
        statistics: Names of what is logged, see `ops.token_statistics`; none costs nothing.

    Raises:
        UserError: a setting of the trainer under which the loss would be another one.

    Example:
        >>> from transformers import Trainer
        >>> class TokenLossTrainer(TokenLossMixin, Trainer):
        ...     pass

        `TokenLossTrainer(model, args, train_dataset=rows, token_loss=TS2Loss())` then is a trainer.
    """

    # What the trainer that it is mixed into has.
    args: Any
    model: Any
    accelerator: Any
    compute_loss_context_manager: Any
    _prepare_inputs: Any

    loss_is_scaled_for_ga = True
    """Tells `Trainer` that the loss is divided already, by the tokens of all micro-batches."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuses a class whose trainer comes first, and would go on computing its own loss."""
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(TokenLossMixin)]
        losses = [base for base in before if "compute_loss" in vars(base) and not issubclass(base, TokenLossMixin)]
        if losses:
            raise UserError(
                f"{cls.__name__}: {losses[0].__name__} stands before TokenLossMixin and would compute its own loss; "
                f"write class {cls.__name__}(TokenLossMixin, {losses[0].__name__})"
            )

    def __init__(
        self,
        *args: Any,
        token_loss: TokenLoss,
        engine: LossEngine | None = None,
        statistics: Collection[str] = LOGGED,
        **kwargs: Any,
    ) -> None:
        check_instance("token_loss", token_loss, TokenLoss, "TS2Loss()")
        self.token_loss, self.engine = token_loss, engine or ChunkedEngine()
        check_instance("engine", self.engine, LossEngine, "ChunkedEngine()")
        self.statistics = checked_statistics(statistics)
        self._training_means, self._evaluation_means = TokenMeans(), TokenMeans()
        super().__init__(*args, **kwargs)
        _refuse(self)
        self._add_loss_head(self.model)
        # Has the trainer count the supervised tokens of a step, of which labels at the first place are none.
        self.model_accepts_loss_kwargs = self._loss_shifts_labels = True

    def call_model_init(self, trial: Any = None) -> PreTrainedModel:
        """A new model for each trial of a search."""
        model = super().call_model_init(trial)  # type: ignore[misc]
        self._add_loss_head(model)
        return model

    def _add_loss_head(self, model: Any) -> None:
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        add_loss_head(causal, self.token_loss, self.engine)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a micro-batch, see `transformers.Trainer.compute_loss`.

        Args:
            model: The model as the trainer has wrapped it.
            inputs: A batch with `labels` [B, T] that repeat its input, or `shift_labels` [B, T] that are shifted.
            return_outputs: Whether to return the model's outputs too, for which it is called once more: logits [N, K].
            num_items_in_batch: Supervised tokens of the whole step. Default: those of the batch.
        """
        inputs = dict(inputs)
        labels, shifted = inputs.pop("labels", None), inputs.pop("shift_labels", None)
        if labels is None and shifted is None:
            raise UserError(f"the batch has no labels, it has {', '.join(inputs)}; have the data collator make them")
        labels = labels if shifted is None else shifted
        places, targets = supervised_tokens(labels, shift=shifted is None)
        check_gold(targets.labels, limits_of(self.model.config).embeddings)
        output: Any = model(**inputs, loss_request=LossRequest(places, targets, self.statistics))
        if not isinstance(output, LossOutput):
            raise UserError(
                "something has replaced the model's forward after the trainer was made (use_liger_kernel, another "
                "patch): it answered without the token loss; leave that out"
            )
        self._measure(output.tokens, places, labels, model.training)
        loss = output.total / _divisor(len(places) if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # by which the strategy divides
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**inputs)

    @torch.no_grad()
    def _measure(self, tokens: Mapping[str, Tensor], places: Tensor, labels: Tensor, training: bool) -> None:
        if training:
            self._training_means.update({name: tokens[name] for name in self.statistics})
            return
        # By rows, as ranks without a row of their own at the end get others once more, which do not count.
        names = ("objective", *self.statistics)
        wide = widest_float(places.device)
        values = torch.stack([*(tokens[name].to(wide) for name in names), torch.ones_like(places, dtype=wide)], dim=-1)
        sums = values.new_zeros(len(labels), len(names) + 1).index_add_(0, places // labels.shape[-1], values)
        sums = self.accelerator.gather_for_metrics(self.accelerator.pad_across_processes(sums))
        *of_names, count = sums.sum(0)
        if count:
            self._evaluation_means.add_sums(dict(zip(names, of_names, strict=True)), int(count))

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """An evaluation's micro-batch, see `transformers.Trainer.prediction_step`; logits only if they are wanted."""
        if not prediction_loss_only or not {"labels", "shift_labels"} & inputs.keys():
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)  # type: ignore[misc]
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As `transformers.Trainer.evaluation_loop`, with exact means over all supervised tokens."""
        self._evaluation_means = TokenMeans()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)  # type: ignore[misc]
        for name, value in self._evaluation_means.compute().items():
            output.metrics[f"{metric_key_prefix}_{'loss' if name == 'objective' else name}"] = value
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `transformers.Trainer.log`, which every rank calls; a training's log gets the statistics."""
        if "loss" in logs and self.statistics:
            logs.update(self._training_means.compute(_Ranks(self.accelerator)))
            self._training_means.reset()
        super().log(logs, start_time)  # type: ignore[misc]


def _refuse(trainer: Any) -> None:
    """Raises a `UserError` for what would train another loss, or another model, than was asked for."""
    args, parallel = trainer.args, getattr(trainer.accelerator, "parallelism_config", None)
    sizes = {name: getattr(parallel, f"{name}_size", 1) or 1 for name in ("tp", "cp", "sp")}
    split = [f"{name}_size={size}" for name, size in sizes.items() if size > 1]
    config = trainer.model.config.get_text_config()
    prompts = [kind for kind, peft in _adapters(trainer.model).items() if peft.is_prompt_learning]
    for is_so, message in (
        (trainer.compute_loss_func is not None, "compute_loss_func: the loss is token_loss; leave it out"),
        (args.label_smoothing_factor, "label_smoothing_factor: the loss is token_loss; LabelSmoothingLoss smoothes"),
        (getattr(args, "loss_type", "nll") != "nll", f"loss_type: the loss is token_loss, got {_type(args)}; leave it"),
        (
            args.world_size > 1 and not args.average_tokens_across_devices,
            "average_tokens_across_devices: set it to True, or ranks with few tokens weigh as much as those with many",
        ),
        (args.n_gpu > 1, "nn.DataParallel has copies of the model: launch with torchrun, or show it one GPU"),
        (trainer.is_fsdp_enabled, "fsdp: not under a trainer's FSDP; use DeepSpeed's ZeRO-3, or `ts2 fit` with fsdp2"),
        (args.torch_compile, "torch_compile: the loss is not compiled; set it to False"),
        (split, f"parallelism_config: the rows of a model are whole here, got {', '.join(split)}; leave it out"),
        (prompts, f"peft_config: {', '.join(prompts)} adds tokens that have no label; use LoRA"),
        (
            getattr(config, "output_router_logits", False),
            "config.output_router_logits: the routers' loss is not added here; set it to False "
            "(SFTConfig: router_aux_loss_coef=0.0), or train with `ts2 fit`",
        ),
    ):
        if is_so:
            raise UserError(message)


def _type(args: Any) -> Any:
    return getattr(args, "loss_type", None)


def _adapters(model: Any) -> Mapping[str, Any]:
    configs = getattr(model, "peft_config", None) or {}
    return {str(getattr(config.peft_type, "value", config.peft_type)): config for config in configs.values()}

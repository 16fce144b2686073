"""The steps of `tests.contract.steps` in transformers' `Trainer`: the same rows, the same optimizer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from transformers import DataCollatorForSeq2Seq as Padding

from tests.contract.plain_steps import plain_rows
from tests.contract.steps import CLIP, EPS, LR
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.integrations.transformers import LOGGED, TokenLossMixin
from ts2_lightning.losses import TokenLoss

ENGINE = ChunkedEngine(chunk_size=13)


class InOrder:
    """A trainer that takes rows in the order in which they are."""

    train_dataset: Any

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class TokenLossTrainer(InOrder, TokenLossMixin, Trainer):
    """What a user writes."""


class FunctionTrainer(InOrder, Trainer):
    """For `compute_loss_func`."""


class Weights(TrainerCallback):
    """Keeps the weights after every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})


def dataset(world: Path, rows: Sequence[int], split: str = "train") -> list[dict[str, Any]]:
    """Rows as a user of `Trainer` has them."""
    examples = []
    for ids, places in (plain_rows(world, split)[row] for row in rows):
        labels = torch.full_like(ids, -100)
        labels[places] = ids[places]
        examples.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return examples


SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "per_device_eval_batch_size": 3,
    "num_train_epochs": 1, "learning_rate": LR, "lr_scheduler_type": "constant", "adam_beta2": 0.95,
    "adam_epsilon": EPS, "max_grad_norm": CLIP, "logging_steps": 1, "save_strategy": "no", "report_to": [],
    "disable_tqdm": True, "use_cpu": True,
}  # fmt: skip
LOGGED_TOO: dict[str, Any] = {"engine": ENGINE, "statistics": (*LOGGED, "top1")}


def arguments(out: Path, **changed: Any) -> TrainingArguments:
    return TrainingArguments(str(out), **{**SETTINGS, **changed})


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)


def train(
    world: Path,
    out: Path,
    loss: TokenLoss | None,
    model: Any,
    rows: Sequence[int],
    make: Callable[..., Trainer] = TokenLossTrainer,
    validated: Sequence[int] = (),
    collate: Any = None,
    changed: dict[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Trains an epoch on rows, and gives what `tests.contract.plain_steps.differences` compares.

    Args:
        world: That `write_world` wrote.
        out: Directory of the trainer.
        loss: Objective of a trainer with the mixin.
        model: What is trained.
        rows: Numbers of the rows, in the order in which they are taken.
        make: Makes the trainer.
        validated: Numbers of the rows that are evaluated at the end.
        collate: Data collator. Default: each row is a sequence.
        changed: Other settings of `TrainingArguments`.
        settings: Other settings of the trainer.
    """
    tokenizer = AutoTokenizer.from_pretrained(world / "tied")
    if loss is not None:
        settings = {"token_loss": loss, **LOGGED_TOO, **settings}
    trainer = make(
        model, arguments(out, **(changed or {})), train_dataset=dataset(world, rows), callbacks=[Weights()],
        data_collator=collate or Padding(tokenizer), eval_dataset=dataset(world, validated, "validation"), **settings,
    )  # fmt: skip
    return outcome_of(trainer, bool(validated))


def outcome_of(trainer: Any, evaluate: bool = True) -> dict[str, Any]:
    """Trains, evaluates, and gives what was found."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    names = {"loss": "objective", "grad_norm": "gradient_norm"}
    logged = {
        line["step"]: {f"train/{names.get(name, name)}": value for name, value in line.items()}
        for line in trainer.state.log_history
        if "loss" in line
    }
    (weights,) = (callback.weights for callback in trainer.callback_handler.callbacks if isinstance(callback, Weights))
    evaluated = trainer.evaluate() if evaluate else {}
    return {"logged": logged, "weights": weights, "evaluated": evaluated, "before": before, "trainer": trainer}

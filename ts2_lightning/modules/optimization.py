"""Optimizer and schedule, from their configs."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ts2_lightning.modules.config import AdamWConfig, ScheduleConfig
from ts2_lightning.types import UserError


def make_optimizer(model: nn.Module, config: AdamWConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained; matrices in the group that decays, vectors in the other."""
    return torch.optim.AdamW(_groups(model, config), **_settings(config), fused=config.fused)


def renew_settings(schedule: Any, model: nn.Module, config: AdamWConfig) -> None:
    """Gives optimizer and schedule the settings of this start; a checkpoint has restored those of an earlier one.

    The next step has the learning rate that its place has in this schedule, as if it had been the schedule from the
    start. Where nothing has changed, nothing changes.

    Args:
        schedule: What `make_schedule` returns, over the optimizer of `make_optimizer`.
        model: whose parameters the optimizer updates.
        config: Settings of this start.
    """
    schedule.base_lrs = [config.lr for _ in schedule.base_lrs]
    schedule._last_lr = [config.lr * factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    groups = zip(schedule.optimizer.param_groups, _groups(model, config), schedule._last_lr, strict=True)
    for group, wanted, rate in groups:
        decay = wanted["weight_decay"]
        group.update(_settings(config) | {"weight_decay": decay, "initial_lr": config.lr, "lr": rate})


def _settings(config: AdamWConfig) -> dict[str, Any]:
    """What all groups have in common."""
    return {"lr": config.lr, "betas": config.betas, "eps": config.eps}


def _groups(model: nn.Module, config: AdamWConfig) -> list[dict[str, Any]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if _dimensions(p) >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if _dimensions(p) < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_schedule(optimizer: torch.optim.Optimizer, config: ScheduleConfig, steps: float) -> LambdaLR:
    """The learning-rate schedule over `steps` optimizer steps, stepped after each.

    Raises:
        UserError: the steps are infinite, and the schedule depends on their number.
    """
    if math.isinf(steps):
        if config.name != "constant" or (config.warmup_ratio and config.warmup_steps is None):
            raise UserError(
                f"model.schedule: {config.name} with a warm-up or decay over the whole run needs its number of steps; "
                "set trainer.max_steps (or trainer.max_epochs, where an epoch's length is known), or take name: "
                "constant with warmup_steps"
            )
        steps = 0
    steps = int(steps)
    warmup = config.warmup_steps if config.warmup_steps is not None else math.ceil(config.warmup_ratio * steps)

    def factor(done: int) -> float:
        """The next step's learning rate over the peak, after so many steps."""
        if done < warmup:
            return (done + 1) / warmup  # transformers' is done / warmup: its first step has no learning rate
        return _decayed(config, min(1.0, (done - warmup) / max(1, steps - warmup)))

    return LambdaLR(optimizer, factor)


def _decayed(config: ScheduleConfig, progress: float) -> float:
    """The learning rate over the peak, after a share of the steps that follow the warm-up."""
    if config.name == "constant":
        return 1.0
    if config.name == "linear":
        return 1.0 - progress
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * (1.0 + math.cos(math.pi * progress)) / 2.0


def _dimensions(parameter: nn.Parameter) -> int:
    """Of the whole parameter: ZeRO-3 leaves a flat shard in its place and the shape beside it."""
    return len(getattr(parameter, "ds_shape", parameter.shape))

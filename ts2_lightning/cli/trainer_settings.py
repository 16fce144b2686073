"""Settings of the trainer: numbers that are checked, objects that are built, and the callbacks of every run.

Numbers are checked as soon as they have been read. Lightning would refuse some of them, in its own words and once model
and data have been made, and would calculate with the others: a gradient clipped to NaN, or to -1, which is not at all.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ts2_lightning.cli.base_models import check_model_path
from ts2_lightning.cli.errors.guard import one_line, users_error
from ts2_lightning.cli.errors.parser import Parser
from ts2_lightning.ranges import (
    COUNT,
    COUNT_OR_ZERO,
    NOT_NEGATIVE,
    NULL,
    POSITIVE,
    SEED,
    Allowed,
    Only,
    Range,
    check_number,
    whole_number,
)
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

_MEANING = "a whole number counts batches, any other is a share of them"
_BATCHES = (COUNT_OR_ZERO, Range(least=0, most=1, hint=_MEANING))
_NO_LIMIT = Only(-1, "no limit")

TRAINER: Mapping[str, tuple[Allowed, ...]] = {
    "num_nodes": (Range(least=1, most=2**16, whole=True),),
    "max_epochs": (COUNT_OR_ZERO, _NO_LIMIT, NULL),
    "min_epochs": (COUNT_OR_ZERO, NULL),
    "max_steps": (COUNT_OR_ZERO, _NO_LIMIT),
    "min_steps": (COUNT_OR_ZERO, NULL),
    "limit_train_batches": (*_BATCHES, NULL),
    "limit_val_batches": (*_BATCHES, NULL),
    "limit_test_batches": (*_BATCHES, NULL),
    "limit_predict_batches": (*_BATCHES, NULL),
    "overfit_batches": _BATCHES,
    "val_check_interval": (COUNT, Range(above=0, most=1, hint=_MEANING), NULL),
    "check_val_every_n_epoch": (COUNT, NULL),
    "num_sanity_val_steps": (COUNT_OR_ZERO, Only(-1, "all"), NULL),
    "log_every_n_steps": (COUNT_OR_ZERO, NULL),
    "accumulate_grad_batches": (COUNT,),
    "gradient_clip_val": (NOT_NEGATIVE, NULL),
    "reload_dataloaders_every_n_epochs": (COUNT_OR_ZERO,),
    "fast_dev_run": (COUNT_OR_ZERO,),
}
"""Lightning's `Trainer(NAME)`, as a number; some may also be true or false, or a duration."""

_DEVICES = (Range(least=1, most=1024, whole=True), Only(-1, "all", hint="auto takes what there is"))  # a process each
_DURATION = Range(above=0, hint="write it as DD:HH:MM:SS")


def check_numeric_settings(settings: Namespace) -> None:
    """Checks the trainer's numbers, the seed and the seed of an embedded base model.

    Args:
        settings: Settings of `fit`, or of another command that has them.

    Raises:
        UserError: a number is out of its range; the message names it.
    """
    seed, path = settings.seed_everything, settings.get("model.lm.path")
    if not isinstance(seed, bool):
        check_number("seed_everything", seed, SEED)
    if path is not None:
        check_model_path(path)
    trainer = settings.trainer
    for name, allowed in TRAINER.items():
        value = trainer[name]
        if name == "fast_dev_run" and isinstance(value, bool):
            continue
        if isinstance(value, str | timedelta | Mapping):
            _check_duration(name, value)
        else:
            check_number(f"trainer.{name}", value, *allowed)
    if trainer.max_time is not None:
        _check_duration("max_time", trainer.max_time)
    _check_devices(trainer.devices)
    if isinstance(trainer.strategy, Namespace):
        _check_strategy(trainer.strategy.get("init_args") or Namespace())


def _check_duration(name: str, value: Any) -> None:
    seconds = value
    try:
        if isinstance(value, Mapping):
            value = timedelta(**value)
        elif isinstance(value, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value.strip(), re.ASCII):
            days, hours, minutes, rest = map(int, value.split(":"))
            value = timedelta(days, hours=hours, minutes=minutes, seconds=rest)
        if isinstance(value, timedelta):
            seconds = value.total_seconds()
    except (TypeError, ValueError, OverflowError):
        pass  # it is no duration, and told as it came
    check_number(f"trainer.{name} in seconds", seconds, _DURATION)


def _check_devices(devices: Any) -> None:
    """Checks how many devices (2, `"2"`), or which (`[0, 2]`, `"0,2"`)."""
    if devices == "auto":
        return
    words = devices.split(",") if isinstance(devices, str) and "," in devices else devices
    if not isinstance(words, list):
        check_number("trainer.devices", whole_number(devices), *_DEVICES)
        return
    which = [whole_number(word) for word in words if word != ""]
    for place, device in enumerate(which):
        check_number(f"trainer.devices[{place}]", device, COUNT_OR_ZERO)
    if not which or len(set(which)) < len(which):
        raise UserError(f"trainer.devices must name each device once, and at least one, got {devices!r}")


def _check_strategy(arguments: Namespace) -> None:
    for name in ("data_parallel_size", "tensor_parallel_size"):
        if arguments.get(name, "auto") != "auto":
            check_number(f"trainer.strategy.{name}", arguments[name], COUNT)
    if arguments.get("shard_size") != "node":
        check_number("trainer.strategy.shard_size", arguments.get("shard_size"), COUNT, NULL)
    if isinstance(arguments.get("timeout"), timedelta):
        check_number("trainer.strategy.timeout in seconds", arguments.timeout.total_seconds(), POSITIVE)


def refuse_unknown_names(trainer: Namespace) -> None:
    """Tells the nearest right name of a strategy or an accelerator that Lightning does not know; it would tell none.

    Raises:
        UserError: a name is near.
    """
    names = {"strategy": ["auto", *StrategyRegistry], "accelerator": ["auto", "gpu", *AcceleratorRegistry]}
    for setting, right in names.items():
        name = getattr(trainer, setting)
        if isinstance(name, str) and name not in right and (near := did_you_mean(name, right)):
            raise UserError(f"trainer.{setting}: Lightning knows no {setting} {name!r}{near}")


def refuse_owned_settings(trainer: Namespace) -> None:
    """Refuses the settings of the trainer that the run decides itself.

    Raises:
        UserError: one of them was set.
    """
    if trainer.use_distributed_sampler:
        raise UserError(
            "--trainer.use_distributed_sampler: leave it false; the data module deals the rows to the ranks"
        )
    if trainer.default_root_dir is not None:
        raise UserError("--trainer.default_root_dir: the run's directory is RUNS_DIR/NAME/N; set --runs_dir and --name")


def computes_in_bfloat16(accelerator: object) -> bool:
    """Whether a run on this accelerator would be on a GPU that has bfloat16."""
    on_gpu = accelerator in ("auto", "gpu", "cuda")
    return on_gpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()


# Objects --------------------------------------------------------------------------------------------------------


def built(settings: Any, base: type, name: str) -> Any:
    """Builds loggers, callbacks or a strategy from their settings, each by itself.

    Built with all other objects, one that cannot be built would only be said to be none of what the setting may be.

    Args:
        settings: Settings of an object, or a list of them; anything else stays as it is.
        base: Class that every object is an instance of.
        name: Name of the setting, such as `trainer.callbacks`.

    Raises:
        UserError: an object refuses a value, or its package is not installed.
    """
    if isinstance(settings, list):
        return [built(one, base, name) for one in settings]
    if not isinstance(settings, Namespace):
        return settings
    parser = Parser()
    parser.add_subclass_arguments(base, "object")
    try:
        return parser.instantiate(Namespace(object=settings)).object
    except ValueError as error:
        if users := users_error(error):
            raise users from error
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        if isinstance(reason, ImportError | MisconfigurationException | ValueError | TypeError):
            raise UserError(f"{name}: {settings.class_path}: {one_line(str(reason))}") from error
        raise


def join_default_callbacks(command: str, trainer: Mapping[str, Any], defaults: Sequence[Callback]) -> list[Callback]:
    """The user's callbacks, then each default of whose class the user has none and which the command needs.

    Args:
        command: `fit`, `validate`, `test` or `predict`; all but `fit` take only a progress bar of the defaults.
        trainer: Arguments of the trainer; `callbacks` is a callback, a list of them, or None.
        defaults: Callbacks of an ordinary run.
    """
    users = trainer["callbacks"] or []
    callbacks = list(users) if isinstance(users, list) else [users]
    for default in defaults:
        unwanted = (
            (command != "fit" and not isinstance(default, ProgressBar))
            or any(isinstance(callback, _family(default)) for callback in callbacks)
            or (isinstance(default, ProgressBar) and trainer["enable_progress_bar"] is False)
            or (isinstance(default, Checkpoint) and trainer["enable_checkpointing"] is False)
            or (isinstance(default, LearningRateMonitor) and trainer["logger"] is False)
        )
        if not unwanted:
            callbacks.append(default)
    return callbacks


def _family(callback: Callback) -> type[Callback]:
    """The class of which a run needs one instance: any progress bar replaces ours, else the callback's own class."""
    return ProgressBar if isinstance(callback, ProgressBar) else type(callback)

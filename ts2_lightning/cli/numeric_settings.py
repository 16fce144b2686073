"""The numbers among the settings of `fit` that no class of ours takes: the trainer's, and seeds.

They are looked at when they have been read. Lightning would refuse some of them, in words of its own and once model and
data have been made, and calculate with the others: a gradient that is clipped to NaN, or to -1, which is not at all.
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from jsonargparse import Namespace

from ts2_lightning.data.toyworld import seed_of
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
    """Looks at what was read of a command line.

    Args:
        settings: of `fit`, or of another command that has its settings.

    Raises:
        UserError: naming a number that cannot be.
    """
    seed, path = settings.seed_everything, settings.get("model.lm.path")
    if not isinstance(seed, bool):
        check_number("seed_everything", seed, SEED)
    if path is not None:
        toyworld_seed(path)
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


def toyworld_seed(path: str) -> int | None:
    """The seed of the embedded base model that a path asks for; None if it is another model's.

    Raises:
        UserError: it asks for anything but a seed, or for one that cannot be.

    Example:
        >>> toyworld_seed("toyworld"), toyworld_seed("toyworld?seed=3"), toyworld_seed("./toyworld")
        (0, 3, None)
    """
    name, mark, query = path.partition("?")
    if name != "toyworld":
        return None
    return seed_of(query, f"model.lm.path {path!r}") if mark else 0


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


def _check_devices(given: Any) -> None:
    """How many devices (2, `"2"`), or which (`[0, 2]`, `"0,2"`)."""
    if given == "auto":
        return
    words = given.split(",") if isinstance(given, str) and "," in given else given
    if not isinstance(words, list):
        check_number("trainer.devices", whole_number(given), *_DEVICES)
        return
    which = [whole_number(word) for word in words if word != ""]
    for place, device in enumerate(which):
        check_number(f"trainer.devices[{place}]", device, COUNT_OR_ZERO)
    if not which or len(set(which)) < len(which):
        raise UserError(f"trainer.devices must name each device once, and at least one, got {given!r}")


def _check_strategy(arguments: Namespace) -> None:
    for name in ("data_parallel_size", "tensor_parallel_size"):
        if arguments.get(name, "auto") != "auto":
            check_number(f"trainer.strategy.{name}", arguments[name], COUNT)
    if isinstance(arguments.get("timeout"), timedelta):
        check_number("trainer.strategy.timeout in seconds", arguments.timeout.total_seconds(), POSITIVE)

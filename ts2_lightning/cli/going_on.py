"""A run that goes on: from which checkpoint, and with which of the settings that it is given now.

`TABLE` is the one place that says what becomes of a setting that differs from the run's. What decides which rows come
when is judged by the data room too, by their content (`data.resume`): other rows are refused there.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer

from ts2_lightning.checkpoint_files import damage_of, is_distributed
from ts2_lightning.checkpoint_files.reading import check_plain_values, read_checkpoint
from ts2_lightning.cli.errors.guard import CommandLineError
from ts2_lightning.cli.errors.origins import CONFIG_OPTIONS, find_origin, option_values
from ts2_lightning.program import program
from ts2_lightning.runs.checkpoints import find_checkpoints, run_of
from ts2_lightning.runs.directory import latest_config, run_name
from ts2_lightning.types import SharedError, UserError

Fate = Literal["applied", "kept", "refused"]

TABLE: dict[str, tuple[Fate, str]] = {
    # setting, or what its name begins with: what becomes of it, and why
    "seed_everything": ("applied", "dropout draws other numbers from here on"),
    "trainer": ("applied", ""),
    "model.lm.path": ("applied", "the weights are the checkpoint's; below an adapter, the base's"),
    "model.lm.revision": ("applied", "as model.lm.path"),
    "model.lm.init": ("kept", "the weights are the checkpoint's"),
    "model.lm.dtype": ("refused", "weights and optimizer state would be rounded, or keep what was rounded before"),
    "model.lm.attn_implementation": ("applied", ""),
    "model.lm.deterministic_attention": ("applied", ""),
    "model.lm.gradient_checkpointing": ("applied", ""),
    "model.lm.adapter": ("refused", "it is another network, and the optimizer's state is not of its weights"),
    "model.lm.adapter.dropout": ("applied", ""),
    "model.lm.adapter.path": ("applied", "the adapter's weights are the checkpoint's"),
    "model.lm.router_aux_loss_coef": ("applied", ""),
    "model.lm.quantization": ("refused", "it is another base below the adapter"),
    "model.lm": ("refused", "it may be another network"),
    "model.loss": ("applied", "the values before and after are of different objectives"),
    "model.reference": ("applied", "the values before and after are of different objectives"),
    "model.engine": ("applied", ""),
    "model.optimizer.fused": ("kept", "the optimizer's state is held as it was"),
    "model.optimizer": ("applied", "from the next step on; Adam's moments stay"),
    "model.schedule": ("applied", "as if it had been so from the start: the next step has its place in it"),
    "model.nonfinite": ("applied", ""),
    "model": ("applied", ""),
    "data.batch_size": ("refused", "other rows would make the steps"),
    "data.seed": ("refused", "the rows would come in another order"),
    "data.streaming": ("refused", "the rows would come in another order"),
    "data.shuffle_buffer": ("refused", "the rows would come in another order"),
    "data": ("applied", "if the training rows and their tokens are the same"),
}

_LONGEST = 80  # characters of a value that is told
_NOT_COMPARED = ("ckpt_path", "weights_only", "name", "runs_dir")


def fate_of(setting: str) -> tuple[Fate, str]:
    """What becomes of a setting that differs from the run's, and why; by the longest name in `TABLE` that fits.

    Example:
        >>> fate_of("model.lm.adapter.r")[0], fate_of("model.lm.adapter.dropout")[0], fate_of("trainer.devices")[0]
        ('refused', 'applied', 'applied')

    Raises:
        KeyError: it is none of a run's.
    """
    fitting = [name for name in TABLE if f"{setting}.".startswith(f"{name}.")]
    if not fitting:
        raise KeyError(setting)
    return TABLE[max(fitting, key=len)]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configurations differ, by their dotted names: what was, and what is.

    Args:
        before: Settings of the run, as `record.settings_of` returns them.
        now: Settings of this command.

    Example:
        >>> differences({"name": "a", "data.seed": 1, "model.loss.alpha": 0.5}, {"name": "b", "data.seed": 2})
        {'data.seed': (1, 2), 'model.loss.alpha': (0.5, None)}
    """
    names = [name for name in dict.fromkeys([*before, *now]) if name.partition(".")[0] not in _NOT_COMPARED]
    return {name: (before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)}


def tell_differences(run: Path, changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Says of each setting that differs what becomes of it.

    Raises:
        UserError: one of them is refused.
    """
    refused = [
        f"{name} was {was!r} and is {now!r} ({fate_of(name)[1]})"
        for name, (was, now) in changed.items()
        if fate_of(name)[0] == "refused"
    ]
    if refused:
        raise UserError(
            f"{run} cannot go on with another setting of: {'; '.join(refused)}. Leave it as it was, or start a new run "
            f"from the weights: {program()} export --ckpt CHECKPOINT --out DIR, then --model.lm.path DIR"
        )
    for name, (was, now) in changed.items():
        fate, why = fate_of(name)
        told = f"{_short(was)} -> {_short(now)}, applied" if fate == "applied" else f"stays {was!r}, not {now!r}"
        say(f"{run} goes on: {_without_init_args(name)} {told}{f' ({why})' if why else ''}")


def _short(value: Any) -> str:
    """A value for a line of text; a long one, such as a list of callbacks, is only counted."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"[{len(value)} entries]" if isinstance(value, list) else "..."


def _without_init_args(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "init_args")


def say(line: str) -> None:
    """One line beside what a command prints."""
    print(line, file=sys.stderr, flush=True)


# Which checkpoint ---------------------------------------------------------------------------------------------------


def check_content(checkpoint: Path, go_on: bool, weights_only: bool = True) -> None:
    """Whether a checkpoint is one of `fit`, before any model is loaded.

    Args:
        checkpoint: a file or a directory.
        go_on: a training is to go on from it, so that the weights alone do not do.
        weights_only: its pickles must hold nothing but tensors and plain values.

    Raises:
        UserError: saying what it is instead, and what to do with it.
    """
    if not weights_only:
        if checkpoint.is_dir():
            raise UserError(
                f"--weights_only false: {checkpoint} is a directory, of which nothing but tensors and plain values is "
                "ever loaded; leave the option out"
            )
        say(f"--weights_only false: what {checkpoint} holds is loaded, and run, as you typed it")
        return
    if is_distributed(checkpoint):
        check_plain_values(checkpoint)
    content = read_checkpoint(checkpoint)
    if not content.is_of_lightning:
        entries = ", ".join(sorted(content.entries)[:5])
        raise UserError(
            f"--ckpt_path {checkpoint}: this is no checkpoint of a fit, it has {entries}; give weights as "
            "--model.lm.path, in a directory that transformers loads"
        )
    if go_on and not content.can_go_on:
        raise UserError(
            f"--ckpt_path {checkpoint}: it holds weights without the state of optimizer and schedule, so no training "
            f"goes on from it; start a new one from its weights: {program()} export --ckpt {checkpoint} --out DIR, "
            "then --model.lm.path DIR"
        )


def readable(candidates: Sequence[Path], go_on: bool, weights_only: bool = True) -> list[Path]:
    """The candidates from the first one on that is a checkpoint of `fit`: older ones are for the case of damage.

    Args:
        candidates: The checkpoint that was asked for, and those that may take its place.
        go_on: see `check_content`.
        weights_only: see `check_content`.

    Raises:
        UserError: see `check_content`; or all are damaged.
    """
    told = []
    for place, candidate in enumerate(candidates):
        try:
            check_content(candidate, go_on, weights_only)
        except UserError:
            damage = damage_of(candidate)
            if damage is None:
                raise
            told.append(f"{candidate} is damaged: {damage}")
        else:
            if told:
                say(_instead(told, candidate))
            return list(candidates[place:])
    raise UserError(_none_is_whole(told))


def _instead(told: Sequence[str], checkpoint: str | Path) -> str:
    return f"{'; '.join(told)}: taking {checkpoint} instead, the newest one that is whole"


def _none_is_whole(told: Sequence[str], option: str = "--ckpt_path") -> str:
    return f"{'; '.join(told)}; take it from a copy, or name another checkpoint of the run with {option}"


def choose_whole(candidates: Sequence[str], trainer: Trainer | None = None, option: str = "--ckpt_path") -> str:
    """The first checkpoint whose bytes are those that were written. Every rank must call; each reads a share of them.

    Args:
        candidates: The checkpoint that was asked for, and those that may take its place.
        trainer: Trainer whose ranks read it together; None for this process alone.
        option: Name of the option that names a checkpoint, for messages.

    Raises:
        SharedError: none of them is whole.
    """
    told: list[str] = []
    for candidate in candidates:
        damage = _damage_on_any_rank(Path(candidate), trainer)
        if damage is None:
            if told and (trainer is None or trainer.is_global_zero):
                say(_instead(told, candidate))
            return candidate
        told.append(f"{candidate} is damaged: {damage}")
    raise SharedError(_none_is_whole(told, option))


def _damage_on_any_rank(checkpoint: Path, trainer: Trainer | None) -> str | None:
    if trainer is None or trainer.world_size == 1:
        return damage_of(checkpoint)
    from torch import distributed

    mine = damage_of(checkpoint, trainer.global_rank, trainer.world_size)
    ranks: list[str | None] = [None] * trainer.world_size
    distributed.all_gather_object(ranks, mine)
    return next(filter(None, ranks), None)


def load_instead(trainer: Trainer, checkpoint: str) -> None:
    """Has Lightning load another checkpoint than the one that it was given."""
    strategy: Any = trainer.strategy
    load = strategy.load_checkpoint

    def load_checkpoint(path: Any, *args: Any, **kwargs: Any) -> Any:
        return load(checkpoint, *args, **kwargs)

    strategy.load_checkpoint = load_checkpoint


# What a run's own configuration may do ------------------------------------------------------------------------------


def names_code(settings: Any) -> bool:
    """Whether settings of `data.*` name a class, or a function that reads rows.

    Example:
        >>> names_code({"format": "messages", "train": ["a.jsonl"]})
        False
        >>> names_code({"train": [{"path": "a.jsonl", "format": "subprocess.run"}]})
        True
    """
    if isinstance(settings, Mapping):
        is_function = "." in str(settings.get("format") or "")
        return is_function or "class_path" in settings or any(map(names_code, settings.values()))
    return isinstance(settings, list | tuple) and any(map(names_code, settings))


def check_own_run(run: Path, runs: Path, config: Path, option: str, remedy: str = "-c") -> None:
    """Whether the configuration in a run's directory is read though nobody has typed its name.

    A configuration names classes and functions, so it is code. That of a run of one's own is; that of a directory that
    came from elsewhere, with a checkpoint, is not.

    Args:
        run: the run's directory.
        runs: the directory of all runs of one's own.
        config: its configuration.
        option: how the run was named.
        remedy: the option with which the user can give the configuration.

    Raises:
        UserError: it does not lie in `runs`.
    """
    for place, root in ((run.resolve(), runs.resolve()), (Path(os.path.abspath(run)), Path(os.path.abspath(runs)))):
        if place.is_relative_to(root):
            return
    raise UserError(
        f"{option}: its settings are in {config}, and a configuration names classes and functions, which are run; it "
        f"is read by itself only for runs in {runs} (--runs_dir). If you trust it, give it: {remedy} {config}"
    )


def with_config_of_run(options: Sequence[str]) -> list[str]:
    """The options, with the configuration of the run that `--ckpt_path` points into if no other one is given.

    Args:
        options: Command line after the command.

    Raises:
        UserError: there is no such checkpoint, or its run is none of one's own, see `check_own_run`.
    """
    checkpoint_options = option_values(options, "--ckpt_path")
    if not checkpoint_options or option_values(options, *CONFIG_OPTIONS):
        return list(options)
    name = run_name(next(iter(option_values(options, "--name")), None), [])
    runs = Path(next(iter(option_values(options, "--runs_dir")), "runs"))
    checkpoint = find_checkpoints(checkpoint_options[-1], runs / name)[0]
    run = run_of(checkpoint)
    if run is None:
        return [*options]
    config = latest_config(run)
    check_own_run(run, runs, config, f"--ckpt_path {checkpoint}")
    return ["-c", str(config), *options]


def settle_weights_only(settings: Any, options: Sequence[str]) -> None:
    """Keeps the protection against code in a checkpoint on, unless the user has typed that it be off.

    Args:
        settings: Settings of the command; `weights_only` is set to true where it is null.
        options: Command line after the command.

    Raises:
        CommandLineError: a file, which may have come with the checkpoint, asks for it.
    """
    if settings.weights_only is None:
        settings.weights_only = True
    if not settings.weights_only and not option_values(options, "--weights_only"):
        origin = find_origin("weights_only", options)
        raise CommandLineError(
            f"{origin.describe('weights_only') if origin else 'weights_only'}: no file can switch this protection "
            "off; if you trust the checkpoint, type --weights_only false"
        )


def more_than_values(checkpoint: str) -> str:
    """What is said of a checkpoint that the protection has stopped from being loaded."""
    return (
        f"--ckpt_path {checkpoint}: it holds more than tensors and plain values, and loading it may run code; if you "
        "trust it, type --weights_only false"
    )

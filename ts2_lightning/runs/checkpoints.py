"""The checkpoints of a run: the newest, the best, and the one that a user names."""

import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ts2_lightning.checkpoint_files import is_complete
from ts2_lightning.runs.contents import read_config
from ts2_lightning.runs.directory import CONFIG, numbers
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

CHECKPOINTS = "checkpoints"


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; of two of the same age, `last` comes later."""
    complete = [path for path in (run / CHECKPOINTS).glob("*.ckpt") if is_complete(path)]
    return sorted(complete, key=lambda path: (path.stat().st_mtime_ns, path.name.startswith("last"), path.name))


def newest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return next(reversed(checkpoints(run)), None)


def can_go_on(checkpoint: Path) -> bool:
    """Whether a training can go on from a checkpoint: it has more than the weights, see `Checkpoints`.

    One that cannot be read counts as such: going on will say what it is.
    """
    from ts2_lightning.checkpoint_files.reading import read_checkpoint  # takes torch, which a glance at runs does not

    try:
        return read_checkpoint(checkpoint).can_go_on
    except UserError:
        return True


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint of a run with the best monitored value, or None.

    Ours is called `best.ckpt`. For another checkpoint callback the newest checkpoint remembers which one it is; that
    is looked up by its file name, since a run may have been moved.
    """
    ours = run / CHECKPOINTS / "best.ckpt"
    if is_complete(ours):
        return ours
    newest = newest_checkpoint(run)
    if newest is None:
        return None
    for state in _callback_states(newest):
        best = state.get("best_model_path") if isinstance(state, dict) else None
        if best and is_complete(run / CHECKPOINTS / Path(best).name):
            return run / CHECKPOINTS / Path(best).name
    return None


def exported_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the weights that a run's export has, or would have; None if it is not there.

    It is the newest one, or the best where `ExportHuggingFace` was set to export that.
    """
    callbacks = (read_config(run).get("trainer") or {}).get("callbacks") or []
    with_class = [one for one in callbacks if isinstance(one, dict)]
    named = [one for one in with_class if str(one.get("class_path")).rpartition(".")[2] == "ExportHuggingFace"]
    wants_best = any((one.get("init_args") or {}).get("which") == "best" for one in named)
    return (best_checkpoint(run) if wants_best else None) or newest_checkpoint(run)


def _callback_states(checkpoint: Path) -> Iterable[Any]:
    import torch

    file = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint
    if not file.is_file():
        return []
    try:
        return torch.load(file, map_location="cpu", weights_only=True).get("callbacks", {}).values()
    except pickle.UnpicklingError:  # holds more than plain values, which are not for us to run
        return []


def run_of(checkpoint: Path) -> Path | None:
    """The run directory that a checkpoint lies in, or None."""
    run = checkpoint.absolute().parent.parent
    is_run = checkpoint.absolute().parent.name == CHECKPOINTS and (run / CONFIG).is_file()
    return _relative(run) if is_run else None


def find_checkpoints(name: str, runs: Path, option: str = "--ckpt_path") -> list[Path]:
    """The checkpoint that an option names, and older ones that may take its place if it is damaged.

    Args:
        name: value of the option: `last` (the newest complete one of the newest run that has any), `best`, or a path.
        runs: directory of all runs of a name, `runs/NAME`.
        option: name of the option, for messages.

    Returns:
        At least one; more only for `last`, of the same run, newest first.

    Raises:
        UserError: if there is none; the message names the directories that were searched.
    """
    if name not in ("last", "best"):
        return [_existing(Path(name), option)]
    for number in reversed(numbers(runs)):
        run = runs / str(number)
        if name == "last" and (newest := newest_first(run)):
            return newest
        best = best_checkpoint(run) if name == "best" else None
        if best is not None:
            return [best]
        if name == "best" and newest_checkpoint(run) is not None:
            raise UserError(f"{option} best: {run} has checkpoints, but none of them is marked as the best; name one")
    reason = f"no complete checkpoint in {runs}/*/{CHECKPOINTS}" if numbers(runs) else f"there is no run in {runs}"
    others = [entry.name for entry in runs.parent.iterdir() if numbers(entry)] if os.path.isdir(runs.parent) else []
    others = [other for other in others if other != runs.name]
    hint = did_you_mean(runs.name, others, "--name ") or "; --name and --runs_dir say where to look"
    resumes = "nothing to resume: " if option == "--ckpt_path" else ""
    raise UserError(f"{option} {name}: {resumes}{reason}{hint}")


def newest_first(run: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first, each once: `last` and `best` are links to others."""
    once: dict[Path, Path] = {}
    for path in reversed(checkpoints(run)):
        once.setdefault(path.resolve(), path)
    return list(once.values())


def _existing(path: Path, option: str) -> Path:
    if not os.path.exists(path):
        near = [str(entry) for entry in path.parent.glob("*")] if os.path.isdir(path.parent) else []
        raise UserError(f"{option} {path}: no such checkpoint{did_you_mean(str(path), near)}")
    if path.is_dir() and run_of(path / CHECKPOINTS / "any") == _relative(path.absolute()):
        raise UserError(f"{option} {path}: this is a run, not a checkpoint; name one of {path / CHECKPOINTS}")
    if path.is_dir() and (path / "config.json").is_file():
        raise UserError(f"{option} {path}: this is a model directory, not a checkpoint; give it as --model.lm.path")
    if not is_complete(path):
        raise UserError(f"{option} {path}: not a complete checkpoint (was it cut short while it was written?)")
    return path


def _relative(path: Path) -> Path:
    working_directory = Path.cwd()
    return path.relative_to(working_directory) if path.is_relative_to(working_directory) else path

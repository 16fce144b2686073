"""One directory per run: `runs/NAME/1`, `runs/NAME/2`, ... and the checkpoints inside.

A directory is taken with `os.mkdir`, which either succeeds or finds that someone else was first, so two runs that
start at the same moment never share one.
"""

import os
import pickle
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ts2_lightning.checkpoint_files import is_complete
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
_ATTEMPTS = 1000


def run_name(given: str | None, config_files: Iterable[str]) -> str:
    """The run's name: the one given, else the stem of the last configuration file, else `run`.

    Raises:
        UserError: if the name cannot be a directory below `--runs_dir`.
    """
    stems = [Path(file).stem for file in config_files]
    name = given or (stems[-1] if stems else "run")
    parts = name.split("/")
    if name.startswith("/") or any(part in ("", ".", "..") or part.startswith(".") for part in parts):
        raise UserError(
            f"--name {name!r}: the name of a run is a directory below --runs_dir, such as ts2-alpha or sweep/a"
        )
    if len(parts) > 1 and parts[-1].isdigit():
        raise UserError(
            f"--name {name!r}: the last part is a number, which would look like a run of {'/'.join(parts[:-1])!r}"
        )
    return name


def claim_next(parent: Path) -> Path:
    """Makes and returns the next numbered directory below `parent`.

    Raises:
        UserError: if it cannot be made there: something is a file, a name is too long, or nothing may be written.
    """
    for _ in range(_ATTEMPTS):
        number = max(numbers(parent), default=0) + 1
        try:
            parent.mkdir(parents=True, exist_ok=True)
            os.mkdir(parent / str(number))
        except OSError as error:
            # Another process has taken the number, or has discarded its run, and with it the empty parent.
            if isinstance(error, FileExistsError | FileNotFoundError) and (
                _is_directory(parent) or not os.path.lexists(parent)
            ):
                continue
            raise UserError(f"no run can be kept in {parent}: {_reason(parent, error)}") from error
        return parent / str(number)
    raise UserError(f"no run can be kept in {parent}: other processes took {_ATTEMPTS} numbers before this one")


def _reason(parent: Path, error: OSError) -> str:
    """Why a directory cannot be made, naming what is in the way."""
    obstacle = next((place for place in (parent, *parent.parents) if os.path.isfile(place)), None)
    if obstacle is not None:
        return f"{obstacle} is a file; choose another --name or --runs_dir"
    return f"{(error.strerror or str(error)).lower()}; choose another --name or --runs_dir"


def discard(run: Path, runs: Path) -> None:
    """Removes a run that never began, and the directories between it and `runs` that are then empty."""
    shutil.rmtree(run, ignore_errors=True)
    parent = run.parent
    while parent.absolute().is_relative_to(runs.absolute()) and not (parent / CONFIG).exists():
        try:
            parent.rmdir()
        except OSError:  # not empty
            return
        parent = parent.parent


def numbers(parent: Path) -> list[int]:
    """The numbers of the runs below `parent`, ascending."""
    if not _is_directory(parent):
        return []
    return sorted(int(entry.name) for entry in parent.iterdir() if re.fullmatch(r"[1-9]\d*", entry.name))


def _is_directory(path: Path) -> bool:
    """As `is_dir`, which raises where a name is too long."""
    return os.path.isdir(path)


def next_config(run: Path) -> Path:
    """Where the configuration of this start goes: `config.yaml`, or `config-resume-1.yaml` and so on beside it."""
    return run / f"config-resume-{len(_configs(run))}.yaml" if _configs(run) else run / CONFIG


def latest_config(run: Path) -> Path:
    """The configuration of the latest start of a run.

    Raises:
        UserError: there is none.
    """
    configs = _configs(run)
    if not configs:
        raise UserError(f"{run}: no {CONFIG}, which fit writes when a run begins")
    return configs[-1]


def _configs(run: Path) -> list[Path]:
    names = [CONFIG] if (run / CONFIG).exists() else []
    while names and (run / f"config-resume-{len(names)}.yaml").exists():
        names.append(f"config-resume-{len(names)}.yaml")
    return [run / name for name in names]


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; of two of the same age, `last` comes later."""
    found = [path for path in (run / CHECKPOINTS).glob("*.ckpt") if is_complete(path)]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name.startswith("last"), path.name))


def newest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return next(reversed(checkpoints(run)), None)


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


def find_checkpoint(wanted: str, named: Path) -> Path:
    """The checkpoint that `--ckpt_path` means; see `find_checkpoints`."""
    return find_checkpoints(wanted, named)[0]


def find_checkpoints(wanted: str, named: Path) -> list[Path]:
    """The checkpoint that `--ckpt_path` means, and older ones that may take its place if it is damaged.

    Args:
        wanted: `last` (the newest complete one of the newest run that has any), `best`, or a path.
        named: the directory of all runs of the name, `runs/NAME`.

    Returns:
        At least one; more only for `last`, of the same run, newest first.

    Raises:
        UserError: if there is none; says where it looked.
    """
    if wanted not in ("last", "best"):
        return [_existing(Path(wanted))]
    for number in reversed(numbers(named)):
        run = named / str(number)
        if wanted == "last" and (newest := newest_first(run)):
            return newest
        best = best_checkpoint(run) if wanted == "best" else None
        if best is not None:
            return [best]
        if wanted == "best" and newest_checkpoint(run) is not None:
            raise UserError(
                f"--ckpt_path best: {run} has checkpoints, but none of them is marked as the best; name one"
            )
    looked = f"no complete checkpoint in {named}/*/{CHECKPOINTS}" if numbers(named) else f"there is no run in {named}"
    others = [entry.name for entry in named.parent.iterdir() if numbers(entry)] if _is_directory(named.parent) else []
    others = [other for other in others if other != named.name]
    hint = did_you_mean(named.name, others, "--name ") or "; --name and --runs_dir say where to look"
    raise UserError(f"--ckpt_path {wanted}: nothing to resume: {looked}{hint}")


def newest_first(run: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first, each once: `last` and `best` are links to others."""
    once: dict[Path, Path] = {}
    for path in reversed(checkpoints(run)):
        once.setdefault(path.resolve(), path)
    return list(once.values())


def _existing(path: Path) -> Path:
    if not os.path.exists(path):
        near = [str(entry) for entry in path.parent.glob("*")] if _is_directory(path.parent) else []
        raise UserError(f"--ckpt_path {path}: no such checkpoint{did_you_mean(str(path), near)}")
    if path.is_dir() and run_of(path / CHECKPOINTS / "any") == _relative(path.absolute()):
        raise UserError(f"--ckpt_path {path}: this is a run, not a checkpoint; name one of {path / CHECKPOINTS}")
    if path.is_dir() and (path / "config.json").is_file():
        raise UserError(f"--ckpt_path {path}: this is a model directory, not a checkpoint; give it as --model.lm.path")
    if not is_complete(path):
        raise UserError(f"--ckpt_path {path}: not a complete checkpoint (was it cut short while it was written?)")
    return path


def _relative(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path

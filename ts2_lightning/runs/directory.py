"""One directory per run: `runs/NAME/1`, `runs/NAME/2`, ..., and the configuration of each of its starts.

A directory is taken with `os.mkdir`, which either succeeds or finds that someone else was first, so two runs that
start at the same moment never share one.
"""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from ts2_lightning.types import UserError

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
_ATTEMPTS = 1000


def run_name(name_option: str | None, config_files: Iterable[str]) -> str:
    """The run's name: that of the option, else the stem of the last configuration file, else `run`.

    Raises:
        UserError: if the name cannot be a directory below `--runs_dir`.
    """
    stems = [Path(file).stem for file in config_files]
    name = name_option or (stems[-1] if stems else "run")
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
    """The reason why a directory cannot be made, with the obstacle."""
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
    """The file for the configuration of this start: `config.yaml`, or `config-resume-1.yaml` and so on beside it."""
    return run / f"config-resume-{len(_configs(run))}.yaml" if _configs(run) else run / CONFIG


def latest_config(run: Path) -> Path:
    """The configuration of the latest start of a run.

    Raises:
        UserError: if there is none.
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

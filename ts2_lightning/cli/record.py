"""What a run writes about itself: its configuration, its command, the machine and software, and the data."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import ts2_lightning
from ts2_lightning.cli.run_directory import ENVIRONMENT, next_config
from ts2_lightning.types import UserError


class RunRecord(Callback):
    """Writes the record of a run once its data is set up.

    `config.yaml` is the whole configuration, and can be given to `-c` again; a resumed run writes
    `config-resume-1.yaml` and so on beside it. `command.txt` has the command of every start. `environment.json` and
    `data.json` describe machine, software, revision and data of the latest start.

    Args:
        directory: the run's directory.
        config: the configuration as YAML.
        argv: the command and its options.
    """

    def __init__(self, directory: Path, config: str, argv: list[str]) -> None:
        self.directory = directory
        self.config = config
        self.argv = argv
        self.began = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning's hook; the datamodule has been set up before."""
        agreed = trainer.strategy.broadcast(str(self.directory))
        if agreed != str(self.directory):
            raise UserError(
                f"rank {trainer.global_rank} would write to {self.directory}, rank 0 to {agreed}; start again"
            )
        if trainer.is_global_zero:
            datamodule = getattr(trainer, "datamodule", None)
            write_record(self.directory, self.config, self.argv, datamodule)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        self.began = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        self.began = True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        self.began = True

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        self.began = True


def write_record(directory: Path, config: str, argv: list[str], datamodule: Any | None = None) -> None:
    """Writes the files that `RunRecord` describes."""
    directory.mkdir(parents=True, exist_ok=True)
    next_config(directory).write_text(config, encoding="utf-8")
    with (directory / "command.txt").open("a", encoding="utf-8") as stream:
        stream.write(f"cd {shlex.quote(os.getcwd())} && {shell_command(argv)}\n")
    _write_json(directory / ENVIRONMENT, environment())
    if datamodule is not None and hasattr(datamodule, "describe"):
        _write_json(directory / "data.json", datamodule.describe())


def shell_command(argv: list[str]) -> str:
    """The command line as one would type it, quoted for a shell."""
    script = sys.argv[0]
    programs = {"ts2": ["ts2"], "__main__.py": ["python", "-m", "ts2_lightning.cli"]}
    return shlex.join([*programs.get(Path(script).name, ["python", script]), *argv])


def environment() -> dict[str, Any]:
    """The machine, the software and its revision, as plain JSON values."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": sys.version,
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "torch": {
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
            "cuda": torch.version.cuda,
            "gpus": gpus,
        },
        "launch": {name: os.environ[name] for name in _LAUNCH_VARIABLES if name in os.environ},
        "revision": revision(Path.cwd()),
        "ts2_lightning": {
            "version": ts2_lightning.__version__,
            "revision": revision(Path(ts2_lightning.__file__).parent),
        },
        "packages": dict(sorted({d.metadata["Name"]: d.version for d in distributions() if d.metadata}.items())),
    }


def revision(directory: Path) -> dict[str, Any] | None:
    """The git commit of a directory and whether tracked files were changed since; None outside of a checkout."""
    try:
        commit = _git(directory, "rev-parse", "HEAD")
        changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changed)}


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


_LAUNCH_VARIABLES = (
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "SLURM_JOB_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_NNODES",
    "SLURM_NTASKS",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)

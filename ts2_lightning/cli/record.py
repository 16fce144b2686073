"""What a run writes about itself: its configuration, its command, the machine and software, and the data."""

import json
import os
import platform
import shlex
import sys
from datetime import datetime
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

import ts2_lightning
from ts2_lightning.checkpoint_files import is_deepspeed, is_distributed, read_manifest
from ts2_lightning.cli import program
from ts2_lightning.cli.going_on import choose_whole, load_instead
from ts2_lightning.cli.launch import Destination
from ts2_lightning.cli.loggers import RunCSVLogger, RunTensorBoardLogger
from ts2_lightning.runs.directory import ENVIRONMENT, next_config
from ts2_lightning.runs.stamps import revision
from ts2_lightning.runs.writer_lock import WriterLock
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import load_yaml


class RunRecord(Callback):
    """Writes the record of a run once its data is set up; sees to it that all ranks, and the checkpoint, belong to it.

    `config.yaml` is the whole configuration, and can be given to `-c` again; a resumed run writes
    `config-resume-1.yaml` and so on beside it. `command.txt` has the command of every start. `environment.json` and
    `data.json` describe machine, software, revision and data of the latest start.

    Args:
        destination: Directory of the run, and the checkpoint that it starts from.
        config: Configuration as YAML.
        argv: Command and its options.
        lock: Lock of the run's one writer, in the process that has it.
    """

    def __init__(self, destination: Destination, config: str, argv: list[str], lock: WriterLock | None = None) -> None:
        self.destination = destination
        self.config = config
        self.argv = argv
        self.lock = lock
        self.began = False
        self.doing = "while data and model were made ready"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning's hook; the datamodule has been set up before."""
        check_agreement(trainer, {"directory": self.destination.directory, **settings_of(self.config)})
        if self.destination.checkpoint is not None:
            checkpoint = choose_whole([self.destination.checkpoint, *self.destination.older], trainer)
            check_checkpoint(Path(checkpoint), trainer)
            if checkpoint != self.destination.checkpoint:
                load_instead(trainer, checkpoint)
        if trainer.is_global_zero:
            datamodule = getattr(trainer, "datamodule", None)
            write_record(Path(self.destination.directory), self.config, self.argv, datamodule)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets what an earlier start of the run logged after the step from which this one goes on."""
        self.began = True
        for logger in trainer.loggers:
            if not self.destination.fresh and isinstance(logger, RunCSVLogger | RunTensorBoardLogger):
                logger.rewind(trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Notes what was being done: the trainer forgets it."""
        if self.began and trainer.validating:
            self.doing = f"in the validation after step {trainer.global_step}"
        elif self.began and trainer.training:
            self.doing = f"in step {trainer.global_step + 1} of the training"
        elif self.began:
            self.doing = "after the rows were read"

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes nothing into a run that another process has taken over."""
        if self.lock is not None:
            self.lock.check()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        self.began = True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        self.began = True

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        self.began = True


def settings_of(config: str) -> dict[str, Any]:
    """Every setting of a configuration by its dotted name, in the order of the file.

    >>> settings_of("model: {loss: TS2, layers: [1, 2]}")
    {'model.loss': 'TS2', 'model.layers': [1, 2]}
    """
    settings: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if not isinstance(value, dict):
            settings[prefix] = value
            return
        for key, inner in value.items():
            visit(f"{prefix}.{key}".strip("."), inner)

    visit("", load_yaml(config, "config.yaml"))
    return settings


def check_agreement(trainer: Trainer, settings: dict[str, Any]) -> None:
    """All ranks must have the same settings. Every rank must call, and every rank raises.

    Raises:
        UserError: naming the first setting that differs, with both values and ranks.
    """
    if trainer.world_size == 1:
        return
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, settings)
    first = everyone[0]
    for rank, others in enumerate(everyone):
        for key in [*first, *(key for key in others if key not in first)]:
            if first.get(key) != others.get(key):
                raise UserError(
                    f"{key} is {first.get(key)!r} on rank 0 and {others.get(key)!r} on rank {rank}; start all ranks "
                    "with the same command and the same files"
                )


def check_checkpoint(checkpoint: Path, trainer: Trainer) -> None:
    """Whether this strategy, on so many ranks, can go on from a checkpoint.

    Raises:
        UserError: saying what to do instead.
    """
    strategy = trainer.strategy
    name = type(strategy).__name__.removesuffix("Strategy")
    by_deepspeed = is_deepspeed(checkpoint)
    if by_deepspeed != isinstance(strategy, DeepSpeedStrategy):
        written = "DeepSpeed" if by_deepspeed else "another strategy"
        raise _cannot_go_on(checkpoint, f"it was written by {written}, and {name} cannot read it")
    if is_distributed(checkpoint) and not isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        raise _cannot_go_on(checkpoint, f"it was written by FSDP, and {name} cannot read it")
    ranks = (read_manifest(checkpoint) or {}).get("world_size", trainer.world_size)
    if by_deepspeed and ranks != trainer.world_size:
        raise _cannot_go_on(
            checkpoint, f"DeepSpeed wrote it on {ranks} ranks and cannot go on with {trainer.world_size}"
        )


def _cannot_go_on(checkpoint: Path, why: str) -> UserError:
    return UserError(
        f"--ckpt_path {checkpoint}: {why}; go on as it was written, or start anew from its weights: {program()} export "
        f"--ckpt {checkpoint} --out DIR, then --model.lm.path DIR"
    )


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
        "packages": packages(),
    }


@cache
def packages() -> dict[str, str]:
    """Names and versions of all that is installed, sorted. To read them takes as long as a few steps: they are kept."""
    every = (distribution.metadata for distribution in distributions())  # each is parsed anew whenever it is asked for
    return dict(sorted({metadata["Name"]: metadata["Version"] for metadata in every if metadata}.items()))


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

"""What the commands that load models share: where a model lies, where it computes, where their files go."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ts2_lightning.checkpoint_files import is_complete
from ts2_lightning.cli import export
from ts2_lightning.cli.terminal import OptionParser, check_out, quieten
from ts2_lightning.data.templates import ChatTemplate
from ts2_lightning.evaluation.loading import check_device
from ts2_lightning.json_files import read_json
from ts2_lightning.modules.model_files import ADAPTER_CONFIG, adapter_hint
from ts2_lightning.modules.places import resolve_model
from ts2_lightning.plugins import model_scheme, offered
from ts2_lightning.runs.checkpoints import CHECKPOINTS, exported_checkpoint, newest_checkpoint, run_of
from ts2_lightning.runs.contents import read_config
from ts2_lightning.runs.directory import CONFIG, numbers
from ts2_lightning.runs.stamps import file_stamps
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError


def model_help() -> str:
    """What a command takes as a model, for its help."""
    return (
        "a run (its export, or else its newest checkpoint), a checkpoint, a transformers directory, a plug-in's model "
        f"({', '.join(offered('models'))}), or a name on the hub"
    )


def add_device(parser: OptionParser) -> None:
    """Adds the option that says where models compute."""
    parser.add_argument("--device", default=usual_device(), help="default: a GPU if there is one")


def usual_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def begin(command: str, device: str, out: str | None) -> None:
    """Begins a command that loads models: the libraries are quiet, and what its options say is there.

    Args:
        command: name of the command.
        device: option of `add_device`.
        out: directory of what it writes; None if the user has named none.

    Raises:
        UserError: no such device, or the directory is a file.
    """
    quieten(command)
    transformers_logging.disable_progress_bar()
    check_device(device)
    check_out(out)


class NotExportedError(UserError):
    """A checkpoint, of whose model nothing is known without its weights."""


class ModelPlace(NamedTuple):
    """Where a model was found.

    Attributes:
        path: a transformers directory, a checkpoint, or a name on the hub.
        run: the directory of the run that it is of; None if it is of none.
        is_checkpoint: it has to be exported before transformers loads it.
        text_template: template of a pretrained model that has never seen a chat; None for other models.
        interpolate: share of the way from the base model of the run to its own at which the weights are taken.
    """

    path: str
    run: Path | None = None
    is_checkpoint: bool = False
    text_template: Callable[[PreTrainedTokenizerBase], ChatTemplate] | None = None
    interpolate: float = 1.0

    @property
    def identity(self) -> Any:
        """Plain values that change when the model does."""
        own = file_stamps(self.path) or self.path
        if self.interpolate == 1:
            return own
        assert self.run is not None
        lm = (read_config(self.run).get("model") or {}).get("lm") or {}
        base = str(lm.get("path"))
        return [own, self.interpolate, file_stamps(base) or [base, lm.get("revision")]]

    def between(self, share: float, option: str) -> "ModelPlace":
        """The model between the base model of the run and the run's own, made of a checkpoint.

        Args:
            share: share of the way to the run's own model, which 1 is.
            option: how the user called the model, for messages.

        Raises:
            UserError: it is of no run, or there is no checkpoint any more.
        """
        if share == 1:
            return self
        if self.run is None:
            raise UserError(f"{option}: it is of no run, so there is no base model with which it could be interpolated")
        checkpoint = Path(self.path) if self.is_checkpoint else exported_checkpoint(self.run)
        if checkpoint is None:
            raise UserError(
                f"{option}: {self.run} has no checkpoint any more, which weights between it and its base model need"
            )
        return ModelPlace(str(checkpoint), self.run, is_checkpoint=True, interpolate=share)

    def loadable(self, scratch: Path | None) -> str:
        """The directory or name that transformers loads.

        Args:
            scratch: directory that is made for the export of a checkpoint; None exports none.

        Raises:
            NotExportedError: a checkpoint is to be exported, and there is no directory for that.
        """
        if not self.is_checkpoint:
            return self.path
        if scratch is None:
            raise NotExportedError(
                f"{self.path}: this is a checkpoint, and a plan reads no weights; export it first, with `export --ckpt "
                f"{self.path} --out DIR`"
            )
        options = ["--toward-base", str(self.interpolate), *self._dtype()] if self.interpolate != 1 else []
        export.run(["--ckpt", self.path, "--out", str(scratch), *options])
        return str(scratch)

    @property
    def files(self) -> str | None:
        """The directory with config and tokenizer of weights between, which are the run's; None if it has no export."""
        export_of_run = Path(str(self.run), "export")
        return str(export_of_run) if self.interpolate != 1 and (export_of_run / "config.json").is_file() else None

    def _dtype(self) -> list[str]:
        """Option for weights between, which are to be rounded as those of the run's export are."""
        dtype = None if self.files is None else read_json(Path(self.files, "config.json")).get("dtype")
        return ["--dtype", dtype] if dtype in export.WEIGHT_DTYPES else []


def find_model(name: str, option: str) -> ModelPlace:
    """Finds a model; nothing is loaded.

    Args:
        name: a transformers directory, a run (its export, else its newest checkpoint), the directory of all runs of a
            name (the newest), a checkpoint, a plug-in's model, or a name on the hub.
        option: how the user called it, for messages.

    Raises:
        UserError: if there is none.
    """
    path = Path(name).expanduser()
    attempts = numbers(path)
    if attempts and not any((path / file).is_file() for file in (CONFIG, "config.json")):
        path = path / str(attempts[-1])
    for directory, run in ((path, path.parent), (path / "export", path)):
        if (directory / "config.json").is_file():
            return ModelPlace(str(directory), run if (run / CONFIG).is_file() else None)
    if (path / CHECKPOINTS).is_dir():
        newest = newest_checkpoint(path)
        if newest is None:
            raise UserError(f"{option}: a run without export and without complete checkpoint")
        return ModelPlace(str(newest), run_of(newest), is_checkpoint=True)
    if is_complete(path):
        return ModelPlace(str(path), run_of(path), is_checkpoint=True)
    if (path / ADAPTER_CONFIG).is_file():
        raise UserError(f"{option}: {adapter_hint(name, path / ADAPTER_CONFIG)}")
    if path.exists():
        raise UserError(
            f"{option}: neither a transformers directory (it has no config.json), nor a run, nor a complete checkpoint"
        )
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{option}: no such model{did_you_mean(path.name, near)}")
    scheme = model_scheme(name)
    return ModelPlace(resolve_model(name), text_template=None if scheme is None else scheme.text_template)

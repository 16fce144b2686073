"""`data`: what a configuration's rows look like to a training, and what an epoch of them costs. No model is loaded."""

import warnings
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace

from ts2_lightning.cli.base_models import limits_at, limits_with_new_rows
from ts2_lightning.cli.data_report import report
from ts2_lightning.cli.errors.parser import Parser, require_nothing
from ts2_lightning.cli.lightning_cli import TS2CLI, run_command
from ts2_lightning.cli.terminal import put
from ts2_lightning.data import EncodedRows, SFTData
from ts2_lightning.data.rejects import Rejects
from ts2_lightning.data.sets import SPLITS, split_of
from ts2_lightning.model_limits import ModelLimits
from ts2_lightning.program import program
from ts2_lightning.ranges import COUNT, COUNT_OR_ZERO, NULL, check_numbers
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

_PREVIEW = 1000  # streamed rows that are read
_SPLIT_HELP = f"One of {', '.join(SPLITS)}; all sets of it, or one, such as validation.NAME."


def run(argv: Sequence[str]) -> int:
    """Prints statistics of a split or one of its sets, and some of its rows.

    Args:
        argv: the options after the command: those of `fit`, and those of `DataCLI`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: as `fit` would; for bad rows when everything is printed.
    """
    return run_command("fit", argv, DataCLI)


class DataCLI(TS2CLI):
    """Reads the settings of `fit`, and builds nothing but the datamodule."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.description = "Statistics of the rows, what an epoch costs, and some rows as they are learnt."

    def add_arguments_to_parser(self, parser: Any) -> None:
        """The options of `fit`, of which none is required: rows can be read without a model."""
        super().add_arguments_to_parser(parser)
        require_nothing(parser)
        parser.add_argument("--split", type=str, default="train", help=_SPLIT_HELP)
        parser.add_argument("--show", type=int, default=3, help="How many rows to print, drawn with data.seed.")
        parser.add_argument("--row", type=int | None, default=None, help="Print this row instead, from 0.")
        parser.add_argument("--world_size", type=int, default=1, help="Ranks that an epoch is divided between.")

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parses the command line under the name that the user gave the command."""
        self._subcommand_parsers[self.command].prog = f"{program()} data"
        super().parse_arguments(parser, args)

    def before_instantiate_classes(self) -> None:
        """The tokenizer is the model's unless it is named; nothing of the model is made for that."""
        settings = self.settings
        _check_options(settings)
        path = settings.get("model.lm.path")
        if settings["data.tokenizer"] is None and path is not None:
            settings["data.tokenizer"] = path

    def instantiate_classes(self) -> None:
        """Only the datamodule."""
        parser = Parser()
        parser.add_class_arguments(self.datamodule_class, "data")
        self.datamodule = parser.instantiate(Namespace(data=self.settings.data)).data
        self.datamodule.limits = self._limits()

    def _limits(self) -> ModelLimits | None:
        """What the model takes, where one is named: rows can be looked at without access to it."""
        settings = self.settings
        path, revision = settings.get("model.lm.path"), settings.get("model.lm.revision")
        if path is None:
            return None
        try:
            limits = limits_at(path, revision)
        except UserError as error:
            warnings.warn(f"what the model takes is not known, so it counts for nothing here: {error}", stacklevel=2)
            return None
        resize = settings.get("model.lm.resize_embeddings")
        return limits_with_new_rows(path, revision, resize, settings["data.tokenizer"]) if resize else limits

    def _run_subcommand(self, subcommand: str) -> None:
        settings = self.settings
        names = self.datamodule.sets.named(settings.split)
        tolerated = [set_up(self.datamodule, name) for name in names]
        options = settings.world_size, settings.show, settings.row
        put("\n\n".join(report(self.datamodule, name, *options) for name in names))
        for name, share in zip(names, tolerated, strict=True):
            judge(self.datamodule.rows(name), share)


def _check_options(settings: Any) -> None:
    if split_of(settings.split) not in SPLITS:
        hint = did_you_mean(settings.split, SPLITS)
        raise UserError(f"--split: expected one of {', '.join(SPLITS)}, got {settings.split!r}{hint}")
    check_numbers("--", settings, show=COUNT_OR_ZERO, world_size=COUNT, row=(COUNT_OR_ZERO, NULL))


def set_up(data: SFTData, name: str) -> float:
    """Reads and encodes the rows of one set, however many are bad; of streamed ones only the first.

    Args:
        data: The datamodule.
        name: Name of the set, see `RowSets`.

    Returns:
        The share of bad rows that a training would tolerate.

    Raises:
        UserError: Anything but bad rows is wrong.
    """
    tolerated, data.max_rejects = data.max_rejects, 1.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Data, .*: left out")  # the report says it
        try:
            data.sets.prepare(name)
            _read(data, name)
        except UserError:
            data.max_rejects = tolerated
            _read(data, name)  # if it was for bad rows alone, this names them
            raise
    data.max_rejects = tolerated
    return tolerated


def _read(data: SFTData, name: str) -> None:
    data.load(name)
    if data.streaming and name == "train":
        data.preview(_PREVIEW)


def judge(rows: EncodedRows, tolerated: float) -> None:
    """Refuses bad rows as `fit` would.

    Raises:
        UserError: More rows are bad than tolerated; the message names the first.
    """
    rejects = Rejects(tolerated)
    for reject in rows.rejects:
        rejects.add(reject)
    rejects.finish(rows.counts.read)

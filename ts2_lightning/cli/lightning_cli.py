"""`fit`, `validate`, `test` and `predict`: LightningCLI with a module and a datamodule, and manners."""

import pickle
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

from ts2_lightning import __version__
from ts2_lightning.callbacks import Hyperparameters, Preemption, Stopped, Watchdog, default_callbacks
from ts2_lightning.callbacks.requeue import requeue
from ts2_lightning.cli.base_models import resolve_reference
from ts2_lightning.cli.errors.explain import explain, explain_interpolation
from ts2_lightning.cli.errors.guard import CommandLineError, Interrupted, UnexpectedError, one_line, users_error
from ts2_lightning.cli.errors.origins import check_options, config_files, place_of
from ts2_lightning.cli.errors.parser import Parser, ParserMessage
from ts2_lightning.cli.errors.replaced import replaced_settings
from ts2_lightning.cli.going_on import (
    differences,
    more_than_values,
    readable,
    settle_weights_only,
    tell_differences,
    with_config_of_run,
)
from ts2_lightning.cli.hyperparameters import hyperparameters
from ts2_lightning.cli.launch import (
    Destination,
    agree,
    choose_destination,
    is_rank_zero,
    is_started_by_lightning,
    leave_group_at_exit,
    release,
)
from ts2_lightning.cli.loggers import begin_logged_runs, join_defaults, knowing_run
from ts2_lightning.cli.module_class import SETTING, chosen_module, named_module, with_module_class
from ts2_lightning.cli.package_configs import tell_package_configs, with_package_configs
from ts2_lightning.cli.predictions import PredictionFile
from ts2_lightning.cli.record import RunRecord, settings_of
from ts2_lightning.cli.summary import closing_lines, interruption_line, write_results
from ts2_lightning.cli.terminal import quieten
from ts2_lightning.cli.trainer_settings import (
    built,
    check_numeric_settings,
    computes_in_bfloat16,
    join_default_callbacks,
    refuse_owned_settings,
    refuse_unknown_names,
)
from ts2_lightning.modules.places import resolve_model, seeds_kept
from ts2_lightning.runs.checkpoints import find_checkpoints, run_of
from ts2_lightning.runs.directory import discard, latest_config, run_name
from ts2_lightning.runs.writer_lock import WriterLock
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import load_yaml

_SKIPPED = {
    "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
    "validate": {"model", "dataloaders", "datamodule"},
    "test": {"model", "dataloaders", "datamodule"},
    "predict": {"model", "dataloaders", "datamodule", "return_predictions"},
}
_HELP = {
    "fit": "Fine-tune a language model.",
    "validate": "Evaluate a model or a checkpoint on the validation rows.",
    "test": "Evaluate a model or a checkpoint on the test rows.",
    "predict": "Write per-token statistics of given rows.",
}

_NAME_HELP = "Name of the run, which is kept in RUNS_DIR/NAME/N; null: the stem of the last configuration file, or run."
DEFAULT_CLASSES = {"model.loss": "ts2_lightning.losses.TS2Loss", "model.engine": "ts2_lightning.engines.ChunkedEngine"}
_TRAINER_DEFAULTS = {"use_distributed_sampler": False, "num_sanity_val_steps": 0, "enable_model_summary": False}
_EPOCHS = 3  # as in all three papers; Lightning's own default is a thousand


def run_command(command: str, options: Sequence[str], cli: "type[TS2CLI] | None" = None) -> int:
    """Runs one of Lightning's four commands, or another one that takes the same settings.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        options: Command line after the command.
        cli: Class that does something else with the settings of `command`; `TS2CLI` by default.

    Returns:
        The exit status, 0.
    """
    quieten(command)
    typed = options
    options = with_module_class(with_config_of_run(with_package_configs(options)))
    check_options(options, DEFAULT_CLASSES)
    tell_package_configs(typed)
    replaced_settings(options, DEFAULT_CLASSES)
    module, data = classes()
    (cli or TS2CLI)(command, options, chosen_module(options, module), data).run()
    return 0


def classes() -> tuple[type[LightningModule], type[LightningDataModule]]:
    """The module and the datamodule; importing them makes every loss, engine and callback known by its bare name."""
    for room in ("losses", "engines", "callbacks"):
        import_module(f"ts2_lightning.{room}")
    return import_module("ts2_lightning.modules").SFTModule, import_module("ts2_lightning.data").SFTData


class TS2CLI(LightningCLI):
    """LightningCLI that owns the run's directory.

    Args:
        command: Method of the trainer that runs.
        options: Command line after the command.
        module: Class of the LightningModule.
        data: Class of the datamodule.
    """

    def __init__(
        self, command: str, options: list[str], module: type[LightningModule], data: type[LightningDataModule]
    ) -> None:
        self.command = command
        self.description = _HELP[command]
        self.options = options
        self.argv = [command, *options]
        self.run_dir: Path | None = None
        self.lock: WriterLock | None = None
        self.checkpoints: list[Path] = []
        self.destination: Destination | None = None
        self.record: RunRecord | None = None
        self.config = Namespace({command: Namespace()})  # until it has been read
        self._began_with = (module, data)
        self._written_path: str | None = None
        self._logger_settings: Any = None

    def run(self) -> None:
        """Parses, builds, runs, and says where things are."""
        finished = False
        try:
            module, data = self._began_with
            super().__init__(
                module,
                data,
                parser_class=Parser,
                parser_kwargs={"parser_mode": "omegaconf+"},
                seed_everything_default=0,
                auto_configure_optimizers=False,
                save_config_callback=None,
                trainer_defaults=dict(_TRAINER_DEFAULTS),
                args=[self.command, *self.options],
            )
            finished = True
        except UserError as error:
            self._discard_unused_directory()
            self._raise_with_place(error)
        except pickle.UnpicklingError as error:
            if self.destination is None or self.destination.checkpoint is None:
                raise
            self._discard_unused_directory()
            raise UserError(more_than_values(self.destination.checkpoint)) from error
        except Exception as error:
            users = users_error(error)
            if users is not None:
                self._discard_unused_directory()
                self._raise_with_place(users)
            raise UnexpectedError(self._doing(), self.run_dir) from error
        except (KeyboardInterrupt, SystemExit) as stop:
            reason = stop if isinstance(stop, KeyboardInterrupt) else stop.__context__
            if isinstance(reason, KeyboardInterrupt):
                raise self._interrupted(reason) from stop
            raise
        finally:
            if self.lock is not None:
                self.lock.release()
            if self.destination is not None:
                release(self._runs, self.argv, finished)
            leave_group_at_exit(finished)
        if is_rank_zero() and self.run_dir is not None:
            if self.command in ("validate", "test"):
                write_results(self.run_dir, self.trainer.callback_metrics)
            print("\n".join(closing_lines(self.command, self.run_dir)), flush=True)

    def _raise_with_place(self, error: BaseException) -> NoReturn:
        """Raises a user's error, after the line of the configuration file that gave the setting that it names."""
        place = place_of(str(error), self.config[self.command], self.options)
        if not place or type(error) is not UserError:  # all ranks tell another together, or it has a place of its own
            raise error
        raise UserError(f"{place}{error}") from error

    def _doing(self) -> str:
        """What was being done when an unexpected error came."""
        if self.record is not None:
            return self.record.doing
        return "while the settings were read" if self.run_dir is None else "while the trainer was built"

    def _interrupted(self, reason: KeyboardInterrupt) -> Interrupted:
        """Ctrl-C, or another signal: status 128 and its number, as shells have it."""
        number = reason.signal if isinstance(reason, Stopped) else signal.SIGINT
        requeued = isinstance(reason, Stopped) and reason.requeued
        if not requeued and is_rank_zero():
            requeued = requeue(number)  # it came before the first step, or after the last
        self._discard_unused_directory()
        if not is_rank_zero():
            # Lightning kills rank 0 when a rank that it has started ends with another status before it does.
            return Interrupted("", 0 if is_started_by_lightning() else 128 + number)
        run = self.run_dir if self.run_dir is not None and self.run_dir.is_dir() else None
        return Interrupted(interruption_line(run, number, requeued), 128 + number)

    # --- parsing -----------------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one command that runs: the parsers of the others would only cost time."""
        return {self.command: set(_SKIPPED[self.command])}

    def init_parser(self, **kwargs: Any) -> Any:
        """A parser whose printed configurations name our version."""
        return super().init_parser(**{**kwargs, "dump_header": [f"ts2_lightning {__version__}"]})

    def add_core_arguments_to_parser(self, parser: Any) -> None:
        """Names the loss and the engine that the module takes when it is given none, so that they are recorded."""
        super().add_core_arguments_to_parser(parser)
        for key, class_path in DEFAULT_CLASSES.items():
            with suppress(KeyError):  # a module that takes neither
                if parser.get_default(key) is None:
                    parser.set_defaults({key: {"class_path": class_path}})
        if named_module(self.options) is not None:
            parser.add_argument(f"--{SETTING}", type=str, help="The LightningModule that is trained: my_file.MyModule.")

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Adds the options of the run itself."""
        parser.add_argument("--name", type=str | None, default=None, help=_NAME_HELP)
        parser.add_argument("--runs_dir", type=str, default="runs", help="Directory of all runs.")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.set_defaults({"weights_only": True})  # a checkpoint may come from elsewhere: it runs no code
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # what was measured is in a file
        return parser

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parses the command line; what is wrong with it becomes one line."""
        command_parser = self._subcommand_parsers[self.command]
        command_parser.description = self.description
        try:
            self.config = parser.parse_args(args)
        except ParserMessage as said:
            raise CommandLineError(explain(said.message, command_parser, self.options)) from None
        except OmegaConfBaseException as error:
            key = (getattr(error, "full_key", None) or "").removeprefix(f"{self.command}.")
            line = explain_interpolation(str(error), key, command_parser, self.options)
            raise CommandLineError(line) from None
        check_numeric_settings(self.settings)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the hyper-parameters in the checkpoint beat what the user gave now. They do not."""

    # --- before anything is built ------------------------------------------------------------------------------

    @property
    def settings(self) -> Any:
        """The configuration of the command."""
        return self.config[self.command]

    @property
    def _runs(self) -> Path:
        return Path(self.settings.runs_dir)

    def settle(self) -> None:
        """Decides what the user left open and what is the same on every machine."""
        settings = self.settings
        settings.name = run_name(settings.name, config_files(self.options))
        trainer = settings.trainer
        if (
            self.command == "fit"
            and trainer.max_epochs is None
            and trainer.max_steps == -1
            and trainer.max_time is None
        ):
            trainer.max_epochs = _EPOCHS
        refuse_owned_settings(trainer)
        refuse_unknown_names(trainer)
        settle_weights_only(settings, self.options)

    def before_instantiate_classes(self) -> None:
        """Decides the rest; the record of the run keeps what the user wrote."""
        self.settle()
        settings, trainer = self.settings, self.settings.trainer
        if trainer.precision is None and computes_in_bfloat16(trainer.accelerator):
            trainer.precision = "bf16-mixed"
        recorded = settings.clone()
        recorded.ckpt_path, recorded.weights_only = None, True
        self.recorded_config = self._subcommand_parsers[self.command].dump(recorded, skip_unset=False)
        self._settle_checkpoint()
        # A plug-in may take minutes to make a base model: what is wrong with the settings is told before.
        self.check_model_and_data()  # first, as Lightning copies the settings then, and objects cannot be copied
        self._logger_settings = trainer.logger
        trainer.logger = built(trainer.logger, Logger, "trainer.logger")
        trainer.callbacks = built(trainer.callbacks, Callback, "trainer.callbacks")
        trainer.strategy = built(trainer.strategy, Strategy, "trainer.strategy")
        path, reference = settings.get("model.lm.path"), settings.get("model.reference")
        if reference is not None:
            with seeds_kept():
                settings["model.reference"] = resolve_reference(reference)
        if path is not None:
            with seeds_kept():
                settings["model.lm.path"] = resolve_model(path)
            self._written_path = path
            if "data.tokenizer" in settings and settings["data.tokenizer"] is None:
                settings["data.tokenizer"] = settings["model.lm.path"]

    def instantiate_classes(self) -> None:
        """As Lightning does it; the module also learns how the user calls its model."""
        self.settings.model.pop("class_path", None)  # it is chosen; the run's record has it
        super().instantiate_classes()
        lm = getattr(self.model, "lm", None)
        if lm is not None:
            lm.written_path = self._written_path

    def check_model_and_data(self) -> None:
        """Builds module and data module once, which needs neither weights nor rows, so that they check their settings.

        Raises:
            UserError: A setting is out of its range.
        """
        settings = Namespace(model=self.settings.model.clone(), data=self.settings.data)
        settings.model.pop("class_path", None)
        try:
            self._subcommand_parsers[self.command].instantiate(settings)
        except ValueError as error:  # the parser's own, which hides what the class has said
            raise users_error(error) or error from None

    def _settle_checkpoint(self) -> None:
        """Finds the checkpoint before any model is loaded, so that a wrong path is told at once."""
        settings = self.settings
        if settings.ckpt_path is None or not is_rank_zero():
            return
        paths = find_checkpoints(settings.ckpt_path, self._runs / settings.name)
        self.checkpoints = readable(paths, self.command == "fit", settings.weights_only)
        run = run_of(self.checkpoints[0])
        if run is not None and self.command == "fit":
            before = latest_config(run).read_text(encoding="utf-8")
            tell_differences(run, differences(settings_of(before), settings_of(self.recorded_config)))

    # --- building ----------------------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Takes the run's directory and builds the trainer in it."""
        for line in replaced_settings(self.options, DEFAULT_CLASSES) if is_rank_zero() else []:
            print(line, file=sys.stderr, flush=True)
        self.destination = agree(self._runs, self.argv, self._claim)
        self.run_dir = Path(self.destination.directory)
        self.datamodule.goes_on = self.destination.checkpoint is not None
        if "ckpt_path" in self.config_init[self.command]:
            self.config_init[self.command]["ckpt_path"] = self.destination.checkpoint
        trainer = {**self.config_init[self.command].trainer.as_dict(), **kwargs}
        trainer["default_root_dir"] = str(self.run_dir)
        if self.command != "predict":
            users = knowing_run(trainer["logger"], self._logger_settings, self.run_dir, self._runs)
            trainer["logger"] = join_defaults(users, self.run_dir)
        elif trainer["logger"] in (None, True):
            trainer["logger"] = False
        trainer["callbacks"] = self._callbacks(trainer)
        if self.command != "fit" and not any(isinstance(c, Checkpoint) for c in trainer["callbacks"]):
            trainer["enable_checkpointing"] = False  # else Lightning adds a callback that writes them
        try:
            return self.trainer_class(**trainer)
        except (MisconfigurationException, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"trainer: {one_line(str(error))}") from error

    def _claim(self, before: Destination | None) -> Destination:
        """The directory and checkpoint of this run, which no other process writes; called in rank 0 only."""
        destination = choose_destination(self.command, self._runs, self.settings.name, self.checkpoints, before)
        if self.command == "fit":
            self.lock = WriterLock.take(Path(destination.directory))
        return destination

    def _callbacks(self, trainer: dict[str, Any]) -> list[Callback]:
        """The user's callbacks, the default ones that are wanted, and the record of the run."""
        assert self.run_dir is not None
        assert self.destination is not None
        callbacks = join_default_callbacks(self.command, trainer, default_callbacks(self.run_dir))
        self.record = RunRecord(self.destination, self.recorded_config, self.argv, self.lock)
        callbacks.insert(0, self.record)
        if self.command == "fit":
            callbacks.insert(1, Hyperparameters(hyperparameters(load_yaml(self.recorded_config, "config.yaml"))))
        callbacks.sort(key=lambda callback: not isinstance(callback, Watchdog))  # the others' setup may hang
        if self.command == "predict":
            callbacks.append(PredictionFile(self.run_dir))
        return callbacks

    def before_fit(self) -> None:
        """Lightning's hook: until the data are prepared, a trainer asks no callback."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Preemption | Watchdog):
                callback.begin(self.trainer)
        if is_rank_zero():
            assert self.run_dir is not None
            begin_logged_runs(self.trainer.loggers, self.run_dir)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "predict":
            kwargs["return_predictions"] = False  # they are in a file; all of them need not fit into memory
        return kwargs

    def _discard_unused_directory(self) -> None:
        """Removes a directory that was made for a run that never began: five typing errors leave no five runs."""
        began = self.record is not None and self.record.began
        fresh = self.destination is not None and self.destination.fresh
        if fresh and not began and is_rank_zero() and self.run_dir is not None:
            discard(self.run_dir, self._runs)

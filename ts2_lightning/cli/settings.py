"""Reads the settings of many command lines of `fit` with one parser, and builds no model, data or trainer."""

from collections.abc import Sequence
from typing import Any

import yaml
from lightning.pytorch import Callback

from ts2_lightning.cli.errors.guard import CommandLineError
from ts2_lightning.cli.errors.origins import check_options
from ts2_lightning.cli.lightning_cli import DEFAULT_CLASSES, TS2CLI, classes
from ts2_lightning.cli.module_class import chosen_module, named_module, with_module_class
from ts2_lightning.cli.package_configs import with_package_configs
from ts2_lightning.cli.trainer_settings import built
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import FAST_LOADER


class SettingsReader(TS2CLI):
    """Reads the settings of many command lines of `fit`; the parser is made with the first of them."""

    def __init__(self) -> None:
        super().__init__("fit", [], *classes())
        self._is_made = False
        self._module_path: str | None = None

    def read(self, options: Sequence[str]) -> dict[str, Any]:
        """The resolved configuration of a command line, plain values, as a run would record it.

        What is left to the machine, such as the precision, stays open. The module, the data module and callbacks are
        made once, so that a hyper-parameter out of range is told too.

        Args:
            options: Command line after `fit`.

        Raises:
            UserError: where `fit` would refuse it.
        """
        self.options = with_module_class(with_package_configs(options))
        try:
            return self._read()
        except CommandLineError as error:
            raise UserError(str(error)) from None
        except UserError as error:
            self._raise_with_place(error)

    def _read(self) -> dict[str, Any]:
        check_options(self.options, DEFAULT_CLASSES)
        path = named_module(self.options)
        if path != self._module_path:  # its settings are others, and need another parser
            module, data = classes()
            self._began_with = chosen_module(self.options, module), data
            self._module_path, self._is_made = path, False
        if self._is_made:
            self.parse_arguments(self.parser, ["fit", *self.options])
            self.before_instantiate_classes()
        else:
            self.run()
            self._is_made = True
        self.check_model_and_data()
        built(self.settings.trainer.callbacks, Callback, "trainer.callbacks")
        parser = self._subcommand_parsers["fit"]
        config: dict[str, Any] = yaml.load(parser.dump(self.settings, skip_unset=False), Loader=FAST_LOADER)
        return config

    def before_instantiate_classes(self) -> None:
        """Neither a model is made nor a run directory taken."""
        self.settle()

    def _set_seed(self) -> None:
        """Nothing is random here."""

    def _add_instantiators(self) -> None:
        """Nothing is saved."""

    def instantiate_classes(self) -> None:
        """Nothing is made to run."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing runs."""

"""Lightning's private parts that the package uses; each line says what breaks if a version of Lightning changes one."""

import inspect
from typing import Any

import lightning
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loops import training_epoch_loop
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from lightning.pytorch.trainer import call

LIGHTNING = f"lightning {lightning.__version__}"

PARTS: dict[str, tuple[Any, str]] = {
    "_signal_connector.register_signal_handlers": (Trainer, "Preemption cannot keep Lightning from its own handlers"),
    "fit_loop.epoch_loop._broadcast_sigterm_tensor": (Trainer, "each micro-batch waits for a broadcast"),
    "fit_loop.epoch_loop._batches_that_stepped": (Trainer, "a run that goes on logs at the wrong step"),
    "fit_loop._should_accumulate": (Trainer, "DeepSpeed does not know when a step ends"),
    "_logger_connector._first_loop_iter": (Trainer, "a validation between two steps disturbs what is logged after it"),
    "fit_loop.epoch_loop.val_loop._has_run": (Trainer, "a validation between two steps counts as one of Lightning's"),
    "_prepare_subcommand_parser": (LightningCLI, "weights_only has no default of true: a checkpoint may run code"),
    "_prepare_subcommand_kwargs": (LightningCLI, "predict keeps all predictions in memory"),
    "_parse_ckpt_path": (LightningCLI, "settings in a checkpoint win over those that the user typed"),
    "_run_subcommand": (LightningCLI, "data and plan train instead of reporting"),
    "_add_instantiators": (LightningCLI, "the settings of grids are saved where there is no run"),
    "_set_seed": (LightningCLI, "reading the settings of a grid changes the state of the random generators"),
    "_check_log_dir_exists": (ExperimentWriter, "a run that goes on loses the metrics.csv that it had"),
    "_rewrite_with_new_header": (ExperimentWriter, "metrics.csv is rewritten in place, and a killed run loses it"),
    "_record_new_keys": (ExperimentWriter, "a column that begins late is not in metrics.csv"),
    "_format_config": (DeepSpeedStrategy, "DeepSpeed's own settings are not ours"),
    "_initialize_deepspeed_inference": (DeepSpeedStrategy, "an evaluation under DeepSpeed is set up as Lightning does"),
    "_setup_distributed": (ModelParallelStrategy, "FSDP2 has no device mesh"),
    "_call_lightning_module_hook": (call, "no callback hears of a step of DeepSpeed"),
}
"""Dotted name -> what has it, and what breaks without it. A trainer is built, as most of its parts are made in it."""


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_there(name: str, trainer: Trainer) -> None:
    owner, broken = PARTS[name]
    part: Any = trainer if owner is Trainer else owner
    for word in name.split("."):
        assert hasattr(part, word), f"{LIGHTNING} no longer has {owner.__name__}.{name}: {broken}"
        part = getattr(part, word)


@pytest.mark.parametrize(
    ("module", "words", "broken"),
    [
        (training_epoch_loop, "self._broadcast_sigterm_tensor()", "each micro-batch waits for a broadcast"),
        (training_epoch_loop, "self._batches_that_stepped", "a run that goes on logs at the wrong step"),
    ],
)
def test_a_part_is_used(module: Any, words: str, broken: str) -> None:
    assert words in inspect.getsource(module), f"{LIGHTNING} no longer calls {words} in {module.__name__}: {broken}"


def test_the_settings_of_a_subcommand_can_be_changed() -> None:
    source = inspect.getsource(LightningCLI)
    for attribute, broken in {
        "self._subcommand_parsers": "messages name no right settings, and no configuration is recorded",
        "self.config_init": "a run starts from another checkpoint than the one that all ranks have agreed on",
    }.items():
        assert attribute in source, f"{LIGHTNING} no longer keeps {attribute} in LightningCLI: {broken}"
    logger = CSVLogger("nowhere")
    assert hasattr(logger, "_experiment"), f"{LIGHTNING} no longer keeps a CSV logger's writer in _experiment"

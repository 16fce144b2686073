"""Settings handed to loggers that do not take all of them, and the page of TensorBoard on which diagnostics stand."""

import re
from typing import Any

import pytest
from lightning.pytorch.loggers.logger import DummyLogger

from tests.support.errors import refused
from ts2_lightning.callbacks import Hyperparameters
from ts2_lightning.callbacks.hyperparameters import log_settings
from ts2_lightning.callbacks.tensorboard_tabs import diagnostics_layout

SETTINGS = {f"setting.{number}": number for number in range(100)}


class Choosy(DummyLogger):
    """Takes hyper-parameters all at once or not at all, as a database does."""

    def __init__(self, unwanted: set[str]) -> None:
        super().__init__()
        self.unwanted = unwanted
        self.calls = 0
        self.taken: dict[str, Any] = {}

    def log_hyperparams(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self.calls += 1
        if refused := sorted(self.unwanted & params.keys()):
            raise RuntimeError(f"{refused[0]} was another\nand more")
        self.taken |= params


@pytest.mark.parametrize("unwanted", [set[str](), {"setting.7"}, {"setting.0", "setting.50", "setting.99"}])
def test_a_logger_gets_all_that_it_takes(unwanted: set[str]) -> None:
    logger = Choosy(unwanted)
    refused, reason = log_settings(logger, SETTINGS)
    assert set(refused) == unwanted
    assert logger.taken == {name: value for name, value in SETTINGS.items() if name not in unwanted}
    assert reason == (f"{min(unwanted, key=list(SETTINGS).index)} was another" if unwanted else "")


def test_a_logger_that_takes_nothing_is_not_asked_for_ever() -> None:
    logger = Choosy(set(SETTINGS))
    refused, _ = log_settings(logger, SETTINGS)
    assert sorted(refused) == sorted(SETTINGS)
    assert logger.calls < 50


def test_a_value_that_is_no_plain_one_is_refused() -> None:
    said = r"settings\['lr'\] must be a text, a number, true or false, got \[1\]; give what is nested under names of"
    with refused(said):
        Hyperparameters({"model": "x", "lr": [1]})


def matching(layout: dict[str, dict[str, list[Any]]], category: str, title: str, names: set[str]) -> set[str]:
    kind, tags = layout[category][title]
    assert kind == "Multiline"
    return {name for name in names if any(re.match(tag, name) for tag in tags)}


def test_a_chart_has_training_validation_and_named_sets() -> None:
    names = {"train/tail_mass", "val/tail_mass", "val/chat/tail_mass", "val_by_position/tail_mass/1", "final/tail_mass"}
    layout = diagnostics_layout(["position"])
    assert matching(layout, "Distributions", "tail mass", names) == {n for n in names if n.endswith("tail_mass")} - {
        "final/tail_mass"
    }
    parts = {"train/objective", "train/objective/sparsemax", "val/objective", "val/chat/objective/sparsemax"}
    assert matching(layout, "Objective", "objective and its parts", parts) == {
        "train/objective", "train/objective/sparsemax",
    }  # fmt: skip
    assert matching(layout, "Objective", "objective and its parts, validation", parts) == {
        "val/objective", "val/chat/objective/sparsemax",
    }  # fmt: skip
    groups = {"train_by_position/entropy/1", "train_by_position/entropy/2-4", "val_by_position/chat/entropy/1"}
    assert matching(layout, "By position in the response", "entropy (nats)", groups) == {
        "train_by_position/entropy/1", "train_by_position/entropy/2-4",
    }  # fmt: skip
    assert matching(layout, "By position in the response", "entropy (nats), validation", groups) == {
        "val_by_position/chat/entropy/1",
    }  # fmt: skip

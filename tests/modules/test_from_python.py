"""What scripts and notebooks hand to the module, where no command line has looked at it before."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.errors import refused
from ts2_lightning.losses import ReferenceAnchored, TS2Loss
from ts2_lightning.modules import LanguageModelConfig, SFTModule, places
from ts2_lightning.types import UserError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lm": "toyworld"}, "lm: expected a LanguageModelConfig, such as .*, got 'toyworld'"),
        ({"loss": "TS2Loss"}, r"loss: expected a TokenLoss, such as TS2Loss\(\), got 'TS2Loss'"),
        ({"loss": TS2Loss}, r"loss: expected a TokenLoss, such as TS2Loss\(\), got the class TS2Loss; call it"),
        ({"engine": "chunked"}, r"engine: expected a LossEngine, such as ChunkedEngine\(\), got 'chunked'"),
    ],
)
def test_what_is_no_object(arguments: dict[str, Any], message: str) -> None:
    with refused(message):
        SFTModule(**{"lm": LanguageModelConfig("toyworld"), **arguments})


def test_a_notebook_shows_one_line() -> None:
    """IPython asks an exception for the lines to show."""
    assert UserError("data.train: no file rows.jsonl")._render_traceback_() == [
        "UserError: data.train: no file rows.jsonl"
    ]


class Making:
    """A plug-in that makes its model, and seeds and draws in doing so."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def locate(self, path: str) -> Path:
        os.environ["PL_GLOBAL_SEED"] = "77"
        torch.manual_seed(77)
        return self.directory


def test_the_model_of_a_plug_in_goes_by_its_name(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = Making(world / "tied")
    monkeypatch.setattr(places, "model_scheme", lambda path: scheme if path == "made" else None)
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    before = torch.get_rng_state()
    module = SFTModule(LanguageModelConfig("made"), ReferenceAnchored(TS2Loss()), reference="made")
    assert module.model_limits().embeddings == 428
    module.prepare_data()
    assert (module.lm.path, module.lm.written_path, module.reference) == (
        str(world / "tied"), "made", str(world / "tied"),
    )  # fmt: skip
    module.configure_model()
    assert module.language_model.num_parameters()
    assert torch.get_rng_state().equal(before)
    assert os.environ["PL_GLOBAL_SEED"] == "5"

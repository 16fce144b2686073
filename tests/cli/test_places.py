"""A value that cannot be is told with the line of the file that gave it."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from jsonargparse import Namespace

from tests.cli.conftest import Run
from ts2_lightning.cli.errors.origins import place_of

ALPHA = "TS2Loss: alpha must be a finite number of at least 0, got -1"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "loss.yaml").write_text(
        "model:\n  loss:\n    class_path: ts2_lightning.losses.TS2Loss\n    init_args:\n      alpha: -1\n"
    )
    (tmp_path / "trainer.yaml").write_text("trainer:\n  max_steps: -5\n")
    (tmp_path / "parts.yaml").write_text("model:\n  loss: loss/ts2.yaml\n")
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "ts2.yaml").write_text("class_path: TS2Loss\ninit_args:\n  alpha: -1\n")
    (tmp_path / "callbacks.yaml").write_text(
        "trainer:\n  callbacks:\n  - class_path: NEFTune\n    init_args:\n      alpha: -1\n"
        "  - class_path: Sampler\n    init_args: {alpha: 2}\n"
    )
    return tmp_path


def settings(callbacks: Sequence[str] = ()) -> Namespace:
    return Namespace(
        model=Namespace(loss=Namespace(class_path="ts2_lightning.losses.TS2Loss", init_args=Namespace(alpha=-1))),
        trainer=Namespace(callbacks=[Namespace(class_path=name, init_args=Namespace(alpha=-1)) for name in callbacks]),
    )


def test_the_line_of_a_setting(files: Path) -> None:
    options = ["-c", f"{files}/trainer.yaml"]
    assert place_of("trainer.max_steps must be ...", settings(), options) == f"{files}/trainer.yaml:2: "
    assert place_of("trainer.max_steps must be ...", settings(), [*options, "--trainer.max_steps=-6"]) == "", "typed"
    for other in ("trainer.max_epochs must be", "max_steps must be", "", "trainer source 'x': must be", "trainer: x"):
        assert place_of(other, settings(), options) == ""


@pytest.mark.parametrize(("file", "place"), [("loss.yaml", "loss.yaml:5: "), ("parts.yaml", "loss/ts2.yaml:3: ")])
def test_the_line_of_a_classs_setting(file: str, place: str, files: Path) -> None:
    options = ["-c", f"{files}/{file}"]
    assert place_of(ALPHA, settings(), options) == f"{files}/{place}"
    assert place_of(ALPHA.replace("TS2Loss", "GEMLoss"), settings(), options) == ""


def test_a_sentence_behind_a_setting(files: Path) -> None:
    (files / "lm.yaml").write_text("model:\n  lm:\n    adapter:\n      dropout: 0.1\n    router_aux_loss_coef: 1\n")
    options = ["-c", f"{files}/lm.yaml"]
    for message, line in (
        ("model.lm.router_aux_loss_coef: transformers has no loss", 5),
        ("model.lm.adapter: dropout must be 0", 4),
        ("model.lm.adapter: a sentence", 3),
    ):
        assert place_of(message, settings(), options) == f"{files}/lm.yaml:{line}: "
    assert place_of(f"{files}/lm.yaml:5: model.lm.router_aux_loss_coef: said", settings(), options) == ""
    assert place_of("lm.yaml:5: model.lm.router_aux_loss_coef: said", settings(), options) == ""


def test_the_last_file_is_named(files: Path) -> None:
    first, second = ["-c", f"{files}/loss.yaml"], ["-c", f"{files}/parts.yaml"]
    assert place_of(ALPHA, settings(), [*first, *second]) == f"{files}/loss/ts2.yaml:3: "
    assert place_of(ALPHA, settings(), [*second, *first]) == f"{files}/loss.yaml:5: "


def test_objects_of_a_list_are_told_apart_or_not_named(files: Path) -> None:
    options = ["-c", f"{files}/callbacks.yaml"]
    message = "NEFTune: alpha must be a finite number above 0, got -1"
    assert place_of(message, settings(["NEFTune", "Sampler"]), options) == ""
    one = "trainer:\n  callbacks:\n  - class_path: NEFTune\n    init_args: {alpha: -1}\n"
    (files / "callbacks.yaml").write_text(one)
    assert place_of(message, settings(["NEFTune"]), options) == f"{files}/callbacks.yaml:4: "


@pytest.mark.parametrize("command", ["fit", "plan"])
@pytest.mark.parametrize(
    ("file", "told"), [("loss.yaml", f"loss.yaml:5: {ALPHA}.0"), ("trainer.yaml", "trainer.yaml:2: trainer.max_steps")]
)
def test_commands_name_the_line(command: str, file: str, told: str, files: Path, real: Run) -> None:
    answer = real(command, "-c", f"{files}/{file}", "--model.lm.path=none", "--data.train=none.jsonl")
    assert answer.refusal.startswith(f"{files}/{told}")

"""Another LightningModule than the package's: named by an option or a configuration, recorded, gone on with."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli import standins
from tests.cli.conftest import Run
from ts2_lightning.cli import settings

MODULE = """
from pathlib import Path

from tests.cli.standins import SquareLoss, StandInLanguageModel, StandInLoss, StandInModule


class Mine(StandInModule):
    def __init__(
        self, lm: StandInLanguageModel, loss: StandInLoss = SquareLoss(), beta: float = 0.5
    ) -> None:
        super().__init__(lm, loss)
        self.beta = beta

    def on_train_start(self) -> None:
        Path("beta.txt").write_text(f"{self.beta} {type(self.loss).__name__} {self.lm.path}")


NUMBER = 3
"""
NAMED = "model:\n  class_path: my_module.Mine\n  beta: 2\n"
OF_RUN = Path("runs/run/1/config.yaml")


@pytest.fixture
def file(here: Path) -> Iterator[Path]:
    path = here / "my_module.py"
    path.write_text(MODULE)
    yield path
    sys.modules.pop("my_module", None)


def recorded(config: Path = OF_RUN) -> dict[str, Any]:
    return yaml.safe_load(config.read_text())["model"]


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(
    "option", [("--model", "my_module.Mine"), ("--model=my_module.Mine",), ("--model.class_path=my_module.Mine",)]
)
def test_on_the_command_line(option: tuple[str, ...], fit: Run) -> None:
    """Its settings stand beside the class, where those of the package's own module stand."""
    fit(*option, "--model.beta=3").done()
    assert Path("beta.txt").read_text() == "3.0 SquareLoss base"
    assert recorded()["class_path"] == "my_module.Mine"
    assert recorded()["beta"] == 3
    assert recorded()["lm"]["path"] == "base"


@pytest.mark.usefixtures("file")
def test_in_a_configuration(fit: Run, ts2: Run) -> None:
    """Also in the file of the settings `model`; and a run that goes on has it from its own record."""
    Path("a.yaml").write_text(NAMED)
    Path("b.yaml").write_text("model: fragment.yaml\n")
    Path("fragment.yaml").write_text("class_path: my_module.Mine\nbeta: 4\n")
    for config, beta in (("a.yaml", 2.0), ("b.yaml", 4.0)):
        fit("-c", config, "--name=run").done()
        assert Path("beta.txt").read_text().startswith(f"{beta} ")
    Path("beta.txt").unlink()
    ts2("fit", "--ckpt_path=last", "--trainer.max_epochs=3", "--name=run").done()
    assert Path("beta.txt").read_text().startswith("4.0 ")
    assert recorded(Path("runs/run/2/config.yaml"))["class_path"] == "my_module.Mine"


def test_where_none_is_named_nothing_is_recorded(fit: Run) -> None:
    fit().done()
    assert "class_path" not in recorded()


@pytest.mark.usefixtures("file")
def test_the_last_one_named_is_taken(fit: Run) -> None:
    Path("a.yaml").write_text("model:\n  class_path: my_module.Other\n")
    fit("-c", "a.yaml", "--model", "my_module.Mine", "--name=run").done()
    assert recorded()["class_path"] == "my_module.Mine"


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "my_module.Other"), "--model.class_path: cannot import my_module.Other: "),
        (("--model", "no_module.Other"), "--model.class_path: cannot import no_module.Other: No module named"),
        (("--model", "leaves.Other"), "--model.class_path: cannot import leaves.Other: it ends with SystemExit(3)"),
        (("--model", "my_module.NUMBER"), "--model.class_path: my_module.NUMBER is no LightningModule"),
        (("--model", "my_module.Mine", "--model.betta=1"), "--model.betta: no such option; did you mean --model.beta?"),
        (("-c", "wrong.yaml"), "wrong.yaml:2: model.class_path: cannot import my_module.Other: "),
        (("-c", "init_args.yaml"), "init_args.yaml: model.init_args: write the settings of the module beside"),
    ],
)
def test_what_is_wrong_takes_one_line(options: tuple[str, ...], said: str, fit: Run) -> None:
    Path("leaves.py").write_text("raise SystemExit(3)\n")
    Path("wrong.yaml").write_text("model:\n  class_path: my_module.Other\n")
    Path("init_args.yaml").write_text("model:\n  class_path: my_module.Mine\n  init_args: {beta: 2}\n")
    assert fit(*options).refusal.startswith(said)
    assert not Path("runs").exists()


@pytest.mark.usefixtures("file")
def test_a_grid_may_have_it_in_some_rows(ts2: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One parser reads the rows of a grid, and is made anew where the module is another."""
    del ts2  # it puts the stand-ins in place
    monkeypatch.setattr(settings, "classes", lambda: (standins.StandInModule, standins.StandInData))
    monkeypatch.syspath_prepend(str(here))
    reader, options = settings.SettingsReader(), [*standins.FIT]
    read = [
        reader.read([*options, *more])["model"] for more in ((), ("--model", "my_module.Mine", "--model.beta=7"), ())
    ]
    assert "class_path" not in read[0]
    assert (read[1]["class_path"], read[1]["beta"]) == ("my_module.Mine", 7)
    assert read[2] == read[0]

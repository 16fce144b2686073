"""`--sweep`: a grid of one line, which is the grid that its file would be."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Run, here, real  # noqa: F401
from tests.e2e.command_line import QUICKSTART
from ts2_lightning.cli.settings import SettingsReader
from ts2_lightning.studies.grid import Grid, Training, read_grid, read_sweep
from ts2_lightning.studies.grid.sweep import usual_measures

RATES = "model.optimizer.lr=1e-3,5.0e-4"
FILE = str(QUICKSTART)


@pytest.fixture(scope="module")
def reader() -> SettingsReader:
    """The parser of fit, made once."""
    return SettingsReader()


def points(grid: Grid) -> list[Any]:
    """What is trained and measured, but for where it lies."""

    def decisive(training: Training) -> Any:
        return training.digest, training.run, training.options[: training.options.index("--name")]

    return [(point.labels, point.seed, decisive(point.training), point.measure) for point in grid.points]


def test_a_sweep_is_the_grid_that_its_file_would_be(reader: SettingsReader, here: Path) -> None:  # noqa: F811
    file = {
        "base": FILE,
        "set": {"trainer.max_epochs": 1},
        "axes": {
            "lr": {"setting": "model.optimizer.lr", "values": ["1e-3", "5.0e-4"]},
            "loss": {"setting": "model.loss", "values": ["TS2Loss"]},
        },
        "seeds": [0, 4],
        "measure": {"toyworld": {}, "validation": {}, "cost": {}},
    }
    Path("lr.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    swept = read_sweep([FILE], [RATES, "model.loss=TS2Loss"], ["trainer.max_epochs=1"], [0, 4], reader.read)
    written = read_grid("lr.yaml", reader.read)
    assert points(swept) == points(written)
    assert len(swept.points) == 4
    assert swept.record()["axes"] == written.record()["axes"]
    assert (swept.name, swept.title) == ("quickstart-lr-loss", "quickstart over model.optimizer.lr and model.loss")
    assert (swept.directory, swept.points[0].training.config["model"]["optimizer"]["lr"]) == (
        Path("runs/quickstart-lr-loss"),
        1e-3,
    )
    named = read_sweep([FILE], [RATES], [], [0], reader.read, "elsewhere", "mine")
    assert named.directory == Path("elsewhere/mine")
    assert named.trainings[0].name.startswith("mine/1e-3-s0-")


def test_axes_have_short_names_where_they_are_told_apart(reader: SettingsReader) -> None:
    sweeps = ["trainer.callbacks.alpha=5", "model.loss.alpha=0.25", "trainer.max_epochs=1"]
    neftune = [FILE, str(QUICKSTART.parents[1] / "baseline" / "neftune.yaml")]
    grid = read_sweep(neftune, sweeps, ["model.loss=TS2Loss"], [0], reader.read)
    assert [*grid.axes] == ["trainer.callbacks.alpha", "model.loss.alpha", "max_epochs"]
    grid = read_sweep(neftune, ["trainer.callbacks.seed=1,2"], [], [0], reader.read)
    assert [*grid.axes] == ["trainer.callbacks.seed"], "seed is the name of what repeats a row"


def test_what_is_usual_is_measured_where_it_applies(reader: SettingsReader) -> None:
    config = reader.read(["-c", FILE])
    assert usual_measures(config) == {"toyworld": {}, "validation": {}, "cost": {}}
    away = {**config, "model": {**config["model"], "lm": {"path": "org/on-the-hub"}}}
    assert [*usual_measures(away)] == ["validation", "cost"], "the hub is not asked"
    assert [*usual_measures({**away, "data": {**config["data"], "validation": None}})] == ["cost"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--sweep", "model.optimizer.lrr=1e-3"], "--sweep model.optimizer.lrr: lrr=1e-3, seed 0: "
         "--model.optimizer.lrr: no such option; did you mean --model.optimizer.lr?"),
        (["--sweep", "model.optimizer.lr=1e-3,fast"], "--sweep model.optimizer.lr: lr=fast, seed 0: "
         "--model.optimizer.lr: expected float, got 'fast'"),
        (["--sweep", "model.optimizer.lr=1e-3,5e-4,1e-3"], "--sweep model.optimizer.lr: 1e-3 comes twice"),
        (["--sweep", "model.optimizer.lr=1e-3,0.001"], "--sweep: lr=1e-3 and lr=0.001 are the same training; keep one"),
        (["--sweep", "model.optimizer.lr"], "--sweep model.optimizer.lr: expected SETTING=VALUE,VALUE,..., such as "
         "model.optimizer.lr=1e-3"),
        (["--sweep", "model.optimizer.lr=[1e-3],[2e-3]"],
         "--sweep model.optimizer.lr: expected a single value, got a list"),
        (["--sweep", "model.optimizer.lr=1e-3]"], "--sweep model.optimizer.lr: expected values with commas between "
         "them, got '1e-3]' (expected '<document start>', but found ']')"),
        (["--sweep", RATES, "--sweep", "model.optimizer.lr=2e-3"],
         "--sweep model.optimizer.lr: given twice; put all values into one"),
        (["--sweep", RATES, "--set", "model.optimizer.lr=1"],
         "--set model.optimizer.lr: --sweep has values of it too; keep one of them"),
        (["--sweep", RATES, "--set", "model.losss=TS2Loss"],
         "--model.losss: no such option; did you mean --model.loss?"),
        (["--sweep", RATES, "--set", "model.loss"], "--set model.loss: expected SETTING=VALUE, such as "
         "model.optimizer.lr=1e-3"),
        (["--sweep", "data.seed=0,1"], "--sweep data.seed: is what a seed sets; give --seeds 0 1 2"),
        (["--sweep", RATES, "--seeds", "1", "1"], "--seeds: 1 comes twice"),
        (["--seeds", "1"], "--seeds: is for --sweep; a grid file has its own, `seeds:`"),
        (["--set", "trainer.max_epochs=1"], "--set: is for --sweep; a grid file has its own, `set:`"),
        ([], f"-c {FILE}: is the configuration of a fit, not a grid; name a grid, or give an axis, such as --sweep "
         "model.optimizer.lr=1e-3,5e-4"),
        (["-c", FILE], f"-c: one grid file is run at a time, got {FILE}, {FILE}"),
        (["--sweep", RATES, "-c", "grid.yaml"], "--sweep: grid.yaml is a grid, which has axes of its own; add one "
         "there, or give a file of fit"),
        (["--sweep", RATES, "-c", "gird.yaml"], "-c gird.yaml: no such file; did you mean grid.yaml?"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_told_in_one_line(real: Run, words: list[str], line: str) -> None:  # noqa: F811
    Path("grid.yaml").write_text("base: a.yaml\naxes: {}\n")
    assert real("ablate", "-c", FILE, *words, "--dry-run").refusal == line
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--sweep", "model.optimizer.lr=1e-3]#"],
         "--sweep model.optimizer.lr: expected values with commas between them, got '1e-3]#' (no list)"),
        (["--sweep", "model.optimizer.lr=1e-3,2e-3] # ü"],
         "--sweep model.optimizer.lr: expected values with commas between them, got '1e-3,2e-3] # ü' (no list)"),
        (["--sweep", f"model.optimizer.lr={'[' * 2000}1{']' * 2000}"],
         "--sweep model.optimizer.lr: nested too deeply to be read"),
        (["--sweep", "trainer.max_time=2024-13-45"], "--sweep trainer.max_time: #1: not plain YAML: '2024-13-45' is "
         "no timestamp; put it in quotes if it is a text"),
        (["--sweep", RATES, "--set", "data.seed=5"], "--set data.seed: is what a seed sets; give --seeds 0 1 2"),
        (["--sweep", RATES, "--set", "name=mine"],
         "--set name: a grid sees to where its runs lie and from where they go on; take it out"),
        (["--sweep", "ckpt_path=a,b"],
         "--sweep ckpt_path: a grid sees to where its runs lie and from where they go on; take it out"),
        (["--sweep", RATES, "--set", "data.batch_size=16", "--set", "data.batch_size=32"],
         "--set data.batch_size: given twice; keep one of them"),
    ],
)  # fmt: skip
def test_nothing_that_is_given_is_undone_or_left_out(real: Run, words: list[str], line: str) -> None:  # noqa: F811
    assert real("ablate", "-c", FILE, *words).refusal == line


def test_a_value_may_have_a_question_mark(reader: SettingsReader, here: Path) -> None:  # noqa: F811
    sources = ["toyworld:train?seed=1", "toyworld:train?seed=2"]
    grid = read_sweep([FILE], [f"data.train={','.join(sources)}"], [], [0], reader.read)
    assert [*grid.axes["train"]] == sources

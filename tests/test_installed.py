"""The package as it is installed, away from any checkout: its wheel, an empty folder, and what its users do first."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.e2e.command_line import ROOT, column, empty_working_directory
from ts2_lightning.toyworld import base_directory, building_directory, load_world, publish, write_blank_model

GRID = """
base: configs/experiment/quickstart.yaml
axes: {objective: {CE: {set: {model.loss: ../loss/cross_entropy.yaml}}, TS2: {}}}
set: {trainer.max_steps: 2, trainer.accelerator: cpu}
measure: {cost: {}}
report: {baseline: {objective: CE}}
"""

Ts2 = Callable[..., subprocess.CompletedProcess[str]]


def run(*command: str, **settings: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, **settings)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done  # type: ignore[no-any-return]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An interpreter with the wheel, which finds all other packages where the tests have them."""
    pytest.importorskip("hatchling", reason="needs hatchling, of the extra dev, which builds the wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist"), cwd=ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    place = tmp_path / "venv"
    venv.create(place)
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install", "--quiet"]
    run(*pip, "--no-deps", "--no-index", str(wheel))
    packages = next((place / "lib").glob("python*/site-packages"))
    others = sysconfig.get_paths()["purelib"]
    (packages / "others.pth").write_text(f"import site; site.addsitedir({others!r})\n")  # with what its own .pth add
    return place


@pytest.fixture
def ts2(place: Path, tmp_path: Path) -> Ts2:
    """The installed command, in an empty folder. The toy world's base model has random weights."""
    cache, here = tmp_path / "cache", tmp_path / "here"
    here.mkdir()
    with empty_working_directory(here, cache):
        directory = base_directory(0, load_world().settings["pretraining"])
        building = write_blank_model(building_directory(directory))
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(building)).save_pretrained(building)
        publish(building, directory)
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**inherited, "TS2_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return lambda *words: run(str(place / "bin" / "ts2"), *words, cwd=here, env=environment)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_an_empty_folder(ts2: Ts2, place: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    configs = next(place.glob("lib/python*/site-packages/ts2_lightning")) / "configs"
    assert ts2("configs").stdout.startswith(f"In {configs}; ts2 configs NAME shows one")

    ts2("configs", "grid/toyworld/alpha", "--copy", "copied")
    assert (here / "copied/grid/toyworld/alpha.yaml").read_bytes() == (
        configs / "grid/toyworld/alpha.yaml"
    ).read_bytes()

    few = ("--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
    fit = ts2("fit", "-c", "configs/experiment/quickstart.yaml", "--name", "mine", *few)
    taken = f"taken from the package: {configs / 'experiment/quickstart.yaml'}"
    assert fit.stderr.count(taken) == 1
    assert len(column(here / "runs/mine/1", "train/objective")) == 2
    assert (here / "runs/mine/1/export/README.md").is_file()
    assert "ts2 fit -c" in (here / "runs/mine/1/command.txt").read_text()

    (here / "grid.yaml").write_text(GRID)
    ablate = ts2("ablate", "-c", "grid.yaml")
    assert ablate.stderr.count("taken from the package: ") == 2
    assert (here / "runs/grid/report/report.md").is_file()
    assert "CE" in ts2("report", "runs/grid").stdout
    ts2("report", "runs/mine")

    quickstart = ts2("quickstart")
    assert (here / "runs/quickstart/table.txt").read_text().strip() in quickstart.stdout
    assert (here / "runs/quickstart/next_token.png").read_bytes().startswith(b"\x89PNG")
    assert "== TS2: ts2 fit -c " in quickstart.stdout
    assert "python cli.py" not in quickstart.stdout

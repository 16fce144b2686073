"""Configurations of the package, where there is no checkout: which file is taken, what is said, and `configs`."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Run
from ts2_lightning.shipped_configs import shipped_config, shipped_names

CHAT = "configs/experiment/chat.yaml"
OPTIONS = ("--model.lm.path=x", "--data.train=x.jsonl", "--print_config")


def test_files_of_the_package_stand_in_for_those_that_are_not_there(real: Run, here: Path) -> None:
    """Those that are given, named in a user's file, and named as the value of an option; each is told once."""
    (here / "mine.yaml").write_text("# mine\nmodel:\n  loss: ../../loss/gem.yaml\ndata: data/alpaca_tofu.yaml\n")
    engine = "--model.engine=configs/engine/full.yaml"
    answer = real("fit", "-c", CHAT, "--config=mine.yaml", engine, *OPTIONS).done()
    config = yaml.safe_load(answer.out)
    model, data = config["model"], config["data"]
    assert data["template"] == "tofu"
    assert model["loss"]["class_path"].endswith(".GEMLoss")
    assert model["engine"]["class_path"].endswith(".FullEngine")
    assert model["optimizer"]["betas"] == [0.9, 0.95]
    taken = [line for line in answer.err.splitlines() if "taken from the package" in line]
    expected = {
        CHAT: "experiment/chat.yaml",
        "mine.yaml:3: ../../loss/gem.yaml": "loss/gem.yaml",
        "mine.yaml:4: data/alpaca_tofu.yaml": "data/alpaca_tofu.yaml",
        "configs/engine/full.yaml": "engine/full.yaml",
    }
    assert taken == [
        f"{name} is no file there; taken from the package: {shipped_config(file)}" for name, file in expected.items()
    ]


def test_a_file_of_the_user_comes_first(real: Run, here: Path) -> None:
    (here / "configs/experiment").mkdir(parents=True)
    (here / "configs/loss").mkdir()
    (here / CHAT).write_text("model:\n  loss: ../loss/ts2.yaml\n  optimizer: {lr: 0.5}\n")
    (here / "configs/loss/ts2.yaml").write_text("class_path: FocalLoss\n")
    answer = real("fit", "-c", CHAT, *OPTIONS).done()
    model = yaml.safe_load(answer.out)["model"]
    assert (model["loss"]["class_path"], model["optimizer"]["lr"]) == ("ts2_lightning.losses.FocalLoss", 0.5)
    assert "package" not in answer.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-c", "configs/experiment/caht.yaml"], "did you mean configs/experiment/chat.yaml?"),
        (["-c", "chat.yaml"], "did you mean configs/experiment/chat.yaml?"),
        (["-c", CHAT, "--model.loss=configs/loss/gemm.yaml"], "did you mean configs/loss/gem.yaml?"),
        (["-c", "/configs/experiment/chat.yaml"], "-c /configs/experiment/chat.yaml: no directory /configs"),
        (["-c", "other/experiment/chat.yaml"], "-c other/experiment/chat.yaml: no directory other"),
    ],
)
def test_a_file_that_is_in_neither_place(real: Run, options: list[str], said: str) -> None:
    assert said in real("fit", *options, *OPTIONS).complaint


def test_grids_too(real: Run, here: Path) -> None:
    (here / "grids").mkdir()
    (here / "grids/mine.yaml").write_text(
        "base: [configs/experiment/quickstart.yaml, more.yaml]\n"
        "axes: {objective: {CE: {set: {model.loss: ../configs/loss/cross_entropy.yaml}}, TS2: {}}}\n"
        "measure: {cost: {}}\n"
    )
    (here / "grids/more.yaml").write_text("model:\n  loss: loss/ts2_top_k.yaml\n")
    answer = real("ablate", "-c", "grids/mine.yaml", "--dry-run").done()
    assert f"fit -c {shipped_config('experiment/quickstart.yaml')} -c grids/more.yaml" in answer.out
    assert f"--model.loss {shipped_config('loss/cross_entropy.yaml')}" in answer.out
    lines = [line.partition(" is no file there")[0] for line in answer.err.splitlines() if "from the package" in line]
    assert lines == [
        "grids/mine.yaml:1: configs/experiment/quickstart.yaml",
        "grids/more.yaml:2: loss/ts2_top_k.yaml",
        "grids/mine.yaml:2: ../configs/loss/cross_entropy.yaml",
    ]
    (here / "grids/mine.yaml").write_text("base: configs/experiment/qickstart.yaml\naxes: {a: {b: {}}}\n")
    said = "grids/mine.yaml:1: base: grids/configs/experiment/qickstart.yaml: no directory grids/configs"
    assert real("ablate", "-c", "grids/mine.yaml", "--dry-run").complaint.startswith(said)
    answer = real("ablate", "-c", "grid/toyworld/gem_beta.yaml", "--dry-run", "--only", "seed=0").done()
    assert "toyworld-gem_beta: 7 points" in answer.out, "the name of the grid follows from its place in the package"
    assert answer.err.startswith("grid/toyworld/gem_beta.yaml is no file there; taken from the package: ")


def test_what_is_measured_may_be_a_file_too(real: Run) -> None:
    answer = real("measure", "none", "--spec", "configs/loss/ts2.yaml")
    assert answer.err.startswith("configs/loss/ts2.yaml is no file there; taken from the package: ")
    assert "class_path" in answer.complaint, "it is the file that was read: it names no measures"


def test_they_are_listed_and_shown(real: Run) -> None:
    listed = real("configs").done().out
    assert "configs/experiment\n  chat.yaml  " in listed
    assert "Your model on your chat rows" in listed
    assert all(Path(name).name in listed for name in shipped_names())
    assert max(map(len, listed.splitlines()[1:])) <= 80
    whole = shipped_config("experiment/chat.yaml").read_text()
    for name in ("experiment/chat", "configs/experiment/chat.yaml"):
        assert real("configs", name).done().out == whole
    assert "loss/tofu" not in real("configs", "grid").done().out
    assert real("configs", "tofu").done().out.count("tofu.yaml") == 3
    assert "did you mean configs/loss/gem.yaml?" in real("configs", "gme").refusal


def test_a_copy_is_whole_and_takes_no_other_file_s_place(real: Run, here: Path) -> None:
    copied = real("configs", "grid/paper/tofu", "--copy", "mine").done().out.splitlines()
    assert {"mine/grid/paper/tofu.yaml", "mine/grid/paper/writing.jsonl", "mine/loss/focal.yaml"} <= set(copied)
    assert "mine/model/mistral-nemo-12b.yaml" in copied, "what is named by a file that is named"
    assert {str(file) for file in Path("mine").rglob("*.*")} == set(copied)
    answer = real("fit", "-c", "mine/experiment/mistral-nemo-12b_alpaca_tofu.yaml", "--print_config").done()
    assert "package" not in answer.err
    Path("mine/loss/tofu.yaml").write_text("mine: {}\n")
    shutil.rmtree("mine/grid")
    said = real("configs", "grid/paper/tofu", "--copy", "mine").complaint
    assert said.startswith("--copy mine: mine/loss/tofu.yaml is there with another content, and stays as it is")
    assert Path("mine/loss/tofu.yaml").read_text() == "mine: {}\n"
    assert not Path("mine/grid").exists(), "nothing was copied"
    Path("mine/loss/tofu.yaml").unlink()
    again = real("configs", "grid/paper/tofu", "--copy", "mine").done().out.splitlines()
    assert "mine/loss/focal.yaml is there already" in again
    (here / "file").touch()
    assert "--copy file: " in real("configs", "loss/ts2", "--copy", "file").complaint


def test_all_of_them_are_copied(real: Run) -> None:
    real("configs", "--copy", "all").done()
    assert sorted(str(file.relative_to("all")) for file in Path("all").rglob("*.*")) == sorted(shipped_names())

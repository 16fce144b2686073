"""Stacked files, interpolation, overrides, classes by name, and printing what came of it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli import standins
from tests.cli.conftest import Run
from tests.e2e.command_line import QUICKSTART, ROOT
from tests.support.ranks import free_port
from ts2_lightning.cli import lightning_cli
from ts2_lightning.cli.settings import SettingsReader
from ts2_lightning.modules.places import resolve_model, seeds_kept
from ts2_lightning.toyworld import base

LOSS = """
from tests.cli.standins import StandInLoss

class MyLoss(StandInLoss):
    def __init__(self, beta: float = 2.0) -> None:
        self.beta = beta

    def __call__(self, logits, labels):
        return self.beta * (logits - labels).abs().mean()
"""


def printed(ts2: Run, *options: str) -> dict[str, Any]:
    return yaml.safe_load(ts2("fit", *options, "--print_config").done().out)


@pytest.fixture
def files(here: Path) -> None:
    (here / "model.yaml").write_text("model:\n  lm:\n    path: base-model\n  optimizer:\n    learning_rate: 0.5\n")
    (here / "data.yaml").write_text(
        "data:\n  tokenizer: ${model.lm.path}\n  batch_size: 4\n  seed: ${seed_everything}\n"
    )
    (here / "run.yaml").write_text(
        "seed_everything: 7\nname: ${model.lm.path}-seed${seed_everything}\nmodel:\n  loss:\n"
        "    class_path: SquareLoss\n    init_args:\n      alpha: ${model.optimizer.learning_rate}\n"
    )


@pytest.mark.usefixtures("files")
def test_interpolation_reaches_across_files(ts2: Run) -> None:
    config = printed(ts2, "-c", "model.yaml", "-c", "data.yaml", "-c", "run.yaml")
    assert config["data"]["tokenizer"] == "base-model"
    assert config["data"]["seed"] == 7
    assert config["name"] == "base-model-seed7"
    assert config["model"]["loss"]["init_args"]["alpha"] == 0.5


@pytest.mark.usefixtures("files")
def test_interpolation_follows_an_override_in_any_place(ts2: Run) -> None:
    stack = ("-c", "data.yaml", "-c", "model.yaml", "-c", "run.yaml")
    override = ("--model.lm.path=other", "--seed_everything=8", "--model.optimizer.learning_rate=0.25")
    for options in ((*stack, *override), (*override, "-c", "data.yaml")):
        config = printed(ts2, *options)
        assert (config["data"]["tokenizer"], config["data"]["seed"]) == ("other", 8)
    assert printed(ts2, *stack, *override)["model"]["loss"]["init_args"]["alpha"] == 0.25


@pytest.mark.usefixtures("files")
def test_later_files_win_and_the_command_line_wins_over_them(ts2: Run, here: Path) -> None:
    (here / "more.yaml").write_text("data:\n  batch_size: 16\n")
    stack = ("-c", "model.yaml", "-c", "data.yaml", "-c", "more.yaml", "-c", "run.yaml")
    assert printed(ts2, *stack)["data"]["batch_size"] == 16
    assert printed(ts2, *stack, "--data.batch_size=2")["data"]["batch_size"] == 2


def test_callbacks_add_up(ts2: Run, here: Path) -> None:
    for name, callback in (("a", "Timer"), ("b", "EarlyStopping\n    init_args: {monitor: x}")):
        (here / f"{name}.yaml").write_text(f"trainer:\n  callbacks+:\n  - class_path: {callback}\n")
    config = printed(ts2, "--model.lm.path=x", "-c", "a.yaml", "-c", "b.yaml", "--trainer.callbacks+=ModelSummary")
    names = [callback["class_path"].rpartition(".")[2] for callback in config["trainer"]["callbacks"]]
    assert names == ["Timer", "EarlyStopping", "ModelSummary"]


@pytest.mark.usefixtures("files")
def test_what_is_printed_can_be_given_again(ts2: Run, here: Path) -> None:
    stack = ("-c", "model.yaml", "-c", "data.yaml", "-c", "run.yaml", "--trainer.callbacks+=ModelSummary")
    answer = ts2("fit", *stack, "--print_config")
    (here / "whole.yaml").write_text(answer.out)
    assert ts2("fit", "-c", "whole.yaml", "--print_config").out == answer.out


def test_a_loss_in_the_working_directory(fit: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "my_losses.py").write_text(LOSS)
    monkeypatch.delitem(sys.modules, "my_losses", raising=False)  # of another test
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(here))])
    fit("--model.loss=my_losses.MyLoss", "--model.loss.beta=3").done()
    config = yaml.safe_load(Path("runs/run/1/config.yaml").read_text())
    assert config["model"]["loss"] == {"class_path": "my_losses.MyLoss", "init_args": {"beta": 3.0}}
    assert str(here) not in sys.path
    sys.modules.pop("my_losses")


def test_a_fit_without_a_length_takes_three_epochs(ts2: Run) -> None:
    options = [option for option in standins.FIT if "max_epochs" not in option]
    ts2("fit", *options).done()
    assert yaml.safe_load(Path("runs/run/1/config.yaml").read_text())["trainer"]["max_epochs"] == 3
    ts2("fit", *options, "--trainer.max_steps=5").done()
    assert yaml.safe_load(Path("runs/run/2/config.yaml").read_text())["trainer"]["max_epochs"] is None


def test_the_embedded_base_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ensure_base(seed: int) -> str:
        asked.append(seed)
        return f"/cache/base-{seed}"

    monkeypatch.setattr(base, "ensure_base", ensure_base)
    assert resolve_model("toyworld") == "/cache/base-0"
    assert resolve_model("toyworld?seed=3") == "/cache/base-3"
    for path in ("toyworld/model", "meta-llama/Llama-3.1-8B", "./toyworlds", "hf://toyworld"):
        assert resolve_model(path) == path
    assert asked == [0, 3]


def test_what_is_wrong_is_told_before_the_base_model_is_made(monkeypatch: pytest.MonkeyPatch, real: Run) -> None:
    monkeypatch.setattr(lightning_cli, "resolve_model", lambda path: pytest.fail("it would take minutes"))
    answer = real("fit", "--model.lm.path=toyworld", "--data.train=x.jsonl", "--model.loss.alpha=-1")
    assert "alpha must be a finite number of at least 0, got -1.0" in answer.complaint


def test_the_seed_survives_what_is_seeded_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    with seeds_kept():
        os.environ |= {"PL_GLOBAL_SEED": "0", "PL_SEED_WORKERS": "0"}
    assert os.environ["PL_GLOBAL_SEED"] == "3"
    assert "PL_SEED_WORKERS" not in os.environ


def test_ctrl_c_while_the_base_model_is_made(monkeypatch: pytest.MonkeyPatch, real: Run) -> None:
    def interrupted(path: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(lightning_cli, "resolve_model", interrupted)
    answer = real("fit", "--model.lm.path=toyworld", "--data.train=x.jsonl")
    assert (answer.status, answer.err) == (130, "interrupted before the run began\n")
    assert not Path("runs").exists()


def test_the_real_module_and_data(real: Run) -> None:
    options = ["--model.loss=TS2Loss", "--model.loss.alpha=0.5", "--model.loss.top_k=3", "--model.engine=FullEngine"]
    model = printed(real, "--model.lm.path=toyworld", "--data.train=x.jsonl", *options)["model"]
    assert model["loss"]["class_path"] == "ts2_lightning.losses.TS2Loss"
    assert (model["loss"]["init_args"]["alpha"], model["loss"]["init_args"]["top_k"]) == (0.5, 3)
    assert model["engine"]["class_path"] == "ts2_lightning.engines.FullEngine"
    model = printed(real, "--model.lm.path=toyworld")["model"]
    assert model["loss"]["class_path"].endswith(".TS2Loss"), "the default is recorded"
    assert model["engine"]["class_path"].endswith(".ChunkedEngine"), "the default is recorded"


@pytest.mark.parametrize("setting", ["train", "validation", "test"])
def test_a_file_of_one_row_is_a_file(setting: str, here: Path) -> None:
    """And not the mapping that its only line is: named sets are one, and a source is."""
    (here / "one.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    read = SettingsReader().read(["-c", str(QUICKSTART), f"--data.{setting}", "one.jsonl"])
    assert read["data"][setting] == "one.jsonl"


def test_the_entry_points(here: Path) -> None:
    for command in ([str(ROOT / "cli.py")], [str(ROOT / "ts2_lightning/cli/__main__.py")]):
        done = subprocess.run([sys.executable, *command, "fitt"], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr == "error: no command 'fitt'; did you mean fit?\n"


TWO_RANKS = f"""
import atexit, sys
sys.path.insert(0, {str(ROOT)!r})
from torch import distributed
from tests.cli import standins
from ts2_lightning.cli import lightning_cli, main
lightning_cli.classes = lambda: (standins.StandInModule, standins.StandInData)
lightning_cli.default_callbacks = standins.default_callbacks
atexit.register(lambda: print(f"in group: {{distributed.is_initialized()}}\\n", end=""))
if __name__ == "__main__":
    sys.exit(main())
"""


def run_on_two_ranks(launcher: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`fit` with the stand-ins, in the working directory."""
    Path("start.py").write_text(TWO_RANKS)
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    start = [sys.executable, *(torchrun if launcher == "torchrun" else []), "start.py", "fit", *standins.FIT]
    command = [*start, "--trainer.devices=2", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=standins.environment())


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_two_processes_share_one_directory(here: Path, launcher: str) -> None:
    done = run_on_two_ranks(launcher)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (here / "runs/run").iterdir()] == ["1"]
    assert done.stdout.count("Run: ") == 1
    assert not (here / "runs/.claims").exists()
    assert done.stdout.count("in group: False") == 2, "a thread of gloo that outlives Python may abort the process"


@pytest.mark.slow
def test_a_rank_that_fails_alone_ends_all(here: Path) -> None:
    """The other one waits for it in a collective, and would wait for half an hour; so would who leaves the group."""
    done = run_on_two_ranks("torchrun", "--trainer.callbacks=tests.cli.standins.FailingRank")
    assert done.returncode == 1
    assert "error: [rank 1]" in done.stderr or "[rank 1] error: " in done.stderr
    assert "in group: False" not in done.stdout


@pytest.mark.parametrize("options", [("--model.loss", "EntmaxLoss"), ("-c", "entmax.yaml")])
def test_a_class_starts_from_its_own_defaults(real: Run, options: tuple[str, ...]) -> None:
    """TS2's alpha, a weight, must not become entmax's alpha, an order."""
    Path("entmax.yaml").write_text("model:\n  loss:\n    class_path: EntmaxLoss\n")
    loss = printed(real, "-c", str(QUICKSTART), *options)["model"]["loss"]
    assert loss == {"class_path": "ts2_lightning.losses.EntmaxLoss", "init_args": {"alpha": 1.5}}


MISTAKES = {
    "--model.loss=TS2Los": "--model.loss: no class named 'TS2Los'; did you mean TS2Loss?",
    "--model.loss=TS2Loss --model.loss.top_k 2.5": "--model.loss.top_k: expected int or null, got '2.5'",
    "--model.loss=TS2Loss --model.loss.alpha .inf": "TS2Loss: alpha must be a finite number of at least 0, got inf",
    "--model.loss=FenchelYoungPlusLoss --model.loss.base CrossEntropyLoss": " is not a FenchelYoungLoss",
    "--model.loss=FenchelYoungLoss": "--model.loss: name a class that is not abstract",
    "--model.loss.alpha 0.7 --model.loss=EntmaxLoss": (
        "--model.loss.alpha comes before --model.loss, which would reset it; give --model.loss first"
    ),
}


@pytest.mark.parametrize(("options", "expected"), MISTAKES.items())
def test_mistakes_about_the_real_losses(options: str, expected: str, real: Run) -> None:
    elsewhere = ("--model.lm.path", "none", "--data.train", "none.jsonl")  # not the toy world: it would be made
    answer = real("fit", "-c", str(QUICKSTART), *options.split(), *elsewhere)
    assert expected in answer.refusal

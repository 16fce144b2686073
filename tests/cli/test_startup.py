"""What a command imports before it answers, told by `sys.modules` and not by a clock."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ts2_lightning.cli.commands import Command

ROOT = Path(__file__).resolve().parents[2]

PICTURES = {"matplotlib", "scipy", "PIL"}
TRAINING = {"lightning", "torchmetrics", "transformers", "jsonargparse", "omegaconf", "accelerate", "pyarrow"}
OPTIONAL = {
    "sklearn",
    "pandas",
    "datasets",
    "peft",
    "deepspeed",
    "tensorboard",
    "bitsandbytes",
    "sentence_transformers",
}

PROGRAM = """
import contextlib, io, json, sys
sys.path.insert(0, {root!r})
sys.argv = ["cli.py", *{argv!r}]
from ts2_lightning.cli import main
with contextlib.redirect_stdout(io.StringIO()) as out:
    status = main()
json.dump({{"status": status, "modules": sorted(sys.modules), "out": out.getvalue()}}, sys.stdout)
"""


class Answer:
    """Exit status, output and imported modules of a command line.

    Args:
        cache: Directory of the cache.
        *argv: The command line.
    """

    def __init__(self, cache: Path, *argv: str) -> None:
        program = PROGRAM.format(root=str(ROOT), argv=list(argv))
        command = [sys.executable, "-c", program]
        environment = {**os.environ, "TS2_CACHE_DIR": str(cache), "COLUMNS": "100"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=cache, env=environment)
        content = json.loads(done.stdout)
        self.status: int = content["status"]
        self.out: str = content["out"]
        self.modules: set[str] = set(content["modules"])

    def packages(self) -> set[str]:
        """First parts of the names of all imported modules."""
        return {name.partition(".")[0] for name in self.modules}

    def rooms(self) -> set[str]:
        """Rooms of this package of which something was imported."""
        return {name.split(".")[1] for name in self.modules if name.startswith("ts2_lightning.")}


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["fitt"]])
def test_the_list_of_commands_imports_nothing_heavy(argv: list[str], tmp_path: Path) -> None:
    answer = Answer(tmp_path, *argv)
    assert not answer.packages() & {"torch", "numpy", *PICTURES, *TRAINING, *OPTIONAL}


def test_the_catalogue_of_objectives_imports_torch_alone(tmp_path: Path) -> None:
    answer = Answer(tmp_path, "losses")
    assert (answer.status, "TS2Loss" in answer.out) == (0, True)
    assert "torch" in answer.packages()
    assert not answer.packages() & {*PICTURES, *TRAINING, *OPTIONAL}
    assert not {"torch._dynamo", "torch.distributed.checkpoint"} & answer.modules


def test_the_list_of_configurations_imports_no_other_library(tmp_path: Path) -> None:
    answer = Answer(tmp_path, "configs")
    assert (answer.status, "experiment" in answer.out) == (0, True)
    assert not answer.packages() & {*PICTURES, *TRAINING, *OPTIONAL}


def test_the_help_of_fit_imports_no_optional_package(tmp_path: Path) -> None:
    made = Answer(tmp_path, "fit", "--help")
    assert (made.status, "--model.loss LOSS" in made.out) == (0, True)
    assert not made.packages() & OPTIONAL
    assert not {"evaluation", "planning"} & made.rooms()


def test_garbage_is_not_collected_while_a_command_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_command.py").write_text("import gc\nDURING = gc.isenabled()\ndef run(argv): return DURING\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_command.py").write_text("raise ImportError\n")
    gc.unfreeze()  # what other tests have imported
    assert gc.isenabled()
    try:
        assert Command("imported_command:run", "").run("", []) == 0
        assert gc.isenabled()
        assert gc.get_freeze_count() > 10_000, "later collections look through what imports made"
        gc.unfreeze()
        assert Command("imported_command:run", "").run("", []) == 0
        assert gc.get_freeze_count() == 0, "what is imported already is no reason to keep garbage"
        with pytest.raises(ImportError):
            Command("broken_command:run", "").run("", [])
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        sys.modules.pop("imported_command", None)

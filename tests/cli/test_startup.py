"""What a command imports before it answers, told by `sys.modules` and not by a clock; and the pages of help."""

import gc
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from ts2_lightning.cli.commands import COMMANDS, Command

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
from dataclasses import replace
from ts2_lightning.cli import COMMANDS, main
COMMANDS["losses"] = replace(COMMANDS["losses"], help_is_kept={losses_kept!r})  # a page that is made in a second
with contextlib.redirect_stdout(io.StringIO()) as out:
    status = main()
json.dump({{"status": status, "modules": sorted(sys.modules), "out": out.getvalue()}}, sys.stdout)
"""


class Answer:
    """Exit status, output and imported modules of a command line.

    Args:
        cache: Directory of the cache.
        *argv: The command line.
        losses_kept: Whether the page of help of `losses` is kept too.
    """

    def __init__(self, cache: Path, *argv: str, losses_kept: bool = False) -> None:
        program = PROGRAM.format(root=str(ROOT), argv=list(argv), losses_kept=losses_kept)
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
    assert not (tmp_path / "help").exists()


def test_the_catalogue_of_objectives_imports_torch_alone(tmp_path: Path) -> None:
    answer = Answer(tmp_path, "losses")
    assert (answer.status, "TS2Loss" in answer.out) == (0, True)
    assert "torch" in answer.packages()
    assert not answer.packages() & {*PICTURES, *TRAINING, *OPTIONAL}
    assert not {"torch._dynamo", "torch.distributed.checkpoint"} & answer.modules


def test_the_help_of_fit_is_made_once_and_read_from_then_on(tmp_path: Path) -> None:
    made = Answer(tmp_path, "fit", "--help")
    assert (made.status, "--model.loss LOSS" in made.out) == (0, True)
    assert not made.packages() & OPTIONAL
    assert not {"evaluation", "planning"} & made.rooms()
    read = Answer(tmp_path, "fit", "--help")
    assert (read.status, read.out) == (0, made.out)
    assert not read.packages() & {"torch", "numpy", *PICTURES, *TRAINING, *OPTIONAL}


def test_a_page_of_help_is_of_one_command_and_installation(tmp_path: Path) -> None:
    kept = partial(Answer, tmp_path, "losses", losses_kept=True)
    page = kept("--help")
    [file] = (tmp_path / "help").iterdir()
    assert file.read_text() == page.out.rstrip("\n")
    file.write_text("a page that was kept")
    assert kept("-h").out == "a page that was kept\n"
    other = file.with_name(file.name.replace("losses-", "losses-0"))
    file.rename(other)  # as if something that decides the text had changed
    assert kept("--help").out == page.out
    assert kept("--help", "--json").out == page.out, "with another option it is not asked"
    assert {file, other} == {*(tmp_path / "help").iterdir()}


def test_help_needs_no_cache(tmp_path: Path) -> None:
    (tmp_path / "help").write_text("a file in the place of the directory")
    assert "NAME" in Answer(tmp_path, "losses", "--help", losses_kept=True).out


def test_garbage_is_not_collected_while_a_command_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_command.py").write_text("import gc\nDURING = gc.isenabled()\ndef run(argv): return DURING\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_command.py").write_text("raise ImportError\n")
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)
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


def test_no_page_is_kept_that_follows_from_more_than_the_installation(tmp_path: Path) -> None:
    """`measure` and `ablate` list the measures of plug-ins, whose files may change."""
    assert {name for name, command in COMMANDS.items() if command.help_is_kept} == {
        *("fit", "validate", "test", "predict", "data", "plan")
    }
    assert "NAME" in Answer(tmp_path, "losses", "--help").out
    assert not (tmp_path / "help").exists()

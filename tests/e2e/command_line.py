"""The real command line, in this process: nothing is replaced, only models and data are small."""

import csv
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.ranks import launch
from ts2_lightning.callbacks.preemption import SIGNALS
from ts2_lightning.cli import main
from ts2_lightning.toyworld import write_blank_model

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
QUICKSTART = CONFIGS / "experiment" / "quickstart.yaml"
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Answer(NamedTuple):
    """What a command said and returned."""

    status: int
    out: str
    err: str

    def done(self) -> "Answer":
        """This answer, of a command that has done what it was told to."""
        assert self.status == 0, self.err
        return self

    @property
    def complaint(self) -> str:
        """The last line of a command that could not do what it was told to, which says why."""
        assert self.status == 2, self.err
        assert "Traceback" not in self.err
        line = self.err.strip().splitlines()[-1]
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    @property
    def refusal(self) -> str:
        """The one line of a command that has not begun."""
        assert (len(self.err.strip().splitlines()), self.out) == (1, ""), self.out + self.err
        return self.complaint


class CommandLine:
    """Runs commands as `python cli.py` would.

    Args:
        capfd: takes what is printed.
        blank: a model directory with a tokenizer and no weights.
    """

    def __init__(self, capfd: pytest.CaptureFixture[str], blank: Path) -> None:
        self._capfd = capfd
        self.blank = blank

    def __call__(self, *argv: str) -> Answer:
        return answer_of(self._capfd, *argv)

    def toy(self, command: str, *options: str) -> Answer:
        """A command on the quickstart's experiment, with random weights instead of the base model."""
        blank = ("--model.lm.path", str(self.blank), "--model.lm.init", "random")
        quiet = ("--trainer.enable_progress_bar", "false")
        return self(command, "-c", str(QUICKSTART), *blank, *quiet, *options)


def answer_of(capfd: pytest.CaptureFixture[str], *argv: str) -> Answer:
    """What a command says and returns, run in this process."""
    capfd.readouterr()
    status = main(argv)
    return Answer(status, *capfd.readouterr())


def play(scenario: list[dict[str, Any]], timeout: float) -> list[list[int]]:
    """Starts commands one after the other in the working directory, each on some ranks that need not import anything.

    Args:
        scenario: for each start `argv`, and what else `tests/e2e/warm_starts.py` reads.
        timeout: seconds for all of them.

    Returns:
        The exit statuses of each start's ranks; what they printed is in `printed.txt`.
    """
    Path("scenario.json").write_text(json.dumps(scenario))
    launch("tests.e2e.warm_starts", Path.cwd(), timeout=timeout, DS_ACCELERATOR="cpu")
    return json.loads(Path("statuses.json").read_text())


@contextmanager
def empty_working_directory(directory: Path, cache: Path) -> Iterator[None]:
    """A working directory outside of any cluster, with a cache of its own."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for name in list(os.environ):
            if name.startswith(("SLURM_", "TORCHELASTIC_", "TS2_")) or name in RANK_VARIABLES:
                patch.delenv(name)
        patch.setenv("TS2_CACHE_DIR", str(cache))
        yield
    for number, handler in handlers.items():  # a run that was stopped hears no more signals
        signal.signal(number, handler)


def make_blank(directory: Path) -> Path:
    """The toy world's model without weights; small enough for tests, and with all of its tokenizer."""
    return write_blank_model(directory)


def column(run: Path | str, name: str) -> dict[int, float]:
    """Optimizer step -> logged value."""
    with (Path(run) / "csv" / "metrics.csv").open(newline="") as stream:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(stream) if row.get(name)}


def json_lines(file: Path | str) -> list[dict[str, Any]]:
    """The rows of a .jsonl file."""
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]

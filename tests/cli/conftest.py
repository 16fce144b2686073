"""A command line whose module and data are stand-ins, so that a whole `fit` takes a fraction of a second."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli import standins
from ts2_lightning.callbacks.preemption import SIGNALS
from ts2_lightning.cli import lightning_cli, main


class Answer(NamedTuple):
    """What a command said and returned."""

    status: int
    out: str
    err: str


Run = Callable[..., Answer]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, outside of any cluster."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_", "TS2_")) or name in standins.RANK_VARIABLES:
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def ts2(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command in this process, with the stand-ins."""
    monkeypatch.setattr(lightning_cli, "classes", lambda: (standins.StandInModule, standins.StandInData))
    monkeypatch.setattr(lightning_cli, "default_callbacks", standins.default_callbacks)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def run(*argv: str) -> Answer:
        capfd.readouterr()
        status = main(argv)
        out, err = capfd.readouterr()
        return Answer(status, out, err)

    yield run
    for number, handler in handlers.items():  # a run that was stopped hears no more signals
        signal.signal(number, handler)


@pytest.fixture
def fit(ts2: Run) -> Run:
    """`fit` on the CPU, two epochs of four steps, without a bar."""

    def run(*options: str) -> Answer:
        return ts2("fit", *standins.FIT, *options)

    return run

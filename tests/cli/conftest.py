"""A command line whose module and data are stand-ins, so that a whole `fit` takes a fraction of a second."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli import standins
from tests.e2e.command_line import Answer, answer_of, empty_working_directory
from ts2_lightning.cli import lightning_cli

Run = Callable[..., Answer]


@pytest.fixture
def here(tmp_path: Path, cache: Path) -> Iterator[Path]:
    """An empty working directory, outside of any cluster."""
    with empty_working_directory(tmp_path, cache):
        yield tmp_path


@pytest.fixture
def real(here: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, with the module and the data of the package."""
    return lambda *argv: answer_of(capfd, *argv)


@pytest.fixture
def ts2(real: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process, with the stand-ins."""
    monkeypatch.setattr(lightning_cli, "classes", lambda: (standins.StandInModule, standins.StandInData))
    monkeypatch.setattr(lightning_cli, "default_callbacks", standins.default_callbacks)
    return real


@pytest.fixture
def fit(ts2: Run) -> Run:
    """`fit` on the CPU, two epochs of four steps, without a bar."""
    return lambda *options: ts2("fit", *standins.FIT, *options)

"""The command line and a place to run it in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command_line import CommandLine, empty_working_directory, make_blank


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a tokenizer and no weights."""
    return make_blank(tmp_path_factory.mktemp("models") / "blank")


@pytest.fixture
def ts2(tmp_path: Path, cache: Path, blank: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[CommandLine]:
    """The command line, in an empty working directory."""
    with empty_working_directory(tmp_path, cache):
        yield CommandLine(capfd, blank)

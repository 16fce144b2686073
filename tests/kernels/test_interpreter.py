"""The kernels in Triton's interpreter, which is chosen when Triton is imported: their tests run in another process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need Triton, which this platform lacks")

KERNELS, ENGINE = (Path(__file__).with_name(f"interpreted_{name}.py") for name in ("kernels", "engine"))


def interpret(file: Path, *options: str) -> None:
    """Runs pytest on a file, and shows what it said if a test failed or none was run."""
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "--timeout=3000", *options, str(file)]
    settings = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=settings, cwd=file.parents[2], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]


def test_narrow_rows() -> None:
    interpret(KERNELS)


def test_the_engine() -> None:
    interpret(ENGINE)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "selection",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("narrow", "50257", "128256")),
        *(pytest.param(name, marks=pytest.mark.long) for name in ("151936", "262144")),
    ],
)
def test_all_rows(selection: str) -> None:
    """The remaining pairs of narrow rows, and whole vocabularies."""
    interpret(KERNELS, "-m", "slow", "-k", "equals" if selection == "narrow" else selection)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_engine_with_every_objective() -> None:
    interpret(ENGINE, "-m", "slow")

"""The kernels in Triton's interpreter, which is chosen when Triton is imported: their tests run in another process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need Triton, which this platform lacks")

FILES = [Path(__file__).with_name(f"interpreted_{name}.py") for name in ("kernels", "engine")]


def interpret(*options: str) -> None:
    """Runs pytest on the files in a process, and shows what it said if a test failed or none was run."""
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "--timeout=3000", *options]
    settings = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*command, *map(str, FILES)], env=settings, cwd=FILES[0].parents[2], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]


def test_narrow_rows_and_the_engine() -> None:
    interpret()


WIDEST = "151936 or 262144"


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "selection",
    [pytest.param(f"not ({WIDEST})", marks=pytest.mark.slow), pytest.param(WIDEST, marks=pytest.mark.long)],
)
def test_all_rows(selection: str) -> None:
    """The remaining pairs of narrow rows, whole vocabularies, and the engine with the remaining objectives."""
    interpret("-m", "slow", "-k", selection)

"""What every test may use."""

import gc
import os
import signal
from pathlib import Path

import pytest

gc.disable()  # until all tests are collected: what is imported for them stays, and no collection looks through it

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores; read when torch is imported

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, in which Ctrl-C would do nothing
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = (
    *("contract", "test_readme.py", "e2e/test_kill_ranks.py", "e2e/test_ablate.py", "e2e/test_kill.py"),
    *("kernels", "test_gpu_check.py", "e2e/test_cluster.py", "integrations", "test_installed.py"),
    *("modules/test_weights.py", "e2e", "evaluation/test_protocol_models.py", "cli", "callbacks"),
    *("test_python_pages.py", "data"),
)
"""Files and directories whose slow tests take longest; they come first, so that no worker is left alone with one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests before the others, the longest first."""
    items.sort(key=_place)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def _place(item: pytest.Item) -> int:
    if item.get_closest_marker("slow") is None:
        return len(LONGEST) + 1
    path = os.path.relpath(item.path, Path(__file__).parent)
    return next((place for place, name in enumerate(LONGEST) if path.startswith(name)), len(LONGEST))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of real datasets and a small pretrained model, kept beside the repository."""
    directory = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not directory.is_dir():
        pytest.skip(f"needs the real datasets in {directory}, which is absent")
    return directory


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's cache, for the toy world's rows."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows and tiny models for whole steps, see `tests.contract.steps.write_world`."""
    from tests.contract.steps import write_world  # after the number of threads is set

    directory = tmp_path_factory.mktemp("world")
    write_world(directory)
    return directory

"""What every test may use."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores; read when torch is imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, so that in the end no worker is left alone with one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


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

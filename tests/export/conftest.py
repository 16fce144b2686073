"""Fixtures of the export."""

from pathlib import Path

import pytest

from tests.callbacks.tiny_llama import write_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The tiny model, as a base model lies on the disk."""
    return write_base(tmp_path / "base")

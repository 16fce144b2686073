"""Tiny judges for all tests of this directory."""

from pathlib import Path

import pytest

from tests.support.judges import write_reward_model, write_similarity_model


@pytest.fixture(scope="session")
def reward_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reward model; nothing in it may be changed."""
    return write_reward_model(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="session")
def similarity_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier of pairs; nothing in it may be changed."""
    return write_similarity_model(tmp_path_factory.mktemp("similarity"))


@pytest.fixture
def judge_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of verdicts."""
    monkeypatch.setenv("TS2_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"

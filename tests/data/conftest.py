"""Fixtures of the data room."""

from pathlib import Path

import pytest
from data_helpers import byte_level_tokenizer, sentencepiece_tokenizer
from transformers import PreTrainedTokenizerFast


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own for every test."""
    monkeypatch.setenv("TS2_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The byte-level one."""
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def metaspace() -> PreTrainedTokenizerFast:
    """The SentencePiece-like one."""
    return sentencepiece_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The byte-level one as files."""
    directory = tmp_path_factory.mktemp("tokenizer")
    byte_level_tokenizer().save_pretrained(directory)
    return str(directory)


@pytest.fixture
def library_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `datasets` would keep what it converts; the hub is out of reach."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "library")
    for library in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{library}.HF_HUB_OFFLINE", True)
    return tmp_path / "library"

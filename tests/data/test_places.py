"""Places where something is read or written, and something else is there: one line each."""

import builtins
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_helpers import write_jsonl
from transformers import PreTrainedTokenizerFast

from ts2_lightning.data import SFTData, load_tokenizer, make_template, resolve_sources
from ts2_lightning.data.cache import cache_directory
from ts2_lightning.data.rejects import Reject, Rejects
from ts2_lightning.data.sources import Source, about_rows, count_rows, file_digest, read_rows
from ts2_lightning.types import UserError

ROW = {"prompt": "Hello", "completion": "I am fine"}
TOO_LONG = "x" * 300


def refused(action: Callable[[], object], *reasons: str) -> None:
    with pytest.raises(UserError) as error:
        action()
    for reason in reasons:
        assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder of all that can be in the way."""
    write_jsonl(tmp_path / "file.jsonl", [ROW])
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "folder.jinja").mkdir()
    (tmp_path / "nowhere.jsonl").symlink_to("gone.jsonl")
    (tmp_path / "round.jsonl").symlink_to("round.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    return tmp_path


SOURCES = {
    "file.jsonl/x.jsonl": "file.jsonl is a file, not a folder",
    "file.jsonl/deeper/x.jsonl": "file.jsonl is a file, not a folder",
    "nowhere.jsonl": "it is a link to gone.jsonl, which is not there",
    "round.jsonl": "it is a link to round.jsonl, which is not there",
    "pipe.jsonl": "it is neither a file nor a folder",
    "no*.jsonl": "nowhere.jsonl: it is a link to gone.jsonl, which is not there",
    "folder.jsonl": "no file in the folder ends in .jsonl",
    f"{TOO_LONG}.jsonl": "(File name too long)",
    f"{TOO_LONG}/x.jsonl": "(File name too long)",
    "a\0b.jsonl": "(embedded null byte)",
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources(places: Path, name: str) -> None:
    refused(lambda: resolve_sources(str(places / name)), SOURCES[name])


def test_nothing_of_a_folder_is_missing_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "a.jsonl", [ROW])
    (tmp_path / "more").mkdir()
    write_jsonl(tmp_path / "more" / "b.jsonl", [ROW])
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "again").symlink_to(tmp_path / "more")
    (tmp_path / "linked" / "up").symlink_to(tmp_path / "linked")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "linked")
    assert resolve_sources(str(folder)) == [folder / "linked" / "again" / "b.jsonl"], "links are followed, once"
    (folder / "gone.jsonl").symlink_to("nowhere")
    refused(lambda: resolve_sources(str(folder)), "gone.jsonl: it is a link to nowhere, which is not there")

    scandir = os.scandir

    def closed(path: Any) -> Any:
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    refused(
        lambda: resolve_sources(str(tmp_path)), f"{tmp_path / 'more'}: the folder cannot be read (Permission denied)"
    )


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.parquet", "x.arrow"])
def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A folder or nothing in the place of a file, when it comes to reading it."""
    for path in (tmp_path / name, tmp_path / "gone" / name):
        if path.parent.exists():
            path.mkdir()
        for action in (lambda p: list(read_rows(p)), count_rows, about_rows, file_digest):
            refused(lambda action=action, path=path: action(path), f"{path}: not a readable")  # type: ignore[misc]


def test_files_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(write_jsonl(tmp_path / "x.jsonl", [ROW]))
    monkeypatch.setattr(builtins, "open", denied)
    for action in (lambda p: list(read_rows(p)), count_rows, about_rows, file_digest):
        refused(lambda action=action: action(path), f"{path}: not a readable", "(Permission denied)")  # type: ignore[misc]


def denied(path: Any, *arguments: Any, **options: Any) -> Any:
    raise PermissionError(13, "Permission denied", str(path))


def test_homes_of_nobody(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS2_CACHE_DIR", "~nobody-of-that-name/cache")
    for action in (
        lambda: resolve_sources("~nobody-of-that-name/x.jsonl"),
        lambda: resolve_sources(Source("~nobody-of-that-name/x", split="train")),
        lambda: load_tokenizer("~nobody-of-that-name/x"),
        lambda: make_template("~nobody-of-that-name/x.jinja", tokenizer),
        cache_directory,
    ):
        refused(action, "there is no home directory for ~nobody-of-that-name")


def test_template_files(places: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    (places / "latin.jinja").write_bytes(b"\xff")
    (places / "long.jinja").write_text("x" * 300_000)
    (places / "gone.jinja").symlink_to("nowhere")
    reasons = {
        "folder.jinja": "it is a folder",
        "latin.jinja": "not a readable template file",
        "long.jinja": "more than the 262,144 characters",
        "gone.jinja": "it is a link to nowhere",
        f"{TOO_LONG}.jinja": "File name too long",
        "latim.jinja": "did you mean latin.jinja?",
        "file.jsonl/x.jinja": "file.jsonl is a file, not a folder",
    }
    for name, reason in reasons.items():
        refused(lambda name=name: make_template(str(places / name), tokenizer), str(places / name), reason)  # type: ignore[misc]
    monkeypatch.setattr(builtins, "open", denied)
    refused(lambda: make_template(str(places / "latin.jinja"), tokenizer), "latin.jinja", "(Permission denied)")


def test_tokenizers(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reasons = {
        "file.jsonl": "is a file; name the directory that it is in",
        "folder.jsonl": "it has no tokenizer.json",
        "nowhere.jsonl": "it is a link to gone.jsonl",
        TOO_LONG: "File name too long",
        "file.jsonl/x": "file.jsonl is a file, not a folder",
        "folder.jsonk": "did you mean folder.jsonl?",
    }
    for name, reason in reasons.items():
        refused(lambda name=name: load_tokenizer(str(places / name)), "data.tokenizer", str(places / name), reason)  # type: ignore[misc]
    refused(lambda: load_tokenizer("no name\0of a model"), "data.tokenizer: cannot load")


@pytest.mark.parametrize("cache", ["file.jsonl", "file.jsonl/cache", "nowhere.jsonl/cache", TOO_LONG, "pipe.jsonl"])
def test_caches_that_cannot_be_written(
    places: Path, tokenizer_directory: str, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    """Rows are kept in memory then; the toy world's files have no other place."""
    monkeypatch.setenv("TS2_CACHE_DIR", str(places / cache))
    data = SFTData(str(places / "file.jsonl"), tokenizer=tokenizer_directory)
    with pytest.warns(UserWarning, match="the token cache in .* cannot be used .*; set TS2_CACHE_DIR to a directory"):
        data.setup("fit")
    assert len(data.rows("train")) == 1
    reason = "cannot be written ("
    refused(lambda: resolve_sources("toyworld:train?seed=3"), reason, "; set TS2_CACHE_DIR to a directory that can be")


@pytest.mark.parametrize("place", ["file.jsonl/rejects.jsonl", f"{TOO_LONG}.jsonl", "folder.jsonl", "nowhere.jsonl/x"])
def test_lists_of_bad_rows_that_cannot_be_written(places: Path, place: str) -> None:
    for last in (lambda rejects: rejects.finish(2), lambda rejects: rejects.go_on([BAD], 2)):
        rejects = Rejects(1.0, places / place)
        rejects.add(BAD)
        refused(lambda last=last, rejects=rejects: last(rejects), f"{places / place} cannot be written (")  # type: ignore[misc]


BAD = Reject("x.jsonl:1", "other", "bad")

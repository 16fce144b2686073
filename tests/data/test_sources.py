import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ts2_lightning.data.sources import count_rows, read_rows, resolve_sources
from ts2_lightning.types import UserError

ROWS = [{"prompt": "a", "completion": "ä"}, {"prompt": "b", "completion": "☃"}]


def lines(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.json.gz", "x.parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        text = lines(ROWS) if ".jsonl" in name else json.dumps(ROWS).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert [dict(row.fields) for row in read_rows(path)] == ROWS
    assert count_rows(path) == 2


def test_origin_counts_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(ROWS[:1]) + b"\n  \n" + lines(ROWS[1:]).rstrip())
    assert [row.origin for row in read_rows(path)] == [f"{path}:1", f"{path}:4"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "a"', "malformed JSON (Expecting ',' delimiter at column 15)"),
        (b'{"prompt": "\xff"}', "not UTF-8 (byte 13)"),
        (b"[1, 2]", "a row must be a JSON object with fields, got a list"),
        (b"null", "got null"),
        (b"3", "got a number"),
        (b"[" * 100_000, "malformed JSON (nested too deeply)"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(lines(ROWS) + line + b"\n")
    with pytest.raises(UserError) as error:
        list(read_rows(path))
    assert str(error.value).startswith(f"{path}:3: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "lines.json").write_bytes(lines(ROWS))
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines(ROWS * 100))[:-20])
    (tmp_path / "not.jsonl.gz").write_bytes(b"plain")
    (tmp_path / "not.parquet").write_bytes(b"plain")
    reasons = {
        "lines.json": "a file of one object a line is named .jsonl",
        "object.json": "must be a list of objects, got an object",
        "cut.jsonl.gz": "broken gzip file",
        "not.jsonl.gz": "broken gzip file",
        "not.parquet": "not a readable Parquet file",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=reason):
            list(read_rows(tmp_path / name))


def test_globs_and_lists_keep_their_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(lines(ROWS))
    found = resolve_sources([str(tmp_path / "b.jsonl"), str(tmp_path / "**" / "*.jsonl")])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "b.jsonl", "a.jsonl", "b.jsonl", "deep/c.jsonl",
    ]  # fmt: skip


def test_missing_files_get_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_bytes(lines(ROWS))
    with pytest.raises(UserError, match=r"no file .*trian\.jsonl; did you mean train\.jsonl\?"):
        resolve_sources(str(tmp_path / "data" / "trian.jsonl"))
    with pytest.raises(UserError, match=r"there is no folder .*dta; did you mean data\?"):
        resolve_sources(str(tmp_path / "dta" / "train.jsonl"))
    with pytest.raises(UserError, match="is a folder; name its files"):
        resolve_sources(str(tmp_path / "data"))
    (tmp_path / "data" / "x.csv").touch()
    with pytest.raises(UserError, match=r"rows are read from files that end in \.jsonl"):
        resolve_sources(str(tmp_path / "data" / "*"))


def test_toyworld_sources_are_resolved_by_the_toy_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ts2_lightning.data.toyworld as toyworld

    asked = []
    monkeypatch.setattr(toyworld, "resolve_source", lambda uri: asked.append(uri) or tmp_path / "x.jsonl")
    assert resolve_sources("toyworld:train?seed=3") == [tmp_path / "x.jsonl"]
    assert asked == ["toyworld:train?seed=3"]

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from tests.support.errors import refused
from ts2_lightning.data.sources import Source, count_rows, read_rows, resolve_sources, stream_source
from ts2_lightning.toyworld.doors import ToyWorldSources
from ts2_lightning.types import UserError

ROWS = [{"prompt": "a", "completion": "ä"}, {"prompt": "b", "completion": "☃"}]


def lines(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


@pytest.mark.parametrize(
    "name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.json.gz", "x.parquet", "x.arrow", "stream.arrow"]
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif name.endswith(".arrow"):
        table = pyarrow.Table.from_pylist(ROWS)
        new = pyarrow.ipc.new_stream if name.startswith("stream") else pyarrow.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
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
    ("line", "kind", "reason"),
    [
        (b'{"prompt": "a"', "malformed JSON", "malformed JSON (Expecting ',' delimiter at column 15)"),
        (b'{"prompt": "\xff"}', "not UTF-8", "not UTF-8 (byte 13)"),
        (b"[1, 2]", "not an object", "a row must be a JSON object with fields, got a list"),
        (b"null", "not an object", "got null"),
        (b"3", "not an object", "got a number"),
        (b"[" * 100_000, "malformed JSON", "malformed JSON (nested too deeply)"),
        (b'{"id": ' + b"9" * 5000 + b"}", "malformed JSON", "Exceeds the limit"),
    ],
)
def test_bad_lines_take_the_place_of_rows(tmp_path: Path, line: bytes, kind: str, reason: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(lines(ROWS) + line + b"\n" + lines(ROWS))
    found = list(read_rows(path))
    assert [type(row).__name__ for row in found] == ["SourceRow", "SourceRow", "Reject", "SourceRow", "SourceRow"]
    assert found[2][:2] == (f"{path}:3", kind)
    assert reason in found[2].reason
    assert "\n" not in found[2].reason
    assert found[4].origin == f"{path}:5"


def test_bad_rows_of_tables(tmp_path: Path) -> None:
    """One text that is not UTF-8 costs one row, however many are read at once."""
    texts = pyarrow.array([b"a", b"\xff\xfe", None, b"d"], pyarrow.binary())
    table = pyarrow.table({"prompt": pyarrow.Array.from_buffers(pyarrow.string(), 4, texts.buffers())})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pyarrow.ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as writer:
        writer.write_table(table)
    for path in (tmp_path / "x.parquet", tmp_path / "x.arrow"):
        found = list(read_rows(path))
        assert [getattr(row, "fields", None) for row in found] == [
            {"prompt": "a"},
            None,
            {"prompt": None},
            {"prompt": "d"},
        ]
        assert found[1][:2] == (f"{path}, row 2", "not UTF-8")


def test_bad_files_are_named(tmp_path: Path) -> None:
    """A file that ends too early has lost rows that nobody can count, so it is no matter of bad rows."""
    packed = gzip.compress(lines(ROWS * 100))
    (tmp_path / "lines.json").write_bytes(lines(ROWS))
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-20])
    (tmp_path / "flipped.jsonl.gz").write_bytes(packed[:40] + bytes([packed[40] ^ 255]) + packed[41:])
    (tmp_path / "cut.json.gz").write_bytes(packed[:-20])
    (tmp_path / "not.jsonl.gz").write_bytes(b"plain")
    (tmp_path / "not.parquet").write_bytes(b"plain")
    (tmp_path / "not.arrow").write_bytes(b"plain")
    (tmp_path / "empty.arrow").touch()
    reasons = {
        "lines.json": "a file of one object a line is named .jsonl",
        "object.json": "must be a list of objects, got an object",
        "cut.jsonl.gz": "not a readable gzip file",
        "flipped.jsonl.gz": "not a readable gzip file",
        "cut.json.gz": "not a readable gzip file",
        "not.jsonl.gz": "not a readable gzip file",
        "not.parquet": "not a readable Parquet file",
        "not.arrow": "not a readable Arrow file",
        "empty.arrow": "not a readable Arrow file",
        "gone.jsonl": "not a readable text file",
    }
    for name, reason in reasons.items():
        with refused(f"{tmp_path / name}: .*{reason}"):
            list(read_rows(tmp_path / name))
    for name in ("not.parquet", "not.arrow", "cut.jsonl.gz"):
        with pytest.raises(UserError, match="not a readable"):
            count_rows(tmp_path / name)


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
    (tmp_path / "data" / "x.csv").touch()
    with pytest.raises(UserError, match=r"rows are read from files that end in \.jsonl"):
        resolve_sources(str(tmp_path / "data" / "*"))


def test_sources_of_a_plug_in_are_resolved_by_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(ToyWorldSources, "resolve", lambda self, path: asked.append(path) or tmp_path / "x.jsonl")
    assert resolve_sources("toyworld:train?seed=3") == [tmp_path / "x.jsonl"]
    assert asked == ["toyworld:train?seed=3"]
    with pytest.raises(UserError, match="toyworld:train: a source of the toy world has neither split nor name"):
        resolve_sources(Source("toyworld:train", split="train"))


def test_folders(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.parquet", "deep/c.json.gz", "README.md", ".cache/x.jsonl", ".hidden.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert resolve_sources(str(tmp_path)) == [tmp_path / name for name in ("a.parquet", "b.jsonl", "deep/c.json.gz")]
    (tmp_path / "test-00000-of-00001.parquet").touch()
    (tmp_path / "trainings.jsonl").touch()
    assert len(resolve_sources(str(tmp_path))) == 5
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(UserError, match=r"files of several splits \(train.jsonl, test-00000.*name one with split"):
        resolve_sources(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no file in the folder ends in \.jsonl"):
        resolve_sources(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Source("x.jsonl", times=0), "x.jsonl: times must be a finite number above 0 and at most 1000000, got 0"),
        (Source("x.jsonl", times=float("nan")), "times must be a finite number above 0"),
        (Source("x.jsonl", sample=0), "sample must be a whole number of at least 1 or null, got 0"),
        (Source("x.jsonl", revision="main"), "only a data set of the hub has a revision"),
        (Source("x.jsonl", split="train"), "a split or a name is of a data set"),
        (Source("toyworld:train?seed=0", split="train"), "has neither split nor name"),
    ],
)
def test_settings_that_a_source_cannot_have(source: Source, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        resolve_sources(source)


CHATS = [{"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(5)]


def rows_of(source: Source) -> list[dict[str, Any]]:
    return [dict(row.fields) for path in resolve_sources(source) for row in read_rows(path)]


def data_folder(directory: Path) -> Path:
    """A data set as it lies on the hub, with a configuration for each way of laying it out."""
    (directory / "data").mkdir(parents=True)
    (directory / "data" / "train-00000-of-00002.jsonl").write_bytes(lines(CHATS[:2]))
    (directory / "data" / "train-00001-of-00002.jsonl").write_bytes(lines(CHATS[2:4]))
    (directory / "data" / "held_out.jsonl").write_bytes(lines(CHATS[4:]))
    (directory / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train_sft\n    path: data/train-*\n"
        "  - split: test_sft\n    path: data/held_out.jsonl\n- config_name: small\n  data_files: data/held_out.jsonl\n"
        "---\n"
    )
    return directory


@pytest.mark.parametrize("prefix", ["", "hub:"])
def test_data_sets_are_read_by_split_and_configuration(tmp_path: Path, library_cache: Path, prefix: str) -> None:
    path = prefix + str(data_folder(tmp_path / "mine"))
    assert rows_of(Source(path, split="train_sft")) == CHATS[:4]
    assert rows_of(Source(path, split="test_sft")) == CHATS[4:]
    assert rows_of(Source(path, name="small")) == CHATS[4:], "the only split need not be named"
    files = resolve_sources(Source(path, split="train_sft"))
    assert all(file.suffix == ".arrow" and file.is_relative_to(library_cache) for file in files)
    with pytest.raises(UserError, match=r"no split 'train'; known: train_sft, test_sft; did you mean train_sft\?"):
        rows_of(Source(path, split="train"))
    with pytest.raises(UserError, match=r"cannot load the data set .*'smal' not found"):
        rows_of(Source(path, name="smal"))


def test_data_sets_that_datasets_saved(tmp_path: Path, library_cache: Path) -> None:
    """They are found by their files, so a split is asked for only if there are several."""
    one = datasets.Dataset.from_list(CHATS[:4])
    one.save_to_disk(str(tmp_path / "one"), num_shards=2)
    both = datasets.DatasetDict({"train": one, "test": datasets.Dataset.from_list(CHATS[4:])})
    both.save_to_disk(str(tmp_path / "both"))
    assert rows_of(Source(str(tmp_path / "one"))) == CHATS[:4]
    assert rows_of(Source(str(tmp_path / "both"), split="test")) == CHATS[4:]
    with pytest.raises(UserError, match="has the splits train, test; name one with split"):
        resolve_sources(str(tmp_path / "both"))


def test_objects_of_varying_fields(tmp_path: Path, library_cache: Path) -> None:
    """`datasets` keeps them as JSON texts."""
    rows = [{"messages": [{"role": "user", "content": "q", "extra": value}]} for value in (1, "x", [{"y": 2}])]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.jsonl").write_bytes(lines(rows))
    assert rows_of(Source(str(tmp_path / "mine"), split="train")) == rows


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("train.csv", b"prompt,completion,prompt\na,b,c\n", r"the column 'prompt' comes twice \('prompt.1' is"),
        ("train.jsonl", b'{"prompt": "a", "prompt": "b"}\n', "prompt.* was specified twice"),
    ],
)
def test_columns_that_come_twice_in_a_data_set(
    tmp_path: Path, library_cache: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_bytes(content)
    source = Source(str(tmp_path / "mine"), split="train")
    with refused(reason):
        resolve_sources(source)
    with pytest.raises(UserError, match=reason):
        [list(read_rows(part)) for part in stream_source(source)]


def test_columns_that_are_numbered_are_not_twice(tmp_path: Path, library_cache: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.csv").write_text("prompt.1,prompt.2,v1.5\na,b,c\n")
    assert rows_of(Source(str(tmp_path / "mine"), split="train")) == [{"prompt.1": "a", "prompt.2": "b", "v1.5": "c"}]


def test_nothing_of_a_data_set_is_executed(tmp_path: Path, library_cache: Path) -> None:
    """Neither scripts nor pickles, and only tables are loaded."""
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\nimport datasets\nclass Mine(datasets.GeneratorBasedBuilder):\n    pass\n"
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text(code)
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "train.pkl").write_bytes(b"cos\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR.")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "train.xml").write_text("<a/>")
    for name, reason in {
        "script": "scripts are no longer supported",
        "pickle": "cannot load",
        "images": "only tables are",
    }.items():
        with refused(reason):
            resolve_sources(Source(str(tmp_path / name), split="train"))
    assert not ran.exists()


def test_data_sets_that_are_not_there(library_cache: Path) -> None:
    with pytest.raises(UserError, match=r"cannot load the data set org/absent .*on the Hub"):
        resolve_sources(Source("hub:org/absent", split="train", revision="0" * 40))


def test_a_data_set_of_the_hub_without_the_hub(tmp_path: Path, library_cache: Path) -> None:
    """What was downloaded and converted before, is found again by its name."""
    resolve_sources(Source(str(data_folder(tmp_path / "mine")), split="train_sft"))
    (library_cache / "mine").rename(library_cache / "org___mine")
    assert rows_of(Source("hub:org/mine", split="train_sft")) == CHATS[:4]

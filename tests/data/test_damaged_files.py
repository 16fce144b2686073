"""Files that were damaged on their way: none loses rows in silence, ends the process, or keeps it for ever."""

import gzip
import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pyarrow import ipc

from tests.support.errors import refused
from ts2_lightning.data import texts
from ts2_lightning.data.rows import SourceRow
from ts2_lightning.data.sources import count_rows, read_rows
from ts2_lightning.types import UserError

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": "ä" * number}]}
    for number in range(30)
]
TABLE = pyarrow.Table.from_pylist(ROWS)


def stream(table: pyarrow.Table = TABLE, **options: Any) -> bytes:
    sink = io.BytesIO()
    with ipc.new_stream(sink, table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=10)
    return sink.getvalue()


def listed(table: pyarrow.Table = TABLE) -> bytes:
    sink = io.BytesIO()
    with ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    return sink.getvalue()


def parquet(**options: Any) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(TABLE, sink, row_group_size=10, **options)
    return sink.getvalue()


def after_batches(content: bytes, batches: int) -> int:
    """Where so many batches of a stream end."""
    file = pyarrow.BufferReader(content)
    reader = ipc.open_stream(file)
    for _ in range(batches):
        reader.read_next_batch()
    return file.tell()


LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
PACKED = gzip.compress(LINES)
END = "without its end marker; fetch or write the file again"


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) == 1
    return content.replace(old, new)


DAMAGED: dict[str, tuple[str, bytes, str]] = {
    "stream of no batch": ("x.arrow", stream()[: after_batches(stream(), 0)], f"ends after batch 0, {END}"),
    "stream cut between batches": ("x.arrow", stream()[: after_batches(stream(), 2)], f"ends after batch 2, {END}"),
    "stream cut behind the last": ("x.arrow", stream()[: after_batches(stream(), 3)], f"ends after batch 3, {END}"),
    "stream cut in a batch": ("x.arrow", stream()[: after_batches(stream(), 2) - 9], "not a readable Arrow file"),
    "stream cut in its marker": ("x.arrow", stream()[:-3], "not a readable Arrow file"),
    "two streams": ("x.arrow", stream() * 2, f"{len(stream()):,} bytes follow the end of the Arrow stream"),
    "bytes behind a stream": ("x.arrow", stream() + b"\0", "1 bytes follow the end"),
    "compressed stream cut": ("x.arrow", (packed := stream(compression="lz4"))[: after_batches(packed, 1)], END),
    "file cut": ("x.arrow", listed()[:-9], "not a readable Arrow file"),
    "bytes behind a file": ("x.arrow", listed() + b"junk", "not a readable Arrow file"),
    "Parquet cut": ("x.parquet", parquet()[:-50], "not a readable Parquet file"),
    "bytes behind Parquet": ("x.parquet", parquet() + b"junk", "not a readable Parquet file"),
    "Parquet page": (
        "x.parquet",
        replaced(parquet(write_page_checksum=True, compression="none"), b"question 17", b"question 71"),
        "CRC checksum verification failed",
    ),
    "gzip cut": ("x.jsonl.gz", PACKED[:-9], "ended before the end-of-stream marker"),
    "bytes behind gzip": ("x.jsonl.gz", PACKED + b"junk", "Not a gzipped file"),
    "gzip flipped": ("x.jsonl.gz", flipped(PACKED, -6), "CRC check failed"),
    "gzip of another length": ("x.jsonl.gz", flipped(PACKED, -2), "Incorrect length"),
    "second part of gzip cut": ("x.jsonl.gz", PACKED * 2 + PACKED[:-5], "ended before"),
    "gzip of nothing": ("x.jsonl.gz", b"", "it is empty"),
    "list cut": ("x.json", json.dumps(ROWS).encode()[:-40], "malformed JSON .*; mend it, or fetch or write it again"),
    "packed list cut": ("x.json.gz", gzip.compress(json.dumps(ROWS).encode())[:-40], "not a readable gzip file"),
    "bytes behind a list": ("x.json", json.dumps(ROWS).encode() + b"[]", "malformed JSON .Extra data"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_noticed(tmp_path: Path, name: str) -> None:
    """In one line, with the name of the file; the rows before it may have been read."""
    file, content, reason = DAMAGED[name]
    path = tmp_path / file
    path.write_bytes(content)
    with refused(f"{path}: .*{reason}"):
        list(read_rows(path))


def test_what_is_whole_is_read(tmp_path: Path) -> None:
    """Also in the layout that Arrow had first, and by members that were appended."""
    whole = {
        "a.arrow": stream(),
        "b.arrow": stream(use_legacy_format=True),
        "c.arrow": stream(compression="zstd"),
        "d.arrow": listed(),
        "e.parquet": parquet(write_page_checksum=True),
        "f.parquet": parquet(),
        "g.jsonl.gz": gzip.compress(LINES[:1000]) + gzip.compress(LINES[1000:]),
    }
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
        assert [dict(row.fields) for row in read_rows(tmp_path / name)] == ROWS, name
        assert count_rows(tmp_path / name) == 30


# Arrow that leads out of its memory ----------------------------------------------------------------------------------


def texts_of(offsets: list[int], kind: Any = None, data: bytes = b"abcdef") -> Any:
    """An array of texts whose offsets nobody has checked."""
    kind = pyarrow.string() if kind is None else kind
    packed = struct.pack(f"<{len(offsets)}{'q' if kind == pyarrow.large_string() else 'i'}", *offsets)
    buffers = [None, pyarrow.py_buffer(packed), pyarrow.py_buffer(data)]
    return pyarrow.Array.from_buffers(kind, len(offsets) - 1, buffers)


def lists_of(offsets: list[int], values: Any) -> Any:
    buffers = [None, pyarrow.py_buffer(struct.pack(f"<{len(offsets)}i", *offsets))]
    return pyarrow.Array.from_buffers(pyarrow.list_(values.type), len(offsets) - 1, buffers, children=[values])


WILD: dict[str, Callable[[], Any]] = {
    "beyond the end": lambda: texts_of([0, 2**30, 6]),
    "backwards": lambda: texts_of([0, 5, 2, 6]),
    "negative": lambda: texts_of([0, -(2**30), 6]),
    "large": lambda: texts_of([0, 2**50, 6], pyarrow.large_string()),
    "lists": lambda: lists_of([0, 2**30, 2], pyarrow.array(["a", "b"])),
    "inside lists": lambda: lists_of([0, 1, 2], texts_of([0, 2**30, 6])),
    "inside objects": lambda: pyarrow.StructArray.from_arrays([texts_of([0, 2**30, 6])], ["content"]),
    "inside objects in lists": lambda: lists_of(
        [0, 1, 2], pyarrow.StructArray.from_arrays([texts_of([0, 2**30, 6])], ["content"])
    ),
    "places in a dictionary": lambda: pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0, 2**30], pyarrow.int32()), pyarrow.array(["a"]), safe=False
    ),
    "of a dictionary": lambda: pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0, 1], pyarrow.int32()), texts_of([0, 2**30, 6]), safe=False
    ),
}
READ = """
import sys
from pathlib import Path
from ts2_lightning.data.sources import count_rows, read_rows
from ts2_lightning.types import UserError
for path in map(Path, sys.argv[1:]):
    try:
        count_rows(path)
        print(path, len(list(read_rows(path))))
    except UserError as error:
        print(error)
"""


def test_offsets_that_lead_anywhere(tmp_path: Path) -> None:
    """In another process, which they would end."""
    for name, make in WILD.items():
        column = make()
        # A file has one dictionary for all of its batches.
        batches = [pyarrow.record_batch({"text": column})]
        if "dictionary" not in name:
            batches.insert(0, pyarrow.record_batch({"text": pyarrow.nulls(1, column.type)}))
        for ending, new in (("stream", ipc.new_stream), ("file", ipc.new_file)):
            with new(str(tmp_path / f"{name} {ending}.arrow"), batches[0].schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
    paths = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", READ, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for path, line in zip(paths, done.stdout.splitlines(), strict=True):
        place = "batch 1, from row 1 on," if "dictionary" in path else "batch 2, from row 2 on,"
        assert line.startswith(f"{path}: {place} is damaged ("), line
        assert line.endswith("; fetch or write the file again")


def test_rows_of_nothing_have_an_end(tmp_path: Path) -> None:
    """A column of nulls takes no place, however many rows it is said to have."""
    path = tmp_path / "x.arrow"
    batch = pyarrow.record_batch({"text": pyarrow.Array.from_buffers(pyarrow.null(), 2**50, [None])})
    options = ipc.IpcWriteOptions(allow_64bit=True)
    with ipc.new_stream(str(path), batch.schema, options=options) as writer:
        writer.write_batch(batch)
    with pytest.raises(UserError, match="1,125,899,906,842,624 rows cannot be in"):
        list(read_rows(path))


def test_a_file_that_grows_short_while_it_is_read(tmp_path: Path) -> None:
    """The memory of a file that is mapped ends with the file, and the process with it; so files are read."""
    path = tmp_path / "x.arrow"
    path.write_bytes(stream(pyarrow.concat_tables([TABLE] * 2000)))
    rows = read_rows(path)
    assert isinstance(next(rows), SourceRow)
    with open(path, "r+b") as file:
        file.truncate(after_batches(stream(), 1))
    with pytest.raises(UserError, match=r"ends after batch|not a readable Arrow file"):
        list(rows)


def test_what_is_said_of_features_is_not_believed(tmp_path: Path) -> None:
    schema = TABLE.schema.with_metadata({"huggingface": '{"info": {"features": {"messages": {"_type": "Json"'})
    with ipc.new_stream(str(tmp_path / "x.arrow"), schema) as writer:
        writer.write_table(TABLE.replace_schema_metadata(schema.metadata))
    with pytest.raises(UserError, match="what it says of its features is damaged"):
        list(read_rows(tmp_path / "x.arrow"))


# Things that are there twice -----------------------------------------------------------------------------------------

TWICE = {
    "at the top": ('{"prompt": "a", "prompt": "b", "completion": "c"}', "prompt"),
    "and equal": ('{"prompt": "a", "prompt": "a", "completion": "c"}', "prompt"),
    "with spaces": ('{"prompt" : "a" , "prompt"\t:\t"b", "completion": "c"}', "prompt"),
    "by another spelling": ('{"prompt": "a", "\\u0070rompt": "b", "completion": "c"}', "prompt"),
    "in a message": ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "content"),
    "deep inside": ('{"a": [[{"b": {"c": [{"d": 1}, {"x": {}, "d": 1, "x": null}]}}]]}', "x"),
    "of nothing": ('{"": 1, "": 2}', ""),
    "after a text with colons": (
        '{"prompt": "\\"a\\": {\\"a\\":", "completion": ":", "completion": "c"}',
        "completion",
    ),
}
GOOD = '{"prompt": "a\\": \\"a\\":", "completion": "b", "x": {"prompt": "a", "y": {"prompt": "a"}}}'


@pytest.mark.parametrize("name", TWICE)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".jsonl.gz"])
def test_keys_that_come_twice(tmp_path: Path, name: str, ending: str) -> None:
    """Most parsers take the last in silence; here the row is bad, and no other."""
    text, key = TWICE[name]
    lines = [GOOD, text, GOOD]
    content = (f"[{', '.join(lines)}]" if ending == ".json" else "\n".join(lines)).encode()
    path = tmp_path / f"x{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    first, second, third = read_rows(path)
    assert second.kind == "malformed JSON"
    assert second.reason == f"malformed JSON (the key {key!r} comes twice in one object)"
    assert dict(first.fields) == dict(third.fields) == json.loads(GOOD)


@pytest.mark.parametrize("ending", [".parquet", ".stream.arrow", ".file.arrow"])
@pytest.mark.parametrize("inside", ["", "messages.", "x."])
def test_columns_that_come_twice(tmp_path: Path, ending: str, inside: str) -> None:
    column = pyarrow.array(["a", "b"])
    both: Any = pyarrow.StructArray.from_arrays([column, column, column], ["prompt", "b", "prompt"])
    if inside == "messages.":
        table = pyarrow.table({"messages": lists_of([0, 1, 2], both)})
    else:
        table = pyarrow.table({"x": both}) if inside else pyarrow.table([column] * 3, ["prompt", "b", "prompt"])
    path = tmp_path / f"x{ending}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with (ipc.new_stream if "stream" in ending else ipc.new_file)(str(path), table.schema) as writer:
            writer.write_table(table)
    with refused(rf"{path}: the column '{inside}prompt' comes 2 times; write each once"):
        list(read_rows(path))


# Things without an end -----------------------------------------------------------------------------------------------


class _Endless(io.RawIOBase):
    """A line without an end, but for the test's sake."""

    def __init__(self, size: int) -> None:
        self.left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self.left)
        buffer[:count] = b"x" * count
        self.left -= count
        return count


def test_a_line_without_an_end_is_not_held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(texts, "LARGEST_ROW", 1000)
    (tmp_path / "x.jsonl").touch()
    monkeypatch.setattr(texts, "_opened", lambda path: io.BufferedReader(_Endless(2 * 10**8)))
    [reject] = read_rows(tmp_path / "x.jsonl")
    assert reject.kind == "too long"
    assert reject.reason.startswith("the row has 200,000,000 bytes, more than the ")


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_lines_around_one_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """The bound is for what a line says, with or without its end; those around it are read, under their numbers."""
    monkeypatch.setattr(texts, "LARGEST_ROW", 40)
    monkeypatch.setattr(texts, "_PIECE", 7)
    fitting = b'{"prompt": "' + b"a" * 26 + b'"}'
    assert len(fitting) == 40
    lines = [b'{"prompt": "a"}', b"", fitting[:-1], fitting, fitting + b" ", b"{" + b" " * 1000, b'{"prompt": "b"}']
    path = tmp_path / f"x{ending}"
    path.write_bytes(gzip.compress(b"\n".join(lines)) if ending.endswith("gz") else b"\n".join(lines))
    found = list(read_rows(path))
    assert [row.origin for row in found] == [f"{path}:{number}" for number in (1, 3, 4, 5, 6, 7)]
    assert [getattr(row, "kind", None) for row in found] == [None, "malformed JSON", "too long"] + ["too long"] * 2 + [
        None
    ]

"""The token cache: the same rows from a file as from the tokenizer, made once, whole or not at all."""

import multiprocessing
import os
import pickle
import signal
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow
import pytest
from data_helpers import chat, token_rows, write_jsonl

from ts2_lightning.data import SFTData, cache
from ts2_lightning.data.cache import MappedRows, entry_key, make_rows
from ts2_lightning.data.encoding import EncodedRows, encode_chunks, encode_rows
from ts2_lightning.data.resume import plan_state
from ts2_lightning.data.sources import SourceRow
from ts2_lightning.types import UserError

KEY = "0123456789abcdef"
ARRAYS = ("ids", "row_edges", "spans", "span_edges", "weights", "places")


@pytest.fixture(autouse=True)
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the entries lie."""
    monkeypatch.setenv("TS2_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def some_rows(number: int = 600) -> Iterator[SourceRow]:
    """Rows of several lengths, with weights, of which some are dropped and some are bad."""
    for line, row in enumerate(token_rows([number % 11 + 1 for number in range(number)]), start=1):
        yield SourceRow(row | {"weight": line % 3}, f"x.jsonl:{line}")


def chunks() -> Iterator[EncodedRows]:
    return encode_chunks(some_rows(), None, max_length=8, overlong="drop")


def make(key: str | None = KEY, chunks: Callable[[], Iterator[EncodedRows]] = chunks) -> EncodedRows:
    return make_rows(key, chunks, lambda: None, "train").rows


def never(*arguments: object) -> Iterator[EncodedRows]:
    raise AssertionError("the rows are in the cache")


def assert_same(one: EncodedRows, other: EncodedRows) -> None:
    for name in ARRAYS:
        assert getattr(one, name).dtype == getattr(other, name).dtype
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.counts, one.rejects) == (other.counts, other.rejects)


def test_the_cache_gives_what_was_encoded(tokens: Path) -> None:
    wanted = encode_rows(some_rows(), None, max_length=8, overlong="drop")
    assert wanted.rejects
    assert wanted.counts.dropped
    for rows in (make(), make(chunks=never), make(None)):
        assert_same(rows, wanted)
        assert plan_state(rows, 0, 8) == plan_state(wanted, 0, 8), "a run resumes with or without the cache"
        assert rows[17].ids.tolist() == wanted[17].ids.tolist()
    assert [path.name for path in tokens.iterdir() if path.suffix != ".lock"] == [f"{KEY}.arrow"]


def test_an_entry_without_rows() -> None:
    def nothing() -> Iterator[EncodedRows]:
        return encode_chunks(some_rows(1), None)

    for rows in (make(chunks=nothing), make(chunks=never)):
        assert len(rows) == len(rows.ids) == 0
        assert rows.spans.shape == (0, 2)
        assert rows.counts.rejected == {"no supervised token": 1}


def test_notes_are_kept() -> None:
    read = 0

    def counted() -> Iterator[EncodedRows]:
        nonlocal read
        for chunk in chunks():
            read += chunk.counts.read
            yield chunk

    assert make_rows(KEY, counted, lambda: {"read": read}, "train").notes == {"read": 600}
    assert make_rows(KEY, never, lambda: None, "train").notes == {"read": 600}


def test_an_entry_is_plain_arrow(tokens: Path) -> None:
    wanted = make()
    with pyarrow.memory_map(str(tokens / f"{KEY}.arrow")) as file:
        table = pyarrow.ipc.open_file(file).read_all()
    assert table["ids"].to_pylist() == [wanted[row].ids.tolist() for row in range(len(wanted))]
    assert table["spans"].to_pylist() == [wanted[row].spans.tolist() for row in range(len(wanted))]
    assert table["weights"].to_pylist() == wanted.weights.tolist()


def test_rows_are_mapped_not_read() -> None:
    """No copy is made of anything, nor for another process; and nobody can write into the shared pages."""
    make()
    rows = make(chunks=never)
    for mine in (rows, pickle.loads(pickle.dumps(rows))):
        maps = [region.addr for region in psutil.Process().memory_maps(grouped=False) if region.path.endswith(".arrow")]
        edges = [[int(address, 16) for address in region.split("-")] for region in maps]
        for name in ARRAYS:
            array = getattr(mine, name)
            assert any(first <= array.ctypes.data < last for first, last in edges)
            assert not array.flags.writeable
    assert len(pickle.dumps(rows)) < 1000


def test_memory_does_not_grow_with_the_rows() -> None:
    """Encoding more rows into the cache allocates hardly more, neither in Python nor in numpy."""

    def peak(number: int) -> int:
        row = {"input_ids": list(range(1000))}
        tracemalloc.start()
        make(f"{number:016x}", lambda: encode_chunks((SourceRow(row, "x.jsonl:1") for _ in range(number)), None))
        largest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return largest

    peak(300)  # what is allocated once
    few, many = peak(600), peak(2600)
    assert many - few < 2000 * 100, "a row is 4,000 bytes; some numbers per row are held"


@pytest.mark.parametrize("damage", ["shorter", "longer", "empty", "text", "not a file of ours"])
def test_a_damaged_entry_is_made_again(damage: str, tokens: Path) -> None:
    wanted = make()
    path = tokens / f"{KEY}.arrow"
    content = path.read_bytes()
    path.unlink()  # `wanted` keeps the file that it has mapped
    table = pyarrow.table({"ids": [[1]]})
    if damage == "not a file of ours":
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    else:
        damaged = {"shorter": content[:-100], "longer": content + b"x", "empty": b"", "text": b"hello"}
        path.write_bytes(damaged[damage])
    with pytest.warns(match=rf"token cache {path} is damaged \(.+\); its rows are tokenised again"):
        assert_same(make(), wanted)
    assert_same(make(chunks=never), wanted)


def test_no_flipped_bit_goes_unseen(tokens: Path) -> None:
    """An entry with a wrong byte anywhere is either refused or, where the byte means nothing, still the same."""
    wanted = make()
    path = tokens / f"{KEY}.arrow"
    content = path.read_bytes()
    refused = 0
    random = np.random.default_rng(0)
    for place in random.choice(len(content), 400, replace=False).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        path.unlink()
        path.write_bytes(damaged)
        try:
            rows = MappedRows.open(path)
        except (OSError, ValueError, LookupError, TypeError, pyarrow.ArrowException):
            refused += 1
        else:
            assert_same(rows, wanted)
    assert refused > 200


@pytest.mark.parametrize("way", ["error", "kill"])
def test_a_writer_that_ends_early_leaves_no_entry(way: str, tokens: Path) -> None:
    def broken() -> Iterator[EncodedRows]:
        for number, chunk in enumerate(chunks()):
            if number == 2:
                if way == "error":
                    raise UserError("x.jsonl:9: too bad")
                os.kill(os.getpid(), signal.SIGKILL)
            yield chunk

    if way == "error":
        with pytest.raises(UserError, match="too bad"):
            make(chunks=broken)
        assert not [path for path in tokens.iterdir() if path.suffix != ".lock"]
    else:
        process = multiprocessing.get_context("fork").Process(target=make, args=(KEY, broken))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert list(tokens.glob(f".{KEY}.*")), "the test is about something"
        assert not (tokens / f"{KEY}.arrow").exists()
    assert_same(make(), make(None))
    assert [path.name for path in tokens.iterdir() if path.suffix != ".lock"] == [f"{KEY}.arrow"]


def start(barrier: Any, log: Path, results: Any) -> None:
    """What each of several processes does."""

    def logged() -> Iterator[EncodedRows]:
        with log.open("a") as file:
            file.write("made\n")
        return chunks()

    barrier.wait()
    rows = make(chunks=logged)
    results.put((len(rows), int(rows.ids.sum())))


def test_processes_that_start_together_tokenise_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results, log = context.Barrier(4), context.Queue(), tmp_path / "log"
    processes = [context.Process(target=start, args=(barrier, log, results)) for _ in range(4)]
    for process in processes:
        process.start()
    wanted = make(None)
    assert [results.get(timeout=60) for _ in processes] == [(len(wanted), int(wanted.ids.sum()))] * 4
    for process in processes:
        process.join()
    assert log.read_text() == "made\n"


def test_who_waits_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    waiting = threading.Event()

    def say(message: str) -> None:
        said.append(message)
        waiting.set()

    def slow() -> Iterator[EncodedRows]:
        other.start()
        assert waiting.wait(60)
        yield from chunks()

    results: list[EncodedRows] = []
    monkeypatch.setattr(cache, "rank_zero_info", say)
    other = threading.Thread(target=lambda: results.append(make(chunks=never)))
    results.append(make(chunks=slow))
    other.join()
    assert_same(*results)
    assert len(said) == 1
    assert "another process is tokenising train; waiting for it" in said[0]


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TS2_CACHE_DIR", str(tmp_path / "file"))
    said = set()
    for key in (KEY, "another"):
        with pytest.warns(match=r"the token cache in .* cannot be used \(.+\).*set TS2_CACHE_DIR") as warnings:
            assert_same(make(key), make(None))
        said |= {str(warning.message) for warning in warnings}
    assert len(said) == 1, "Python shows it once for all splits"


def test_a_full_disk(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_write_arrow", full)
    with pytest.warns(match="No space left"):
        assert_same(make(), make(None))
    assert not [path for path in tokens.iterdir() if path.suffix != ".lock"]


def test_an_entry_is_read_without_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a cache that was filled by somebody else may be read-only."""
    wanted = make()

    def read_only(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache, "FileLock", read_only)
    monkeypatch.setattr(os, "utime", read_only)
    monkeypatch.setattr(Path, "mkdir", read_only)
    assert_same(make(chunks=never), wanted)


def test_last_use_is_the_time_of_the_file(tokens: Path) -> None:
    make()
    path = tokens / f"{KEY}.arrow"
    os.utime(path, (0, 0))
    make(chunks=never)
    assert path.stat().st_mtime > 0


# Keys ---------------------------------------------------------------------------------------------------------


def a_format(fields: dict) -> list:
    return fields["chat"]


def test_keys_change_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(template: str | None = "t", formats: Any = (None,), **rest: Any) -> str | None:
        return entry_key(template, formats, **{"max_length": 8, "files": [("x.jsonl", "ab")]} | rest)

    keys = [
        key(),
        key("u"),
        key(None),
        key(formats=[a_format]),
        key(formats=[a_format, None]),
        key(max_length=9),
        key(files=[("x.jsonl", "ac")]),
        key(files=[("x.jsonl", "ab")] * 2),
    ]
    monkeypatch.setattr(cache, "_code_digest", lambda: "other code")
    keys.append(key())
    assert None not in keys
    assert len(set(keys)) == len(keys)
    assert key() == key()


def test_a_format_without_source_is_not_cached() -> None:
    space: dict[str, Any] = {}
    exec("def a_format(fields): return fields['chat']", space)
    assert entry_key(None, [space["a_format"]]) is None
    assert entry_key(None, [len]) is None


def test_the_key_sees_the_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "def fmt(fields):\n    return helper(fields)\n\ndef helper(fields):\n    return fields['chat']\n"
    (tmp_path / "users_formats.py").write_text(source)
    import users_formats

    first = entry_key(None, [users_formats.fmt])
    (tmp_path / "users_formats.py").write_text(source.replace("chat", "chats"))
    assert entry_key(None, [users_formats.fmt]) != first


# In the datamodule --------------------------------------------------------------------------------------------


@pytest.fixture
def chats(tmp_path: Path) -> str:
    rows = [{"messages": chat("Hello", "a" * number, "b", "c")} for number in range(1, 12)]
    return write_jsonl(tmp_path / "chats.jsonl", rows)


def described(data: SFTData) -> dict:
    data.setup("fit")
    return data.describe()["splits"]["train"]


def test_the_second_start_does_not_tokenise(
    chats: str, tokenizer_directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def data(**options: Any) -> SFTData:
        return SFTData([chats, chats], tokenizer=tokenizer_directory, template="chatml", **options)

    uncached, first = data(cache=False), data()
    assert described(uncached) == described(first)
    second = data()
    monkeypatch.setattr("ts2_lightning.data.reading.encode_chunks", never)
    assert described(second) == described(first)
    assert_same(second.rows("train"), first.rows("train"))
    assert second.state_dict() == uncached.state_dict()
    assert isinstance(second.rows("train"), MappedRows)
    for options in ({"max_length": 20}, {"overlong": "drop"}, {"limit_train": 3}, {"cache": False}):
        with pytest.raises(AssertionError, match="in the cache"):
            data(**options).setup("fit")


def test_changed_rows_are_tokenised(chats: str, tokenizer_directory: str) -> None:
    options = {"tokenizer": tokenizer_directory, "template": "chatml"}
    before = described(SFTData(chats, **options))
    write_jsonl(Path(chats), [{"messages": chat("Hello", "there")}])
    assert described(SFTData(chats, **options))["tokens"] < before["tokens"]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_the_cache(workers: int, chats: str, tokenizer_directory: str) -> None:
    def batches(**options: Any) -> list[dict]:
        data = SFTData(chats, tokenizer=tokenizer_directory, template="chatml", batch_size=4, **options)
        data.setup("fit")
        loader = data.train_dataloader()
        found = [{name: value.tolist() for name, value in batch.items()} for batch in loader]
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()
        return found

    wanted = batches(cache=False)
    assert batches(num_workers=workers) == wanted


def test_bad_rows_are_bad_from_the_cache_too(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*token_rows([2, 3]), {"input_ids": [1]}])
    for _ in range(2):
        with pytest.raises(UserError, match=r"rows\.jsonl:3: the row has no supervised token"):
            SFTData(path, format="tokens").setup("fit")

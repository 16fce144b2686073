"""Rows that are far longer than anything that is trained on: named, counted, and cheap."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from data_helpers import chat, write_jsonl
from pyarrow import ipc
from transformers import PreTrainedTokenizerFast

from ts2_lightning.data import SFTData, encoding, rows, tables, texts
from ts2_lightning.data.encoding import encode_rows, largest_conversation
from ts2_lightning.data.rows import SourceRow
from ts2_lightning.data.sources import read_rows
from ts2_lightning.data.templates import ChatTemplate, make_template
from ts2_lightning.types import UserError

SHORT = {"prompt": "Hello there", "completion": "I am fine"}


@pytest.fixture(scope="module")
def template(tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    return make_template("chatml", tokenizer)


def long_row(characters: int) -> dict[str, str]:
    return {"prompt": "Hello", "completion": "word " * (characters // 5)}


@pytest.mark.parametrize(
    ("max_length", "characters"), [(1, 2**20), (2048, 2**20), (16_384, 2**20), (10**6, 64 * 10**6)]
)
def test_the_bound_follows_from_the_length(max_length: int, characters: int) -> None:
    assert largest_conversation(max_length) == characters


@pytest.mark.parametrize(
    ("overlong", "counts"),
    [("truncate", (2, 0, {"too long": 1})), ("truncate_left", (2, 0, {"too long": 1})), ("drop", (2, 1, {}))],
)
def test_a_conversation_that_is_far_too_long(template: ChatTemplate, overlong: Any, counts: tuple) -> None:
    """It is not tokenised at all."""
    given = [SourceRow(SHORT, "x:1"), SourceRow(long_row(50_000_000), "x:2"), SourceRow(SHORT, "x:3")]
    before = time.process_time()
    found = encode_rows(given, template, overlong=overlong)
    assert time.process_time() - before < 3
    assert (found.counts.kept, found.counts.dropped, found.counts.rejected) == counts
    assert found.places.tolist() == [0, 2]
    for reject in found.rejects:
        assert reject.origin == "x:2"
        assert reject.reason.startswith("the conversation has 50,000,133 characters, more than the 1,048,576 that are")
        assert reject.reason.endswith("raise max_length or set overlong to drop")


def test_where_no_row_may_be_too_long(template: ChatTemplate) -> None:
    with pytest.raises(UserError, match=r"x:2: the conversation has 2,000,133 characters, more than the 1,048,576"):
        encode_rows([SourceRow(SHORT, "x:1"), SourceRow(long_row(2_000_000), "x:2")], template, overlong="raise")


def test_rows_that_are_worth_cutting_are_cut(template: ChatTemplate) -> None:
    """Up to the bound nothing changes."""
    row = long_row(900_000)
    found = encode_rows([SourceRow(row, "x:1")], template, max_length=100)
    assert found.counts.truncated == 1
    [whole] = template.encode([template.render(chat(row["prompt"], row["completion"]))])
    assert found[0].ids.tolist() == whole.ids[:100]


def test_a_longer_max_length_takes_longer_rows(template: ChatTemplate) -> None:
    row = SourceRow(long_row(1_200_000), "x:1")
    assert encode_rows([row], template, max_length=2048).counts.rejected == {"too long": 1}
    assert encode_rows([row], template, max_length=20_000).counts.truncated == 1


def test_many_empty_messages_are_long_too(template: ChatTemplate) -> None:
    turns = chat(*["", "a"] * 20_000)
    found = encode_rows([SourceRow({"messages": turns}, "x:1")], template)
    assert found.counts.rejected == {"too long": 1}


def test_a_conversation_of_thousands_of_turns(template: ChatTemplate) -> None:
    """Its time does not grow with the square of their number."""
    turns = chat(*["Hello", " I am fine"] * 3000)  # with a space that is kept apart from the prompt
    before = time.process_time()
    found = encode_rows([SourceRow({"messages": turns}, "x:1")], template, max_length=10**6)
    assert time.process_time() - before < 20
    assert len(found.spans) == 3000


def test_the_tokenizer_gets_a_bounded_amount_at_once(template: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 40 bytes for each character."""
    sizes = []
    encode = ChatTemplate.encode

    def spied(self: ChatTemplate, renderings: Any) -> Any:
        sizes.append(sum(len(rendering.text) for rendering in renderings))
        return encode(self, renderings)

    monkeypatch.setattr(ChatTemplate, "encode", spied)
    monkeypatch.setattr(encoding, "_CHARACTERS", 20_000)
    given = [SourceRow(long_row(3_000), f"x:{number}") for number in range(50)]
    found = encode_rows(given, template)
    assert found.counts.kept == 50
    assert found.places.tolist() == list(range(50))
    assert 20_000 <= max(sizes) < 24_000


@pytest.fixture
def small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in files may have 1,000 bytes."""
    for module in (rows, texts, tables):
        monkeypatch.setattr(module, "LARGEST_ROW", 1000)


ROWS = [SHORT, {**SHORT, "completion": "a" * 2000}, {**SHORT, "notes": ["b" * 600] * 2}, SHORT]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet", ".arrow"])
def test_rows_that_are_too_long_to_be_read(
    tmp_path: Path, tokenizer_directory: str, small_rows: None, ending: str
) -> None:
    """Whichever field it is that is too long."""
    path = tmp_path / f"rows{ending}"
    table = pyarrow.Table.from_pylist(
        ROWS, pyarrow.schema({"prompt": "string", "completion": "string", "notes": pyarrow.list_(pyarrow.string())})
    )
    if ending == ".parquet":
        pyarrow.parquet.write_table(table, path)
    elif ending == ".arrow":
        with ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        write_jsonl(path, ROWS)
    found = list(read_rows(path))
    assert [getattr(row, "kind", None) for row in found] == [None, "too long", "too long", None]
    assert all(reject.reason.endswith("shorten it or set overlong to drop") for reject in found[1:3])
    options: dict[str, Any] = {"tokenizer": tokenizer_directory, "template": "chatml"}
    with pytest.raises(UserError, match=r"the row has 2,0\d\d bytes, more than the 1,000 .* 2 of 4 rows are bad"):
        SFTData(str(path), **options).setup("fit")
    with pytest.raises(UserError, match=f"{path}.* the row has"):
        SFTData(str(path), **options, overlong="raise").setup("fit")
    data = SFTData(str(path), **options, overlong="drop")
    data.setup("fit")
    counts = data.rows("train").counts
    assert (counts.kept, counts.dropped, counts.rejected) == (2, 2, {})


def test_long_rows_of_a_table_are_turned_into_objects_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "LARGEST_ROW", 5000)
    wanted = [{"prompt": "a" * (number * 40), "completion": "b"} for number in range(100)]
    table = pyarrow.Table.from_pylist(wanted)
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as writer:
        writer.write_table(table)
    for name in ("x.parquet", "x.arrow"):
        assert [dict(row.fields) for row in read_rows(tmp_path / name)] == wanted


@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_a_document_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """It is read whole, so it is refused, also if only its packed size is small."""
    monkeypatch.setattr(texts, "LARGEST_DOCUMENT", 10**6)
    content = json.dumps([{**SHORT, "notes": "a" * 2_000_000}]).encode()
    path = tmp_path / f"x{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    with pytest.raises(UserError, match=rf"{path}: .* more than 1,000,000 bytes; write one object a line instead"):
        list(read_rows(path))

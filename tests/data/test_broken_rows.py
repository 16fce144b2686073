"""Broken rows of every kind: each row is kept or counted under a kind, never lost, and never a traceback."""

import json
import tempfile
from pathlib import Path
from typing import Any, get_args

import pyarrow
import pyarrow.parquet
import pytest
from data_helpers import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ts2_lightning.data import SFTData
from ts2_lightning.data.encoding import EncodedRows, encode_rows
from ts2_lightning.data.sources import read_rows
from ts2_lightning.data.templates import ChatTemplate, make_template
from ts2_lightning.types import RejectKind, UserError

USER = {"role": "user", "content": "Hello there"}
ANSWER = {"role": "assistant", "content": "I am fine"}
SAID, REPLIED = {"from": "human", "value": "Hello"}, {"from": "gpt", "value": "I am fine"}
GOOD: list[dict[str, Any]] = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    {"messages": [{"role": "system", "content": "s"}, USER, ANSWER, USER, ANSWER], "weight": 0.5},
    {"conversations": [SAID, REPLIED], "system": "s"},
    {"conversations": [SAID], "chosen": REPLIED, "rejected": REPLIED},
    {"conversations": ["Hello", "I am fine"]},
    {"prompt": "Hello", "completion": "I am fine"},
    {"prompt": [USER], "response": [ANSWER]},
    {"instruction": "Hello", "input": "you", "output": "I am fine", "history": [["a", "b"]]},
    {"instruction": "Hello", "context": "you", "response": "I am fine"},
    {"question": "1 + 1?", "answer": "2"},
    {"messages": [USER, ANSWER], "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
    {"instruction": "Hello", "completions": [{"response": "I am fine", "overall_score": 8.0}]},
    {"problem": "1 + 1?", "solution": "\\boxed{2}", "messages": [USER, ANSWER]},
    {"text": "### Human: Hello ### Assistant: I am fine"},
    {
        "message_tree_id": "x",
        "prompt": {"role": "prompter", "text": "Hello", "replies": [{"role": "assistant", "text": "I am", "rank": 0}]},
    },
]  # fmt: skip

texts = st.text(st.characters(exclude_categories=()), max_size=8) | st.sampled_from(
    ["", " \n", "assistant", "<|im_end|>", "\ud800", "\ue0000\ue001", "\u2028", "\x00", "{{ messages }}", "### Human:"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.just(10**400) | st.just(2**31)
keys = texts | st.sampled_from(sorted({key for row in GOOD for key in row} | {"role", "content", "from", "value"}))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A good row in which something, at any depth, was replaced, removed or added."""
    row = json.loads(json.dumps(draw(st.sampled_from(GOOD))))
    for _ in range(draw(st.integers(1, 2))):
        place = row
        while True:
            inside = list(place) if isinstance(place, dict) else list(range(len(place)))
            deeper = [key for key in inside if isinstance(place[key], dict | list)]
            if not deeper or draw(st.booleans()):
                break
            place = place[draw(st.sampled_from(deeper))]
        change = draw(st.sampled_from(["replace", "remove", "add"] if inside else ["add"]))
        if change == "add" and isinstance(place, dict):
            place[draw(keys)] = draw(values)
        elif change == "add":
            place.append(draw(values))
        elif change == "remove":
            del place[draw(st.sampled_from(inside))]
        else:
            place[draw(st.sampled_from(inside))] = draw(values)
    return row


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The line of a good row with bytes lost, or others put in."""
    line = json.dumps(draw(st.sampled_from(GOOD)), ensure_ascii=False).encode()
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(line))] * 2)))
    return line[:start] + draw(st.binary(max_size=4)).replace(b"\n", b"") + line[end:]


good_lines = st.sampled_from(GOOD).map(lambda row: json.dumps(row).encode())
nested = st.integers(1, 3000).map(lambda depth: b'{"messages": ' + b"[" * depth + b"]" * depth + b"}")
bad_lines = (
    (mutated() | values).map(lambda row: json.dumps(row).encode())
    | damaged()
    | st.binary(max_size=20).map(lambda line: line.replace(b"\n", b""))
    | nested
    | st.sampled_from([b"\xef\xbb\xbf{}", b"\x00", b"\xff" * 9, b'{"weight": NaN}', b'{"id": ' + b"9" * 5000 + b"}"])
)
overlongs = st.sampled_from(["truncate", "truncate_left", "drop"])


@pytest.fixture(scope="session")
def template(tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    return make_template("chatml", tokenizer)


def check(rows: EncodedRows, origins: list[str]) -> set[int]:
    """Each row is kept, dropped, or rejected under a kind; returns the places of those that are not rejected."""
    counts = rows.counts
    assert counts.read == len(origins)
    assert len(rows) == counts.kept == len(rows.places)
    assert counts.kept + counts.dropped + sum(counts.rejected.values()) == counts.read
    assert counts.rejected.keys() <= set(get_args(RejectKind))
    bad = [origins.index(reject.origin) for reject in rows.rejects]
    assert bad == sorted(set(bad)), "each once, in order"
    assert not set(bad) & set(rows.places.tolist())
    assert len(bad) + counts.rejected.get("left out", 0) == sum(counts.rejected.values())
    for reject in rows.rejects:
        assert reject.reason
        assert len(reject.reason) < 2000
        assert reject.reason.isprintable() or "\n" not in reject.reason
    assert rows.supervised.min(initial=1) > 0
    return set(range(len(origins))) - set(bad)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(lines=st.lists(st.tuples(st.just(True), good_lines) | st.tuples(st.just(False), bad_lines), max_size=12),
       overlong=overlongs, max_length=st.sampled_from([4, 40, 1000]))  # fmt: skip
def test_lines(template: ChatTemplate, lines: list[tuple[bool, bytes]], overlong: Any, max_length: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.jsonl"
        path.write_bytes(b"".join(line + b"\n" for _, line in lines))
        rows = encode_rows(read_rows(path), template, max_length=max_length, overlong=overlong)
        numbered = [(number, good) for number, (good, line) in enumerate(lines, start=1) if line.strip()]
        not_rejected = check(rows, [f"{path}:{number}" for number, _ in numbered])
        if max_length == 1000:
            assert {place for place, (_, good) in enumerate(numbered) if good} <= not_rejected, "good rows stay"


@settings(derandomize=True, deadline=None, max_examples=60)
@given(rows=st.lists(mutated() | st.sampled_from(GOOD), max_size=12), ending=st.sampled_from([".json", ".parquet"]))
def test_tables(template: ChatTemplate, rows: list[Any], ending: str) -> None:
    """Where all rows of a file have the same columns, most of them null."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"rows{ending}"
        if ending == ".json":
            path.write_text(json.dumps(rows))
        else:
            rows = [row for row in rows if isinstance(row, dict)]
            try:
                table = pyarrow.Table.from_pylist(rows)
                pyarrow.parquet.write_table(table, path)
            except (pyarrow.ArrowException, OverflowError, UnicodeError, TypeError):
                return  # Arrow itself does not take such rows
        found = encode_rows(read_rows(path), template, max_length=1000)
        check(found, [f"{path}, row {number}" for number in range(1, found.counts.read + 1)])
        assert found.counts.read == len(rows) or ending == ".parquet"


def test_every_kind_of_bad_row_at_once(tmp_path: Path, tokenizer_directory: str) -> None:
    """The policy from the file to the record of the run."""
    bad = {
        "malformed JSON": b'{"messages": [',
        "not UTF-8": b'{"prompt": "\xff", "completion": "a"}',
        "not an object": b"[1, 2]",
        "missing field": b'{"prompt": "Hello"}',
        "wrong type": b'{"prompt": "Hello", "completion": 3}',
        "unknown role": json.dumps({"messages": [USER, {**ANSWER, "role": "robot"}]}).encode(),
        "empty answer": b'{"prompt": "Hello", "completion": " "}',
        "no supervised token": json.dumps({"messages": [USER]}).encode(),
        "too long": json.dumps({"prompt": "Hello " * 200, "completion": "a"}).encode(),
        "other": json.dumps({"messages": [USER, ANSWER], "prompt": "Hello", "completion": "a"}).encode(),
        "left out": b'{"instruction": "Hello", "completions": []}',
    }
    assert bad.keys() | {"template"} == set(get_args(RejectKind))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in bad.values()))
    good = write_jsonl(tmp_path / "good.jsonl", [{"prompt": "Hello", "completion": "I am fine"}] * 10)
    options: dict[str, Any] = {"tokenizer": tokenizer_directory, "template": "chatml", "max_length": 64}
    with pytest.raises(UserError, match=r"10 of 21 rows are bad \(1 malformed JSON, .*\); mend .* at least 0.48"):
        SFTData([str(path), good], **options).setup("fit")
    data = SFTData([str(path), good], **options, max_rejects=0.48)
    with pytest.warns(UserWarning, match=r"left out 10 bad of 21 rows \(1 malformed JSON, .*rejects.jsonl"):
        data.setup("fit")
    described = data.describe()["splits"]["train"]
    assert described["rejected"] == dict.fromkeys(bad, 1)
    assert (described["read"], described["kept"]) == (21, 10)
    assert [file["rows"] for file in described["files"]] == [11, 10]
    assert data.rows("train").places.tolist() == list(range(11, 21))

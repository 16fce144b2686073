"""Both sides of the data benchmark make the same of the same rows."""

import gzip
import json
from pathlib import Path

import pytest
from data_helpers import chat

from benchmarks import data_pipeline as benchmark


def test_both_sides_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    given = [chat("Tell me a story", "Once upon a time " * number, "and then?", "The end.") for number in range(1, 20)]
    source = tmp_path / "source.jsonl.gz"
    source.write_bytes(gzip.compress("".join(json.dumps({"messages": row}) + "\n" for row in given).encode()))
    file = benchmark.write_rows(tmp_path / "rows.jsonl", benchmark.conversations(source, 25))
    tokenizer = benchmark.train_tokenizer(tmp_path / "tokenizer", benchmark.conversations(source, 19), 300)
    data = benchmark.ours(file, tokenizer, max_length=90, cache=False)
    rows, table = data.rows("train"), benchmark.theirs(file, tokenizer, 90, tmp_path / "datasets")
    assert len(rows) == len(table) == 25
    assert rows.counts.truncated
    for index, theirs in enumerate(table):
        learnt = {place for start, end in rows[index].spans.tolist() for place in range(start, end)}
        ids = rows[index].ids.tolist()
        assert ids == theirs["input_ids"]
        assert [token if place in learnt else -100 for place, token in enumerate(ids)] == theirs["labels"]
    tokens = benchmark.epoch(data.train_dataloader())[0]
    plain = benchmark.DataLoader(table, batch_size=8, shuffle=True, collate_fn=benchmark.pad)
    assert benchmark.epoch(plain)[0] == tokens == len(rows.ids)

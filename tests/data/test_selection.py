"""Which rows a split has: fractions held out, samples, limits and mixtures."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from data_helpers import write_jsonl

from ts2_lightning.data.rejects import Reject
from ts2_lightning.data.selection import WHOLE, RowPart, Selection, draw, held_out
from ts2_lightning.data.sources import Source
from ts2_lightning.types import RowError, UserError

ROWS = [{"prompt": f"question {number}", "completion": "a"} for number in range(1000)]


def contents(selection: Selection) -> list[str]:
    return [row.fields["prompt"] for _, row in selection.read()]


def selection(*paths: str | Source, part: RowPart = WHOLE, seed: int = 0, **options: object) -> Selection:
    sources = tuple(Source(path) if isinstance(path, str) else path for path in paths)
    return Selection(sources, seed=seed, part=part, **options)


def test_each_row_is_in_one_part(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    parts = held_out({"validation": 0.1, "test": 0.2})
    found = {name: contents(selection(path, part=part)) for name, part in parts.items()}
    assert sorted(text for texts in found.values() for text in texts) == sorted(row["prompt"] for row in ROWS)
    for name, share in {"train": 700, "validation": 100, "test": 200}.items():
        assert abs(len(found[name]) - share) < 4 * 1000**0.5 / 2, "four standard deviations at most"
        assert found[name] == [row["prompt"] for row in ROWS if row["prompt"] in set(found[name])], "in their order"


def test_parts_have_no_gap_and_no_overlap() -> None:
    """At floating point's edges too."""
    for validation, test in ((0.1, 0.2), (0.3, 0.6), (1e-17, 0.1), (0.7, 0.1 + 0.2 - 1e-16)):
        parts = sorted(part[:2] for part in held_out({"validation": validation, "test": test}).values())
        assert parts[0][0] == 0
        assert parts[-1][1] == 1
        assert all(before[1] == after[0] for before, after in pairwise(parts))


def test_a_row_stays_where_it_is_when_others_change(tmp_path: Path) -> None:
    part = held_out({"validation": 0.3})["validation"]
    before = set(contents(selection(write_jsonl(tmp_path / "a.jsonl", ROWS[:500]), part=part)))
    more = write_jsonl(tmp_path / "b.jsonl", [*ROWS[600:], *reversed(ROWS[:500]), *ROWS[:10]])
    after = contents(selection(more, part=part))
    assert before == {text for text in after if int(text.split()[1]) < 500}
    shuffled = [{**dict(reversed(row.items())), "id": None} for row in ROWS[:500]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(shuffled), tmp_path / "a.parquet")
    assert set(contents(selection(str(tmp_path / "a.parquet"), part=part))) == before, "in any kind of file"
    duplicated = [text for text in after if int(text.split()[1]) < 10]
    assert all(duplicated.count(text) == 2 for text in duplicated), "equal rows are on the same side"


def test_what_is_held_out_follows_from_the_seed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    part = held_out({"validation": 0.5})["validation"]
    one, two = (set(contents(selection(path, part=part, seed=seed))) for seed in (0, 1))
    assert 150 < len(one & two) < 350, "independent halves share a quarter"
    numbers = np.array([draw(row, 0, "hold out") for row in ROWS])
    others = np.array([draw(row, 0, "sample") for row in ROWS])
    assert abs(np.corrcoef(numbers, others)[0, 1]) < 0.15, "a sample is not one-sided"
    counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
    assert counts.sum() == 1000
    assert ((counts - 100) ** 2 / 100).sum() < 27.9, "chi squared with 9 degrees of freedom, p = 0.001"


def test_rows_that_nothing_can_be_drawn_for() -> None:
    deep: list = []
    for _ in range(50_000):
        deep = [deep]
    assert 0 <= draw({"prompt": deep}, 0, "hold out") < 1
    assert 0 <= draw({"prompt": "\ud800", "x": b"\xff", "y": float("nan")}, 0, "hold out") < 1
    for _ in range(50_000):
        [deep] = deep


def test_unreadable_rows_count_as_training_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n{broken\n" for row in ROWS[:50]))
    parts = held_out({"validation": 0.3, "test": 0.3})
    found = {name: list(selection(str(path), part=part).read()) for name, part in parts.items()}
    bad = {name: sum(isinstance(row, Reject) for _, row in rows) for name, rows in found.items()}
    assert bad == {"train": 50, "validation": 0, "test": 0}
    assert sum(map(len, found.values())) == 100


def test_a_sample(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    found = contents(selection(Source(path, sample=100)))
    assert len(found) == 100
    assert found == sorted(found, key=lambda text: int(text.split()[1])), "in the order of the file"
    assert set(found) < set(contents(selection(Source(path, sample=200)))), "a larger one contains it"
    assert found != contents(selection(Source(path, sample=100), seed=1))
    assert selection(Source(path, sample=100)).count() == 100
    part = held_out({"validation": 0.2})["validation"]
    assert 5 < len(contents(selection(Source(path, sample=100), part=part))) < 40
    with pytest.raises(UserError, match=r"rows.jsonl: sample is 1001, but only 1000 rows can be sampled"):
        contents(selection(Source(path, sample=1001)))


def only_even(fields: dict) -> list[dict]:
    if int(fields["prompt"].split()[1]) % 2:
        raise RowError("odd", "left out")
    return [{"role": "user", "content": fields["prompt"]}, {"role": "assistant", "content": "a"}]


def test_a_sample_is_of_the_rows_that_the_format_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("ts2_lightning.data.formats").data.formats.FORMATS, "even", _format())
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:100]) + "{broken\n")
    found = [row for _, row in selection(Source(str(path), sample=20, format="even")).read()]
    kept = [row for row in found if not isinstance(row, Reject) and not int(row.fields["prompt"].split()[1]) % 2]
    assert len(kept) == 20
    assert len(found) == 20 + 50 + 1, "the others are still there to be counted"
    assert all(row.format is only_even for row in kept)


def _format() -> object:
    from ts2_lightning.data.formats import Format

    return Format(only_even, frozenset({"even"}))


def test_mixtures(tmp_path: Path) -> None:
    """Rows know their file, and with it how often they come."""
    first, second = (write_jsonl(tmp_path / name, ROWS[:3]) for name in ("a.jsonl", "b.jsonl"))
    mixed = selection(first, Source(str(tmp_path / "*.jsonl"), times=2.5), Source(second, times=0.5, format="dolly"))
    numbered = list(mixed.read())
    assert [number for number, _ in numbered] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert [row.format is None for _, row in numbered] == [True] * 9 + [False] * 3
    counts = [3, 3, 3, 3]
    places = np.array([0, 2, 3, 4, 8, 9, 11])
    assert mixed.times(places, counts).tolist() == [1, 1, 2.5, 2.5, 2.5, 0.5, 0.5]
    assert mixed.times(places, [3, 0, 6, 3]).tolist() == [1, 1, 2.5, 2.5, 2.5, 0.5, 0.5]
    assert selection(first, second).times(places, [6, 6]) is None


def test_limits_and_identity(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl.gz", ROWS)
    assert contents(selection(path, limit=3)) == ["question 0", "question 1", "question 2"]
    assert selection(path, limit=3).count() == 3
    same = [selection(path), selection(path, seed=1), selection(Source(path, times=3))]
    assert len({json.dumps(other.identity()) for other in same}) == 1, "nothing is drawn, so the seed does not matter"
    part = held_out({"validation": 0.1})["train"]
    different = [
        *same[:1], selection(path, limit=3), selection(path, part=part), selection(path, part=part, seed=1),
        selection(Source(path, sample=3)), selection(Source(path, format="dolly")), selection(path, path),
    ]  # fmt: skip
    assert len({json.dumps(other.identity()) for other in different}) == len(different)
    before = json.dumps(selection(path).identity())
    Path(path).write_bytes(gzip.compress(b"{}\n"))
    assert json.dumps(selection(path).identity()) != before

"""Streamed training rows: the same steps however they are split, read or interrupted; nothing lost, nothing held."""

import itertools
import json
import logging
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from data_helpers import chat, rank_of, write_jsonl
from lightning.pytorch.callbacks import ModelCheckpoint
from test_resume import Recorder, SaveAfter, by_step, train

from tests.support.errors import refused
from ts2_lightning.data import SFTData
from ts2_lightning.data.rejects import Reject, Rejects
from ts2_lightning.data.row_stream import Stream, interleaved
from ts2_lightning.data.selection import Selection, held_out
from ts2_lightning.data.sources import Source, SourceRow, about_rows, count_rows, read_rows, stream_source
from ts2_lightning.data.streaming import REPORT, Ledger
from ts2_lightning.modules import ScheduleConfig
from ts2_lightning.modules.optimization import make_schedule
from ts2_lightning.types import UserError

ROWS, BATCH = 47, 6  # eight steps an epoch, the last with five rows
STEPS = 8
LENGTHS = [2 + (7 * number) % 11 for number in range(ROWS)]


def numbered(first: int, last: int) -> list[dict[str, Any]]:
    """Rows of the format `tokens`; row i consists of the token i + 1."""
    return [{"input_ids": [number + 1] * LENGTHS[number]} for number in range(first, last)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of several kinds, and of uneven length."""
    directory = tmp_path_factory.mktemp("rows")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(numbered(20, 40)), directory / "b.parquet")
    return [
        write_jsonl(directory / "a.jsonl", numbered(0, 20)),
        str(directory / "b.parquet"),
        write_jsonl(directory / "c.jsonl.gz", numbered(40, 45)),
        write_jsonl(directory / "d.jsonl", numbered(45, ROWS)),
    ]


def data_of(train: Any, **options: Any) -> SFTData:
    defaults = {"format": "tokens", "batch_size": BATCH, "shuffle_buffer": 10, "seed": 5, "max_length": 15}
    return SFTData(train, **{"streaming": True, **defaults, **options})


def contents(batch: dict[str, Any]) -> list[tuple[int, ...]]:
    """The tokens of each row of a batch."""
    flat = batch["input_ids"].flatten().tolist()
    spans = zip(batch["row_index"].tolist(), batch["row_spans"].tolist(), strict=True)
    return [tuple(flat[start:end]) for row, (start, end) in spans if row >= 0]


def steps_of(train: Any, world_size: int = 1, first: int = 0, **options: Any) -> dict[int, Counter[tuple[int, ...]]]:
    """What each step consists of over all ranks, as their loaders give it; and the divisor that the ranks agree on."""
    ranks = []
    for rank in range(world_size):
        data = data_of(train, **options)
        data.trainer = rank_of(world_size, rank, global_step=first)
        data.setup("fit")
        ranks.append(list(data.train_dataloader()))
    assert len({len(batches) for batches in ranks}) == 1, "all ranks run equally many micro-batches"
    found: dict[int, Counter[tuple[int, ...]]] = {}
    accumulation = data.shape.accumulation
    ledgers = [Ledger(0.0, None, "", gather=lambda report: reports) for _ in ranks]
    for place in range(0, len(ranks[0]), accumulation):
        micro_batches = [batches[place : place + accumulation] for batches in ranks]
        reports = [batches[0][REPORT] for batches in micro_batches]
        rows = [row for batches in micro_batches for batch in batches for row in contents(batch)]
        indices = [row for each in micro_batches for batch in each for row in batch["row_index"].tolist() if row >= 0]
        assert len(set(indices)) == len(rows)
        assert all(index // data.batch_size == reports[0].step for index in indices)
        supervised = sum(len(batch["labels"]) for batches in micro_batches for batch in batches)
        for ledger, batches in zip(ledgers, micro_batches, strict=True):
            assert {ledger.divisor(batch[REPORT]) for batch in batches} == {supervised}
            own = sum(len(batch["labels"]) for batch in batches)
            assert {batch["divisor"].item() for batch in batches} == {own}
            assert all(len(contents(batch)) <= data.micro_batch_size or data.packing != "none" for batch in batches)
        assert len({report.step for report in reports}) == 1
        found[reports[0].step] = Counter(rows)
    return found


@pytest.fixture(scope="module")
def whole(files: list[str]) -> dict[int, Counter[tuple[int, ...]]]:
    """The steps of the first epoch."""
    return steps_of(files)


# The order of the rows ----------------------------------------------------------------------------------------------


def test_every_row_once_in_an_epoch(whole: dict[int, Counter[tuple[int, ...]]]) -> None:
    assert list(whole) == list(range(STEPS))
    assert [step.total() for step in whole.values()] == [BATCH] * (STEPS - 1) + [ROWS % BATCH]
    assert sum(whole.values(), Counter()) == Counter(tuple(row["input_ids"]) for row in numbered(0, ROWS))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{"micro_batch_size": 1}, {"num_workers": 2}, {"num_workers": 3, "micro_batch_size": 2, "packing": "packed"},
     {"packing": "padding_free", "micro_batch_size": 2}],
)  # fmt: skip
def test_a_split_does_not_change_the_steps(
    files: list[str], whole: dict[int, Counter[tuple[int, ...]]], world_size: int, options: dict
) -> None:
    assert steps_of(files, world_size, **options) == whole


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", random.Random(1).sample(range(1, STEPS), 3))
def test_going_on_in_mid_epoch(
    files: list[str], whole: dict[int, Counter[tuple[int, ...]]], first: int, workers: int
) -> None:
    """With another number of ranks."""
    left = {step: rows for step, rows in whole.items() if step >= first}
    assert steps_of(files, 2, first, num_workers=workers, micro_batch_size=2) == left


def stream_of(sources: list[Source], seed: int = 0, buffer: int = 10) -> Stream:
    return Stream.of(Selection(tuple(sources), "tokens", streaming=True), seed, buffer)


def ids(stream: Stream, epoch: int = 0) -> list[int]:
    return [row.fields["input_ids"][0] for _, row in stream.read(epoch) if isinstance(row, SourceRow)]


def test_the_order_follows_from_seed_and_epoch(files: list[str]) -> None:
    sources = [Source(file) for file in files]
    orders = [ids(stream_of(sources, seed), epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert ids(stream_of(sources, 1), 1) == orders[3]
    stream = stream_of(sources)
    names = [str(file) for _, file in stream.selection.files]
    for file, row in stream.read(0):
        assert row.origin.startswith(names[file])


def test_sources_and_files_last_equally_long(tmp_path: Path) -> None:
    """A large source of one file beside a small one of 30: each tenth of the epoch has its share of both."""
    large = write_jsonl(tmp_path / "large.jsonl", [{"input_ids": [1, 1]}] * 9000)
    for number in range(30):
        write_jsonl(tmp_path / f"small{number}.jsonl", [{"input_ids": [2, 2]}] * 20)
    order = ids(stream_of([Source(large), Source(str(tmp_path / "small*.jsonl"), times=5)], buffer=1))
    assert Counter(order) == {1: 9000, 2: 3000}
    tenths = [order[start : start + 1200].count(2) for start in range(0, 12000, 1200)]
    assert all(200 < count < 400 for count in tenths), tenths  # 300 expected, standard deviation 15


def test_times(tmp_path: Path) -> None:
    names = [
        write_jsonl(tmp_path / f"{n}.jsonl", [{"input_ids": [n * 1000 + i, 1]} for i in range(400)]) for n in (1, 2)
    ]
    stream = stream_of([Source(names[0], times=2.5), Source(names[1], times=0.25)])
    counts = [Counter(ids(stream, epoch)) for epoch in (0, 1)]
    for found in counts:
        assert {found[1000 + i] for i in range(400)} == {2, 3}
        assert {found[2000 + i] for i in range(400)} == {0, 1}
        assert 140 < sum(found[1000 + i] == 3 for i in range(400)) < 260
        assert 60 < sum(found[2000 + i] for i in range(400)) < 140
    assert counts[0] != counts[1], "the fraction is drawn anew"


def test_shuffled_further_than_a_buffer_of_one(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"input_ids": [i, i]} for i in range(2000)])
    assert ids(stream_of([Source(path)], buffer=1)) == list(range(2000))
    order = ids(stream_of([Source(path)], buffer=500))
    assert sorted(order) == list(range(2000))
    first = order[:500]
    assert max(first) < 1000
    assert sum(number >= 500 for number in first) > 100


def test_few_files_are_open_and_few_rows_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endless files, of which every row is counted while it lives."""
    alive, opened, most = Counter[str](), Counter[int](), 0

    class Fields(dict[str, Any]):
        def __init__(self) -> None:
            super().__init__(input_ids=[1, 2, 3])
            alive["rows"] += 1

        def __del__(self) -> None:
            alive["rows"] -= 1

    def endless(self: Selection, place: int) -> Iterator[SourceRow]:
        opened[place] += 1
        return (SourceRow(Fields(), f"x:{number}") for number in itertools.count())

    monkeypatch.setattr(Selection, "files", property(lambda self: [(self.sources[0], Path(str(n))) for n in range(99)]))
    monkeypatch.setattr(Selection, "groups", property(lambda self: [(self.sources[0], range(99))]))
    monkeypatch.setattr(Selection, "read_file", endless)
    data = data_of("endless.jsonl", batch_size=8, micro_batch_size=2, shuffle_buffer=50)
    monkeypatch.setattr("ts2_lightning.data.row_stream.about_rows", lambda file: 10)
    data.setup("fit")
    for batch in itertools.islice(data.train_dataloader(), 2000):
        most = max(most, alive["rows"])
        assert len(contents(batch)) == 2
    assert 50 <= most <= 50 + 3 * 8 + 1, "the buffer, a step and the next one"
    assert len(opened) == 8


def test_estimates_of_rows(tmp_path: Path) -> None:
    digits = random.Random(0)
    rows = [{"input_ids": [digits.randrange(10_000, 99_999) for _ in range(20)]} for _ in range(40_000)]
    for name in ("x.jsonl", "x.jsonl.gz"):
        path = Path(write_jsonl(tmp_path / name, rows))
        assert about_rows(path) == pytest.approx(40_000, rel=0.1)
        assert about_rows(path) != count_rows(path), "only the beginning was read"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:30]), tmp_path / "x.parquet")
    assert about_rows(tmp_path / "x.parquet") == 30
    (tmp_path / "empty.jsonl").touch()
    assert about_rows(tmp_path / "empty.jsonl") == 0


def test_chances_of_lanes() -> None:
    lanes = [iter("a" * 3000), iter("b" * 1000)]
    found = list(itertools.islice(interleaved(lanes, [3.0, 1.0], random.Random(0)), 2000))
    assert 1400 < found.count("a") < 1600  # 1500 expected, standard deviation 19
    assert list(interleaved([iter(""), iter("x")], [1.0, 1.0], random.Random(0))) == ["x"]


# Resumption ---------------------------------------------------------------------------------------------------------


class Rows(Recorder):
    """As the recorder, with what the rows consist of."""

    def __init__(self) -> None:
        super().__init__()
        self.validations: list[int] = []
        self.last: list[bool] = []

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        assert REPORT not in batch
        self.seen[-1] = (self.trainer.global_step, tuple(row[0] for row in contents(batch)))
        self.last.append(self.trainer.is_last_batch)
        return loss

    def on_validation_end(self) -> None:
        self.validations.append(self.trainer.global_step)


def fit(files: list[str], ckpt: Path | None = None, workers: int = 0, micro: int = 4, **options: Any) -> Rows:
    settings = options.pop("data", {})
    data = data_of(files, num_workers=workers, micro_batch_size=micro, **settings)
    return train(Rows(), data, ckpt, **{"max_steps": 20, "max_epochs": None, **options})


@pytest.fixture(scope="module")
def unbroken(files: list[str]) -> Rows:
    return fit(files, data={"validation": files[3]})


def test_the_unbroken_run(unbroken: Rows, whole: dict[int, Counter[tuple[int, ...]]]) -> None:
    """Two and a half epochs, each in another order and validated at its end."""
    steps = by_step(unbroken.seen)
    assert list(steps) == list(range(20))
    assert {step: sorted(row[0] for row in rows.elements()) for step, rows in whole.items()} == {
        step: steps[step] for step in range(STEPS)
    }
    for epoch in (0, 1):
        rows = [row for step in range(epoch * STEPS, (epoch + 1) * STEPS) for row in steps[step]]
        assert sorted(rows) == list(range(1, ROWS + 1))
    assert steps[0] != steps[STEPS]
    assert unbroken.epochs == sorted([0, 1] * 16 + [2] * 8)
    assert unbroken.validations == [8, 16]
    assert [place for place, last in enumerate(unbroken.last) if last] == [15, 31]
    assert unbroken.trainer.accumulate_grad_batches == 2


@pytest.mark.parametrize("stop", [1, 3, 7, 8, 9, 16, 18])
def test_resumed(stop: int, files: list[str], unbroken: Rows, tmp_path: Path) -> None:
    """With other workers, and another micro-batch size."""
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    first = fit(files, max_steps=stop, callbacks=[checkpoints])
    for workers, micro in ((0, 4), (2, 1)) if stop in (3, 8) else ((0, 4),):
        second = fit(files, tmp_path / "last.ckpt", workers, micro)
        assert by_step(first.seen) | by_step(second.seen) == by_step(unbroken.seen)
        assert {step for step, _ in second.seen} == set(range(stop, 20))
        assert torch.allclose(second.weight, unbroken.weight)
        if micro == 4:
            assert first.seen + second.seen == unbroken.seen
            assert first.epochs + second.epochs == unbroken.epochs


@pytest.mark.parametrize("at_end", [True, False])
def test_resumed_between_epochs(at_end: bool, files: list[str], unbroken: Rows, tmp_path: Path) -> None:
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=at_end)
    validation = {"data": {"validation": files[3]}}
    first = fit(files, max_epochs=1, callbacks=[checkpoints], **validation)
    first.trainer.save_checkpoint(tmp_path / "afterwards.ckpt")
    assert {step for step, _ in first.seen} == set(range(STEPS))
    for name, end in (("last.ckpt", {"max_epochs": 2, "max_steps": -1}), ("afterwards.ckpt", {})):
        second = fit(files, tmp_path / name, **validation, **end)
        wanted = len(second.seen) + len(first.seen)
        assert first.seen + second.seen == unbroken.seen[:wanted]
        assert first.epochs + second.epochs == unbroken.epochs[:wanted]
        assert wanted == (32 if end else 40)
        assert second.validations == [16]


@pytest.mark.parametrize("micro_batches", [1, 5, 15, 17])
def test_stopped_in_the_middle_of_a_step(micro_batches: int, files: list[str], unbroken: Rows, tmp_path: Path) -> None:
    """The step's gradients are lost, so it is done again as a whole."""
    fit(files, callbacks=[SaveAfter(micro_batches, tmp_path / "x.ckpt")])
    second = fit(files, ckpt=tmp_path / "x.ckpt")
    done = micro_batches // 2
    assert second.seen == [entry for entry in unbroken.seen if entry[0] >= done]
    assert second.epochs == unbroken.epochs[2 * done :]


def test_saved_twice_on_the_way(files: list[str], unbroken: Rows, tmp_path: Path) -> None:
    """A resumed run's own checkpoint is as good as the first."""
    checkpoints = lambda name: ModelCheckpoint(tmp_path / name, save_last=True, every_n_train_steps=1, save_top_k=0)  # noqa: E731
    parts = [fit(files, max_steps=8, callbacks=[checkpoints("a")])]
    parts.append(fit(files, tmp_path / "a" / "last.ckpt", max_steps=11, callbacks=[checkpoints("b")]))
    parts.append(fit(files, tmp_path / "b" / "last.ckpt"))
    assert [entry for part in parts for entry in part.seen] == unbroken.seen
    assert torch.equal(parts[2].weight, unbroken.weight)


def test_short_epochs(files: list[str], tmp_path: Path) -> None:
    """A limit in micro-batches ends an epoch; the next begins with its own order."""
    whole = fit(files, limit_train_batches=5, max_steps=9)
    assert whole.epochs == [0] * 6 + [1] * 6 + [2] * 6 or whole.epochs == [0] * 5 + [1] * 5 + [2] * 5
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    first = fit(files, limit_train_batches=5, max_steps=4, callbacks=[checkpoints])
    second = fit(files, tmp_path / "last.ckpt", limit_train_batches=5, max_steps=9)
    assert first.seen + second.seen == whole.seen


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 6}, "seed 5, this run's 6"),
        ({"batch_size": 7}, "batch_size 6, this run's 7"),
        ({"shuffle_buffer": 11}, "shuffle_buffer 10, this run's 11"),
        ({"max_length": 16}, "encoding "),
        ({"validation": 0.2, "limit_validation": 1}, r"part of the rows \[0.0, 1.0\], this run's \[0.2, 1.0\]"),
        ({"streaming": False}, "rows None, this run's 47"),
    ],
)
def test_another_stream_is_refused(change: dict, reason: str, files: list[str], tmp_path: Path) -> None:
    fit(files, max_steps=1, callbacks=[SaveAfter(1, tmp_path / "x.ckpt")])
    with refused("cannot resume: the checkpoint's training data has " + reason):
        fit(files, tmp_path / "x.ckpt", data=change)


def test_other_files_are_refused_and_moved_ones_are_not(files: list[str], unbroken: Rows, tmp_path: Path) -> None:
    fit(files, callbacks=[SaveAfter(6, tmp_path / "x.ckpt")])
    with pytest.raises(UserError, match="cannot resume: the checkpoint's training data has streamed files "):
        fit(files[:3], tmp_path / "x.ckpt")
    moved = [str(Path(file).rename(tmp_path / Path(file).name)) for file in files]
    try:
        assert fit(moved, tmp_path / "x.ckpt").seen == unbroken.seen[6:]
    finally:
        for new, old in zip(moved, files, strict=True):
            Path(new).rename(old)


# Bad rows -----------------------------------------------------------------------------------------------------------


def broken_file(path: Path, rows: int, bad: list[int]) -> str:
    lines = ["{" if number in bad else json.dumps({"input_ids": [1, 2, number]}) for number in range(rows)]
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_bad_row_stops_a_run(workers: int, tmp_path: Path) -> None:
    path = broken_file(tmp_path / "x.jsonl", 60, [57])
    told = rf"^{path}:58: malformed JSON .*; 1 of the first \d+ rows is bad .*max_rejects"
    with refused(told):
        fit([path], workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_counted_and_listed(
    workers: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    path = broken_file(tmp_path / "x.jsonl", 60, [3, 20, 57])
    caplog.set_level(logging.INFO)
    module = fit([path], workers=workers, max_steps=15, data={"max_rejects": 0.05}, default_root_dir=tmp_path)
    listed = [json.loads(line) for line in (tmp_path / "rejects-train.jsonl").read_text().splitlines()]
    assert Counter(reject["origin"] for reject in listed) >= Counter({f"{path}:{line}": 1 for line in (4, 21, 58)})
    assert {reject["kind"] for reject in listed} == {"malformed JSON"}
    assert "Data, train, epoch 1, steps 1 to 10: 57 rows, 171 tokens, 114 supervised" in caplog.text
    assert "Data, train, epoch 2, steps 1 to 5: " in caplog.text
    assert any("left out 3 bad of 60 rows (3 malformed JSON); see " in str(warning.message) for warning in recwarn)
    steps = by_step(module.seen)
    assert sum(len(steps[step]) for step in range(10)) == 57


def test_a_share_is_judged_on_the_way_once_there_are_enough() -> None:
    def reads_until_error(bad_every: int, max_share: float) -> int:
        rejects = Rejects(max_share)
        for total in range(bad_every, 20_000, bad_every):
            try:
                rejects.go_on([Reject(f"x:{total}", "other", "bad")], total)
            except UserError:
                return total
        assert len(rejects.bad) == 3, "the others are not held"
        return 0

    assert reads_until_error(2, 0.0) == 2
    assert reads_until_error(2, 0.1) == 1000
    assert reads_until_error(10, 0.1) == 0
    assert 1000 < reads_until_error(8, 0.1) < 10_000
    assert reads_until_error(11, 0.1) == 0


def test_an_unreadable_file_stops_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    write_jsonl(path, numbered(0, 40))
    path.write_bytes(path.read_bytes()[:-30])
    for workers in (0, 2):
        with refused("not a readable gzip file"):
            fit([str(path)], workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_that_are_left_out_or_too_long(workers: int, files: list[str]) -> None:
    dropped = steps_of(files, 2, overlong="drop", max_length=6, num_workers=workers)
    kept = [row["input_ids"] for row in numbered(0, ROWS) if len(row["input_ids"]) <= 6]
    assert sum(dropped.values(), Counter()) == Counter(map(tuple, kept))
    assert list(dropped) == list(range(STEPS)), "steps become smaller, not fewer"
    with pytest.raises(UserError, match="tokens, more than max_length 6"):
        fit(files, data={"overlong": "raise", "max_length": 6}, workers=workers)
    with pytest.raises(UserError, match=f"data.train: all {ROWS} rows are longer than max_length in"):
        fit(files, data={"overlong": "drop", "max_length": 1}, workers=workers)


def test_ranks_that_read_other_rows_stop(files: list[str]) -> None:
    """One of them would wait for the other for ever at the end of its epoch."""
    reports = []
    for rank, seen in enumerate((files, files[:2])):
        data = data_of(seen)
        data.trainer = rank_of(2, rank)
        data.setup("fit")
        reports.append({batch[REPORT].step: batch[REPORT] for batch in data.train_dataloader()})
    ledger = Ledger(0.0, None, "files", gather=lambda report: [each[report.step] for each in reports])
    for step in range(6):
        ledger.divisor(reports[0][step])
    with pytest.raises(UserError, match="not all ranks read the same rows; let all of them see the same files"):
        ledger.divisor(reports[0][6])


@pytest.mark.parametrize(
    ("bad", "tokens", "options", "told"),
    [
        ([3, 20, 57], None, {"data": {"max_rejects": 0.04}}, "; 3 of 60 rows are bad .* be at least 0.05$"),
        ([], [], {}, r"data\.train: no rows in .*x\.jsonl"),
        ([], [1, 123456], {}, "token id 123456 is outside the tokenizer's vocabulary"),
        ([], [1, 2], {"limit_train_batches": 0.5}, r"trainer\.limit_train_batches is 0\..*whose length is not known"),
        ([], [1, 2], {"val_check_interval": 0.25}, r"trainer\.val_check_interval is 0\..*whose length is not known"),
    ],
)
def test_what_stops_a_run_is_told_in_one_line(
    bad: list[int], tokens: list[int] | None, options: dict, told: str, tmp_path: Path, tokenizer_directory: str
) -> None:
    path = tmp_path / "x.jsonl"
    broken_file(path, 60, bad) if tokens is None else write_jsonl(path, [{"input_ids": tokens}] * 3 if tokens else [])
    with refused(told):
        fit([str(path)], default_root_dir=tmp_path, **{"data": {"tokenizer": tokenizer_directory}, **options})


# Sources and splits -------------------------------------------------------------------------------------------------


def data_folder(directory: Path) -> str:
    """A data set as it lies on the hub, in three files; its card says how many rows a split has."""
    (directory / "data").mkdir(parents=True)
    for number, (first, last) in enumerate([(0, 20), (20, 40), (40, 45)]):
        table = pyarrow.Table.from_pylist(numbered(first, last))
        pyarrow.parquet.write_table(table, directory / "data" / f"train-{number:05d}-of-00003.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(numbered(45, ROWS)), directory / "data" / "other.parquet")
    (directory / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train_sft\n    path: data/train-*\n"
        "- config_name: other\n  data_files: data/other.parquet\n"
        "dataset_info:\n- config_name: default\n  splits:\n  - name: train_sft\n    num_bytes: 1\n"
        "    num_examples: 45\n---\n"
    )
    return str(directory)


@pytest.mark.parametrize("prefix", ["", "hub:"])
@pytest.mark.parametrize("workers", [0, 2])
def test_data_sets_are_fetched_while_they_are_read(
    prefix: str, workers: int, tmp_path: Path, library_cache: Path
) -> None:
    """Each worker reads all of it, though `datasets` would deal its rows to them; nothing is kept on the disk."""
    folder = prefix + data_folder(tmp_path / "mine")
    sources = [Source(folder, split="train_sft", name="default"), Source(folder, name="other")]
    data_of(sources).prepare_data()
    found = steps_of(sources, 2, num_workers=workers)
    assert sum(found.values(), Counter()) == Counter(tuple(row["input_ids"]) for row in numbered(0, ROWS))
    assert found == steps_of(sources)
    assert not library_cache.exists() or not list(library_cache.rglob("*.arrow"))
    shards = stream_source(sources[0])
    assert [(str(shard), shard.rows) for shard in shards] == [
        (f"{folder.removeprefix('hub:')}, train_sft, part {number}", 15) for number in (1, 2, 3)
    ]
    row = next(iter(read_rows(shards[1])))
    assert row == SourceRow({"input_ids": numbered(20, 21)[0]["input_ids"]}, f"{shards[1]}, row 1")
    with pytest.raises(UserError, match=r"no split 'train'; .*did you mean train_sft\?"):
        stream_source(Source(folder, split="train", name="default"))


def test_data_sets_of_conversations(tmp_path: Path, library_cache: Path, tokenizer_directory: str) -> None:
    """JSON with fields that come and go, as `datasets` gives it, is the same rows as in the files."""
    (tmp_path / "mine").mkdir()
    rows = [{"messages": chat("Hello", "a" * n, "b", "c")} | ({"note": None} if n % 2 else {}) for n in range(1, 12)]
    write_jsonl(tmp_path / "mine" / "train.jsonl", rows)
    options = {"format": "auto", "tokenizer": tokenizer_directory, "template": "chatml", "max_length": 200}
    streamed = steps_of(Source(str(tmp_path / "mine"), split="train"), **options)
    read = steps_of(str(tmp_path / "mine" / "train.jsonl"), **options)
    assert sum(streamed.values(), Counter()) == sum(read.values(), Counter())
    assert sum(read.values(), Counter()).total() == 11


def test_the_revision_is_pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library_cache: Path) -> None:
    asked = []
    folder = data_folder(tmp_path / "mine")
    builder = datasets.load_dataset_builder

    def load(path: str, name: str | None, revision: str | None) -> Any:
        asked.append((path, name, revision))
        return builder(folder, name=name)

    monkeypatch.setattr("datasets.load_dataset_builder", load)
    source = Source("hub:org/mine", split="train_sft", name="default", revision="0" * 40)
    assert len(stream_source(source)) == 3
    assert asked == [("org/mine", "default", "0" * 40)]


def test_a_broken_data_set_stops_in_one_line(tmp_path: Path, library_cache: Path) -> None:
    folder = data_folder(tmp_path / "mine")
    (tmp_path / "mine" / "data" / "train-00001-of-00003.parquet").write_bytes(b"PAR1" + b"x" * 50)
    with refused("cannot load the data set"):
        fit(Source(folder, split="train_sft", name="default"))  # type: ignore[arg-type]


def test_saved_data_sets_are_read_where_they_are(tmp_path: Path, library_cache: Path) -> None:
    datasets.Dataset.from_list(numbered(0, ROWS)).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    files = stream_source(Source(str(tmp_path / "saved")))
    assert [file.parent for file in files if isinstance(file, Path)] == [tmp_path / "saved"] * 2
    found = steps_of(str(tmp_path / "saved"), num_workers=2)
    assert sum(found.values(), Counter()).total() == ROWS


def test_workers_tokenise_after_the_main_process_did(tmp_path: Path, tokenizer_directory: str) -> None:
    """Whose tokenizer's threads they do not have."""
    path = write_jsonl(tmp_path / "x.jsonl", [{"messages": chat("Hello", "a" * n)} for n in range(1, 40)])
    options = {"format": "auto", "tokenizer": tokenizer_directory, "template": "chatml", "max_length": 200}
    data = data_of(path, validation=path, num_workers=2, **options)
    data.setup("fit")
    assert len(data.rows("validation")) == 39
    assert sum(len(contents(batch)) for batch in data.train_dataloader()) == 39


def test_the_loader_leaves_the_random_numbers_alone(files: list[str]) -> None:
    data = data_of(files, num_workers=1)
    data.setup("fit")
    before = torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_held_out_rows_are_not_streamed(files: list[str]) -> None:
    """What the fraction would be of rows that are held, the stream leaves out; a limit takes the first of it."""
    held = SFTData(files, 0.3, format="tokens", seed=5, max_length=15)
    held.setup("fit")
    wanted = Counter(tuple(held.rows("train")[place].ids.tolist()) for place in range(len(held.rows("train"))))
    assert 0 < wanted.total() < ROWS
    found = steps_of(files, 2, validation=0.3, limit_validation=4)
    assert sum(found.values(), Counter()) == wanted
    data = data_of(files, validation=0.3, limit_validation=4)
    data.setup("fit")
    assert len(data.rows("validation")) == 4
    for place in range(4):
        assert data.rows("validation")[place].ids.tolist() == held.rows("validation")[place].ids.tolist()
    described = data.describe()["splits"]
    assert described["train"]["files"][1] == {"path": files[1], "rows_estimated": 20}
    assert "sha256" not in described["validation"]["files"][0]
    json.dumps(described)


def test_the_parts_of_a_selection_file_by_file(files: list[str]) -> None:
    """Read file by file or as a whole: the same rows."""
    for part in held_out({"validation": 0.2, "test": 0.1}).values():
        selection = Selection(tuple(Source(file) for file in files), part=part)
        by_file = [(place, row) for place in range(4) for row in selection.read_file(place)]
        assert by_file == list(selection.read())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"limit_train": 10}, r"data\.limit_train: .*set trainer\.max_steps"),
        ({"train": [Source("x.jsonl", sample=3)]}, r"x\.jsonl: a sample is drawn from all rows"),
        ({"validation": 0.1}, r"data\.validation is a fraction of streamed rows.*set data\.limit_validation"),
    ],
)
def test_what_does_not_go_together(options: dict, reason: str) -> None:
    with refused(reason):
        data_of(**{"train": "x.jsonl", **options})


def test_what_is_not_known_is_said(files: list[str]) -> None:
    data = data_of(files)
    data.setup("fit")
    for ask in (lambda: data.rows("train"), lambda: data.steps_per_epoch):
        with pytest.raises(UserError, match=r"data\.train is streamed: its rows are not held"):
            ask()
    assert not hasattr(data.train_dataloader(), "__len__")


def test_steps_without_an_end_need_max_steps(files: list[str]) -> None:
    data = data_of(files)
    data.setup("fit")
    steps = data.train_dataloader().steps_per_epoch * 3
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        make_schedule(optimizer, ScheduleConfig("cosine"), steps)

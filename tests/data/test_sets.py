"""Sets of rows: what they are called, which rows each has, and what a trainer makes of several."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from data_helpers import rank_of, token_rows, write_jsonl
from lightning.pytorch import LightningModule

from tests.support.errors import refused
from tests.support.training import make_trainer
from ts2_lightning.data import SFTData
from ts2_lightning.data.sets import RowSets
from ts2_lightning.data.sources import Source
from ts2_lightning.types import UserError


class Reader(LightningModule):
    """Keeps the rows of each evaluation set."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rows: dict[str, list[int]] = {}

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        return self.weight.sum()

    def validation_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> None:
        loaders = self.trainer.test_dataloaders if self.trainer.testing else self.trainer.val_dataloaders
        self.rows.setdefault(list(loaders)[dataloader_idx], []).extend(batch["row_index"].tolist())

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def evaluated(data: SFTData, stage: str, **options: Any) -> dict[str, list[int]]:
    reader = Reader()
    getattr(make_trainer(**options), stage)(reader, data)
    return reader.rows


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Each row of each file consists of a token of its own."""
    counts = {"train": 20, "zebra": 7, "ant": 4}
    starts = {"train": 1, "zebra": 30, "ant": 40}
    return {
        name: write_jsonl(tmp_path / f"{name}.jsonl", [{"input_ids": [starts[name] + i] * 3} for i in range(count)])
        for name, count in counts.items()
    }


def sets_of(files: dict[str, str], **options: Any) -> SFTData:
    validation = {"zebra": files["zebra"], "ant": [files["ant"]]}
    settings = {"validation": validation, "format": "tokens", "batch_size": 4, "micro_batch_size": 2, **options}
    return SFTData(files["train"], **settings)


def first_ids(data: SFTData, name: str) -> list[int]:
    rows = data.rows(name)
    return [int(rows[i].ids[0]) for i in range(len(rows))]


# --- what a trainer sees ------------------------------------------------------------------------------------------


def test_each_row_of_each_set_once(files: dict[str, str], tmp_path: Path) -> None:
    """In `fit`, `validate` and `test`, in the order in which the sets were given."""
    wanted = {"zebra": list(range(7)), "ant": list(range(4))}
    data = sets_of(files, test={"ant": files["ant"]})
    found = evaluated(data, "fit", default_root_dir=tmp_path)
    assert found == wanted
    assert list(found) == list(wanted)
    assert evaluated(sets_of(files), "validate") == wanted
    assert evaluated(data, "test") == {"ant": wanted["ant"]}
    assert list(data.describe()["splits"]) == ["train", "validation.zebra", "validation.ant", "test.ant"]


def test_limits_are_those_of_each_set(files: dict[str, str]) -> None:
    found = evaluated(sets_of(files, limit_validation=5), "validate")
    assert found == {"zebra": list(range(5)), "ant": list(range(4))}
    found = evaluated(sets_of(files), "validate", limit_val_batches=1)
    assert found == {"zebra": [0, 1], "ant": [0, 1]}


def test_a_set_without_rows_is_left_out(files: dict[str, str]) -> None:
    found = evaluated(sets_of(files, validation={"zebra": None, "ant": files["ant"]}), "validate")
    assert found == {"ant": list(range(4))}
    data = sets_of(files, validation={"zebra": None})
    data.setup("fit")
    assert data.val_dataloader() == {}


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_each_set(files: dict[str, str], world_size: int) -> None:
    """Equally many batches, so that the ranks meet; with three ranks some have no row of the second set."""
    found: dict[str, list[list[Any]]] = {}
    for rank in range(world_size):
        data = sets_of(files, eval_batch_size=3)
        data.trainer = rank_of(world_size, rank)
        data.setup("validate")
        for name, loader in data.val_dataloader().items():
            found.setdefault(name, []).append(list(loader))
    for name, count in {"zebra": 7, "ant": 4}.items():
        assert len({len(batches) for batches in found[name]}) == 1
        rows = [row for batches in found[name] for batch in batches for row in batch["row_index"].tolist()]
        assert sorted(row for row in rows if row >= 0) == list(range(count))
        divisors = {batch["divisor"].item() for batches in found[name] for batch in batches}
        assert divisors == {2 * count}


def test_a_fraction_beside_other_sets(files: dict[str, str]) -> None:
    data = sets_of(files, validation={"held": 0.3, "ant": files["ant"]}, test={"hard": 0.2, "more": 0.1})
    data.setup(None)
    parts = [first_ids(data, name) for name in ("train", "validation.held", "test.hard", "test.more")]
    assert sorted(token for part in parts for token in part) == list(range(1, 21))
    alone = sets_of(files, validation=0.3)
    alone.setup("validate")
    assert first_ids(alone, "validation") == parts[1], "whatever it is called, and whatever else is held out"
    assert first_ids(data, "validation.ant") == list(range(40, 44))


def test_streamed_rows_have_sets_too(files: dict[str, str]) -> None:
    data = sets_of(files, validation={"held": 0.5, "ant": files["ant"]}, limit_validation=3, streaming=True)
    data.setup("fit")
    assert {name: len(loader) for name, loader in data.val_dataloader().items()} == {"held": 2, "ant": 2}
    held = set(first_ids(data, "validation.held"))
    trained = {int(ids[0]) for batch in data.train_dataloader() for ids in batch["input_ids"]}
    assert not held & trained
    with pytest.raises(UserError, match=r"data\.validation\.held is a fraction of streamed rows.*data\.limit_valid"):
        sets_of(files, validation={"held": 0.5}, streaming=True)


def test_bad_rows_are_those_of_a_set(files: dict[str, str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{broken\n" + json.dumps(token_rows([3])[0]) + "\n")
    with pytest.raises(UserError, match=rf"{bad}:1: malformed JSON"):
        sets_of(files, validation={"bad": str(bad)}).setup("validate")
    data = sets_of(files, validation={"bad": str(bad), "ant": files["ant"]}, max_rejects=0.5)
    evaluated(data, "validate", default_root_dir=tmp_path / "run")
    [line] = (tmp_path / "run" / "rejects-validation-bad.jsonl").read_text().splitlines()
    assert json.loads(line)["origin"] == f"{bad}:1"
    assert list((tmp_path / "run").glob("rejects-*")) == [tmp_path / "run" / "rejects-validation-bad.jsonl"]


def test_fixed_batches_have_a_share_of_each_set(files: dict[str, str]) -> None:
    data = sets_of(files)
    data.setup("validate")
    batches = data.fixed_batches("validation", 7)  # four supervised tokens of each
    tokens = [int(token) for batch in batches for token in batch["labels"]]
    assert tokens == [30, 30, 31, 31, 40, 40, 41, 41]


# --- what cannot be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({"a/b": "x.jsonl"}, r"data\.validation: a set's name consists of letters, digits, _ and -, got 'a/b'"),
        ({"": "x.jsonl"}, r"a set's name consists of letters, digits, _ and -, got ''"),
        ({"a.b": "x.jsonl"}, r"got 'a\.b'"),
        ({"-a": "x.jsonl"}, r"got '-a'"),
        ({"é": "x.jsonl"}, r"got 'é'"),
        ({"chat": "x.jsonl", "Chat": "y.jsonl"}, r"'chat' and 'Chat' are the same but for their case"),
        ({1: "x.jsonl", "1": "y.jsonl"}, r"'1' and '1' are the same"),
        ({"objective": "x.jsonl"}, r"'objective' is what is logged; call the set otherwise"),
        ({"path": "x.jsonl", "formt": "y"}, r"'path' is a part of a source; call the set otherwise"),
        (
            {"chat": 1.5},
            r"data\.validation\.chat must be a finite number above 0 and below 1, got 1\.5; it is the share",
        ),
        ({"a": 0.5, "b": 0.5}, r"data\.validation\.a and data\.validation\.b leave nothing of data\.train"),
        ({"a": [Source("x.jsonl", times=2)]}, r"data\.validation\.a: times is for data\.train"),
    ],
)
def test_one_line_for_what_cannot_be(validation: dict[Any, Any], message: str) -> None:
    for split in ("validation", "test"):
        with refused(message.replace("validation", split)):
            SFTData("train.jsonl", **{split: validation})


def test_names() -> None:
    sets = RowSets({"train": "a.jsonl", "validation": {"chat": "b.jsonl", "math": 0.1}, "test": "c.jsonl"}, {})
    sets.check()
    assert sets.named("validation") == ["validation.chat", "validation.math"]
    assert sets.named("validation.math") == ["validation.math"]
    assert sets.named("test") == ["test"]
    assert [source.path for source in sets.sources("validation.math")] == ["a.jsonl"]
    hints = {"validation.mth": "did you mean validation.math", "predict": "name the files", "test.x": ""}
    for name, hint in hints.items():
        with pytest.raises(UserError, match=rf"data\.{name} is not set.*{hint}"):
            sets.named(name)

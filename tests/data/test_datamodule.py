import hashlib
import multiprocessing
import re
import warnings
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from data_helpers import chat, rank_of, token_rows, write_jsonl
from lightning.pytorch import LightningModule

from tests.support.errors import refused
from tests.support.training import make_trainer
from ts2_lightning.data import SFTData, datamodule
from ts2_lightning.toyworld import build_tokenizer
from ts2_lightning.types import UserError

CHATS = [{"messages": chat("Hello", "a" * number, "b", "c")} for number in range(1, 12)]


class Reader(LightningModule):
    """Keeps the rows that evaluation gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rows: list[int] = []

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self.rows += batch["row_index"].tolist()

    def test_step(self, batch: dict, batch_idx: int) -> None:
        self.rows += batch["row_index"].tolist()

    def predict_step(self, batch: dict, batch_idx: int) -> list[int]:
        return batch["row_index"].tolist()

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def chats(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "chats.jsonl", CHATS)


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "tokens.jsonl.gz", token_rows([2, 9, 4, 7, 3, 8, 5, 6, 2, 4]))


def test_plain_use_without_a_trainer(chats: str, tokenizer_directory: str) -> None:
    data = SFTData(chats, tokenizer=tokenizer_directory, template="chatml", batch_size=4, micro_batch_size=3)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 6
    assert data.steps_per_epoch == 3
    rows = torch.cat([batch["row_index"] for batch in batches]).tolist()
    assert sorted(rows) == list(range(11))
    for step in range(3):
        pair = batches[2 * step : 2 * step + 2]
        count = sum(len(batch["labels"]) for batch in pair)
        assert [batch["divisor"].item() for batch in pair] == [count, count]
    batch = batches[0]
    for place, row in enumerate(batch["row_index"].tolist()):
        learnt = data.tokenizer.decode(batch["labels"][batch["token_rows"] == place])
        assert learnt == "a" * (row + 1) + "<|im_end|>c<|im_end|>"
    assert data.val_dataloader() == {}


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_steps_and_evaluations(tokens: str, world_size: int, workers: int) -> None:
    trained, validated = [], []
    for rank in range(world_size):
        data = SFTData(tokens, tokens, format="tokens", batch_size=4, micro_batch_size=1, num_workers=workers)
        data.trainer = rank_of(world_size, rank)
        data.setup("fit")
        assert data.trainer.accumulate_grad_batches == -(-4 // world_size)
        trained.append(list(data.train_dataloader()))
        validated.append(list(data.val_dataloader()))
    for per_rank in (trained, validated):
        assert len({len(batches) for batches in per_rank}) == 1
        rows = [row for batches in per_rank for batch in batches for row in batch["row_index"].tolist()]
        assert sorted(row for row in rows if row >= 0) == list(range(10))
    for batches in zip(*trained, strict=True):
        assert len({batch["divisor"].item() for batch in batches}) == 1
    supervised = sum(len(batch["labels"]) for batches in validated for batch in batches)
    assert {batch["divisor"].item() for batches in validated for batch in batches} == {supervised}


@pytest.mark.parametrize(("packing", "capacity"), [("packed", 9), ("padding_free", 51)])
def test_packed_batches(tokens: str, packing: str, capacity: int) -> None:
    """In training and evaluation, on every rank, fillers too."""
    trained, validated = [], []
    for rank in range(3):
        data = SFTData(
            tokens, tokens, format="tokens", batch_size=7, micro_batch_size=2, eval_batch_size=4, max_length=9,
            packing=packing,
        )  # fmt: skip
        data.trainer = rank_of(3, rank)
        data.setup("fit")
        trained.append(list(data.train_dataloader()))
        validated.append(list(data.val_dataloader()))
    assert [len(batches) for batches in trained] == [4, 4, 4]
    assert [len(batches) for batches in validated] == [1, 1, 1]
    for per_rank in (trained, validated):
        batches = [batch for batches in per_rank for batch in batches]
        rows = [row for batch in batches for row in batch["row_index"].tolist()]
        assert sorted(row for row in rows if row >= 0) == list(range(10))
        assert all(batch["input_ids"].shape[1] <= capacity for batch in batches)
        assert all((batch["position_ids"][:, 0] == 0).all() for batch in batches)
        assert packing == "packed" or {len(batch["input_ids"]) for batch in batches} == {1}
        assert (-1 in rows) == (per_rank is trained)  # the last step has three rows for six micro-batches


def test_batches_smaller_than_the_ranks_have_room_for(tokens: str) -> None:
    data = SFTData(tokens, format="tokens", batch_size=3, micro_batch_size=8)
    data.trainer = rank_of(4, 3)
    data.setup("fit")
    assert data.trainer.accumulate_grad_batches == 1
    batches = list(data.train_dataloader())
    assert [batch["row_index"].tolist() for batch in batches] == [[-1]] * 4
    assert all(batch["divisor"] > 0 for batch in batches)


def test_evaluation_through_the_trainer(tokens: str) -> None:
    data = SFTData(validation=tokens, test=tokens, predict=tokens, format="tokens", eval_batch_size=4)
    trainer = make_trainer()
    for run in (trainer.validate, trainer.test):
        module = Reader()
        run(module, data, verbose=False)
        assert module.rows == list(range(10))
    assert trainer.predict(Reader(), data) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_trainer_accumulates_as_the_plan_says(tokens: str) -> None:
    data = SFTData(tokens, format="tokens", batch_size=4, micro_batch_size=1)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(Reader(), data)
    assert trainer.accumulate_grad_batches == 4
    assert trainer.global_step == 2 * data.steps_per_epoch == 6
    with pytest.raises(UserError, match=r"trainer\.accumulate_grad_batches is 3, but follows from"):
        make_trainer(accumulate_grad_batches=3).fit(Reader(), SFTData(tokens, format="tokens", batch_size=4))


@pytest.mark.parametrize(("rows", "batch_size", "hint"), [(39, 2, False), (38, 2, True), (2, 2, True), (3, 1, False)])
def test_an_epoch_of_few_steps_is_remarked_upon(
    rows: int, batch_size: int, hint: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """20 steps are enough, and one row a step cannot be had smaller; a limit of the trainer's is no reason."""
    data = SFTData(write_jsonl(tmp_path / "few.jsonl", token_rows([3] * rows)), format="tokens", batch_size=batch_size)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        make_trainer(max_steps=1, limit_train_batches=1).fit(Reader(), data)
    steps = -(-rows // batch_size)
    line = f"an epoch has {steps} optimizer step{'s' if steps > 1 else ''} of {batch_size} rows"
    assert (line in caplog.text) == hint
    assert caplog.text.count("Data, train: an epoch has") == hint


def test_workers_outlive_the_sigterm_that_their_job_is_sent(tokens: str) -> None:
    """The run ends at the end of its step, for which it needs them."""
    data = SFTData(tokens, format="tokens", batch_size=4, micro_batch_size=1, num_workers=2)
    data.setup("fit")
    others = multiprocessing.active_children()
    batches = iter(data.train_dataloader())
    seen = [next(batches), next(batches)]  # one from each, so both are there
    processes = [process for process in multiprocessing.active_children() if process not in others]
    assert len(processes) == 2
    for process in processes:
        process.terminate()
    assert sum(int((batch["row_index"] >= 0).sum()) for batch in (*seen, *batches)) == len(data.rows("train"))
    assert all(process.is_alive() for process in processes)


def test_limits(tokens: str) -> None:
    data = SFTData([tokens, tokens], tokens, format="tokens", limit_train=13, limit_validation=4)
    data.setup("fit")
    assert len(data.rows("train")) == 13
    assert len(data.rows("validation")) == 4
    assert [file["rows"] for file in data.describe()["splits"]["validation"]["files"]] == [4]


def test_description(chats: str, tokenizer_directory: str) -> None:
    data = SFTData(chats, test=chats, tokenizer=tokenizer_directory, template="llama3", max_length=32, overlong="drop")
    data.setup()
    described = data.describe()
    rows = data.rows("train")
    assert 0 < len(rows) < 11
    assert described["template"] == "llama3"
    assert data.tokenizer.decode(described["end_of_turn_ids"]) == "<|eot_id|>"
    assert described["splits"]["train"] == described["splits"]["test"]
    assert described["splits"]["train"] == {
        "files": [{"path": chats, "sha256": hashlib.sha256(Path(chats).read_bytes()).hexdigest(), "rows": 11}],
        "read": 11,
        "kept": len(rows),
        "dropped": 11 - len(rows),
        "truncated": 0,
        "unrolled": 0,
        "turns_lost": 0,
        "masked": 0,
        "thoughts": 0,
        "unused": {},
        "rejected": {},
        "weighted": 0,
        "tokens": int(rows.lengths.sum()),
        "supervised_tokens": int(rows.supervised.sum()),
        "longest": int(rows.lengths.max()),
    }


def test_what_is_learnt_of_a_conversation(chats: str, tokenizer_directory: str) -> None:
    def learnt(**options: object) -> list[str]:
        data = SFTData(chats, tokenizer=tokenizer_directory, template="chatml", **options)
        data.setup("fit")
        row = data.rows("train")[2]
        assert {key: data.describe()[key] for key in options} == options
        return [data.tokenizer.decode(row.ids[start:end]) for start, end in row.spans]

    assert learnt() == ["aaa<|im_end|>", "c<|im_end|>"]
    assert learnt(train_on="last") == ["c<|im_end|>"]
    assert learnt(train_on="all", train_on_end=False) == ["aaa", "c"]


def test_weights_reach_batches_and_records(tmp_path: Path) -> None:
    """From a file's rows to the factor of each supervised token, in training and in evaluation."""
    weights = [0.5, 1, 0, 2.25, None, 4]
    rows = [row | {"weight": weight} for row, weight in zip(token_rows([2, 9, 4, 7, 3, 8]), weights, strict=True)]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    data = SFTData(str(path), str(path), format="tokens", batch_size=4, micro_batch_size=2)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        seen = 0
        for batch in loader:
            for place, row in enumerate(batch["row_index"].tolist()):
                factors = batch["weights"][batch["token_rows"] == place].tolist()
                assert factors == ([1.0 if weights[row] is None else weights[row]] * (len(rows[row]["input_ids"]) - 1))
                seen += len(factors)
        assert seen == 27, "tokens of weight 0 are there too, and the divisor counts them"
    assert {batch["divisor"].item() for batch in data.val_dataloader()} == {27}
    assert data.describe()["splits"]["train"]["weighted"] == 4


def test_wrong_weights_name_file_and_line(tmp_path: Path) -> None:
    rows = [row | {"weight": weight} for row, weight in zip(token_rows([2, 3]), [1, "heavy"], strict=True)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=rf"{path}:2: weight, .*got 'heavy'"):
        SFTData(path, format="tokens").setup("fit")


def test_pad_id(tokens: str, tokenizer_directory: str) -> None:
    assert SFTData(tokens).pad_id == 0
    data = SFTData(tokens, tokenizer=tokenizer_directory, format="tokens")
    data.setup("fit")
    assert data.tokenizer.pad_token_id is None
    assert data.pad_id == data.tokenizer.eos_token_id


@pytest.mark.parametrize("rows", [100, 3000])
def test_a_bar_for_many_rows(rows: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "many.jsonl", token_rows([3] * rows))
    SFTData(path, format="tokens").setup("fit")
    assert ("Tokenising train" in capsys.readouterr().err) == (rows > 2000)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, r"data\.train is not set"),
        ({"train": "CHATS"}, "chats.jsonl:1: to encode text data.tokenizer must name a tokenizer"),
        ({"train": "CHATS", "tokenizer": "TOKENIZER", "template": "chatlm"}, "; did you mean chatml?"),
        ({"train": "CHATS", "tokenizer": "TOKENIZER", "format": "mesages"}, "; did you mean messages?"),
        ({"train": "CHATS", "tokenizer": "TOKENIZER", "format": "tokens"}, "chats.jsonl:1: the field input_ids"),
        ({"train": "CHATS", "tokenizer": "/absent/place"}, "data.tokenizer: no directory /absent/place"),
        ({"train": "CHATS", "tokenizer": "EMPTY"}, "data.tokenizer: cannot load"),
        ({"train": "NONE"}, "data.train: no rows in"),
        ({"train": "TOKENS", "max_length": 1, "overlong": "drop"}, "data.train: all 10 rows are longer than"),
        ({"train": "TOKENS", "tokenizer": "TOKENIZER", "limit_train": 2}, None),
        ({"train": "LARGE", "tokenizer": "TOKENIZER"}, "token id 123456 is outside the tokenizer's vocabulary"),
    ],
)
def test_errors_of_setup(
    options: dict, reason: str | None, chats: str, tokens: str, tokenizer_directory: str, tmp_path: Path
) -> None:
    (tmp_path / "none.jsonl").touch()
    (tmp_path / "empty").mkdir()
    places = {
        "CHATS": chats,
        "TOKENS": tokens,
        "TOKENIZER": tokenizer_directory,
        "EMPTY": str(tmp_path / "empty"),
        "NONE": str(tmp_path / "none.jsonl"),
        "LARGE": write_jsonl(tmp_path / "large.jsonl", [{"input_ids": [1, 123456]}]),
    }
    data = SFTData(**{name: places.get(value, value) for name, value in options.items()})
    if reason is None:
        data.setup("fit")
        return
    with refused(reason):
        data.setup("fit")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"overlong": "trunkate"}, "; did you mean truncate?"),
        ({"packing": "packd"}, r"unknown data\.packing 'packd'; .*; did you mean packed\?"),
    ],
)
def test_errors_of_arguments(options: dict, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        SFTData(**options)


def test_the_toy_world() -> None:
    data = SFTData("toyworld:train?seed=0", tokenizer="toyworld", batch_size=8)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    for place in range(len(batch["row_index"])):
        assert data.tokenizer.decode(batch["labels"][batch["token_rows"] == place]).endswith("<|end|>")


def test_few_steps_are_told_once(tokens: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning asks for the loader twice."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(datamodule, "hint_at_few_steps", lambda *numbers: told.append(numbers))
    data = SFTData(tokens, format="tokens", batch_size=2)
    make_trainer(max_epochs=1, limit_val_batches=0).fit(Reader(), data)
    data.train_dataloader()
    assert told == [(len(data.rows("train")) // 2, 2)]


@pytest.mark.parametrize("is_foreign", [True, False])
def test_a_text_of_unknown_tokens_is_told(tmp_path: Path, is_foreign: bool) -> None:
    """The tokenizer of the toy world knows the words of that world alone, and no model could learn others."""
    tokenizer = build_tokenizer()
    words = [word for word in tokenizer.get_vocab() if word.isalpha()][:8]
    rows = [
        {"messages": chat(" ".join(words), "Fledermaus Zeppelin Kaleidoskop Quark" if is_foreign else " ".join(words))}
    ] * 3
    data = SFTData(write_jsonl(tmp_path / "rows.jsonl", rows), tokenizer="toyworld", batch_size=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.setup("fit")
    told = [str(warning.message) for warning in caught if "which the tokenizer writes" in str(warning.message)]
    assert len(told) == is_foreign
    assert all(re.match("data.train: [1-9][0-9]% of the tokens are <unk>, which", line) for line in told)


@pytest.mark.parametrize(
    "name",
    [
        "sft/no_robots_test.jsonl.gz",
        "sft/ultrafeedback_binarized_test_200.jsonl.gz",
        "chat/oasst1_eval_threads.jsonl.gz",
        "sft/alpaca_eval_605_gpt4_1106_preview.jsonl.gz",
    ],
)
def test_real_files(shared_data: Path, name: str) -> None:
    tokenizer = str(shared_data / "models" / "stories260K")
    data = SFTData(str(shared_data / name), tokenizer=tokenizer, max_length=20_000, overlong="raise", limit_train=200)
    data.setup("fit")
    counts = data.describe()["splits"]["train"]
    assert counts["kept"] == counts["read"] == 200
    assert 0 < counts["supervised_tokens"] < counts["tokens"]
    assert counts["longest"] > 200

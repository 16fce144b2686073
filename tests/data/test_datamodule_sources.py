"""What the datamodule makes of its sources: fractions, mixtures, formats of a source, and bad rows in a run."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from data_helpers import token_rows, write_jsonl
from lightning.pytorch import LightningModule

from tests.support.training import make_trainer
from ts2_lightning.data import SFTData
from ts2_lightning.data.sources import Source
from ts2_lightning.types import UserError


def data_of(*arguments: object, **options: object) -> SFTData:
    data = SFTData(*arguments, **{"format": "tokens", "batch_size": 4, "micro_batch_size": 4, **options})
    data.setup("fit")
    return data


def first_ids(data: SFTData, split: str) -> list[int]:
    rows = data.rows(split)
    return [int(rows[index].ids[0]) for index in range(len(rows))]


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    """A hundred rows; row i consists of the token i + 1."""
    return write_jsonl(tmp_path / "tokens.jsonl", token_rows([3] * 100))


def test_fractions_of_the_training_rows(tokens: str) -> None:
    data = data_of(tokens, 0.2, 0.1)
    data.setup("test")
    parts = {split: first_ids(data, split) for split in ("train", "validation", "test")}
    assert sorted(token for tokens in parts.values() for token in tokens) == list(range(1, 101))
    assert all(5 <= len(rows) <= 85 for rows in parts.values())
    described = data.describe()["splits"]
    assert [described[split]["files"][0]["rows"] for split in parts] == [len(rows) for rows in parts.values()]
    assert first_ids(data_of(tokens, 0.2), "validation") == parts["validation"], "whatever else is held out"
    assert first_ids(data_of(tokens, 0.2, seed=1), "validation") != parts["validation"]
    limited = data_of(tokens, 0.2, 0.1, limit_train=10, limit_validation=3)
    assert first_ids(limited, "train") == parts["train"][:10]
    assert first_ids(limited, "validation") == parts["validation"][:3]
    alone = SFTData(tokens, 0.2, format="tokens")
    alone.setup("validate")
    assert first_ids(alone, "validation") == parts["validation"], "without the training rows"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"train": "x.jsonl", "validation": 0.5, "test": 0.5}, "data.validation and data.test leave nothing"),
        ({"validation": 0.5}, "data.validation is 0.5 of the training rows, but data.train is not set"),
        ({"validation": [Source("x.jsonl", times=2)]}, "data.validation: times is for data.train"),
        ({"train": [Source("x.jsonl", times=0)]}, "x.jsonl: times must be a finite number above 0"),
    ],
)
def test_arguments_that_cannot_be(options: dict, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        SFTData(**options).setup("fit")


def test_mixtures(tmp_path: Path) -> None:
    """An epoch has each source's rows as often as asked for, bad rows and all; its divisors count them."""
    first = tmp_path / "first.jsonl"
    first.write_text("{broken\n" + "".join(json.dumps(row) + "\n" for row in token_rows([3] * 6)))
    second = write_jsonl(tmp_path / "second.jsonl", [{"input_ids": [50 + row] * 2} for row in range(8)])
    mixture = [Source(str(first), times=2), Source(second, times=0.5)]
    data = data_of(mixture, max_rejects=0.1)
    assert data.steps_per_epoch == len(data.train_dataloader()) == 4
    drawn = Counter()
    for batch in data.train_dataloader():
        drawn.update(int(ids[0]) for ids in batch["input_ids"])
        assert len(batch["labels"]) == batch["divisor"]
    assert {token: count for token, count in drawn.items() if token < 50} == dict.fromkeys(range(1, 7), 2)
    assert len([token for token in drawn if token >= 50]) == 4
    assert max(count for token, count in drawn.items() if token >= 50) == 1


def test_the_mixture_belongs_to_the_run(tokens: str) -> None:
    state = data_of([tokens]).state_dict()
    data_of(tokens).load_state_dict(state)
    with pytest.raises(UserError, match="cannot resume: the checkpoint's training data has times of rows None"):
        data_of([Source(tokens, times=2)]).load_state_dict(state)
    with pytest.raises(UserError, match="cannot resume"):
        data_of(tokens, 0.2).load_state_dict(state)


def test_formats_of_sources(tmp_path: Path, tokenizer_directory: str) -> None:
    """Rows that would be ambiguous are taken as their source says; the others as ever."""
    row = {"prompt": "Hello", "completion": "I am fine", "response": "the worse one"}
    odd = write_jsonl(tmp_path / "odd.jsonl", [row])
    plain = write_jsonl(tmp_path / "plain.jsonl", [{"instruction": "Hello", "output": "I am fine"}])
    options = {"tokenizer": tokenizer_directory, "template": "chatml", "format": "auto"}
    data = data_of([Source(odd, format="prompt_completion"), plain], **options)
    rows = data.rows("train")
    assert rows[0].ids.tolist() == rows[1].ids.tolist()
    with pytest.raises(UserError, match=rf"{odd}:1: the row could be of several formats"):
        data_of([odd, plain], **options)
    with pytest.raises(UserError, match="did you mean alpaca"):
        data_of([Source(plain, format="alpacca")], **options)


def test_tokens_among_text(tmp_path: Path, tokens: str, tokenizer_directory: str) -> None:
    text = write_jsonl(tmp_path / "text.jsonl", [{"prompt": "Hello", "completion": "I am fine"}])
    mixed = [tokens, Source(text, format="auto")]
    data = data_of(mixed, tokenizer=tokenizer_directory, template="chatml")
    assert len(data.rows("train")) == 101


def test_rows_that_a_format_leaves_out_are_counted(tmp_path: Path, tokenizer_directory: str, caplog: Any) -> None:
    completions = [[{"response": "a", "overall_score": score}] for score in (8.0, 6.0, 6.5)]
    rows = [{"instruction": "Hello", "completions": completion} for completion in completions]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        data = data_of(path, format="ultrafeedback", tokenizer=tokenizer_directory, template="chatml")
    assert data.describe()["splits"]["train"]["rejected"] == {"left out": 2}
    assert "1 rows, " in caplog.text
    assert "2 rows left out by their format" in caplog.text


class Idle(LightningModule):
    """Does nothing with a batch."""

    def test_step(self, batch: dict, batch_idx: int) -> None:
        pass


def test_bad_rows_of_a_run_are_listed_in_its_directory(tmp_path: Path, tokens: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"input_ids": "no"}\n' + Path(tokens).read_text() + "{broken\n")
    data = SFTData(test=str(bad), format="tokens", max_rejects=0.02)
    trainer = make_trainer(tmp_path / "run")
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning, match=r"left out 2 bad of 102 rows \(1 wrong type, 1 malformed JSON\); see "):
            trainer.test(Idle(), SFTData(test=str(bad), format="tokens", max_rejects=0.02), verbose=False)
        file = tmp_path / "run" / "rejects-test.jsonl"
        listed = [json.loads(line) for line in file.read_text().splitlines()]
        assert [(reject["origin"], reject["kind"]) for reject in listed] == [
            (f"{bad}:1", "wrong type"), (f"{bad}:102", "malformed JSON"),
        ]  # fmt: skip
        file.unlink()
    data.max_rejects = 0.01
    with pytest.raises(UserError, match=rf"{bad}:1: input_ids must be .*; 2 of 102 rows are bad"):
        data.setup("test")


def test_where_no_bad_row_is_tolerated_the_first_is_told_before_the_rest_is_read(tmp_path: Path) -> None:
    rows = [{"input_ids": [1, 2], "labels": [-100, 2]} for _ in range(20_000)]
    rows[2] = {"input_ids": "no"}  # type: ignore[dict-item]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = SFTData(test=str(file), format="tokens")
    with pytest.raises(UserError, match=rf"^{file}:3: .*; 1 of the first (\d+) rows is bad .* be above 0$") as error:
        data.setup("test")
    found = re.search(r"first (\d+) rows", str(error.value))
    assert int(found[1]) < 20_000


def test_real_rows_mixed_and_held_out(shared_data: Path, tokenizer_directory: str) -> None:
    """Five real files of four formats, one of them with empty answers."""
    names = ["alpaca_5000", "dolly_open_qa", "gsm8k_train", "dpo_mix_en_300", "lima_1029"]
    sources = [Source(str(shared_data / "sft" / f"{name}.jsonl.gz"), sample=150) for name in names[:3]]
    sources += [Source(str(shared_data / "sft" / f"{name}.jsonl.gz"), times=0.5) for name in names[3:]]
    data = data_of(
        sources, 0.1, format="auto", tokenizer=tokenizer_directory, template="chatml", max_length=20_000,
        overlong="raise", max_rejects=0.01,
    )  # fmt: skip
    described = data.describe()["splits"]
    train, validation = described["train"], described["validation"]
    assert train["kept"] + validation["kept"] == 3 * 150 + 300 + 1029
    assert train["rejected"].get("empty answer", 0) + validation["rejected"].get("empty answer", 0) == 2
    assert abs(validation["kept"] - 178) < 4 * (1779 * 0.09) ** 0.5
    read = [file["rows"] for file in train["files"]]
    bad = train["rejected"].get("empty answer", 0)  # all in the first file
    assert len(data.train_dataloader()) == -(-(sum(read[:3]) - bad + round(sum(read[3:]) / 2)) // 4)

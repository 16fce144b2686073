"""How long rows are: what the user says, what the model takes, and what comes of a difference."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.data.data_helpers import token_rows, write_jsonl
from ts2_lightning.data import SFTData
from ts2_lightning.data.lengths import check_length, row_length
from ts2_lightning.data.streaming import REPORT
from ts2_lightning.model_limits import ModelLimits
from ts2_lightning.toyworld import build_tokenizer
from ts2_lightning.types import UserError

TABLE = ModelLimits("gpt2", 8, is_table=True, embeddings=100)
ROTARY = ModelLimits("llama", 8, is_table=False, embeddings=100)
ENDLESS = ModelLimits("mamba", None, is_table=False, embeddings=100)
LONG = ModelLimits("llama", 131_072, is_table=False, embeddings=100)


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    """Rows of 4, 8 and 12 tokens."""
    file = tmp_path / "rows.jsonl"
    rows = [{"input_ids": list(range(3, 3 + n)), "labels": [-100, *range(4, 3 + n)]} for n in (4, 8, 12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def data_of(file: str, limits: ModelLimits | None, **settings: Any) -> SFTData:
    data = SFTData(file, format="tokens", batch_size=2, micro_batch_size=1, **settings)
    module = SimpleNamespace(model_limits=lambda: limits)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=module, is_global_zero=False, distributed_sampler_kwargs=None, accumulate_grad_batches=1,
        global_step=0, limit_train_batches=1.0, val_check_interval=1.0, fit_loop=SimpleNamespace(is_resuming=False),
    )  # fmt: skip
    return data


@pytest.mark.parametrize(
    ("limits", "wanted"), [(None, 2048), (TABLE, 8), (ROTARY, 8), (ENDLESS, 2048), (LONG, 2048)], ids=str
)
def test_null_is_the_models_context_but_not_more_than_usual(limits: ModelLimits | None, wanted: int) -> None:
    assert row_length(None, limits) == wanted
    assert row_length(5, limits) == 5
    check_length(None, limits)


def test_more_than_there_are_positions_for(tokens: str) -> None:
    with pytest.raises(UserError) as error:
        data_of(tokens, TABLE, max_length=9).setup("fit")
    assert str(error.value) == (
        "data.max_length is 9, more than the context of gpt2, 8 tokens, and there is no position behind it; set it to "
        "8 at most, or to null, which is the model's"
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_from_before_the_check_goes_on(tokens: str, streaming: bool) -> None:
    """With the number that it has recorded, as long as no row is longer than the model takes."""
    roomy = TABLE._replace(context=12)
    settings: dict[str, Any] = {"max_length": 2048, "streaming": streaming, "shuffle_buffer": 2, "cache": False}
    before = data_of(tokens, None, **settings)
    before.setup("fit")
    data = data_of(tokens, roomy, **settings)
    data.goes_on = True
    data.setup("fit")
    data.load_state_dict(before.state_dict())
    assert len(list(data.train_dataloader())) == len(list(before.train_dataloader()))
    with pytest.raises(UserError, match=r"max_length is 2,048, more than the context of gpt2, 12 tokens"):
        data_of(tokens, roomy, **settings).setup("fit")


def test_but_no_row_that_the_model_does_not_take(tokens: str) -> None:
    data = data_of(tokens, TABLE, max_length=2048)
    data.goes_on = True
    with pytest.raises(UserError) as error:
        data.setup("fit")
    assert str(error.value) == (
        f"data.train: {tokens}:3: 12 tokens are more than the context of gpt2, 8 tokens; set data.max_length to 8"
    )


@pytest.mark.parametrize("limits", [TABLE, ROTARY, ENDLESS, LONG], ids=str)
def test_what_a_model_takes_is_not_spoken_of(limits: ModelLimits) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_length(8, limits)


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_rotary_model_is_warned_of(tokens: str, goes_on: bool) -> None:
    data = data_of(tokens, ROTARY, max_length=12)
    data.goes_on = goes_on
    with pytest.warns(UserWarning, match=r"data.max_length is 12, more than the context of llama, 8 tokens: positions"):
        data.setup("fit")
    assert data.rows("train").lengths.tolist() == [4, 8, 12], "as the user wants it"


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_cut_to_the_models_context(tokens: str, streaming: bool) -> None:
    data = data_of(tokens, TABLE, streaming=streaming, shuffle_buffer=3)
    data.setup("fit")
    batches = list(data.train_dataloader())
    lengths = sorted(int(np.diff(span)[0]) for batch in batches for span in batch["row_spans"].numpy() if span[1])
    assert [length for length in lengths if length > 1] == [4, 8, 8]
    assert data.describe()["max_length"] == 8
    assert data.max_length is None, "the setting stays what it was"


def test_packed_sequences_are_no_longer_than_the_context(tokens: str) -> None:
    data = data_of(tokens, TABLE, packing="packed")
    data.setup("fit")
    assert max(batch["input_ids"].shape[1] for batch in data.train_dataloader()) == 8


def test_the_cache_knows_the_number_and_not_who_has_said_it(
    tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS2_CACHE_DIR", str(tmp_path / "cache"))

    def entries() -> set[Path]:
        return set((tmp_path / "cache").rglob("*.arrow"))

    data_of(tokens, TABLE).setup("fit")
    first = entries()
    assert len(first) == 1
    data_of(tokens, TABLE, max_length=8).setup("fit")
    data_of(tokens, ROTARY).setup("fit")
    assert entries() == first
    data_of(tokens, ENDLESS).setup("fit")
    assert len(entries()) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_with_the_number_goes_on_with_null(tokens: str, streaming: bool) -> None:
    """From before null was the default, or with the number given by hand."""
    settings: dict[str, Any] = {"streaming": streaming, "cache": False}
    before, now = data_of(tokens, ENDLESS, max_length=2048, **settings), data_of(tokens, ENDLESS, **settings)
    before.setup("fit")
    now.setup("fit")
    now.load_state_dict(before.state_dict())
    shorter = data_of(tokens, TABLE, **settings)
    shorter.setup("fit")
    with pytest.raises(UserError, match="cannot resume: the checkpoint's training data has"):
        shorter.load_state_dict(before.state_dict())


def test_without_a_model_the_usual_length(tokens: str) -> None:
    data = SFTData(tokens, format="tokens")
    assert data.row_length == 2048
    data.load("train")
    assert data.rows("train").lengths.max() == 12


# Tokens ------------------------------------------------------------------------------------------------------------


def error_of(data: SFTData) -> str:
    with pytest.raises(UserError) as error:
        data.setup("fit")
    return str(error.value)


def few(rows: int) -> ModelLimits:
    return ModelLimits("llama", 64, is_table=False, embeddings=rows)


def test_a_token_without_a_row_is_named_with_its_place(tokens: str) -> None:
    """The third row's last token is 14."""
    said = (
        f"data.train: {tokens}:3: token id 14 has no row in the embedding of llama, which has 14; mend the row, or set "
        "model.lm.resize_embeddings to 15 for new rows"
    )
    assert error_of(data_of(tokens, few(14))) == said
    assert error_of(data_of(tokens, few(14))) == said, "from the cache"
    data_of(tokens, few(15)).setup("fit")
    data_of(tokens, few(15_000)).setup("fit")  # a vocabulary that is padded


def test_the_first_such_row_is_named_whatever_others_have(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in ([1, 2], [3, 15, 4], [5, 19, 14])))
    assert error_of(data_of(str(file), few(14))) == (
        f"data.train: {file}:2: token id 15 has no row in the embedding of llama, which has 14; mend the row, or set "
        "model.lm.resize_embeddings to 20 for new rows"
    )


def test_a_streamed_one_too(tokens: str) -> None:
    data = data_of(tokens, few(14), streaming=True, shuffle_buffer=2, cache=False)
    data.setup("fit")
    reports = [batch[REPORT] for batch in data.train_dataloader()]
    [error] = {report.error for report in reports if report.error}
    assert error.startswith(f"data.train: {tokens}:3: token id 14 has no row in the embedding of llama")


def test_rows_that_were_left_out_count_for_the_place(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    good, bad = {"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": "none"}
    file.write_text("".join(json.dumps(row) + "\n" for row in (bad, good, bad, {"input_ids": [1, 9]}, good)))
    with pytest.warns(UserWarning, match="left out 2 bad of 5 rows"):
        said = error_of(data_of(str(file), few(9), max_rejects=0.5))
    assert said.startswith(f"data.train: {file}:4: token id 9 has no row")


def test_a_tokenizer_that_has_more(tokens: str) -> None:
    """It may have tokens that the model has not, as Gemma 3's has one for pictures, if no row has one of them."""
    tokenizer = build_tokenizer()
    data = data_of(tokens, few(15))
    data.tokenizer = tokenizer
    data.setup("fit")
    data = data_of(tokens, few(14))
    data.tokenizer = tokenizer
    assert error_of(data).endswith(
        "token id 14 has no row in the embedding of llama, which has 14; take the model's own tokenizer, or set "
        "model.lm.resize_embeddings to true for new rows"
    )


def test_padding_is_a_token_that_the_model_has(tokens: str) -> None:
    data = data_of(tokens, None)
    assert data.pad_id == 0
    data.tokenizer = tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    assert tokenizer.pad_token_id > tokenizer.eos_token_id > 50
    found = []
    for rows in (1000, tokenizer.pad_token_id, tokenizer.eos_token_id):
        data.limits = few(rows)
        found.append(data.pad_id)
    assert found == [tokenizer.pad_token_id, tokenizer.eos_token_id, 0]


def test_the_largest_micro_batch_has_the_longest_rows(tmp_path: Path) -> None:
    """Of streamed rows, which nobody has seen, it has rows of the largest length."""
    file = write_jsonl(tmp_path / "rows.jsonl", token_rows([4, 8, 12, 3]))
    options: dict[str, Any] = {"format": "tokens", "batch_size": 3, "cache": False, "max_length": 20}

    def shapes(**more: Any) -> list[tuple[int, ...]]:
        data = SFTData(file, **options, **more)
        data.load("train")
        return [tuple(data.largest_batch(size)["input_ids"].shape) for size in (1, 2, 3)]

    assert shapes() == [(1, 12), (2, 12), (3, 12)]
    assert shapes(packing="padding_free") == [(1, 12), (1, 12), (1, 24)], "micro-batches of equally many tokens"
    assert shapes(streaming=True) == [(1, 20), (2, 20), (3, 20)]
    assert shapes(streaming=True, packing="padding_free") == [(1, 20), (1, 40), (1, 60)]
    data = SFTData(file, **options)
    data.load("train")
    batch = data.largest_batch(2)
    assert (batch["row_index"].tolist(), batch["divisor"].item()) == ([2, 1], 11 + 7 + 3)

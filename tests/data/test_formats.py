import sys
from pathlib import Path
from typing import Any

import pytest

from ts2_lightning.data.formats import FORMATS, TokenRow, get_format, parse, register_format, row_weight
from ts2_lightning.data.sources import read_rows
from ts2_lightning.types import UserError

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [USER, {**ANSWER, "weight": 1}], "prompt": "other", "prompt_id": "x"},
        {"prompt": "q", "completion": "a"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": "", "output": "a", "history": []},
        {"instruction": "q", "input": None, "output": "a"},
    ],
)
def test_formats_are_detected(fields: dict) -> None:
    assert parse(fields) == [USER, ANSWER]


def test_alpaca_input_follows_after_a_blank_line() -> None:
    assert parse({"instruction": "q", "input": "x", "output": "a"})[0]["content"] == "q\n\nx"


def test_token_rows() -> None:
    assert parse({"input_ids": [1, 2]}) == TokenRow([1, 2], [1, 2])
    assert parse({"input_ids": [1, 2], "labels": [-100, 2]}) == TokenRow([1, 2], [-100, 2])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": "x", "id": 1}, "no format fits a row with the keys text, id; known: tokens"),
        ({}, r"keys \(none\)"),
        ({"messages": []}, "at least one message"),
        ({"messages": "hello"}, "list of at least one message, got 'hello'"),
        ({"messages": [USER]}, "no message of the role assistant"),
        ({"messages": [USER, "a"]}, "message 2 must be an object with role and content"),
        ({"messages": [{"role": "user"}]}, "message 1 must be an object with role and content"),
        ({"messages": [USER, {"role": "asistant", "content": "a"}]}, "; did you mean assistant?"),
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, "content must be a string, got None"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "message 2: the assistant's answer is empty"),
        ({"prompt": "q", "completion": 3}, "completion must be a string, got 3"),
        ({"instruction": ["q"], "output": "a"}, "instruction must be a string"),
        ({"input_ids": []}, "at least one token id"),
        ({"input_ids": [1, -1]}, "none of them negative"),
        ({"input_ids": [1, True]}, "list of integers"),
        ({"input_ids": [1, 2], "labels": [1]}, r"labels must be as long as input_ids \(2\), got 1"),
        ({"input_ids": [1, 2], "labels": [2, -100]}, r"labels\[0\] is 2: it must repeat input_ids\[0\] = 1"),
    ],
)
def test_wrong_rows_are_refused_in_one_line(fields: dict, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        parse(fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("value", "weight"), [(2, 2.0), (0.25, 0.25), (0, 0.0), (3.4e38, 3.4e38), (None, 1.0)])
def test_weights(value: Any, weight: float) -> None:
    found = row_weight({"prompt": "q", "weight": value})
    assert found == weight
    assert type(found) is float


@pytest.mark.parametrize(
    "value", [-1, -1e-9, float("nan"), float("inf"), 3.5e38, 10**400, True, False, "2", [1.0], {"a": 1}]
)
def test_wrong_weights_are_refused_in_one_line(value: Any) -> None:
    with pytest.raises(UserError, match=r"weight, .*, must be a finite number of at least 0, got ") as error:
        row_weight({"prompt": "q", "weight": value})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_named_format_with_missing_field() -> None:
    with pytest.raises(UserError, match="the field output is missing; the row has instruction, answer"):
        parse({"instruction": "q", "answer": "a"}, get_format("alpaca"))


def test_format_names() -> None:
    assert get_format("auto") is None
    with pytest.raises(UserError, match=r"unknown format 'alpacca'; known: .*; did you mean alpaca\?"):
        get_format("alpacca")


def test_formats_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "riddles.py").write_text(
        "def riddle(fields):\n"
        "    return [{'role': 'user', 'content': fields['q']}, {'role': 'assistant', 'content': fields['a']}]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    function = get_format("riddles.riddle")
    assert parse({"q": "q", "a": "a"}, function) == [USER, ANSWER]
    with pytest.raises(UserError, match="the format riddle failed with KeyError: 'a'"):
        parse({"q": "q"}, function)
    with pytest.raises(UserError, match=r"riddles has no 'ridle'; did you mean riddle\?"):
        get_format("riddles.ridle")
    with pytest.raises(UserError, match="no module 'ridles'"):
        get_format("ridles.riddle")
    sys.modules.pop("riddles")


def test_registered_formats_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ts2_lightning.data.formats.FORMATS", dict(FORMATS))

    @register_format("riddle", "riddle", "solution")
    def riddle(fields: dict) -> list[dict]:
        return [{"role": "user", "content": fields["riddle"]}, {"role": "assistant", "content": fields["solution"]}]

    assert parse({"riddle": "q", "solution": "a"}) == [USER, ANSWER]
    assert get_format("riddle") is riddle


@pytest.mark.parametrize(
    ("name", "rows", "empty"),
    [
        ("sft/no_robots_test", 499, 0),
        ("sft/alpaca_5000", 5000, None),
        ("sft/alpaca_eval_605_gpt4_1106_preview", 605, 0),
        ("sft/ultrafeedback_binarized_train_1000", 1000, None),
        ("chat/oasst1_eval_threads", 870, 0),
    ],
)
def test_real_files(shared_data: Path, name: str, rows: int, empty: int | None) -> None:
    """Every row is a conversation, or is refused for an empty answer and nothing else."""
    read = refused = 0
    for row in read_rows(shared_data / f"{name}.jsonl.gz"):
        read += 1
        try:
            assert parse(row.fields)[-1]["role"] == "assistant"
        except UserError as error:
            assert "answer is empty" in str(error)  # noqa: PT017
            refused += 1
    assert read == rows
    assert refused == empty if empty is not None else 0 < refused < 100

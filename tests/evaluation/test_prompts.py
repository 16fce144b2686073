"""Prompts are read from rows of any format, and asked as in training."""

import json
from pathlib import Path
from typing import Any

import pytest

from ts2_lightning.data.formats import Conversation
from ts2_lightning.data.selection import Selection
from ts2_lightning.data.sources import as_sources
from ts2_lightning.evaluation.prompts import Question, read_questions
from ts2_lightning.types import UserError

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TIME = {"type": "function", "function": {"name": "get_time"}}


def prompts(path: Path, *rows: dict) -> list[Conversation]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [question.conversation for question in questions(path)]


def questions(path: Path) -> list[Question]:
    return read_questions(Selection(tuple(as_sources(str(path))), "auto"), "--prompts")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [Q]},
        {"messages": [Q, A]},
        {"messages": [Q, {**A, "reasoning_content": "t"}]},
        {"conversations": [{"from": "human", "value": "q"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversations": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]},
        {"history": [{"user": "q", "bot": "a"}]},
        {"prompt": "q"},
        {"instruction": "q"},
        {"question": "q", "answer": "a"},
    ],
)
def test_what_comes_before_the_answer(row: dict, tmp_path: Path) -> None:
    [prompt] = prompts(tmp_path / "rows.jsonl", row)
    assert prompt.messages == [Q]
    [question] = questions(tmp_path / "rows.jsonl")
    assert question.reference == ("a" if '"a"' in json.dumps(row) else None)


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_a_conversation_that_ends_with_a_question_is_asked_it(key: str, tmp_path: Path) -> None:
    [prompt] = prompts(tmp_path / "rows.jsonl", {key: [Q, {**A, "weight": 0}, {**Q, "content": "r"}], "tools": [TIME]})
    assert [message["content"] for message in prompt.messages] == ["q", "a", "r"]
    assert prompt.tools == [TIME]


def test_prompts_come_once_whatever_else_their_rows_say(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"messages": [Q, A], "id": 1},
        {"messages": [Q], "id": 2, "source": "x"},
        {"messages": [Q], "chat_template_kwargs": {"tone": "calm"}},
    ]
    assert [prompt.arguments for prompt in prompts(tmp_path / "rows.jsonl", *rows)] == [{}, {"tone": "calm"}]


def test_rows_that_are_no_prompts(tmp_path: Path) -> None:
    for row in ({"messages": [A]}, {"input_ids": [1, 2]}, {"messages": [Q], "images": ["x"]}):
        with pytest.raises(UserError, match=r"--prompts .*rows\.jsonl:1: "):
            prompts(tmp_path / "rows.jsonl", row)

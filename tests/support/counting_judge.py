"""A served judge that counts what it is asked, and fails as often as a test wants."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.json_server import Answer, Call, JsonServer
from ts2_lightning.evaluation.judges import Case, ChatJudge, ChatSettings, JudgePrompt, rating
from ts2_lightning.types import UserError

Says = Callable[[str, dict[str, Any]], str]
"""Gives the answer to the last turn; the second argument is the whole body."""


class CountingJudge(JsonServer):
    """A server with one model, `m`.

    Args:
        says: gives each answer.
        failing: whether the n-th try of all fails, n from 0, and how; None for no failure.
        usage: numbers of tokens of prompt and answer that it claims.
        delay: seconds that an answer takes.
    """

    def __init__(
        self,
        says: Says,
        failing: Callable[[int], Answer | None] = lambda number: None,
        usage: Callable[[str], tuple[int, int]] = lambda text: (len(text) // 4, 3),
        delay: float = 0.0,
    ) -> None:
        super().__init__(otherwise=self._reply)
        self.says, self.failing, self.usage, self.delay = says, failing, usage, delay
        self.tries = 0
        self.answered: Counter[tuple[str, int]] = Counter()
        """How often each prompt was answered, with its seed."""
        self._counting = threading.Lock()

    @property
    def model(self) -> str:
        """The name of its model, as users give it."""
        return f"endpoint:{self.url}#m"

    @property
    def bodies(self) -> list[Any]:
        """Every body that came."""
        return [call.body for call in self.calls if call.method == "POST"]

    def _reply(self, call: Call) -> Answer:
        if call.method == "GET":
            return Answer({"data": [{"id": "m", "owned_by": "tests"}]})
        with self._counting:
            number, self.tries = self.tries, self.tries + 1
        if (failure := self.failing(number)) is not None:
            return failure
        body, is_chat = call.body, "messages" in call.body
        prompt = body["messages"][-1]["content"] if is_chat else body["prompt"]
        text = self.says(prompt, body)
        inner: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        with self._counting:
            self.answered[json.dumps([body.get("messages"), prompt]), body["seed"]] += 1
        read, written = self.usage(prompt)
        choice = {"index": 0, "finish_reason": "stop", **inner}
        usage = {"prompt_tokens": read, "completion_tokens": written} if read or written else {}
        return Answer({"choices": [choice], "usage": usage}, delay=self.delay)


def often_failing(number: int) -> Answer | None:
    """Three tries in ten fail: a 429, a 500, and a connection that drops in the middle of an answer."""
    return {
        1: Answer({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.01"}),
        4: Answer({"error": {"message": "oops"}}, 500),
        7: Answer({"choices": []}, cut=5),
    }.get(number % 10)


# What it is asked in tests ----------------------------------------------------------------------------------------

PROMPT = JudgePrompt("fruit", "Rate {response} as an answer to {question}. Rating:")
READ = rating(r"Rating: (\d+)", 0, 9)
CASES = [Case.answer(f"question {i}", f"response {i % 7} of {i}") for i in range(40)]


def told(act: Callable[[], object], words: str) -> str:
    """The one line in which a user is told that something cannot be, which has these words in it."""
    with pytest.raises(UserError) as error:
        act()
    message = str(error.value)
    assert words in message
    assert "\n" not in message
    return message


def number_of(text: str) -> int:
    return sum(text.encode()) % 8


def well(text: str, body: Any) -> str:
    return f"So so. Rating: {number_of(text)}"


def judge_of(server: CountingJudge, prompt: JudgePrompt = PROMPT, parser: Any = READ, **how: Any) -> ChatJudge:
    return ChatJudge(ChatSettings(server.model, **{"api_key_env": "", "concurrency": 4, **how}), prompt, parser)


def asked_text(case: Case, prompt: JudgePrompt = PROMPT) -> str:
    turns: Any = prompt.asked(case)
    [turn] = turns
    return str(turn["content"])

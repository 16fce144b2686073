"""A judge behind an endpoint of this machine, whose verdicts are written by the test."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.support.json_server import Answer, Call, JsonServer

Says = Callable[[str, str], str]
"""Gives the judge's answer to the system turn and the last turn of a question; of plain text the first is empty."""


class ServedJudge(JsonServer):
    """A server with one model, `judge`.

    Args:
        says: gives each answer.
        dies_after: number of answers after which it takes no key any more; None for never.
    """

    def __init__(self, says: Says, dies_after: int | None = None) -> None:
        super().__init__(otherwise=self._answer)
        self.says, self.dies_after = says, dies_after
        self.asked: list[dict[str, Any]] = []

    @property
    def counts(self) -> Counter[str]:
        """How often each question was answered, whatever the seed."""
        return Counter(json.dumps(body.get("messages", body.get("prompt"))) for body in self.asked)

    def settings(self, **more: Any) -> dict[str, Any]:
        """Settings of a judge that name it."""
        return {"model": f"endpoint:{self.url}#judge", "api_key_env": "", "concurrency": 1, **more}

    def _answer(self, call: Call) -> Answer:
        if call.path == "/v1/models":
            return Answer({"data": [{"id": "judge", "owned_by": "test"}]})
        if len(self.asked) == self.dies_after:
            return Answer({"error": {"message": "no such key"}}, status=401)
        self.asked.append(call.body)
        messages = call.body.get("messages")
        usage = {"prompt_tokens": 5, "completion_tokens": 1}
        if messages is None:
            inner: dict[str, Any] = {"text": self.says("", call.body["prompt"])}
        else:
            system = messages[0]["content"] if messages[0]["role"] == "system" else ""
            inner = {"message": {"role": "assistant", "content": self.says(system, messages[-1]["content"])}}
        return Answer({"choices": [{"index": 0, "finish_reason": "stop", **inner}], "usage": usage})

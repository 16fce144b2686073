"""What all judges have in common: verdicts are responses on disk, and nothing is asked twice."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import pytest

from ts2_lightning.evaluation.judges import AskedJudge, Case, Verdict
from ts2_lightning.generation import Decoder, GenerationSettings
from ts2_lightning.generation.backends import Backend
from ts2_lightning.generation.requests import Request, Response


class Length(AskedJudge):
    """Rates a response by its length, and stumbles over what begins with a question mark as often as it is told."""

    name = "length"

    def __init__(self, votes: int = 1, retries: bool = False) -> None:
        self.votes, self.retries, self.asked = votes, retries, []

    @property
    def identity(self):
        return ["length", 1]

    @property
    def settings(self):
        return GenerationSettings("length", Decoder(temperature=0), 4)

    @property
    def again(self):
        return replace(self.settings, seed=1) if self.retries else None

    def prompt(self, case):
        return f"{case.messages[-1]['content']} -> {case.response}"

    def read(self, answer, case):
        return float(answer) if answer.isdigit() else None

    def make_backend(self):
        return Says(self.asked)


class Says(Backend):
    def __init__(self, asked: list[Request]) -> None:
        self.asked = asked

    def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
        for request in requests:
            self.asked.append(request)
            response = str(request.prompt).partition(" -> ")[2]
            stumbles = response.startswith("??") or (response.startswith("?") and request.settings.seed == 0)
            yield Response(request.key, "well" if stumbles else str(len(response) + request.index), 1, "stop")

    @property
    def versions(self) -> Mapping[str, str]:
        return {"backend": "says"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TS2_CACHE_DIR", str(tmp_path))


def test_verdicts_are_in_the_order_of_the_cases_and_nothing_is_asked_twice():
    cases = [Case.answer("Q", text) for text in ("abc", "a", "abc", "")]
    judge = Length()
    assert [one.value for one in judge.judge(cases)] == [3, 1, 3, 0]
    assert len(judge.asked) == 3  # two cases are the same
    later = Length()
    assert later.judge([*cases, Case.answer("Q", "ab")])[-1] == Verdict(2.0, "2", 0)
    assert [request.prompt for request in later.asked] == ["Q -> ab"]
    assert [request.prompt for request in Length().missing([Case.answer("Q", "new"), cases[0]])] == ["Q -> new"]


def test_the_value_is_the_mean_of_the_votes():
    assert Length(votes=3).judge([Case.answer("Q", "abc")]) == [Verdict(4.0, "3\n4\n5", 0)]


def test_an_answer_that_cannot_be_read_is_asked_once_more_and_counted():
    cases = [Case.answer("Q", text) for text in ("?x", "??", "ab")]
    assert Length().judge(cases) == [Verdict(None, "well", 1), Verdict(None, "well", 1), Verdict(2.0, "2", 0)]
    judge = Length(retries=True)
    assert judge.judge(cases) == [Verdict(2.0, "2", 1), Verdict(None, "well", 2), Verdict(2.0, "2", 0)]
    assert [request.settings.seed for request in judge.asked] == [1, 1]  # the first round is there from before


def test_no_case_is_no_question():
    assert Length().judge([]) == []

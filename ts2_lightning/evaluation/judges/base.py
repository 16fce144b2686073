"""What every judge can do, and how one that is a model is asked."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from ts2_lightning.data.cache import cache_directory
from ts2_lightning.generation import GenerationSettings
from ts2_lightning.generation.backends import Backend
from ts2_lightning.generation.requests import Asked, Request
from ts2_lightning.generation.store import ResponseStore
from ts2_lightning.runs.stamps import digest

OF_NO_VERDICT: Mapping[str, bool] = {"verdict": False}
"""Metadata of a judge's setting that no verdict depends on: `field(default=32, metadata=OF_NO_VERDICT)`."""


def plain_judge(settings: Any) -> dict[str, Any]:
    """The settings of a judge that its verdicts depend on, as plain values.

    Args:
        settings: a dataclass, some of whose fields may have the metadata `OF_NO_VERDICT`.
    """
    left_out = {each.name for each in fields(settings) if not each.metadata.get("verdict", True)}
    return {name: value for name, value in asdict(settings).items() if name not in left_out}


@dataclass(frozen=True)
class Case:
    """What is to be judged: a response in its conversation, alone or beside another one.

    Attributes:
        messages: turns up to the response, each with `role` and `content`.
        response: the response.
        other: second response, where a judge compares two.
        reference: right answer, or an answer to compare with; None where there is none.
        details: plain values that a judge needs besides.
    """

    messages: Sequence[Mapping[str, str]]
    response: str
    other: str | None = None
    reference: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def answer(cls, question: str, response: str, reference: str | None = None) -> "Case":
        """A response to a question of one turn."""
        return cls(({"role": "user", "content": question},), response, reference=reference)


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a case.

    Attributes:
        value: rating, reward or probability; of votes the mean. None where nothing could be read.
        raw: what the judge said, as it came; of several votes one line each.
        unread: number of the judge's answers that could not be read, those that were asked again included.
    """

    value: float | None
    raw: str = ""
    unread: int = 0

    def then(self, again: "Verdict") -> "Verdict":
        """What is said at the second time of asking, the first having been of no use."""
        return replace(again, unread=self.unread + again.unread)


@dataclass(frozen=True)
class JudgeCost:
    """What it takes to judge, of what has not been judged yet.

    Attributes:
        calls: number of the judge's answers, one for each vote.
        prompt_tokens: number of tokens that the judge reads; None where nobody can say it beforehand.
        new_tokens: number of tokens that it writes, at most.
        dollars: price of both; None where no prices are set.
        is_estimate: whether the number of prompt tokens is one, made from the characters.
    """

    calls: int
    prompt_tokens: int | None = None
    new_tokens: int = 0
    dollars: float | None = None
    is_estimate: bool = False


class Judge(ABC):
    """Says what responses are worth."""

    name: ClassVar[str]
    """Name in files and messages."""

    @property
    def title(self) -> str:
        """The name of the model that is asked, for people; `none` for a rule."""
        return "none"

    @property
    @abstractmethod
    def identity(self) -> Any:
        """Plain values that change when a verdict of the same case may: the model, its prompt, how it is read."""

    def check(self) -> None:  # noqa: B027 - a rule needs nothing
        """Looks whether the judge can be asked, before hours of sampling; no weights are loaded.

        Raises:
            UserError: a model that is not there, or is none of the right kind.
        """

    def cost(self, cases: Sequence[Case]) -> JudgeCost:
        """What judging takes, of what is not on disk already; a rule takes nothing."""
        return JudgeCost(0)

    @abstractmethod
    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """The verdicts of cases, in their order. What is on disk is not asked again.

        Raises:
            UserError: a case that the judge does not take, or a judge that cannot go on.
        """


class AskedJudge(Judge):
    """A judge that is a model. Its verdicts are responses on disk, in the package's cache, shared by all that ask it.

    Attributes:
        votes: number of times that each case is asked.
    """

    votes: int = 1

    @property
    @abstractmethod
    def settings(self) -> GenerationSettings:
        """What its answers are made with; the digest of the model is part of it."""

    @abstractmethod
    def prompt(self, case: Case) -> Asked:
        """What it is asked of a case."""

    @abstractmethod
    def read(self, answer: str, case: Case) -> float | None:
        """The value that an answer has; None if none can be read."""

    @abstractmethod
    def make_backend(self) -> Backend:
        """What makes its answers; called only if one is missing."""

    @property
    def again(self) -> GenerationSettings | None:
        """What an answer that cannot be read is made anew with, once; None leaves it unread."""
        return None

    @property
    def directory(self) -> Path:
        """The directory that has its `responses`."""
        return cache_directory() / "judges" / f"{self.name}-{digest(self.identity)[:12]}"

    def requests(self, case: Case) -> list[Request]:
        """The answers that are wanted of a case, one for each vote."""
        prompt = self.prompt(case)
        return [Request(prompt, index, self.settings) for index in range(self.votes)]

    def missing(self, cases: Sequence[Case]) -> list[Request]:
        """Of the answers that are wanted those that are not on disk."""
        left = self._store(self.settings).missing(_by_prompt(chain(*map(self.requests, cases))))
        return [request for requests in left.values() for request in requests]

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """The verdicts of cases, in their order. What cannot be read is asked once more, with `again`."""
        asked = [(case, request) for case in cases for request in self.requests(case)]
        answers = self._answers(self.settings, (request for _, request in asked))
        votes = [self._reading(case, answers[request.key]) for case, request in asked]
        if self.again is not None:
            unread = {
                number: replace(asked[number][1], settings=self.again)
                for number, vote in enumerate(votes)
                if vote.value is None
            }
            answers = self._answers(self.again, unread.values())
            for number, request in unread.items():
                votes[number] = votes[number].then(self._reading(asked[number][0], answers[request.key]))
        return [_together(votes[start : start + self.votes]) for start in range(0, len(votes), self.votes)]

    def _reading(self, case: Case, answer: str) -> Verdict:
        value = self.read(answer, case)
        return Verdict(value, answer, int(value is None))

    def _answers(self, settings: GenerationSettings, requests: Iterable[Request]) -> dict[str, str]:
        """What the judge says to each request, by its key; what is missing is asked."""
        made = self._store(settings).fill(_by_prompt(requests), self.make_backend, self.name)
        return {one.key: one.text for responses in made.values() for one in responses}

    def _store(self, settings: GenerationSettings) -> ResponseStore:
        return ResponseStore(self.directory, self.name, settings, self.name)


def _by_prompt(requests: Iterable[Request]) -> dict[str, list[Request]]:
    """Requests by the name that their prompt has in the files of verdicts; the prompt itself is not in them."""
    wanted: dict[str, dict[str, Request]] = {}
    for request in requests:
        wanted.setdefault(digest(request.prompt)[:16], {})[request.key] = request
    return {prompt: list(of_prompt.values()) for prompt, of_prompt in wanted.items()}


def _together(votes: Sequence[Verdict]) -> Verdict:
    """The verdict that votes make: the mean of those that could be read."""
    values = [vote.value for vote in votes if vote.value is not None]
    mean = sum(values) / len(values) if values else None
    return Verdict(mean, "\n".join(vote.raw for vote in votes), sum(vote.unread for vote in votes))

"""Protocols whose responses a judge rates."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from ts2_lightning.evaluation.judges import AskedJudge, Case, ChatJudge, Judge, Verdict
from ts2_lightning.evaluation.judges.base import plain_judge
from ts2_lightning.evaluation.judges.classifier import free_memory
from ts2_lightning.evaluation.judges.spending import estimated_tokens
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.protocols.base import Protocol
from ts2_lightning.evaluation.protocols.items import Answered, Item, Part, Scored
from ts2_lightning.evaluation.protocols.right_answers import COMMON_VALUES, beside_scores
from ts2_lightning.evaluation.protocols.stored import Answers
from ts2_lightning.generation.requests import Response
from ts2_lightning.types import UserError
from ts2_lightning.values import Value

JUDGE_UNPARSED = Value(
    "judge_unparsed", "judge unread", "share of verdicts that could not be read", "lower", ".3f", True
)

_USUAL = ("truncated", "questions", "samples")
BESIDE_VERDICTS = (JUDGE_UNPARSED, *(value for value in COMMON_VALUES if value.name in _USUAL))
"""Descriptions of what stands beside every value of a judge."""


@dataclass(frozen=True)
class JudgedProtocol(Protocol):
    """Questions without a right answer, whose responses a judge rates.

    A subclass says who judges (`make_judge`), what it is shown (`case`), and what follows (`estimate`). A score's
    `answer` is the verdict as text, None where the judge's answer could not be read; its `note` is what the judge said.
    """

    @abstractmethod
    def make_judge(self) -> Judge:
        """The judge that the settings name.

        Raises:
            UserError: the settings name none.
        """

    def case(self, item: Item, response: Response) -> Case:
        """What the judge is shown of a response."""
        return Case((*item.history, {"role": "user", "content": item.question}), response.text)

    def scored_as(self, item: Item, response: Response, verdict: Verdict) -> Scored:
        """The score that a verdict gives."""
        answer = None if verdict.value is None else f"{verdict.value:g}"
        return Scored(response.key, answer, 0.0 if verdict.value is None else verdict.value, verdict.raw)

    def score(self, item: Item, responses: Sequence[Response]) -> list[Scored]:
        """Scores the responses to one question."""
        return next(iter(self.score_all([(item, responses)])))[1]

    def score_all(self, answered: Sequence[tuple[Item, Sequence[Response]]]) -> Iterator[tuple[Item, list[Scored]]]:
        """Scores all responses together, so that a judge sees as many as it can at a time."""
        cases = [self.case(item, one) for item, responses in answered for one in responses]
        verdicts = iter(self.make_judge().judge(cases) if cases else ())
        for item, responses in answered:
            yield item, [self.scored_as(item, one, next(verdicts)) for one in responses]

    def scoring_settings(self) -> dict[str, Any]:
        """What the score of a response depends on; the judge too."""
        return {**super().scoring_settings(), "judge": self.make_judge().identity}

    def plain_settings(self) -> dict[str, Any]:
        """The settings as plain values; of judges without those that no verdict depends on, such as prices."""
        judges = {each.name: getattr(self, each.name) for each in fields(self)}
        of_judges = {name: plain_judge(value) for name, value in judges.items() if is_dataclass(value)}
        return {**super().plain_settings(), **of_judges}

    @property
    def models_used(self) -> str:
        """The judge that the settings name; what is needed, where they name none; `none` for a rule."""
        try:
            return self.make_judge().title
        except UserError:
            return self.models_needed

    def judging(self, responses: int) -> Mapping[str, float]:
        """What judging so many responses takes, before any is there: `judge calls`, and `dollars, about`.

        Dollars are there where prices are set. They are of responses and verdicts as long as they may be; questions in
        the judge's prompt are not counted, nor what is asked once more since it could not be read. Of a rule there is
        nothing.
        """
        try:
            judge = self.make_judge()
        except UserError:  # without a name or a key, it can be counted all the same
            return {"judge calls": responses}
        if not isinstance(judge, AskedJudge):
            return {}
        calls = responses * judge.votes
        prices = judge.how.prices if isinstance(judge, ChatJudge) else None
        if prices is None or not isinstance(judge, ChatJudge):
            return {"judge calls": calls}
        read = estimated_tokens(judge.asks.text + judge.asks.system) + self.sampling.max_new_tokens
        return {
            "judge calls": calls,
            "dollars, about": prices.of(calls * read, calls * judge.how.max_new_tokens),
        }

    def responses(self, model: Model, directory: Path) -> Iterator[tuple[Part, Answers]]:
        """The responses of all parts; on a GPU the model then makes room for a language model that judges there."""
        judge, answers = self.make_judge(), super().responses(model, directory)
        needs_room = isinstance(judge, ChatJudge) and not judge.how.is_endpoint
        yield from leave_room(model, answers) if needs_room else answers

    def inputs(self, model: Model) -> Any:
        """The rows, and the judge."""
        return [super().inputs(model), self.make_judge().identity]

    def check_model(self, model: Model) -> None:
        """Raises UserError for a judge that cannot be asked or rows that are no questions: before hours of sampling."""
        self.make_judge().check()
        super().check_model(model)


def leave_room(model: Model, parts: Iterable[tuple[Part, Answers]]) -> Iterator[tuple[Part, Answers]]:
    """The responses of all parts; on a GPU the model that made them is let go of, since a judge needs the memory.

    All are made before the first part is judged, so that no model is loaded twice.
    """
    made = [*parts]
    if model.device != "cpu" or model.backend != "transformers":
        model.forget()
        free_memory()
    yield from made


def read_scores(answered: Answered) -> list[float]:
    """The scores of a question whose verdict could be read."""
    return [one.score for one in answered.scored if one.answer is not None]


def beside_verdicts(answered: Sequence[Answered]) -> dict[str, float]:
    """What stands beside every value of a judge: the share of verdicts that could not be read, and the usual."""
    beside = beside_scores(answered)
    return {JUDGE_UNPARSED.name: beside.pop("unparsed"), **beside}

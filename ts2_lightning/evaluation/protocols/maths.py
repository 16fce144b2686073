r"""Coverage of mathematical problems: whether any of several samples is right, as in TOFU."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ts2_lightning.evaluation.answers.mathematics import (
    MathVerifier,
    Verdict,
    equal_within,
    last_boxed,
    require_math_verify,
)
from ts2_lightning.evaluation.answers.numbers import last_number, read_gold
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.protocols.base import PAPER, Protocol, check_greedy
from ts2_lightning.evaluation.protocols.data import DataSet, Row
from ts2_lightning.evaluation.protocols.gsm8k import GSM8K_ROWS
from ts2_lightning.evaluation.protocols.items import Item, Part, Sampling, Scored
from ts2_lightning.evaluation.protocols.right_answers import right_answer_values
from ts2_lightning.generation.decoders import DECODING
from ts2_lightning.generation.requests import Response
from ts2_lightning.ranges import NOT_NEGATIVE, check_number
from ts2_lightning.types import UserError

PROMPT = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
_AT_A_TIME = 64  # questions whose scores are written together
_Answered = tuple[Item, Sequence[Response]]


@dataclass(frozen=True)
class Maths(Protocol):
    r"""Coverage of MATH500, MinervaMath and GSM8K: any of n samples has the right answer in its last \boxed{}.

    The paper samples at another temperature for each loss, which compares temperatures as much as losses; so every
    model is asked at both.

    Attributes:
        temperatures: temperatures that each problem is asked at; `temperature` takes the place of all.
        unboxed_number: whether the last number of a response without a box is its answer; else it has none.
        tolerance: largest relative difference of a right answer to MinervaMath, whose answers are measured in units.
    """

    name: ClassVar[str] = "maths"
    values: ClassVar = right_answer_values()
    data_sets: ClassVar = {
        "math500": DataSet("HuggingFaceH4/MATH-500", "test", 500, "problem and answer"),
        "minerva": DataSet("math-ai/minervamath", "test", 272, "question and answer"),
        "gsm8k": GSM8K_ROWS,
    }
    samplings: ClassVar = {PAPER: Sampling(16, temperature=1.0, top_p=0.9, max_new_tokens=4096)}
    usual_ks: ClassVar[tuple[int, ...]] = (1, 2, 4, 8, 16)
    source: ClassVar[str] = "TOFU, section 5, appendix B.5, table 2"
    prompt: ClassVar[str] = PROMPT.format(problem="{problem}")
    models_needed: ClassVar[str] = "none (answers are compared by math-verify, the extra `math`)"
    deviations: ClassVar[tuple[str, ...]] = (
        "There is no public code: neither prompt nor checker are known. The prompt here is the usual one of models of "
        "mathematics, the checker math-verify.",
        "Text: temperature 1.0 for cross-entropy, 0.3 for GEM and TOFU; here both for every model.",
        "Text: 1,320 problems of GSM8K; there are 1,319.",
    )

    temperatures: tuple[float, ...] = (1.0, 0.3)
    unboxed_number: bool = False
    tolerance: float = 0.01

    def check(self) -> None:
        """Raises UserError for a setting that cannot be."""
        super().check()
        check_number("tolerance", self.tolerance, NOT_NEGATIVE)
        for each in self.temperatures:
            check_number("temperatures", each, *DECODING["temperature"])
        if not self.temperatures or len({*self.temperatures}) < len(self.temperatures):
            raise UserError(f"temperatures must be different numbers, at least one, got {[*self.temperatures]}")
        for part in self.parts():
            check_greedy(part.sampling)

    def check_model(self, model: Model) -> None:
        """Raises UserError where math-verify is not installed, or for rows that are no problems."""
        require_math_verify()
        super().check_model(model)

    def parts(self) -> list[Part]:
        """Every data set at every temperature, `math500_t0.3`; with one temperature `math500`."""
        temperatures = self.temperatures if self.temperature is None else (self.temperature,)
        return [
            replace(
                part,
                label=part.label if len(temperatures) == 1 else f"{part.data_set}_t{each:g}",
                sampling=replace(part.sampling, temperature=each),
                asked_as=part.label,
            )
            for part in super().parts()
            for each in temperatures
        ]

    def item(self, row: Row, data_set: str) -> Item:
        """The problem, and its answer as LaTeX."""
        problem = row.text("problem" if data_set == "math500" else "question")
        gold = str(read_gold(row.text("answer"))) if data_set == "gsm8k" else row.text("answer")
        details = {"tolerance": self.tolerance} if data_set == "minerva" else {}
        return Item(str(row.number), PROMPT.format(problem=problem), gold, details=details)

    def scoring_settings(self) -> dict[str, Any]:
        """Whether a number without a box counts as well."""
        return {**super().scoring_settings(), "unboxed_number": self.unboxed_number}

    def score(self, item: Item, responses: Sequence[Response]) -> list[Scored]:
        """Scores the responses to one problem."""
        [(_, scored)] = self.score_all([(item, responses)])
        return scored

    def score_all(self, answered: Sequence[_Answered]) -> Iterator[tuple[Item, list[Scored]]]:
        """Compares in worker processes, one for each processor of this process."""
        with MathVerifier(workers=len(os.sched_getaffinity(0))) as verifier:
            for start in range(0, len(answered), _AT_A_TIME):
                yield from self._score(answered[start : start + _AT_A_TIME], verifier)

    def _score(self, some: Sequence[_Answered], verifier: MathVerifier) -> Iterator[tuple[Item, list[Scored]]]:
        answers = {one.key: self._answer(one.text) for _, responses in some for one in responses}
        pairs = [(item.gold, answers[one.key]) for item, responses in some for one in responses]
        read = [(gold, answer) for gold, answer in pairs if answer is not None]
        verdicts = dict(zip(read, verifier.verify(read), strict=True))
        for item, responses in some:
            yield item, [self._scored(item, one.key, answers[one.key], verdicts) for one in responses]

    def _scored(self, item: Item, key: str, answer: str | None, verdicts: Mapping[tuple[str, str], Verdict]) -> Scored:
        if answer is None:
            return Scored(key, None, 0.0)
        tolerance = item.details.get("tolerance")
        if tolerance is not None and equal_within(item.gold, answer, tolerance):
            return Scored(key, answer, 1.0)
        verdict = verdicts[item.gold, answer]
        return Scored(key, answer, float(verdict.equal), verdict.note)

    def _answer(self, text: str) -> str | None:
        boxed = last_boxed(text)
        if boxed is None and self.unboxed_number and (number := last_number(text)) is not None:
            return str(number)
        return boxed

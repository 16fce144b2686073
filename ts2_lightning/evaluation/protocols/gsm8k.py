"""GSM8K: greedy accuracy, the vote of several samples, and the pass rate, as in GEM's appendix F.3."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

from ts2_lightning.evaluation.answers.numbers import gem_papers_code, gem_papers_code_gold, read_gold, read_number
from ts2_lightning.evaluation.estimates import Unparsed
from ts2_lightning.evaluation.protocols.base import PAPER, PAPERS_CODE, Protocol
from ts2_lightning.evaluation.protocols.data import DataSet, Row
from ts2_lightning.evaluation.protocols.items import Item, Part, Sampling, Scored
from ts2_lightning.evaluation.protocols.right_answers import right_answer_values
from ts2_lightning.generation.requests import Response

GSM8K_ROWS = DataSet("openai/gsm8k", "test", 1319, "question, and answer that ends in '#### 18'", name="main")
PROMPT = (
    "\nYour task is to answer the question below. Give step by step reasoning before you answer, and when you’re ready "
    'to answer, please use the format "The answer is: ..."\nQuestion: {question}\n'
)


@dataclass(frozen=True)
class GSM8K(Protocol):
    """Word problems of grade-school mathematics, asked without examples.

    Attributes:
        greedy: whether each question is also answered once at temperature 0.
    """

    name: ClassVar[str] = "gsm8k"
    data_sets: ClassVar = {"gsm8k": GSM8K_ROWS}
    samplings: ClassVar = {
        PAPER: Sampling(16, temperature=0.6, top_p=0.9),
        PAPERS_CODE: Sampling(32, temperature=0.6, top_k=50, top_p=0.9),
    }
    source: ClassVar[str] = "GEM, appendix F.3, table 4"
    prompt: ClassVar[str] = PROMPT
    values: ClassVar = right_answer_values(majority=True)
    planes: ClassVar = (("gsm8k/distinct_answers", "gsm8k/accuracy"),)
    deviations: ClassVar[tuple[str, ...]] = (
        "Text: 16 samples; script: 32, and top-k 50.",
        "Code: a number ends at its second mark (1,234,567 is 1234), and is rounded to an integer; ours are exact.",
        "Code: a response without an answer votes, for None; ours does not.",
        "Code: accuracy of the greedy answer also over the parsed ones alone, here accuracy_of_parsed.",
    )

    greedy: bool = True

    @property
    def votes(self) -> Unparsed:
        """In the papers' code a response without an answer votes as well."""
        return "count" if self.variant == PAPERS_CODE else "drop"

    def parts(self) -> list[Part]:
        """The samples; and one answer to each question at temperature 0, under the label `greedy`."""
        [sampled] = super().parts()
        if sampled.sampling.is_greedy:
            return [replace(sampled, label="greedy")]
        best = Sampling(1, temperature=0.0, max_new_tokens=self.sampling.max_new_tokens)
        return [*([Part("greedy", sampled.data_set, best)] if self.greedy else []), sampled]

    def item(self, row: Row, data_set: str) -> Item:
        """The question, and the number behind `####`."""
        gold = gem_papers_code_gold if self.variant == PAPERS_CODE else read_gold
        return Item(str(row.number), PROMPT.format(question=row.text("question")), str(gold(row.text("answer"))))

    def score(self, item: Item, responses: Sequence[Response]) -> list[Scored]:
        """Right is the same number."""
        return score_numbers(item, responses, gem_papers_code if self.variant == PAPERS_CODE else read_number)


def score_numbers(
    item: Item, responses: Sequence[Response], read: Callable[[str], Fraction | int | str | None]
) -> list[Scored]:
    """Scores answers that are numbers: right is what is written as the right answer is.

    Args:
        item: question with its right answer.
        responses: responses to it.
        read: reads the number of a response from its text; None where it finds none.

    Returns:
        A score of 1 or 0 for each response, in their order, with the number as its answer.
    """
    answers = [None if (number := read(response.text)) is None else str(number) for response in responses]
    return [
        Scored(response.key, answer, float(answer == item.gold))
        for response, answer in zip(responses, answers, strict=True)
    ]

"""ARC-Challenge and MMLU: one greedy answer, as in TOFU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ts2_lightning.evaluation.answers.letters import read_letter, tofu_papers_code
from ts2_lightning.evaluation.protocols.base import PAPER, PAPERS_CODE, Protocol
from ts2_lightning.evaluation.protocols.choices import Choices, read_arc, read_mmlu
from ts2_lightning.evaluation.protocols.data import DataSet, Row
from ts2_lightning.evaluation.protocols.items import Item, Sampling, Scored
from ts2_lightning.evaluation.protocols.right_answers import right_answer_values
from ts2_lightning.generation.requests import Response

ARC_FIELDS = "question, choices {text, label} and answerKey; or query, choices and gold"
MMLU_FIELDS = "question, choices and answer (a letter or its place from 0)"
INSTRUCTION = (
    "Answer the following multiple choice question. Your response should be of the following format: 'Answer: $LETTER' "
    "(without quotes) where LETTER is one of choice labels.\n\n{question}\n\n{choices}"
)
DELIMITED = (
    "\nBelow is an instruction that describes a task. Write a response that appropriately completes the request. Input "
    "might contain additional information.\nInstruction: \n<|instruct|> \n{} \n<|/instruct|> \n\nInput: \n<|input|> \n"
    " \n<|/input|> \n\nResponse: \n<|response|>\n"
)
"""What TOFU's models are asked in, with no input; they end their response with `<|/response|>`."""


@dataclass(frozen=True)
class GreedyChoice(Protocol):
    """Questions with choices, each answered once at temperature 0, without examples."""

    values: ClassVar = right_answer_values()
    samplings: ClassVar = {
        PAPER: Sampling(1, temperature=0.0, max_new_tokens=8),
        PAPERS_CODE: Sampling(1, temperature=0.0, max_new_tokens=8),
    }
    prompt: ClassVar[str] = INSTRUCTION
    deviations: ClassVar[tuple[str, ...]] = (
        "Code: the question stands in TOFU's own delimiters, outside any chat; ours is the user's turn of a chat.",
        "Code: the first letter or number behind 'Answer:' counts, whatever the choices are; ours has to be a choice.",
        "Code: some labels of ARC are 1 to 4; ours are letters always.",
    )

    def choices(self, row: Row) -> Choices:
        """The question of a row with its choices."""
        raise NotImplementedError

    def item(self, row: Row, data_set: str) -> Item:
        """The question with its choices; the right one is known by its label."""
        read = self.choices(row)
        in_code = self.variant == PAPERS_CODE
        labels = read.labels if in_code else read.letters
        lines = "\n".join(f"{label}) {choice}" for label, choice in zip(labels, read.texts, strict=True))
        asked = INSTRUCTION.format(question=read.question, choices=lines)
        question = DELIMITED.format(asked) if in_code else asked
        details = {"choices": len(labels)}
        return Item(str(row.number), question, labels[read.right], continued=in_code, details=details)

    def score(self, item: Item, responses: Sequence[Response]) -> list[Scored]:
        """Right is the label of the right choice."""
        read = (
            tofu_papers_code if self.variant == PAPERS_CODE else lambda text: read_letter(text, item.details["choices"])
        )
        answers = [read(response.text) for response in responses]
        return [
            Scored(one.key, answer, float(answer == item.gold)) for one, answer in zip(responses, answers, strict=True)
        ]

    def chance(self, item: Item) -> float:
        """One in the number of choices."""
        return 1 / int(item.details["choices"])


@dataclass(frozen=True)
class ARC(GreedyChoice):
    """Questions of school science, the challenge set: one greedy answer, without examples."""

    name: ClassVar[str] = "arc"
    source: ClassVar[str] = "TOFU, section 5, appendix B.5, table D.4"
    data_sets: ClassVar = {"arc": DataSet("allenai/ai2_arc", "test", 1172, ARC_FIELDS, name="ARC-Challenge")}

    def choices(self, row: Row) -> Choices:
        """Those of a row of ARC."""
        return read_arc(row)


@dataclass(frozen=True)
class MMLU(GreedyChoice):
    """Questions of 57 subjects: one greedy answer, without examples."""

    name: ClassVar[str] = "mmlu"
    source: ClassVar[str] = "TOFU, section 5, appendix B.5, table D.4"
    data_sets: ClassVar = {"mmlu": DataSet("cais/mmlu", "test", 14042, MMLU_FIELDS, name="all")}

    def choices(self, row: Row) -> Choices:
        """Those of a row of MMLU."""
        return read_mmlu(row)

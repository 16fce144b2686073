"""The six sets of the OpenLLM leaderboard, sampled: best of N and the vote, as in TS2."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, cast

from ts2_lightning.evaluation.answers import letters, numbers
from ts2_lightning.evaluation.measure import Measured
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.protocols import choices
from ts2_lightning.evaluation.protocols.base import PAPER, PAPERS_CODE, Protocol
from ts2_lightning.evaluation.protocols.choice import ARC_FIELDS, MMLU_FIELDS
from ts2_lightning.evaluation.protocols.choices import Choices
from ts2_lightning.evaluation.protocols.data import DataSet, Row
from ts2_lightning.evaluation.protocols.gsm8k import GSM8K_ROWS, score_numbers
from ts2_lightning.evaluation.protocols.items import Item, Sampling, Scored
from ts2_lightning.evaluation.protocols.right_answers import right_answer_values
from ts2_lightning.generation.requests import Response

GSM8K_PROMPT = (
    "Your task is to answer the question below. \nGive step by step reasoning before you answer, and when you’re ready "
    'to answer, \nplease use the format "The answer is: ..."\n\nQuestion: {question}\n'
)
CHOICE_PROMPT = (
    "You will be given a question with multiple-choice answers.\nThink step by step briefly, then give ONLY the final "
    "choice letter.\n\nQuestion:\n{question}\n\nChoices:\n{choices}\n\nWhen you are ready, answer strictly in the "
    "format:\nThe answer is: X\n(where X is one of A, B, C, D or E).\n"
)
_MOST_CHOICES = 5
_WINOGRANDE_FIELDS = "sentence, option1, option2 and answer; or context_options, continuation and gold"
_TRUTHFULQA_FIELDS = "question and mc1_targets {choices, labels}; or Question, Best Answer and Incorrect Answers"


@dataclass(frozen=True)
class OpenLLM(Protocol):
    """ARC, HellaSwag, WinoGrande, MMLU, TruthfulQA and GSM8K, asked in a chat without examples, many samples each."""

    name: ClassVar[str] = "openllm"
    data_sets: ClassVar = {
        "arc": DataSet("allenai/ai2_arc", "validation", 299, ARC_FIELDS, name="ARC-Challenge"),
        "hellaswag": DataSet("Rowan/hellaswag", "validation", 10042, "ctx, endings and label"),
        "winogrande": DataSet("allenai/winogrande", "validation", 1267, _WINOGRANDE_FIELDS, name="winogrande_debiased"),
        "mmlu": DataSet("cais/mmlu", "test", 14042, MMLU_FIELDS, name="all"),
        "truthfulqa": DataSet("truthfulqa/truthful_qa", "validation", 817, _TRUTHFULQA_FIELDS, name="multiple_choice"),
        "gsm8k": GSM8K_ROWS,
    }
    samplings: ClassVar = {
        PAPER: Sampling(32, temperature=0.6, top_p=0.9, max_new_tokens=256),
        PAPERS_CODE: Sampling(32, temperature=0.6, top_p=0.9, max_new_tokens=256),
    }
    source: ClassVar[str] = "TS2, section 5.2 and appendix C.8"
    prompt: ClassVar[str] = CHOICE_PROMPT
    usual_ks: ClassVar[tuple[int, ...]] = (1, 2, 4, 8, 16, 32)
    values: ClassVar = right_answer_values(majority=True)
    majority: ClassVar[bool] = True
    note: ClassVar[str] = (
        "openllm: a guess among c choices is right at least once in N with probability 1 - (1 - 1/c)^N, given beside "
        "it as chance: of two choices 0.99998 for N = 16. Best of N is next to meaningless for few choices and many "
        "samples."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "Code: the letter is read without regard to case, and the last match counts, so that the article 'a' is choice "
        "A; ours is a capital letter behind 'answer is', in a box, or alone on a line.",
        "Code: TruthfulQA's right choice is always A; ours are shuffled, in an order that follows from the question.",
        "Code: HellaSwag's question has its first sentence twice; ours is the context once.",
        "Code: GSM8K's right answer stops at a comma (2,125 is 2), and answers are compared as text; ours are numbers.",
        "Code: ARC is the validation split of 299 rows, and labels 1 to 4 never match there; ours are letters.",
        "Published table: the columns 2 to 32 have the values of N = 1, 4, 8, 16, 32.",
        "Code: the first k samples are judged; ours are all choices of k among n, which is the expectation of that.",
    )

    def item(self, row: Row, data_set: str) -> Item:
        """The question, with choices or without."""
        if data_set == "gsm8k":
            gold = numbers.ts2_papers_code_gold if self.variant == PAPERS_CODE else numbers.read_gold
            question = GSM8K_PROMPT.format(question=row.text("question"))
            return Item(str(row.number), question, str(gold(row.text("answer"))))
        read = self._choices(row, data_set)
        labels = read.labels if self.variant == PAPERS_CODE else read.letters
        lines = "\n".join(f"{letter}. {text}".strip() for letter, text in zip(read.letters, read.texts, strict=True))
        question = CHOICE_PROMPT.format(question=read.question, choices=lines)
        return Item(str(row.number), question, labels[read.right], details={"choices": list(read.texts)})

    def _choices(self, row: Row, data_set: str) -> Choices:
        in_code = self.variant == PAPERS_CODE
        if data_set == "arc":
            return choices.read_arc(row)
        if data_set == "mmlu":
            return choices.read_mmlu(row)
        if data_set == "hellaswag":
            read = choices.read_hellaswag(row)
            return replace(read, question=f"{read.question} {row.text('ctx_a')}".strip()) if in_code else read
        if data_set == "winogrande":
            read = choices.read_winogrande(row)
            return replace(read, question=read.question.replace("_", "_____"))
        read = choices.read_truthfulqa(row, _MOST_CHOICES)
        return read if in_code else read.shuffled()

    def measure(self, model: Model, beside: Path) -> Measured:
        """As every protocol, and the mean over the sets of what all of them have."""
        measured = super().measure(model, beside)
        labels = [part.label for part in self.parts()]
        names = dict.fromkeys(name.partition("/")[2] for name in measured.values)
        of_sets = {name: [measured.values.get(f"{label}/{name}") for label in labels] for name in names}
        means = {
            name: statistics.fmean(cast("list[float]", numbers))
            for name, numbers in of_sets.items()
            if len(labels) > 1 and None not in numbers and name not in ("questions", "samples")
        }
        return Measured({**means, **measured.values}, measured.documents)

    def score(self, item: Item, responses: Sequence[Response]) -> list[Scored]:
        """Right is the letter of the right choice, or the same number."""
        in_code = self.variant == PAPERS_CODE
        if "choices" not in item.details:
            return score_numbers(item, responses, numbers.ts2_papers_code if in_code else numbers.read_number)
        texts = item.details["choices"]
        read = letters.ts2_papers_code if in_code else lambda text, choices: letters.read_letter(text, len(choices))
        answers = [read(response.text, texts) for response in responses]
        return [
            Scored(one.key, answer, float(answer == item.gold)) for one, answer in zip(responses, answers, strict=True)
        ]

    def chance(self, item: Item) -> float | None:
        """One in the number of choices; nothing for a number."""
        return 1 / len(item.details["choices"]) if "choices" in item.details else None

"""Short stories and small prompts: how good continuations and answers are, and how much those of one prompt differ."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from ts2_lightning.evaluation.judges import Case, ChatJudge, ChatSettings, Judge, JudgePrompt, TwofoldPrompt, rating
from ts2_lightning.evaluation.judges.questions import chat_text
from ts2_lightning.evaluation.protocols.base import PAPER, PAPERS_CODE
from ts2_lightning.evaluation.protocols.choice import DELIMITED
from ts2_lightning.evaluation.protocols.data import DataSet, Row
from ts2_lightning.evaluation.protocols.items import Answered, Estimate, Item, Part, Sampling
from ts2_lightning.evaluation.protocols.judged import BESIDE_VERDICTS, JudgedProtocol, beside_verdicts, read_scores
from ts2_lightning.generation.requests import Asked, Response
from ts2_lightning.metrics import diversity_metrics
from ts2_lightning.ranges import NULL, Only, Range, check_number
from ts2_lightning.types import UserError
from ts2_lightning.values import Value

STORIES, PROMPTS = "short_stories", "small_prompts"
HELPFUL = "helpful_base"
"""The part of AlpacaEval that the small prompts are."""

OPENING, CLOSING = "<|response|>", "<|/response|>"
"""What TOFU's models put around their responses."""

# TOFU, data/prompt_formats.py (github.com/anonymous2026icml/TOFU at edec5a9; no licence is stated there): JUDGE_STORY
# and JUDGE_INSTRUCT, word by word, as published numbers are those of these prompts.
_STORY = """You will be given a story_beginning and story_continuation pair.
Your task is to provide a 'total rating' evaluating how well the story_continuation continues the story_beginning.

Be strict in your assessment. Give a high score only if the continuation is coherent, stylistically consistent, and narratively natural.
If the continuation changes the point of view, tone, or style, or breaks logical consistency with the beginning — deduct points accordingly.
If it ends abruptly, contradicts earlier events, or feels disconnected, apply further deductions.
However, **do not penalize** the continuation if it ends mid-sentence or abruptly **due to a model token limit** — only penalize if the ending itself is logically or stylistically flawed.

Give your answer as an INTEGER on a scale of 0 to 5, where:
- 0 = incoherent, off-topic, or nonsensical continuation
- 5 = seamless, natural, and stylistically consistent continuation

Use the following response format exactly:

Total rating: (your rating, as an INT between 0 and 5)

Now here are the story_beginning and story_continuation.
story_beginning: {question}
story_continuation: {response}
"""  # noqa: E501
_INSTRUCTION = """You will be given a user_instruction and a model_response pair.

Your task is to provide a 'total rating' evaluating how well the model_response fulfills the user_instruction.

Be strict in your assessment. Give a high score only if the response:
- Fully addresses the instruction
- Is coherent and well-structured
- Maintains a style and tone appropriate to the instruction

Deduct points if the response:
- Fails to follow the instruction
- Introduces errors or inconsistencies
- Includes irrelevant or nonsensical content
- Contradicts the context or previous information
- Is empty or contains no meaningful content

Pay attention to the number of sentences or symbols: if the response has more or fewer sentences or symbols than explicitly requested in the user_instruction, apply **-2** to the total score.

However, **do not penalize** the response for being incomplete or ending abruptly **due to model token limits** — only penalize if the content itself is flawed.

Give your answer as an INTEGER on a scale of 0 to 5, where:
- 0 = completely unhelpful, irrelevant, or empty response
- 5 = fully correct, coherent, and appropriately styled response

Use the following response format exactly:

Total rating: (your rating, as an INT between 0 and 5)

Now here are the user_question and system_answer.
user_question: {question}
system_answer: {response}
"""  # noqa: E501

USUAL_JUDGE = ChatSettings(max_new_tokens=32)
"""A verdict is one line."""

RATING = rating(r"Total rating:\s*([0-9]+(?:\.\d+)?)", 0, 5)
"""Reads a verdict as TOFU's code does."""


class AskedInCode(ChatJudge):
    """A chat judge that is asked as TOFU's public code does: its turn is not begun, and its first token comes twice."""

    @property
    def identity(self) -> Any:
        """As any chat judge's, and how it is asked."""
        return [super().identity, PAPERS_CODE]

    def check(self) -> None:
        """As any chat judge; raises UserError for a model without a chat template of its own too."""
        super().check()
        tokenizer: Any = self._model.tokenizer
        if not tokenizer.chat_template:
            raise UserError(
                f"judge_format papers_code asks the judge in its own chat template, and {self._model.name} has none; "
                "set judge_format to model"
            )

    def prompt(self, case: Case) -> Asked:
        """The rendered chat without the beginning of an answer, made tokens of as any text is."""
        tokenizer: Any = self._model.tokenizer
        turns: Any = self.asks.asked(case)
        text = chat_text(tokenizer, turns, self._model.name)
        return tuple(tokenizer(text)["input_ids"])


@dataclass(frozen=True)
class Stories(JudgedProtocol):
    """TOFU's short stories, to be continued, and small prompts, to be answered: quality by a judge, and self-BLEU.

    A response ends where TOFU's models say that it does, and is stripped, before it is rated and compared.

    Attributes:
        asked_in: how the small prompts are asked: `chat`, in the model's own template; `delimiters`, in TOFU's own,
            for models that were trained with them. Null takes `chat` for the variant `paper`, `delimiters` for
            `papers_code`. The stories are continued as text in any case.
        judge_format: how the judge is asked: `model`, as its template says; `papers_code`, as TOFU's public code does.
            Null takes the variant's.
        judge: chat model that rates from 0 to 5. TOFU took Llama-3.1-70B-Instruct.
    """

    name: ClassVar[str] = "stories"
    values: ClassVar = (
        Value("quality", "quality", "rating from 0 to 5, mean over prompts", "higher", ".2f", True),
        Value("quality_sd", "sd of quality", "standard deviation over prompts", None, ".2f"),
        Value("self_bleu", "self-BLEU", "as in TOFU's code, mean over prompts", "lower", ".1f", True),
        Value("self_bleu_sd", "sd of self-BLEU", "standard deviation over prompts", None, ".1f"),
        Value("self_bleu_diversity", "100 - self-BLEU", "of the responses to a prompt", "higher", ".1f"),
        Value("words", "words", "words of a response", None, ".1f"),
        Value("empty", "empty", "share of responses without a word", None, ".3f"),
        *BESIDE_VERDICTS,
    )
    data_sets: ClassVar = {
        STORIES: DataSet(
            "",
            "",
            100,
            "prompt (the beginning of a story)",
            home="github.com/anonymous2026icml/TOFU: data/short-stories.parquet",
        ),
        PROMPTS: DataSet(
            "tatsu-lab/alpaca_eval",
            "eval",
            129,
            f"instruction, or prompt; rows whose dataset is another than {HELPFUL} are left out",
            name="alpaca_eval",
        ),
    }
    samplings: ClassVar = {
        PAPER: Sampling(10, temperature=1.0, top_p=0.9, max_new_tokens=64),
        PAPERS_CODE: Sampling(10, temperature=1.0, top_k=50, top_p=0.9, max_new_tokens=64),
    }
    source: ClassVar[str] = "TOFU, sections 4.3 and 4.4, appendix B.4 to B.6, table 1"
    prompt: ClassVar[str] = "{the beginning of a story, as text that is continued}\n{instruction}"
    models_needed: ClassVar[str] = (
        "a chat model that judges (TOFU: Llama-3.1-70B-Instruct in 4 bits); 2,290 short verdicts"
    )
    planes: ClassVar = (
        ("stories/short_stories/self_bleu_diversity", "stories/short_stories/quality"),
        ("stories/small_prompts/self_bleu_diversity", "stories/small_prompts/quality"),
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "Text: 10 responses without top-k; code: transformers' own top-k of 50, and 5 responses unless another number "
        "is named. Here 10 in both, as in the published tables.",
        "Text and code: small prompts stand in the delimiters that TOFU's models were trained with; ours in the chat "
        "template that the model at hand was trained with, unless asked_in is delimiters.",
        "Code: the judge's turn is not begun, and its first token comes twice; ours asks as its template says.",
        "Text: the judge is Llama-3.1-70B-Instruct, in 4 bits; the repository names Meta-Llama-3-70B-Instruct.",
        "A verdict that cannot be read is left out of the mean, in the code too; here it is asked once more before.",
        "The code has a prompt for poems, which it takes for data of a name that no data has; it is not here.",
    )

    asked_in: Literal["chat", "delimiters"] | None = None
    judge_format: Literal["model", "papers_code"] | None = None
    judge: ChatSettings = USUAL_JUDGE

    @property
    def in_code(self) -> bool:
        """Whether the judge is asked as the public code does."""
        return (self.judge_format or ("papers_code" if self.variant == PAPERS_CODE else "model")) == "papers_code"

    @property
    def in_delimiters(self) -> bool:
        """Whether the small prompts are asked in TOFU's delimiters."""
        return (self.asked_in or ("delimiters" if self.variant == PAPERS_CODE else "chat")) == "delimiters"

    def check(self) -> None:
        """Raises UserError for a setting that cannot be."""
        check_number("ks", self.ks, Only(None, "all responses to a prompt"))
        check_number("n", self.n, Range(least=2, whole=True, hint="one text does not differ from itself"), NULL)
        if self.in_code and self.judge.is_endpoint:
            raise UserError(
                "judge_format papers_code leaves out the beginning of the judge's turn, which an endpoint adds itself; "
                "set judge_format to model"
            )
        if self.in_code and self.judge.template != "auto":
            raise UserError(
                f"judge.template {self.judge.template}: judge_format papers_code asks the judge in its own chat "
                "template; leave it out, or set judge_format to model"
            )
        super().check()

    def plain_settings(self) -> dict[str, Any]:
        """The settings as plain values."""
        chosen = {"asked_in": "delimiters" if self.in_delimiters else "chat"}
        return {**super().plain_settings(), **chosen, "judge_format": "papers_code" if self.in_code else "model"}

    def make_judge(self) -> Judge:
        """The chat model with TOFU's prompts."""
        kind = AskedInCode if self.in_code else ChatJudge
        prompt = TwofoldPrompt(self.name, _INSTRUCTION, detail="is_story", instead=JudgePrompt(self.name, _STORY))
        return kind(self.judge, prompt, RATING)

    def item(self, row: Row, data_set: str) -> Item:
        """The beginning of a story, which is continued; or an instruction."""
        is_story = data_set == STORIES
        fields = ("prompt",) if is_story else ("instruction", "prompt")
        text = row.text(next((name for name in fields if name in row.fields), fields[0])).strip()
        if not text:
            raise ValueError(f"{fields[0]} is empty")
        in_delimiters = not is_story and self.in_delimiters
        question = DELIMITED.format(text) if in_delimiters else text
        return Item(
            str(row.number),
            question,
            continued=is_story or in_delimiters,
            details={"asked": text, "is_story": is_story},
        )

    def items_of(self, row: Row, data_set: str) -> list[Item]:
        """The prompt of a row; of AlpacaEval only those of its part `helpful_base`."""
        return [self.item(row, data_set)] if row.fields.get("dataset", HELPFUL) == HELPFUL else []

    def case(self, item: Item, response: Response) -> Case:
        """What was asked, without delimiters, and the response as it is rated."""
        asked = Case.answer(item.details["asked"], cleaned(response.text))
        return replace(asked, details={"is_story": item.details["is_story"]})

    def estimate(self, part: Part, answered: Sequence[Answered]) -> Estimate:
        """Means and standard deviations over prompts; of quality without those that have no rating."""
        texts = {of.item.id: [cleaned(one.text) for one in of.responses] for of in answered}
        self_bleu = diversity_metrics("tofu_code")["self_bleu"]
        bleu = {id: self_bleu([of_prompt]).item() for id, of_prompt in texts.items()}
        quality = {of.item.id: statistics.fmean(scores) for of in answered if (scores := read_scores(of))}
        counts = [len(text.split()) for of_prompt in texts.values() for text in of_prompt]
        values = {
            **_mean_and_sd("quality", quality),
            **_mean_and_sd("self_bleu", bleu),
            "self_bleu_diversity": 100 - statistics.fmean(bleu.values()),
            "words": statistics.fmean(counts),
            "empty": counts.count(0) / len(counts),
            **beside_verdicts(answered),
        }
        diversity = {id: 100 - number for id, number in bleu.items()}
        return Estimate(values, {"quality": quality, "self_bleu": bleu, "self_bleu_diversity": diversity})


def cleaned(response: str) -> str:
    """A response as it is rated: behind and before the delimiters of TOFU's models, as far as they are there, stripped.

    Example:
        >>> cleaned("<|response|> A cat. \\n<|/response|>\\nInstruction:"), cleaned(" A cat. ")
        ('A cat.', 'A cat.')
    """
    behind = response.split(OPENING)[1] if OPENING in response else response
    return behind.partition(CLOSING)[0].strip()


def _mean_and_sd(name: str, of_prompts: dict[str, float]) -> dict[str, float]:
    """The mean of the numbers of prompts and their standard deviation, with n - 1; of one number it is 0."""
    if not of_prompts:
        return {}
    numbers = [*of_prompts.values()]
    return {name: statistics.fmean(numbers), f"{name}_sd": statistics.stdev(numbers) if len(numbers) > 1 else 0.0}

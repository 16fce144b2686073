"""Whether two responses say the same, so that who has seen one of them gains nothing from the other: NoveltyBench."""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ts2_lightning.evaluation.judges.base import OF_NO_VERDICT, Case, Judge, JudgeCost, Verdict
from ts2_lightning.evaluation.judges.classifier import ClassifierJudge
from ts2_lightning.evaluation.judges.reward import read_numbers
from ts2_lightning.generation.requests import Asked
from ts2_lightning.ranges import COUNT, NULL, Range, check_numbers
from ts2_lightning.types import UserError

UNIGRAM = "unigram"
"""Name of the rule that needs no model."""

PAPERS_MODEL = "yimingzhang/deberta-v3-large-generation-similarity"
PAPERS_TOKENIZER = "microsoft/deberta-v3-large"

_THRESHOLD, _UNIGRAM_THRESHOLD = 0.102, 0.458
_SHORT = 5  # words up to which responses are compared word by word
_TOKENS = 128  # of each response that the model sees
_WORD = re.compile("[a-z0-9]+")


@dataclass(frozen=True)
class EquivalenceSettings:
    """What says whether two responses are the same.

    Attributes:
        model: a transformers directory with two outputs, or a name on the hub; or `unigram`, which compares words and
            needs no model.
        tokenizer: directory or name of its tokenizer; null takes the model's own, for the paper's model the paper's.
        threshold: score above which two responses are the same; null takes the paper's, 0.102, of `unigram` 0.458.
        device: where it computes, several with commas between them; null takes every GPU, or else the CPU.
        batch_size: pairs at a time; halved where memory runs out.

    Raises:
        UserError: a setting that cannot be.
    """

    model: str = PAPERS_MODEL
    tokenizer: str | None = None
    threshold: float | None = None
    device: str | None = field(default=None, metadata=OF_NO_VERDICT)
    batch_size: int = field(default=64, metadata=OF_NO_VERDICT)

    def __post_init__(self) -> None:
        check_numbers("equivalence.", self, threshold=(Range(least=0, most=1), NULL), batch_size=COUNT)
        if not self.model:
            raise UserError(f"equivalence.model is empty; name a directory, a model on the hub, or {UNIGRAM}")


class Unigram(Judge):
    """The rule of NoveltyBench's code that needs no model: responses that share many words are the same.

    The value of a verdict is the F1 of their words, from 0 to 1.

    Args:
        threshold: value above which they are the same.
    """

    name: ClassVar[str] = UNIGRAM

    def __init__(self, threshold: float = _UNIGRAM_THRESHOLD) -> None:
        self.threshold = threshold

    @property
    def identity(self) -> Any:
        """The rule."""
        return [UNIGRAM, 1]

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """The verdicts of cases, in their order."""
        return [Verdict(rouge_1(case.response, case.other or "")) for case in cases]

    def close(self) -> None:
        """Nothing is held."""


class Equivalence(ClassifierJudge):
    """The classifier of NoveltyBench: the value of a verdict is the probability that two responses are the same.

    It reads `[CLS] response [SEP] other [SEP]` without the prompt, and of each response 128 tokens. Responses of at
    most five words on both sides are compared by their words: they are the same if twice the number of common ones is
    no less than the longer one's length; then the value is 0 or 1.

    Source: NoveltyBench, section 3, and its code, `partition.py`.

    Args:
        settings: model and threshold.
    """

    name: ClassVar[str] = "equivalence"
    labels: ClassVar[int] = 2

    def __init__(self, settings: EquivalenceSettings) -> None:
        own = PAPERS_TOKENIZER if settings.model == PAPERS_MODEL else settings.model
        super().__init__(settings.model, settings.tokenizer or own, settings.device, settings.batch_size)
        self.threshold = _THRESHOLD if settings.threshold is None else settings.threshold

    @property
    def identity(self) -> Any:
        """The files of model and tokenizer. The threshold is no part of it: probabilities do not depend on it."""
        return ["equivalence", 1, self.model_identity]

    def check(self) -> None:
        """As the base class; its tokenizer must have the tokens that part texts."""
        super().check()
        if self.tokenizer.cls_token_id is None or self.tokenizer.sep_token_id is None:
            raise UserError(
                f"{self._tokenizer_place}: this tokenizer has no [CLS] or no [SEP], which part two texts; name "
                "another with equivalence.tokenizer"
            )

    @property
    def separator(self) -> int | None:
        """The first one of a row ends the first response."""
        return int(self.tokenizer.sep_token_id)

    def prompt(self, case: Case) -> Asked:
        """The token ids of both responses."""
        tokenizer: Any = self.tokenizer
        texts = [case.response, case.other or ""]
        halves = [tokenizer(text, add_special_tokens=False)["input_ids"][:_TOKENS] for text in texts]
        begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
        return self.compact([begin, *halves[0], end, *halves[1], end])

    def read(self, answer: str, case: Case) -> float | None:
        """The probability that they are the same."""
        different, same = read_numbers(answer, 2)
        return 1 / (1 + math.exp(min(different - same, 700.0)))

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """The verdicts of cases, in their order; the model is asked of those that are longer than five words."""
        short = [same_words(case.response, case.other or "") for case in cases]
        asked = iter(super().judge([case for case, same in zip(cases, short, strict=True) if same is None]))
        return [next(asked) if same is None else Verdict(float(same), json.dumps(same)) for same in short]

    def cost(self, cases: Sequence[Case]) -> JudgeCost:
        """As the base class, of those that are longer than five words."""
        return super().cost([case for case in cases if same_words(case.response, case.other or "") is None])


def make_equivalence(settings: EquivalenceSettings) -> Equivalence | Unigram:
    """The judge that the settings name."""
    if settings.model == UNIGRAM:
        return Unigram() if settings.threshold is None else Unigram(settings.threshold)
    return Equivalence(settings)


def same_words(response: str, other: str) -> bool | None:
    """Whether two short responses are the same by their words; None if one has more than five.

    Example:
        >>> same_words("Blue", " blue."), same_words("the blue", "the BLUE one"), same_words("a b c d e f", "a")
        (False, True, None)
    """
    first, second = (text.lower().split() for text in (response, other))
    longer = max(len(first), len(second))
    return None if longer > _SHORT else 2 * len({*first} & {*second}) >= longer


def rouge_1(response: str, other: str) -> float:
    """ROUGE-1: the F1 of the words of two texts, each counted as often as it comes; letters without case and digits.

    Source: Lin (2004); words as in the package rouge-score, without stemming.

    Example:
        >>> rouge_1("The cat sat.", "the CAT, the cat")
        0.5714285714285714
    """
    first, second = (Counter(_WORD.findall(text.lower())) for text in (response, other))
    common = (first & second).total()
    return 2 * common / (first.total() + second.total()) if common else 0.0

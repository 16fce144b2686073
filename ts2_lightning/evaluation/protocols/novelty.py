"""NoveltyBench: how many different things a model says to one prompt, and what they are worth to who reads them all."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ts2_lightning.evaluation.judges import (
    Case,
    Equivalence,
    EquivalenceSettings,
    RewardModel,
    RewardSettings,
    Unigram,
    make_equivalence,
)
from ts2_lightning.evaluation.judges.base import plain_judge
from ts2_lightning.evaluation.measure import Measured
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.protocols.base import PAPER, PAPERS_CODE, Protocol
from ts2_lightning.evaluation.protocols.data import DataSet, Row
from ts2_lightning.evaluation.protocols.items import Answered, Estimate, Item, Part, Sampling, Scored
from ts2_lightning.evaluation.protocols.judged import leave_room
from ts2_lightning.evaluation.protocols.right_answers import COMMON_VALUES, beside_scores
from ts2_lightning.evaluation.protocols.stored import Answers
from ts2_lightning.generation.requests import Response
from ts2_lightning.ranges import Only, Range, check_number
from ts2_lightning.types import UserError
from ts2_lightning.values import Value

REWARD_MODEL = "Skywork/Skywork-Reward-Gemma-2-27B-v0.2"
THRESHOLDS = (-7.71875, -6.28125, -6.0, -5.71875, -5.5, -5.0, -4.375, -3.4375, -2.046875)
"""Rewards of that model above which a rating is one more: they part the answers of a strong model to MT-Bench's
questions. From `score.py` of NoveltyBench (MIT licence)."""

TOFU = "tofu"
_FIELDS = "prompt, and id"
_EQUIVALENCE, _REWARD = EquivalenceSettings(), RewardSettings(REWARD_MODEL)

Same = Callable[[Sequence[tuple[str, str]]], Sequence[bool]]
"""Says of pairs of responses whether they are the same."""


@dataclass(frozen=True)
class NoveltyBench(Protocol):
    """Prompts with many good answers: how many different ones a model gives, and their utility.

    Each response is compared with the first one of every class that there is, and opens a class if it is the same as
    none. Distinct is the number of classes. Utility is what someone gains who reads the responses in their order and
    goes on with probability `patience` after each: the rating, from 1 to 10, of a response that opens a class, else 0.

    Attributes:
        equivalence: what says whether two responses are the same; `equivalence: DIR` names the directory of a model,
            `equivalence: unigram` a rule that needs none.
        reward: reward model of the ratings, whose table of thresholds is of this model alone; null measures Distinct
            alone.
        patience: probability that someone reads on.
        variant: `paper`, and `papers_code`, which samples alike; `tofu`: as TOFU's paper samples.
    """

    name: ClassVar[str] = "novelty"
    values: ClassVar = (
        Value("distinct", "distinct", "classes of different responses to a prompt", "higher", ".2f", True),
        Value(
            "utility", "utility", "rating from 1 to 10 of new responses, weighted by patience", "higher", ".2f", True
        ),
        Value("rating", "rating", "from 1 to 10, of a response", "higher", ".2f"),
        *(value for value in COMMON_VALUES if value.name in ("unparsed", "truncated", "questions", "samples")),
    )
    data_sets: ClassVar = {
        "curated": DataSet("yimingzhang/novelty-bench", "curated", 100, _FIELDS),
        "wildchat": DataSet("yimingzhang/novelty-bench", "wildchat", 1000, _FIELDS),
    }
    samplings: ClassVar = {
        PAPER: Sampling(10, temperature=1.0, max_new_tokens=512),
        PAPERS_CODE: Sampling(10, temperature=1.0, max_new_tokens=512),
        TOFU: Sampling(10, temperature=1.0, top_p=0.9, max_new_tokens=64),
    }
    source: ClassVar[str] = "Zhang et al., NoveltyBench (2025); TOFU, section 5, tables C.1 and D.2"
    prompt: ClassVar[str] = "{prompt}"
    models_needed: ClassVar[str] = (
        f"a classifier of pairs ({_EQUIVALENCE.model}), unless equivalence is unigram; the reward model "
        f"{REWARD_MODEL}, unless reward is null"
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "NoveltyBench: no top-p, 512 tokens; TOFU: top-p 0.9, 64 tokens (variant tofu).",
        "The field distinct of the public code's partitions.jsonl is one too low; its summary counts classes, as ours.",
        "The classifier sees the first 128 tokens of each response: longer ones that begin alike count as the same.",
        "Version 1.1 of the public code asks an API model for the classes instead; ours is 1.0, the paper's.",
        "Which responses share a class depends on their order, which here is that of their numbers.",
    )

    own_judges: ClassVar[tuple[str, ...]] = ("reward",)
    """Judges that no option for all protocols names: there is one model alone that will do."""

    equivalence: EquivalenceSettings = _EQUIVALENCE
    reward: RewardSettings | None = _REWARD
    patience: float = 0.8

    @cached_property
    def _equivalence(self) -> Equivalence | Unigram:
        return make_equivalence(self.equivalence)

    @cached_property
    def _reward(self) -> RewardModel | None:
        return None if self.reward is None else RewardModel(self.reward)

    @cached_property
    def _classes(self) -> dict[str, dict[str, list[int]]]:
        """For the file of values: the class of each response, by part and question."""
        return {}

    def check(self) -> None:
        """Raises UserError for a setting that cannot be."""
        check_number("ks", self.ks, Only(None, "all responses to a prompt"))
        check_number("patience", self.patience, Range(above=0, most=1))
        super().check()
        if self.reward is None:
            return
        name = REWARD_MODEL.rpartition("/")[2]
        if not any(part.endswith(name) for part in Path(self.reward.model).parts):
            raise UserError(
                f"reward.model: ratings are by a table for rewards of {REWARD_MODEL}, got {self.reward.model!r}; name "
                f"that one, or a directory called {name}, or set reward to null for Distinct alone"
            )
        if self.reward.format == "papers_code":
            raise UserError("reward.format: ratings are of rewards behind the answer; set it to model, or to null")

    def plain_settings(self) -> dict[str, Any]:
        """The settings as plain values."""
        reward = None if self.reward is None else {**plain_judge(self.reward), "format": "model"}
        equivalence = {**plain_judge(self.equivalence), "threshold": self._equivalence.threshold}
        return {**super().plain_settings(), "reward": reward, "equivalence": equivalence}

    def scoring_settings(self) -> dict[str, Any]:
        """What the score of a response depends on: the reward model."""
        return {**super().scoring_settings(), "judge": None if self._reward is None else self._reward.identity}

    def inputs(self, model: Model) -> Any:
        """The rows, and the judges."""
        judges = [self._equivalence.identity, None if self._reward is None else self._reward.identity]
        return [super().inputs(model), judges]

    def check_model(self, model: Model) -> None:
        """Raises UserError for a judge that cannot be asked, or rows that are no prompts: before hours of sampling."""
        self._equivalence.check()
        if self._reward is not None:
            self._reward.check()
        super().check_model(model)

    @property
    def models_used(self) -> str:
        """The models that the settings name."""
        titles = [self._equivalence.title, "none" if self._reward is None else self._reward.title]
        return " and ".join(title for title in titles if title != "none") or "none"

    def judging(self, responses: int) -> dict[str, float]:
        """What judging takes, before any response is there: every two responses to a prompt, at most, and rewards."""
        pairs = 0 if isinstance(self._equivalence, Unigram) else responses * (self.sampling.n - 1) // 2
        calls = pairs + (0 if self.reward is None else responses)
        return {"judge calls": calls} if calls else {}

    def item(self, row: Row, data_set: str) -> Item:
        """The prompt as it is."""
        name = row.fields.get("id")
        return Item(name if isinstance(name, str) and name else str(row.number), row.text("prompt"))

    def score(self, item: Item, responses: Sequence[Response]) -> list[Scored]:
        """Scores the responses to one prompt."""
        return next(iter(self.score_all([(item, responses)])))[1]

    def score_all(self, answered: Sequence[tuple[Item, Sequence[Response]]]) -> Iterator[tuple[Item, list[Scored]]]:
        """The score of a response is its reward, 0 without a reward model; its answer is its rating, or its length."""
        if self._reward is None:
            for item, responses in answered:
                words = [len(one.text.split()) for one in responses]
                counted = zip(responses, words, strict=True)
                yield item, [Scored(one.key, str(count) if count else None, 0.0) for one, count in counted]
            return
        cases = [Case.answer(item.question, one.text) for item, responses in answered for one in responses]
        verdicts = iter(self._reward.judge(cases) if cases else ())
        self._reward.close()  # the classifier of pairs comes next
        for item, responses in answered:
            scored = []
            for one in responses:
                verdict = next(verdicts)
                assert verdict.value is not None  # a reward model always says a number
                scored.append(Scored(one.key, str(rating(verdict.value)), verdict.value, verdict.raw))
            yield item, scored

    def responses(self, model: Model, directory: Path) -> Iterator[tuple[Part, Answers]]:
        """As of every protocol; on a GPU the model makes room for the judges."""
        return leave_room(model, super().responses(model, directory))

    def measure(self, model: Model, beside: Path) -> Measured:
        """As of every protocol; document `classes`: the class of each response, by the part and the question."""
        self._classes.clear()
        try:
            measured = super().measure(model, beside)
        finally:
            self._equivalence.close()
        return Measured(measured.values, {**measured.documents, "classes": dict(self._classes)})

    def estimate(self, part: Part, answered: Sequence[Answered]) -> Estimate:
        """The means over prompts."""
        classes = partition([[one.text for one in of.responses] for of in answered], self._same)
        self._classes[part.label] = {of.item.id: of_item for of, of_item in zip(answered, classes, strict=True)}
        each = {"distinct": [float(max(of_item) + 1) for of_item in classes]}
        if self._reward is not None:
            ratings = [[rating(one.score) for one in of.scored] for of in answered]
            pairs = zip(ratings, classes, strict=True)
            each["utility"] = [utility(rated, of_item, self.patience) for rated, of_item in pairs]
            each["rating"] = [float(np.mean(rated)) for rated in ratings]
        per_item = {
            name: {of.item.id: round(number, 6) for of, number in zip(answered, numbers, strict=True)}
            for name, numbers in each.items()
        }
        values = {name: float(np.mean(numbers)) for name, numbers in each.items()}
        return Estimate({**values, **beside_scores(answered)}, per_item)

    def _same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        verdicts = self._equivalence.judge([Case((), first, other=second) for first, second in pairs])
        return [verdict.value is not None and verdict.value > self._equivalence.threshold for verdict in verdicts]


def partition(texts: Sequence[Sequence[str]], same: Same) -> list[list[int]]:
    """The class of each text among those of its prompt, of many prompts side by side.

    A text belongs to the first class whose first member is the same, and else opens one. Classes are numbered from 0 in
    the order in which they are opened.

    Source: NoveltyBench, section 3.

    Args:
        texts: texts of each prompt.
        same: says of pairs, the first member of a class before another text, whether they are the same. It is asked
            once for each number of a class, of all prompts together.

    Example:
        >>> partition([["a", "b", "A", "c"], ["x", "x"]], lambda pairs: [a.lower() == b.lower() for a, b in pairs])
        [[0, 1, 0, 2], [0, 0]]
    """
    classes = [[-1] * len(of_prompt) for of_prompt in texts]
    number = 0
    while any(-1 in of_prompt for of_prompt in classes):
        places: list[tuple[int, int, int]] = []
        for prompt, of_prompt in enumerate(classes):
            if -1 in of_prompt:
                head = of_prompt.index(-1)
                of_prompt[head] = number
                others = range(head + 1, len(of_prompt))
                places += [(prompt, head, other) for other in others if of_prompt[other] == -1]
        answers = same([(texts[prompt][head], texts[prompt][other]) for prompt, head, other in places])
        for (prompt, _, other), is_same in zip(places, answers, strict=True):
            if is_same:
                classes[prompt][other] = number
        number += 1
    return classes


def rating(reward: float) -> int:
    """The rating from 1 to 10 of a reward of `REWARD_MODEL`.

    Example:
        >>> rating(-9.0), rating(-6.0), rating(-5.99), rating(0.0)
        (1, 3, 4, 10)
    """
    return bisect_left(THRESHOLDS, reward) + 1


def utility(ratings: Sequence[int], classes: Sequence[int], patience: float) -> float:
    """What someone gains who reads the responses in their order: those that say something new, weighted by patience.

    Args:
        ratings: rating of each response.
        classes: class of each response, see `partition`.
        patience: weight of a response relative to the one before it.

    Example:
        >>> utility([10, 8, 6], [0, 0, 1], patience=0.5)
        6.571428571428571
    """
    gains = [
        rated if number not in classes[:place] else 0
        for place, (rated, number) in enumerate(zip(ratings, classes, strict=True))
    ]
    return float(np.average(gains, weights=patience ** np.arange(len(gains))))

"""Rows with choices, in the layouts of the hub and in others that are about."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np

from ts2_lightning.evaluation.protocols.data import Row

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Choices:
    """A question with choices.

    Attributes:
        question: the question.
        texts: texts of the choices.
        right: place of the right one, from 0.
        labels: labels of the choices in the data; letters where it has none.
    """

    question: str
    texts: tuple[str, ...]
    right: int
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for choices that cannot be asked."""
        if not 2 <= len(self.texts) <= len(LETTERS) or not all(isinstance(text, str) for text in self.texts):
            raise ValueError(f"choices must be from 2 to {len(LETTERS)} texts, got {len(self.texts)}")
        if not 0 <= self.right < len(self.texts):
            raise ValueError(f"the right choice must be one of {len(self.texts)}, got number {self.right}")
        if not self.labels:
            object.__setattr__(self, "labels", self.letters)

    @property
    def letters(self) -> tuple[str, ...]:
        """A, B and so on."""
        return tuple(LETTERS[: len(self.texts)])

    def shuffled(self) -> "Choices":
        """In an order that follows from the question alone: the same in every run, and spread over the places.

        Example:
            >>> choices = Choices("Which?", ("right", "wrong", "bad"), 0)
            >>> choices.shuffled() == choices.shuffled(), choices.shuffled().texts[choices.shuffled().right]
            (True, 'right')
        """
        seed = int.from_bytes(hashlib.sha256("\n".join([self.question, *self.texts]).encode()).digest())
        order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(len(self.texts)).tolist()
        return replace(self, texts=tuple(self.texts[i] for i in order), right=order.index(self.right), labels=())


def read_arc(row: Row) -> Choices:
    """ARC: the hub's `question`, `choices` {`text`, `label`} and `answerKey`, or `query`, `choices` and `gold`."""
    if "query" in row.fields:
        question = row.text("query").removeprefix("Question: ")
        return Choices(question, _texts(row.fields["choices"]), int(row.fields["gold"]))
    listed = row.fields["choices"]
    labels = _texts(listed["label"])
    right = row.text("answerKey").strip().upper()
    if right not in labels:
        raise ValueError(f"answerKey {right!r} is none of the labels {', '.join(labels)}")
    return Choices(row.text("question"), _texts(listed["text"]), labels.index(right), labels)


def read_mmlu(row: Row) -> Choices:
    """MMLU: `question`, `choices` and `answer`, which is a letter or its place from 0."""
    answer = row.fields["answer"]
    is_letter = isinstance(answer, str) and not answer.isdigit()
    right = LETTERS.index(answer.strip().upper()) if is_letter and answer.strip() else int(answer)
    return Choices(row.text("question"), _texts(row.fields["choices"]), right)


def read_hellaswag(row: Row, context: str = "ctx") -> Choices:
    """HellaSwag: `ctx`, `endings` and `label`."""
    return Choices(row.text(context), _texts(row.fields["endings"]), int(row.fields["label"]))


def read_winogrande(row: Row) -> Choices:
    """WinoGrande: `sentence` with a gap `_`, `option1`, `option2` and `answer`, which is 1 or 2.

    Or `context_options` up to behind the gap, `continuation` and `gold`: the gap is where the contexts part.
    """
    if "sentence" in row.fields:
        texts = (row.text("option1"), row.text("option2"))
        return Choices(row.text("sentence"), texts, int(row.fields["answer"]) - 1)
    contexts = [context.split(" ") for context in _texts(row.fields["context_options"])]
    shared = takewhile(lambda words: len({*words}) == 1, zip(*(words[:-1] for words in contexts), strict=False))
    same = len([*shared])
    sentence = " ".join([*contexts[0][:same], "_", row.text("continuation")])
    return Choices(sentence, tuple(" ".join(words[same:]) for words in contexts), int(row.fields["gold"]))


def read_truthfulqa(row: Row, most: int) -> Choices:
    """TruthfulQA with one right choice, as it is published: the right one first, and at most so many choices.

    The hub's `question` and `mc1_targets` {`choices`, `labels`}, or `Question`, `Best Answer` and `Incorrect Answers`.
    """
    if "mc1_targets" in row.fields:
        targets = row.fields["mc1_targets"]
        labels = [int(label) for label in targets["labels"]]
        return Choices(row.text("question"), _texts(targets["choices"])[:most], labels.index(1))
    wrong = [text.strip() for text in row.text("Incorrect Answers").split(";")]
    texts = (row.text("Best Answer").strip(), *filter(None, wrong))
    return Choices(row.text("Question").strip(), texts[:most], 0)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"a list of texts was expected, got {str(value)[:60]!r}")
    return tuple(value)

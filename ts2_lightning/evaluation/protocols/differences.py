"""How the models of a table differ from the first one, question by question."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ts2_lightning.evaluation.intervals import Difference, paired
from ts2_lightning.evaluation.measure import ASKED, PER_ITEM
from ts2_lightning.evaluation.results import Result


class Compared(NamedTuple):
    """A value of two models, on the questions that both were asked.

    Attributes:
        difference: second minus first; None if they have no question in common.
        common: number of questions that both have.
        first: number of questions of the first.
        second: number of questions of the second.
    """

    difference: Difference | None
    common: int
    first: int
    second: int

    @property
    def is_whole(self) -> bool:
        """Whether both were asked the same questions."""
        return self.common == self.first == self.second


def main_values(names: Sequence[str]) -> list[str]:
    """Of values that are there for each question those that a difference is shown of.

    Accuracy, and pass@k at the largest k; where there is neither, the first of all, and the same at the largest k.

    Example:
        >>> main_values(["accuracy", "distinct_answers", "pass_at_1", "pass_at_16", "pass_at_2"])
        ['accuracy', 'pass_at_16']
        >>> main_values(["self_bleu_diversity", "ngram"]), main_values(["win_rate", "win_rate_at_8", "win_rate_at_32"])
        (['self_bleu_diversity'], ['win_rate', 'win_rate_at_32'])
    """
    first = names[0] if names else ""
    return _with_largest("accuracy", "pass_at_", names) or _with_largest(first, f"{first}_at_", names)


def _with_largest(name: str, at: str, names: Sequence[str]) -> list[str]:
    """A value and the one that begins with `at` and has the largest k, but for that of one response."""
    ks = [int(other.removeprefix(at)) for other in names if re.fullmatch(rf"{re.escape(at)}\d+", other)]
    return [other for other in (name, f"{at}{max(ks, default=1)}") if other in names and other != f"{at}1"]


class Common(NamedTuple):
    """A value at each question that both of two models were asked, in the order of the first.

    Attributes:
        before: values of the first by the id of the question.
        after: those of the second.
        first: number of questions of the first.
        second: number of questions of the second.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    first: int
    second: int


def compare(first: Result, second: Result, label: str, name: str) -> Compared | None:
    """Compares two models.

    Args:
        first: values and documents of the first under a protocol.
        second: those of the second.
        label: label of the part.
        name: name of the value.

    Returns:
        What both have in common; None if one of them lacks the value for each question.
    """
    both = common_values(first, second, label, name)
    if both is None:
        return None
    difference = paired(both.before, both.after) if both.before else None
    return Compared(difference, len(both.before), both.first, both.second)


def common_values(first: Result, second: Result, label: str, name: str) -> Common | None:
    """A value at the questions that both were asked: those of one id whose text and right answer are the same.

    Args:
        first: values and documents of the first under a protocol.
        second: those of the second.
        label: label of the part.
        name: name of the value.

    Returns:
        The values, which may be none; None if one of the models lacks the value for each question.
    """
    values = [_of_items(result, PER_ITEM, whole_name(label, name)) for result in (first, second)]
    if not all(values):
        return None
    ours, theirs = (_of_items(result, ASKED, label) for result in (first, second))
    common = [id for id in values[0] if id in values[1] and id in ours and ours[id] == theirs.get(id)]
    before, after = ({id: float(of_items[id]) for id in common} for of_items in values)
    return Common(before, after, len(values[0]), len(values[1]))


def whole_name(label: str, name: str) -> str:
    """The name of a value within its protocol.

    Example:
        >>> whole_name("greedy", "accuracy"), whole_name("", "accuracy")
        ('greedy/accuracy', 'accuracy')
    """
    return "/".join(filter(None, [label, name]))


def _of_items(result: Result, document: str, name: str) -> Mapping[str, Any]:
    of_items: Mapping[str, Any] = result.documents.get(document, {}).get(name) or {}
    return of_items

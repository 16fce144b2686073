"""What protocols are made of: questions, scores, and what follows from them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple

from ts2_lightning.generation.requests import Response
from ts2_lightning.runs.stamps import digest


@dataclass(frozen=True)
class Item:
    """One question of a protocol.

    Attributes:
        id: name of the question within its data, the same in every run.
        question: what the user says; or the text that is continued, where `continued`.
        gold: the right answer, as plain values; None where there is none.
        opening: text with which the response begins already.
        continued: whether the question is text that the response continues, outside any chat.
        history: turns before the question, each with `role` and `content`.
        details: plain values that scoring needs besides.
    """

    id: str
    question: str
    gold: Any = None
    opening: str = ""
    continued: bool = False
    history: Sequence[Mapping[str, str]] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def plain_item(item: Item) -> dict[str, Any]:
    """A question as plain values, those that are as usual left out; `read_item` reads it back."""
    plain = asdict(item)
    return {name: value for name, value in plain.items() if name != "id" and value not in (None, "", False, {}, ())}


def fingerprint(item: Item) -> str:
    """Twelve digits of what is asked and what is right, so that questions of one id are not taken for the same."""
    before = [list(map(dict, item.history))] if item.history else []  # so that those of one turn keep theirs
    return digest([item.question, item.opening, item.continued, item.gold, *before])[:12]


def read_item(id: str, plain: Mapping[str, Any]) -> Item:
    """A question from plain values; what a later version has added is ignored.

    Raises:
        ValueError: they are no question.

    Example:
        >>> item = Item("7", "What is 2 + 2?", gold="4")
        >>> read_item("7", {**plain_item(item), "later": 1}) == item
        True
    """
    kinds = {"question": str, "opening": str, "continued": bool, "details": Mapping}
    for name, kind in kinds.items():
        if (name in plain or name == "question") and not isinstance(plain.get(name), kind):
            raise ValueError(f"{name} {plain.get(name)!r}")
    history = plain.get("history", ())
    if not isinstance(history, list | tuple) or not all(_is_turn(turn) for turn in history):
        raise ValueError(f"history {history!r}")
    read = {each.name: plain[each.name] for each in fields(Item) if each.name in plain}
    return Item(id, **{**read, "history": tuple(history)})


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, Mapping) and all(isinstance(turn.get(name), str) for name in ("role", "content"))


@dataclass(frozen=True)
class Scored:
    """What one response is worth.

    Attributes:
        key: key of the response.
        answer: answer that was read in the response; None if there is none, which counts as not parsed.
        score: 1 for right and 0 for wrong, or another number; more is better.
        note: short remark for whoever reads the file, such as why a program failed.
    """

    key: str
    answer: str | None
    score: float
    note: str = ""


@dataclass(frozen=True)
class Answered:
    """A question with what a model has responded.

    Attributes:
        item: the question.
        responses: responses in the order of the samples.
        scored: scores of the responses, in the same order.
    """

    item: Item
    responses: Sequence[Response]
    scored: Sequence[Scored]


@dataclass(frozen=True)
class Sampling:
    """How responses to a question are sampled.

    Attributes:
        n: responses to each question.
        temperature: 0 takes the most probable token.
        top_k: number of most probable tokens that are kept; 0 keeps all.
        top_p: mass that the fewest kept tokens reach; 1 keeps all.
        max_new_tokens: tokens of a response, at most.
    """

    n: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 512

    @property
    def is_greedy(self) -> bool:
        """Whether every sample of a question would be the same."""
        return self.temperature == 0


@dataclass(frozen=True)
class Part:
    """The questions of one data set, asked in one way.

    Attributes:
        label: name within the protocol, in front of its values; empty where there is only one part.
        data_set: name of the data set, one of `Protocol.data_sets`.
        sampling: how it is asked.
        asked_as: name of its responses and scores, where several parts that are sampled differently share one; empty
            for the label.
    """

    label: str
    data_set: str
    sampling: Sampling
    asked_as: str = ""


class Estimate(NamedTuple):
    """What follows from the scores of a part.

    Attributes:
        values: number by its name, without the part's label.
        per_item: for each of some of the values the number of every question by its id: means over questions are
            those values, so that two models are compared question by question.
        curves: for each of some names the score at each k, with its interval: `{k: [mean, low, high]}`.
    """

    values: Mapping[str, float]
    per_item: Mapping[str, Mapping[str, float]] = MappingProxyType({})
    curves: Mapping[str, Mapping[int, Sequence[float]]] = MappingProxyType({})

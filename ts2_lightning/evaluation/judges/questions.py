"""What a chat judge is asked, and how a number is read off its answer."""

import math
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from ts2_lightning.data.sandbox import compiled, reason_of_failure
from ts2_lightning.evaluation.judges.base import Case
from ts2_lightning.generation.requests import Asked
from ts2_lightning.types import UserError

_PLACE = re.compile(r"\{\{(\w+)\}\}|\{([A-Za-z_]\w*)\}")
"""A name in doubled braces, which stands for itself in single ones; or a placeholder. Other braces are text."""


@dataclass(frozen=True)
class JudgePrompt:
    """What a judge is asked of a case.

    `{question}` is replaced by the last turn of the user, `{response}`, `{other}` and `{reference}` by those of the
    case, `{conversation}` by all turns before the response, each after the name of who speaks, and any other name in
    braces by that of the case's `details`. All are replaced at once, so braces in a text of a model are nothing but
    text. `{{name}}` stands for `{name}`; braces around anything else stay as they are.

    Attributes:
        name: name for people, such as that of the protocol.
        text: what the user says, with placeholders.
        system: what the system turn says, with placeholders; empty for no such turn.
        continued: whether the text is continued as it stands, outside any chat, as classifiers are asked. The
            tokenizer adds its special tokens once; strings in it that look like control tokens are text.

    Raises:
        UserError: there is a system turn, but no chat.

    Example:
        >>> prompt = JudgePrompt("fruit", "Is {response} a fruit? {{yes}} or {no: 0}")
        >>> prompt.asked(Case.answer("Name one.", "{question}"))[0]["content"]
        'Is {question} a fruit? {yes} or {no: 0}'
    """

    name: str
    text: str
    system: str = ""
    continued: bool = False

    def __post_init__(self) -> None:
        if self.continued and self.system:
            raise UserError(f"the prompt {self.name!r} is continued outside of a chat, which has no system turn")

    def asked(self, case: Case) -> Asked:
        """The text, where it is continued, or else the messages.

        Raises:
            UserError: a placeholder for which the case has nothing.
        """
        values = _values(case)
        text = self._filled(self.text, values)
        if self.continued:
            return text
        turns = ({"role": "system", "content": self._filled(self.system, values)},) if self.system else ()
        return (*turns, {"role": "user", "content": text})

    def _filled(self, text: str, values: Mapping[str, Any]) -> str:
        def value(match: re.Match[str]) -> str:
            if match[1] is not None:
                return f"{{{match[1]}}}"
            if values.get(match[2]) is None:
                present = ", ".join(name for name, one in values.items() if one is not None)
                raise UserError(
                    f"the prompt {self.name!r} has {{{match[2]}}}, and the case has no {match[2]}; it has {present}"
                )
            return str(values[match[2]])

        return _PLACE.sub(value, text)


@dataclass(frozen=True)
class TwofoldPrompt(JudgePrompt):
    """What a judge is asked of a case, and what it is asked instead of cases that have a certain detail.

    Attributes:
        detail: name among the case's details; where it is there and not empty or false, `instead` is asked.
        instead: what is asked of those cases; None asks the same of all.

    Example:
        >>> prompt = TwofoldPrompt("", "Is {response} a fruit?", detail="place", instead=JudgePrompt("", "{place}?"))
        >>> [prompt.asked(Case((), "fig", details=details))[0]["content"] for details in ({}, {"place": "Here"})]
        ['Is fig a fruit?', 'Here?']
    """

    detail: str = ""
    instead: JudgePrompt | None = None

    def asked(self, case: Case) -> Asked:
        """What is asked of the case."""
        if self.instead is not None and case.details.get(self.detail):
            return self.instead.asked(case)
        return super().asked(case)


def _values(case: Case) -> dict[str, Any]:
    questions = [turn["content"] for turn in case.messages if turn["role"] == "user"]
    return {
        **case.details,
        "question": questions[-1] if questions else None,
        "response": case.response,
        "other": case.other,
        "reference": case.reference,
        "conversation": "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in case.messages),
    }


def chat_text(tokenizer: Any, turns: Sequence[Mapping[str, str]], name: str, opened: bool = False) -> str:
    """A chat as a tokenizer's own template writes it, within the bounds of the sandbox of templates.

    Args:
        tokenizer: tokenizer of a judge.
        turns: turns with `role` and `content`.
        name: name of the judge, for messages.
        opened: whether the header of a further answer follows.

    Raises:
        UserError: there is no template, or it refuses the chat.
    """
    try:
        source = tokenizer.get_chat_template()
    except ValueError:
        raise UserError(
            f"{name}: its tokenizer has no chat template, in which it is asked; take its whole directory"
        ) from None
    try:
        return compiled(source).render(
            messages=[dict(turn) for turn in turns], add_generation_prompt=opened, **tokenizer.special_tokens_map
        )
    except Exception as error:  # a template may fail in any way
        roles = ", ".join(turn["role"] for turn in turns)
        raise UserError(f"{name}: its chat template fails on turns of {roles} ({reason_of_failure(error)})") from error


@dataclass(frozen=True)
class Parser(ABC):
    """Reads a number off a judge's answer. The fields of a subclass are its settings."""

    version: ClassVar[int] = 1
    """Raise it with every change: verdicts are then read anew, and nothing is asked."""

    @property
    def identity(self) -> Any:
        """Plain values that change when another number may be read."""
        return [type(self).__qualname__, self.version, asdict(self)]

    @abstractmethod
    def __call__(self, answer: str) -> float | None:
        """The number; None if none can be read."""


@dataclass(frozen=True)
class Rating(Parser):
    """A number in a range, behind or within a pattern.

    Attributes:
        pattern: regular expression whose first group is the number.
        least: smallest number that is one.
        most: largest number that is one.
        take: which of several matches counts, the `first` or the `last`. If its number is none, nothing is read.

    Raises:
        UserError: a pattern that is none or has no group, or a choice that is none.

    Example:
        >>> read = Rating(r"Total rating:\\s*([0-9]+(?:\\.\\d+)?)", 0, 5)
        >>> read("Feedback: fine.\\nTotal rating: 4.5"), read("Total rating: 7"), read("4")
        (4.5, None, None)
    """

    pattern: str
    least: float = -math.inf
    most: float = math.inf
    take: Literal["first", "last"] = "first"

    def __post_init__(self) -> None:
        _check_pattern(self.pattern, self.take)

    def __call__(self, answer: str) -> float | None:
        """The number; None if none can be read."""
        text = _taken(self.pattern, answer, self.take)
        try:
            number = math.nan if text is None else float(text)
        except ValueError:
            return None
        return number if math.isfinite(number) and self.least <= number <= self.most else None


@dataclass(frozen=True)
class Label(Parser):
    """A word, which stands for a number.

    Attributes:
        pattern: regular expression whose first group is the word.
        numbers: number of each word; capitals do not count.
        take: which of several matches counts, the `first` or the `last`. If its word is none, nothing is read.

    Raises:
        UserError: a pattern that is none or has no group, or a choice that is none.

    Example:
        >>> read = Label(r"(?i)^\\W*(yes|no)\\b", (("yes", 1.0), ("no", 0.0)))
        >>> read(" Yes."), read("No, it is not"), read("Nothing")
        (1.0, 0.0, None)
    """

    pattern: str
    numbers: tuple[tuple[str, float], ...]
    take: Literal["first", "last"] = "first"

    def __post_init__(self) -> None:
        _check_pattern(self.pattern, self.take)

    def __call__(self, answer: str) -> float | None:
        """The number; None if none can be read."""
        text = _taken(self.pattern, answer, self.take)
        return None if text is None else {word.casefold(): number for word, number in self.numbers}.get(text.casefold())


def rating(
    pattern: str, least: float = -math.inf, most: float = math.inf, take: Literal["first", "last"] = "first"
) -> Rating:
    """A parser that reads a number, the first group of a pattern; see `Rating`.

    Args:
        pattern: regular expression with a group.
        least: smallest number that is read; a smaller one is none.
        most: largest number that is read.
        take: which of several matches counts, the `first` or the `last`.

    Raises:
        UserError: a pattern that is none or has no group, or a choice that is none.

    Example:
        >>> read = rating(r"Rating: (\\d+)", least=1, most=10)
        >>> read("Rating: 7"), read("Rating: 70"), read("A good answer.")
        (7.0, None, None)
    """
    return Rating(pattern, least, most, take)


def label(pattern: str, take: Literal["first", "last"] = "first", **numbers: float) -> Label:
    """A parser that reads a word, the first group of a pattern, and gives its number; see `Label`.

    Example:
        >>> label(r"\\b(A|B|tie)\\b", take="last", a=1, b=0, tie=0.5)("A is good, but B wins: B")
        0.0
    """
    return Label(pattern, tuple((word, float(number)) for word, number in numbers.items()), take)


def _check_pattern(pattern: str, take: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise UserError(f"the pattern {pattern!r} of a parser is no regular expression ({error})") from error
    if not groups:
        raise UserError(f"the pattern {pattern!r} of a parser has no group; put what is read into parentheses")
    if take not in ("first", "last"):
        raise UserError(f"take: no such choice {take!r}; take first or last")


def _taken(pattern: str, text: str, take: str) -> str | None:
    """The first group of the first or last match."""
    matches = re.finditer(pattern, text)
    match = next(matches, None) if take == "first" else next(iter(deque(matches, maxlen=1)), None)
    return None if match is None else match[1]

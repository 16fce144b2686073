"""Rows that say what a judge's verdict should be, and what it is asked of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ts2_lightning.evaluation.judges.base import Case
from ts2_lightning.evaluation.judges.questions import JudgePrompt, Parser, label, rating
from ts2_lightning.evaluation.protocols.data import DataSet, Row, read_data
from ts2_lightning.types import UserError

Kind = Literal["rating", "pair", "reward"]

FIELDS = (
    "instruction (or messages), response (or output) and label, a number; or instruction, output_1, output_2 and "
    "preference: 1, 2 or tie"
)

RATING_PROMPT = JudgePrompt(
    "check",
    """You will read what a user wrote to an assistant, and how the assistant responded. Judge how good the response \
is: whether it does what was asked, whether what it says is right, and whether it is clear. Its length by itself \
counts neither for it nor against it.

[Conversation]
{conversation}

[Response]
{response}

[End of the response]

Say in two or three sentences what is good about the response, and what is not. Then end with a line that has nothing \
but your rating, a number from {least} for a useless response to {most} for one that could hardly be better:
Rating: NUMBER""",
)
PAIR_PROMPT = JudgePrompt(
    "check",
    """You will read what a user wrote to an assistant, and two responses to it. Decide which one is better: which \
does what was asked, is right, and is clear. Neither their order nor their length counts by itself.

[Conversation]
{conversation}

[Response A]
{response}

[Response B]
{other}

[End of the responses]

Compare them in two or three sentences. Then end with a line that has nothing but your verdict: "Verdict: A" if \
response A is better, "Verdict: B" if response B is, or "Verdict: tie" if neither is.""",
)
_RATING = r"(?i)\brating[\s:=*\[]*(-?\d+(?:\.\d+)?)"
_VERDICT = r"(?i)\bverdict[\s:=*\[\"]*(A|B|tie)\b"

FIRST, TIE, SECOND = 1.0, 0.5, 0.0
"""Which of two responses is better: a number, so that of several votes there is a mean."""


def rating_parser(least: float, most: float) -> Parser:
    """Reads the rating that `RATING_PROMPT` asks for: the last one of an answer."""
    return rating(_RATING, least, most, take="last")


def pair_parser() -> Parser:
    """Reads the verdict that `PAIR_PROMPT` asks for: 1 for A, 0 for B, 0.5 for a tie; the last one of an answer."""
    return label(_VERDICT, take="last", a=FIRST, b=SECOND, tie=TIE)


# Rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labelled:
    """A row of the file: what is judged, and what the verdict should be.

    Attributes:
        origin: file and line.
        case: what is judged; `other` is the second response of a pair.
        label: rating; or of a pair 1, 0.5 or 0: the first is better, neither, the second.
    """

    origin: str
    case: Case
    label: float

    @property
    def swapped(self) -> Case:
        """The pair in the other order."""
        return replace(self.case, response=str(self.case.other), other=self.case.response)


def read_labelled(file: str, option: str, limit: int | None = None) -> tuple[list[Labelled], bool]:
    """The rows of a file, and whether they are pairs.

    Args:
        file: JSON lines, or another file of rows with `FIELDS`.
        option: name of the option, for messages.
        limit: largest number of rows.

    Raises:
        UserError: naming file and line of a row that is none, or that is of the other kind.
    """
    rows = read_data(DataSet("", "", 0, FIELDS), file, option, limit)
    are_pairs = "output_1" in rows[0].fields
    labelled = []
    for row in rows:
        try:
            if ("output_1" in row.fields) != are_pairs:
                raise ValueError("pairs and single responses in one file; take a file for each")
            labelled.append(_pair(row) if are_pairs else _single(row))
        except (KeyError, TypeError, ValueError) as error:
            said = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{option} {row.origin}: {said}; wanted are rows with {FIELDS}") from error
    return labelled, are_pairs


def _single(row: Row) -> Labelled:
    messages, response = _messages(row)
    if response is None:
        response = row.text(next((name for name in ("response", "output") if name in row.fields), "response"))
    return Labelled(row.origin, _case(row, messages, response), _number(row, "label"))


def _case(row: Row, messages: Sequence[Mapping[str, str]], response: str, other: str | None = None) -> Case:
    """What is judged, with the other texts of the row, which a prompt of the user's own may name."""
    texts = {name: value for name, value in row.fields.items() if isinstance(value, str)}
    return Case(messages, response, other, texts.get("reference"), texts)


def _pair(row: Row) -> Labelled:
    messages, response = _messages(row)
    if response is not None:
        raise ValueError("messages end with an answer, and there are two responses beside")
    wanted = row.fields["preference"]
    number = {"tie": 1.5, "1": 1, "2": 2, "0": 1.5, "1.5": 1.5}.get(str(wanted).strip().lower().removesuffix(".0"))
    if number is None or isinstance(wanted, bool):
        raise ValueError(f"preference must be 1, 2 or tie (or 1.5 or 0, which mean the same), got {wanted!r}")
    return Labelled(row.origin, _case(row, messages, row.text("output_1"), row.text("output_2")), 2.0 - number)


def _messages(row: Row) -> tuple[list[dict[str, str]], str | None]:
    """The turns up to the response, and the response if the turns have it."""
    turns = row.fields.get("messages")
    if turns is None:
        name = next((name for name in ("instruction", "prompt", "question") if name in row.fields), "instruction")
        text, more = row.text(name), row.fields.get("input")
        whole = f"{text}\n\n{more}" if isinstance(more, str) and more.strip() else text
        return [{"role": "user", "content": whole}], None
    try:
        read = [{"role": str(turn["role"]), "content": _text(turn["content"])} for turn in turns]
    except (KeyError, TypeError) as error:
        raise ValueError("messages must be a list of turns with role and content") from error
    if not read or read[-1]["role"] not in ("user", "assistant"):
        raise ValueError("messages must end with a turn of the user, or of the assistant, which is judged then")
    is_answered = read[-1]["role"] == "assistant"
    return (read[:-1], read[-1]["content"]) if is_answered else (read, None)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"content must be text, got {str(value)[:60]!r}")
    return value


def _number(row: Row, name: str) -> float:
    value = row.fields[name]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a number, got {str(value)[:60]!r}")
    return number


def scale_of(labelled: Sequence[Labelled], scale: tuple[float, float] | None) -> tuple[float, float]:
    """The smallest and the largest rating: those that the user has named, or those of the labels.

    Raises:
        UserError: a label outside of the scale, or labels that are all the same and name none.
    """
    labels = [row.label for row in labelled]
    least, most = scale or (min(labels), max(labels))
    if least >= most:
        raise UserError(f"--scale: every label is {least:g}, which is no scale; name it, such as --scale 1,10")
    for row in labelled:
        if not least <= row.label <= most:
            raise UserError(f"{row.origin}: the label {row.label:g} is outside of the scale, {least:g} to {most:g}")
    return least, most

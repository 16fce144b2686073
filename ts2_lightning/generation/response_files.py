"""What a directory of responses holds, read whoever has made it; `store` writes it, and says what its files are."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ts2_lightning.generation.requests import FINISHES, Response
from ts2_lightning.types import UserError

FORMAT = 1
"""Number of the format of parts. A later version that others cannot read gets another."""

DIRECTORY = "responses"
ITEMS = "items.jsonl"


@dataclass(frozen=True)
class Line:
    """One response on disk.

    Attributes:
        item: id of its item.
        index: number of the sample among those of the item.
        response: the response.
    """

    item: str
    index: int
    response: Response


@dataclass(frozen=True)
class Stored:
    """What a directory of responses holds.

    Attributes:
        head: first line of its first part: `format`, `name`, `settings`, `model`, `backend`, `versions`.
        items: plain values of each item by its id.
        lines: every response once, in the order of items and indices.
    """

    head: Mapping[str, Any]
    items: Mapping[str, Mapping[str, Any]]
    lines: Sequence[Line]


def read_store(directory: Path) -> Stored:
    """What a directory of responses holds, whoever has made it.

    Args:
        directory: the directory `NAME-DIGEST` itself.

    Raises:
        UserError: no responses are there; or naming file and line of what is none.
    """
    reader = Reader(directory)
    lines = list(reader.read().values())
    if not lines:
        raise UserError(f"{directory}: no responses; name a directory such as DIR/{DIRECTORY}/gsm8k-1a2b3c4d")
    items = read_items(directory)
    order = {item: place for place, item in enumerate(items)}
    lines.sort(key=lambda line: (order.get(line.item, len(order)), line.item, line.index))
    return Stored(reader.head, items, lines)


def read_items(directory: Path) -> dict[str, dict[str, Any]]:
    """The items of a directory of responses, by their ids; none if they were not written.

    Raises:
        UserError: naming file and line of what is no item.
    """
    file = directory / ITEMS
    items: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(whole_lines(file, 0), 1):
        try:
            values = json.loads(text)
            items[str(values["item"])] = values
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{file}:{number}: no item ({error!r}); remove the file, it is written again") from error
    return items


class Reader:
    """Reads the responses of a directory, and later what was added since.

    Args:
        directory: the directory.

    Attributes:
        head: first line of the first part.
    """

    def __init__(self, directory: Path) -> None:
        self.head: Mapping[str, Any] = {}
        self._directory = directory
        self._lines: dict[str, Line] = {}
        self._read: dict[Path, tuple[int, int]] = {}

    def read(self) -> Mapping[str, Line]:
        """Every response by its key; of two with the same one the first counts."""
        for part in sorted(self._directory.glob("part-*.jsonl")):
            at, number = self._read.get(part, (0, 0))
            for text in whole_lines(part, at):
                at, number = at + len(text) + 1, number + 1
                if number == 1:
                    self._check_head(part, text)
                else:
                    key, line = _line_of(part, number, text)
                    self._lines.setdefault(key, line)
                self._read[part] = at, number
        return self._lines

    def _check_head(self, part: Path, text: bytes) -> None:
        try:
            head = json.loads(text)
            number = head["format"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{part}:1: not the first line of responses ({error!r}); remove the file") from error
        if number != FORMAT:
            raise UserError(f"{part}:1: format {number!r}, of another version; this one reads format {FORMAT}")
        self.head = self.head or head


def _line_of(part: Path, number: int, text: bytes) -> tuple[str, Line]:
    """Key and response of a line; names that are not known are left out."""
    try:
        plain = json.loads(text)
        ids, probability = plain.get("ids"), plain["mean_probability"]
        response = Response(
            key=_of_type(plain, "key", str),
            text=_of_type(plain, "text", str),
            tokens=_of_type(plain, "tokens", int),
            finish=plain["finish"],
            mean_probability=None if probability is None else float(probability),
            ids=None if ids is None else tuple(map(int, ids)),
        )
        _check(response, plain["index"])
        return response.key, Line(_of_type(plain, "item", str), _of_type(plain, "index", int), response)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(
            f"{part}:{number}: no response ({error!r}); remove the line, and its response is made again"
        ) from error


def _check(response: Response, index: Any) -> None:
    """Raises ValueError for what no backend writes."""
    if response.finish not in FINISHES:
        raise ValueError(f"finish {response.finish!r}")
    if response.mean_probability is not None and not 0 <= response.mean_probability <= 1:  # nor is NaN
        raise ValueError(f"mean_probability {response.mean_probability}")
    if response.tokens < (1 if response.text else 0):
        raise ValueError(f"tokens {response.tokens}")
    if isinstance(index, int) and index < 0:
        raise ValueError(f"index {index}")


def _of_type(plain: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    value = plain[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} {value!r}")
    return value


def whole_lines(file: Path, start: int) -> list[bytes]:
    """The lines of a file from a place on, without the last one if it was cut short; none if there is no file.

    They are cut as bytes: what was cut short may end within a character.
    """
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            return stream.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error

"""Scores on disk, a line for each response: what has been scored is not scored again."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ts2_lightning.evaluation.protocols.items import Item, Scored
from ts2_lightning.runs.stamps import digest
from ts2_lightning.runs.writing import append_lines, naming

DIRECTORY = "scores"
FORMAT = 1


class NotScoredError(ValueError):
    """What is no score, or a response that has none."""


class ScoreFile:
    """The scores of responses under one way to score.

    The first line says what was scored and how, each other one is a score. Several processes may write the same file:
    lines are appended whole, and of a score that is there twice the first counts. A line that was cut short, or is
    no score, is ignored: what it was is scored again.

    Args:
        directory: directory of the model's `responses`, `scores` and `measures`.
        name: name of the part of a protocol.
        how: plain values that change when the scores of the same response may.

    Attributes:
        path: the file.
    """

    def __init__(self, directory: Path, name: str, how: Mapping[str, Any]) -> None:
        self.path = directory / DIRECTORY / f"{name}-{digest(how)[:8]}.jsonl"
        self._head = {"format": FORMAT, "name": name, "how": how}
        self._scores: dict[tuple[str, str, str], Scored] = {}
        for line in _score_lines(self.path):
            self._scores.setdefault((line["item"], line["of"], line["key"]), Scored(*(line[name] for name in _FIELDS)))

    def __contains__(self, scored: tuple[Item, str]) -> bool:
        item, key = scored
        return (item.id, _stamp(item), key) in self._scores

    def __getitem__(self, scored: tuple[Item, str]) -> Scored:
        """The score of a response to a question: `scores[item, key]`. Raises NotScoredError if it has none."""
        item, key = scored
        try:
            return self._scores[item.id, _stamp(item), key]
        except KeyError as error:
            raise NotScoredError(f"item {item.id}: none for the response {key}") from error

    def get(self, item: Item, key: str) -> Scored | None:
        """The score of a response to a question; None if it has none."""
        return self._scores.get((item.id, _stamp(item), key))

    def append(self, item: Item, scored: Sequence[Scored]) -> None:
        """Adds the scores of responses to a question. Raises NotScoredError for what is no score."""
        for one in scored:
            if not isinstance(one, Scored) or not isinstance(one.answer, str | None) or not math.isfinite(one.score):
                raise NotScoredError(f"item {item.id}: {one!r}")
        stamp = _stamp(item)
        text = "".join(
            json.dumps({"item": item.id, "of": stamp, **asdict(one)}, ensure_ascii=False, allow_nan=False) + "\n"
            for one in scored
        )
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self._head, ensure_ascii=False) + "\n" + text
        elif not _ends_a_line(self.path):
            text = "\n" + text
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with naming(self.path):
                append_lines(descriptor, text.encode())
        finally:
            os.close(descriptor)
        for one in scored:
            self._scores.setdefault((item.id, stamp, one.key), one)


def scores_in(file: Path) -> dict[tuple[str, str], float]:
    """The scores in a file by item and key of the response; of several of the same response the last.

    Args:
        file: path of a file that `ScoreFile` has written.
    """
    return {(line["item"], line["key"]): float(line["score"]) for line in _score_lines(file)}


def _score_lines(file: Path) -> list[dict[str, Any]]:
    """The scores of a file; what is no score (the heads, lines that were cut short) is left out."""
    if not file.is_file():
        return []
    lines = []
    for raw in file.read_bytes().split(b"\n"):
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            continue
        if _is_score(line):
            lines.append(line)
    return lines


_FIELDS = ("key", "answer", "score", "note")


def _is_score(line: Any) -> bool:
    """Whether it is a line that `ScoreFile.append` may have written."""
    if not isinstance(line, dict) or not {"item", "of", *_FIELDS} <= line.keys():
        return False
    texts = [line[name] for name in ("item", "of", "key", "note")]
    if not all(isinstance(text, str) for text in texts) or not isinstance(line["answer"], str | None):
        return False
    return isinstance(line["score"], int | float) and math.isfinite(line["score"])


def _stamp(item: Item) -> str:
    """What a score depends on beside the response: another right answer makes another score."""
    return digest([item.gold, item.opening, dict(item.details)])[:8]


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(end - 1, 0))
        return stream.read(1) in (b"", b"\n")

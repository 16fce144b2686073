"""Sampled responses on disk, a line for each prompt, so that a sampling that was killed goes on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from ts2_lightning.runs.writing import write_whole


class Response(TypedDict):
    """One response: its text, its number of tokens, whether it came to an end, the mean probability of its tokens."""

    text: str
    tokens: int
    ended: bool
    mean_probability: float


class ResponseFile:
    """The responses to the first prompts of a list; what was written under another key is forgotten.

    Args:
        path: a file of JSON lines; the first has the key, each other one a prompt and its responses.
        key: digest of everything that the responses depend on.
        at_a_time: prompts whose responses are sampled together: of an unfinished group nothing is kept.

    Attributes:
        answered: for each of the prompts its responses.
    """

    def __init__(self, path: Path, key: str, at_a_time: int) -> None:
        self._path = path
        head = json.dumps({"key": key})
        lines = self._whole_lines()
        kept = lines[1:] if lines[:1] == [head] else []
        kept = kept[: len(kept) // at_a_time * at_a_time]
        self.answered: list[list[Response]] = [json.loads(line)["responses"] for line in kept]
        text = "".join(f"{line}\n" for line in [head, *kept])
        write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))

    def _whole_lines(self) -> list[str]:
        """Without the last one if it was cut short."""
        if not self._path.is_file():
            return []
        # Cut off as bytes: what was cut short may end within a character.
        return [line.decode() for line in self._path.read_bytes().split(b"\n")[:-1]]

    def append(self, prompts: Sequence[str], answered: Sequence[list[Response]]) -> None:
        """Adds the responses to the next prompts."""
        with self._path.open("a", encoding="utf-8") as stream:
            for prompt, responses in zip(prompts, answered, strict=True):
                stream.write(json.dumps({"prompt": prompt, "responses": responses}, ensure_ascii=False) + "\n")
        self.answered += answered

"""A backend whose responses are written by the test, and a model that it answers for."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ts2_lightning.evaluation import Model
from ts2_lightning.generation import Request, Response
from ts2_lightning.generation.backends import Backend

Answers = Callable[[str, int], str]
"""Gives the response to a question and the number of the sample."""


class Canned(Backend):
    """Responses by a function.

    Args:
        answers: gives each response; one that ends in `...` was cut off.
        stop_after: responses after which the process is killed, as far as a test can tell; None for never.
    """

    def __init__(self, answers: Answers, stop_after: int | None = None) -> None:
        self.answers, self.stop_after = answers, stop_after
        self.made: list[tuple[str, int, float]] = []

    def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
        """The response to each, one after the other."""
        for request in requests:
            if len(self.made) == self.stop_after:
                raise KeyboardInterrupt
            assert isinstance(request.prompt, tuple)
            message: Any = request.prompt[-1]
            question = message["content"]
            self.made.append((question, request.index, request.settings.decoder.temperature))
            text = self.answers(question, request.index)
            tokens = len(text.split()) or int(bool(text))  # white space is made of tokens too
            yield Response(request.key, text, tokens, "length" if text.endswith("...") else "stop")

    @property
    def versions(self) -> Mapping[str, str]:
        """Its name."""
        return {"backend": "canned"}


def canned_model(out: Path, backend: Canned, name: str = "model") -> Model:
    """A model that takes messages, whose responses are canned."""

    def refuse() -> str:
        raise AssertionError("no model is needed")

    return Model(name, name, refuse, out, endpoint=lambda: backend)

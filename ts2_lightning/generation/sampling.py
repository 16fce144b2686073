"""Samples of prompts from a backend, for those who keep no responses on disk."""

from collections.abc import Mapping, Sequence
from typing import Any

from ts2_lightning.generation.backends.base import Backend
from ts2_lightning.generation.progress import shown
from ts2_lightning.generation.requests import Asked, GenerationSettings, Request, Response
from ts2_lightning.ranges import COUNT, check_number


def sample(
    backend: Backend,
    prompts: Sequence[str | Sequence[Mapping[str, str]] | Sequence[int]],
    settings: GenerationSettings,
    n: int = 1,
    progress: str = "",
) -> list[list[Response]]:
    """Samples responses.

    Args:
        backend: what makes them.
        prompts: prompts, each of which is text, messages or ids. Equal ones have equal samples.
        settings: what the responses are made with.
        n: number of samples of each prompt.
        progress: title of a progress bar; empty shows none.

    Returns:
        For each prompt its n samples.

    Raises:
        UserError: `n` is no count, or the model does not take a prompt.
    """
    check_number("sample: n", n, COUNT)
    wanted = [[Request(as_asked(prompt), index, settings) for index in range(n)] for prompt in prompts]
    distinct = list({request.key: request for of_prompt in wanted for request in of_prompt}.values())
    made = {response.key: response for response in shown(backend.complete(distinct), len(distinct), progress)}
    return [[made[request.key] for request in of_prompt] for of_prompt in wanted]


def as_asked(prompt: str | Sequence[Mapping[str, str]] | Sequence[int]) -> Asked:
    """A prompt as requests have it: what is a list becomes a tuple."""
    untyped: Any = prompt
    return untyped if isinstance(prompt, str) else tuple(untyped)

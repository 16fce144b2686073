"""The progress bar of everything that makes responses."""

import time
from collections.abc import Iterable, Iterator

from tqdm.auto import tqdm

from ts2_lightning.generation.requests import Response


def shown(responses: Iterable[Response], total: int, title: str, before: int = 0) -> Iterator[Response]:
    """Hands responses on, and shows how many there are, tokens per second, and the time that is left.

    Args:
        responses: responses as they are made.
        total: number of responses that are wanted.
        title: title of the bar; empty shows none.
        before: number of those that were there before.
    """
    started, tokens = time.perf_counter(), 0
    with tqdm(total=total, initial=before, desc=title, unit=" responses", disable=not title, leave=False) as bar:
        for response in responses:
            tokens += response.tokens
            bar.set_postfix_str(f"{tokens / max(time.perf_counter() - started, 1e-9):,.0f} tokens/s", refresh=False)
            bar.update()
            yield response

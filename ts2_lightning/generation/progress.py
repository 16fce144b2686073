"""What is shown of the progress of everything that makes responses."""

import time
from collections.abc import Callable, Iterable, Iterator

from tqdm.auto import tqdm

from ts2_lightning.generation.rates import ENOUGH
from ts2_lightning.generation.requests import Response


class Progress:
    """A bar with responses, tokens per second and the time that is left.

    Args:
        total: number of responses that are wanted.
        title: title of the bar; empty shows none.
        there: number of those that were there before.
        say: takes one line with an estimate, when there is one; for those who see no bar.
        in_files: whether the bar is also written where there is no terminal.
    """

    def __init__(
        self, total: int, title: str, there: int = 0, say: Callable[[str], None] | None = None, in_files: bool = False
    ) -> None:
        self._total, self._there, self._say = total, there, say
        self._started, self._tokens, self._made = time.perf_counter(), 0, 0
        disable = True if not title else False if in_files else None  # None asks whether there is a terminal
        self._bar = tqdm(total=total, initial=there, desc=title, unit=" responses", disable=disable, leave=False)

    def add(self, response: Response) -> None:
        """Counts a response that was made here."""
        self._tokens += response.tokens
        self._made += 1
        self._there += 1
        seconds = max(time.perf_counter() - self._started, 1e-9)
        self._bar.set_postfix_str(f"{self._tokens / seconds:,.0f} tokens/s", refresh=False)
        self._bar.update()
        if self._say is not None and self._made >= ENOUGH[0] and seconds >= ENOUGH[1]:
            left = self._total - self._there
            self._say(
                f"{self._tokens / seconds:,.0f} tokens a second, {self._tokens / self._made:,.0f} tokens a response: "
                f"about {left * seconds / self._made / 3600:.2f} hours left for this process alone"
            )
            self._say = None

    def set_there(self, count: int) -> None:
        """Says how many responses are there by now, whoever made them."""
        self._bar.update(count - self._there)
        self._there = count

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def shown(responses: Iterable[Response], total: int, title: str) -> Iterator[Response]:
    """Hands responses on, and shows their progress.

    Args:
        responses: responses as they are made.
        total: number of responses that are wanted.
        title: title of the bar; empty shows none.
    """
    with Progress(total, title, in_files=True) as progress:
        for response in responses:
            progress.add(response)
            yield response

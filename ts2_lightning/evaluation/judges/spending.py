"""What judges may cost: a limit in dollars that holds for all that is judged within a scope."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from ts2_lightning.evaluation.judges.base import JudgeCost
from ts2_lightning.generation.backends import Backend
from ts2_lightning.generation.backends.endpoint import Endpoint
from ts2_lightning.generation.requests import Asked, Request, Response
from ts2_lightning.ranges import POSITIVE, check_number
from ts2_lightning.types import UserError

CHARACTERS_PER_TOKEN = 4
"""A rough figure for English text, where only the server has the tokenizer."""


@dataclass
class Spending:
    """What judges have cost within a scope.

    Attributes:
        limit: dollars that may be spent.
        dollars: dollars that have been.
    """

    limit: float
    dollars: float = 0.0


_SCOPE: ContextVar[Spending | None] = ContextVar("spending", default=None)


@contextmanager
def spending_limit(dollars: float | None) -> Iterator[Spending | None]:
    """Limits what judges cost within this scope, all of them together.

    Args:
        dollars: limit; None sets none.

    Raises:
        UserError: a limit that is none.

    Example:
        >>> with spending_limit(2.5) as spending:
        ...     spending.dollars, current_spending() is spending
        (0.0, True)
    """
    if dollars is not None:
        check_number("max_cost", dollars, POSITIVE)
    token = _SCOPE.set(None if dollars is None else Spending(float(dollars)))
    try:
        yield _SCOPE.get()
    finally:
        _SCOPE.reset(token)


def current_spending() -> Spending | None:
    """The spending of the scope; None where there is no limit."""
    return _SCOPE.get()


@dataclass(frozen=True)
class Prices:
    """What a judge takes for tokens.

    Attributes:
        prompt: dollars for a million tokens that it reads.
        completion: dollars for a million tokens that it writes.
    """

    prompt: float
    completion: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Dollars for some tokens.

        >>> Prices(2.0, 8.0).of(500_000, 1_000_000)
        9.0
        """
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


def estimated_tokens(prompt: Asked) -> int:
    """The number of tokens of a prompt: exact for ids, else an estimate from its characters.

    >>> estimated_tokens((5, 7, 9)), estimated_tokens("twelve chars"), estimated_tokens(({"content": "yes?"},))
    (3, 3, 1)
    """
    if isinstance(prompt, str):
        return -(-len(prompt) // CHARACTERS_PER_TOKEN)
    return sum(1 if isinstance(one, int) else estimated_tokens(one["content"]) for one in prompt)


def check_affordable(name: str, cost: JudgeCost) -> None:
    """Raises UserError if what is to be judged would cost more than the scope's limit leaves.

    Args:
        name: what is judged, for messages.
        cost: what it takes.
    """
    spending = current_spending()
    if spending is None or not cost.calls or cost.dollars is None:
        return
    if cost.dollars > spending.limit - spending.dollars:
        spent = f", of which ${spending.dollars:,.4f} is spent" if spending.dollars else ""
        raise UserError(
            f"{name}: {cost.calls:,} verdicts cost up to ${cost.dollars:,.4f}, more than --max_cost "
            f"${spending.limit:,.4f}{spent}; raise it, judge fewer responses, or lower judge.max_new_tokens"
        )


class Metered(Backend):
    """A backend whose responses are paid for, and which stops before the limit of the scope is passed.

    A request is handed on only if what was really used, and the most that those under way and this one can take,
    stays within the limit. What servers say of tokens counts; where they say nothing, the estimate.

    Args:
        inner: what makes the responses.
        prices: what they cost.
        name: what is judged, for messages.
    """

    keeps_each = True

    def __init__(self, inner: Backend, prices: Prices, name: str) -> None:
        self._inner, self._prices, self._name = inner, prices, name

    @property
    def versions(self) -> Mapping[str, str]:
        """Those of the backend."""
        return self._inner.versions

    def check(self, requests: Sequence[Request]) -> None:
        """As the backend does."""
        self._inner.check(requests)

    def close(self) -> None:
        """As the backend does."""
        self._inner.close()

    def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
        """As the backend does; raises UserError once the next response might pass the limit."""
        spending = current_spending()
        if spending is None:
            yield from self._inner.complete(requests)
            return
        gate = _Gate(requests, self._prices, spending)
        counted = self._counted()
        while True:
            taken = gate.taken
            for response in self._inner.complete(gate):
                before, counted = counted, self._counted()
                gate.pay(response, None if counted[0] == 0 else _difference(counted, before))  # no prompt is empty
                yield response
            if gate.held is None:
                return
            if gate.taken == taken:  # with nothing under way there was no room for it either
                raise UserError(
                    f"{self._name}: ${spending.dollars:,.4f} of --max_cost ${spending.limit:,.4f} are spent, and the "
                    "next verdict might pass it; what was judged stays; with a higher limit the same command goes on"
                )

    def _counted(self) -> tuple[int, int]:
        """The numbers of tokens of prompts and answers that a server has counted so far; zeros where none does."""
        if not isinstance(self._inner, Endpoint):
            return 0, 0
        return self._inner.usage.prompt_tokens, self._inner.usage.completion_tokens


class _Gate:
    """Hands requests on as long as there is money for them; iterated over again, it goes on with the one it held back.

    Attributes:
        held: request for which there was none; None at the end of the requests.
        taken: number of requests that were handed on.
    """

    def __init__(self, requests: Iterable[Request], prices: Prices, spending: Spending) -> None:
        self._source = iter(requests)
        self._prices, self._spending = prices, spending
        self._under_way: dict[str, Request] = {}
        self._estimated, self._counted = 0, 0
        self.held: Request | None = None
        self.taken = 0

    def __iter__(self) -> Iterator[Request]:
        while request := self.held or next(self._source, None):
            is_dear = self._spending.dollars + self._most([*self._under_way.values(), request]) > self._spending.limit
            self.held = request if is_dear else None
            if is_dear:
                return
            self._under_way[request.key] = request
            self.taken += 1
            yield request

    def _most(self, requests: Sequence[Request]) -> float:
        """The dollars that requests may take, whose prompts have more tokens than estimated if those so far had."""
        factor = max(1.0, self._counted / self._estimated) if self._estimated else 1.0
        prompts = sum(estimated_tokens(request.prompt) for request in requests)
        return self._prices.of(factor * prompts, sum(request.settings.max_new_tokens for request in requests))

    def pay(self, response: Response, counted: tuple[int, int] | None) -> None:
        """Pays for what a server has counted since the last time; None: for this response, by the estimate."""
        estimated = estimated_tokens(self._under_way.pop(response.key).prompt)
        tokens = (estimated, response.tokens) if counted is None else counted
        self._estimated, self._counted = self._estimated + estimated, self._counted + tokens[0]
        self._spending.dollars += self._prices.of(*tokens)


def _difference(after: tuple[int, int], before: tuple[int, int]) -> tuple[int, int]:
    return after[0] - before[0], after[1] - before[1]

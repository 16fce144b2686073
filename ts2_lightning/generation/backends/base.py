"""What every backend can do."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ts2_lightning.generation.requests import Request, Response


class Backend(ABC):
    """Makes responses to requests."""

    keeps_each: bool = False
    """Whether each response is written as soon as it is there, since it costs more than a write: it may be paid for."""

    @abstractmethod
    def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
        """Makes one response to each request, and hands each over as soon as it is made.

        Args:
            requests: requests with the same settings, of different keys. Whoever shares them with other processes
                takes one only when it can be worked on: an iterable that is no sequence claims them for this process.

        Returns:
            The responses, in any order.

        Raises:
            UserError: a prompt that the model does not take, or a backend that cannot go on.
        """

    def check(self, requests: Sequence[Request]) -> None:  # noqa: B027 - most can only ask
        """Looks at requests, before any of them is made.

        Raises:
            UserError: a prompt that the model does not take.
        """

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Lets go of processes and connections; later requests may make them anew."""

    @property
    @abstractmethod
    def versions(self) -> Mapping[str, str]:
        """Its name and the versions of what it runs on, for the first line of a file of responses."""

    @property
    def device(self) -> tuple[str, int]:
        """The driver's name of the GPUs that it computes on, or `cpu`, and how many; empty where a server computes."""
        return "", 0

"""Which backend a user has chosen. The one place that knows all of them."""

from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ts2_lightning.generation.backends.base import Backend
from ts2_lightning.generation.backends.transformers import TransformersBackend
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

BACKENDS = {"transformers": "in this process"}
"""Name of each backend, with what it is."""


class LocalModel(Protocol):
    """A model on disk that responses are wanted of; nothing is loaded before a backend asks for it."""

    @property
    def name(self) -> str:
        """How the user gave it."""

    @property
    def place(self) -> str:
        """The directory or name that transformers loads."""

    @property
    def network(self) -> PreTrainedModel:
        """The loaded model."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""


def check_backend(choice: str) -> None:
    """Raises UserError if there is no such backend."""
    if choice not in BACKENDS:
        hint = did_you_mean(choice, BACKENDS) or f"; there is {', '.join(BACKENDS)}"
        raise UserError(f"no backend {choice!r}{hint}")


def make_backend(choice: str, model: LocalModel, batch_size: int) -> Backend:
    """The backend that a user has chosen.

    Args:
        choice: one of `BACKENDS`.
        model: whose responses are wanted.
        batch_size: number of responses at a time, where the backend leaves that to others.

    Raises:
        UserError: there is no such backend.
    """
    check_backend(choice)
    return TransformersBackend(model.network, model.tokenizer, batch_size)

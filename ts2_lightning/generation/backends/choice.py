"""Which backend a user has chosen. The one place that knows all of them."""

from collections.abc import Mapping
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ts2_lightning.generation.backends.base import Backend
from ts2_lightning.generation.backends.endpoint import PREFIX as ENDPOINT
from ts2_lightning.generation.backends.transformers import TransformersBackend
from ts2_lightning.generation.backends.vllm import PREFIX as VLLM
from ts2_lightning.generation.backends.vllm import VLLMBackend
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

BACKENDS = {"transformers": "in this process", f"{VLLM}PYTHON": "vLLM, under the interpreter that has it"}
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
    """Raises UserError if there is no such backend. Whether an interpreter has vLLM is not looked at."""
    if choice.startswith(ENDPOINT):
        raise UserError(f"{choice} is no backend but a model: name it in the place of MODEL")
    if choice.startswith(VLLM) and choice not in (VLLM, *BACKENDS):
        return
    if choice != "transformers":
        hint = did_you_mean(choice, BACKENDS) or f"; there is {', '.join(BACKENDS)}"
        raise UserError(f"no backend {choice!r}{hint}")


def make_backend(
    choice: str, model: LocalModel, batch_size: int, vllm_args: Mapping[str, Any] | None = None
) -> Backend:
    """The backend that a user has chosen.

    Args:
        choice: one of `BACKENDS`.
        model: whose responses are wanted.
        batch_size: number of responses at a time, where the backend leaves that to others.
        vllm_args: arguments of vLLM's engine.

    Raises:
        UserError: there is no such backend, or an interpreter has no vLLM that can be used.
    """
    check_backend(choice)
    if choice.startswith(VLLM):
        return VLLMBackend(choice.removeprefix(VLLM), model.place, model.tokenizer, vllm_args)
    return TransformersBackend(model.network, model.tokenizer, batch_size)

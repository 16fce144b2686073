"""Domains: requests whose plausible answers are known, to models with the tokenizer of the domain."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ts2_lightning import plugins
from ts2_lightning.evaluation.prompts import Question


class Domain(ABC):
    """A domain of requests. Plug-ins add domains.

    Attributes:
        validation_rows: source of the rows that a model is measured on where nobody names any.
        test_rows: source of the rows and prompts that `probe` shows where nobody names any.
    """

    validation_rows: ClassVar[str]
    test_rows: ClassVar[str]

    @abstractmethod
    def has(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether a tokenizer is the domain's."""

    @abstractmethod
    def questions(self) -> tuple[list[Question], str]:
        """A few typical requests, and the text with which the answer to them begins."""

    @abstractmethod
    def plausible_tokens(
        self, request: str, tokenizer: PreTrainedTokenizerBase, vocabulary: int
    ) -> tuple[Tensor, dict[str, str]] | None:
        """First tokens of the plausible answers to a request, behind the opening; None for a foreign request.

        Args:
            request: text of the user's turn.
            tokenizer: tokenizer of the domain.
            vocabulary: K, number of the model's tokens.

        Returns:
            [K] bool, and token -> note, such as {"plum": "taught 75%"}.
        """


def domain_of(tokenizer: PreTrainedTokenizerBase) -> Domain | None:
    """The domain that a tokenizer belongs to; None if it belongs to none."""
    domains: Iterator[Domain] = iter(plugins.offered("domains").values())
    return next((domain for domain in domains if domain.has(tokenizer)), None)

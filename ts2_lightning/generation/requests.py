"""What is asked of a backend, and what comes back. A response follows from its request alone.

Nothing of how it is made is part of a request: no batch, device, backend, limit of prompts, or number of samples. So
responses that are there are kept, whoever made them, and more of them are made for their own numbers.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ts2_lightning.generation.decoders import Decoder

Asked = tuple[int, ...] | str | tuple[Mapping[str, str], ...]
"""Token ids; text, which is continued; or messages, which a served model puts into its own tokens."""

FINISHES = ("stop", "length")


@dataclass(frozen=True)
class GenerationSettings:
    """What responses are made with.

    Attributes:
        model: digest of the identity of the model.
        decoder: distribution that tokens are drawn from.
        max_new_tokens: largest number of tokens of a response; the model's context may leave fewer.
        end_ids: tokens that end a response; empty for a served model, which knows its own.
        seed: seed of the samples.
    """

    model: str
    decoder: Decoder
    max_new_tokens: int
    end_ids: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """One response that is wanted.

    Attributes:
        prompt: what the response follows.
        index: number of the sample among those of its prompt, from 0.
        settings: what the response is made with.

    Example:
        >>> settings = GenerationSettings("m", Decoder(), 16)
        >>> first, second = (Request((1, 2), index, settings) for index in (0, 1))
        >>> first.key == Request((1, 2), 0, settings).key, first.key == second.key
        (True, False)
    """

    prompt: Asked
    index: int
    settings: GenerationSettings

    @cached_property
    def key(self) -> str:
        """The name of the response: 32 hexadecimal digits that follow from the request alone."""
        return _sha256([self.prompt, self.index, asdict(self.settings)])[:32]

    @cached_property
    def entropy(self) -> int:
        """256 bits that the response's random numbers follow from: of seed, prompt and index, for every model alike."""
        return int(_sha256([self.settings.seed, self.prompt, self.index]), 16)

    @property
    def seed(self) -> int:
        """The seed in 63 bits, for backends that draw by themselves."""
        return self.entropy >> 193

    def uniforms(self, count: int) -> np.ndarray:
        """The numbers in [0, 1) that its first tokens are drawn with, [count] in float64."""
        return np.random.default_rng(np.random.SeedSequence(self.entropy)).random(count)


@dataclass(frozen=True)
class Response:
    """One response.

    Attributes:
        key: key of its request.
        text: text without special tokens, as the tokenizer decodes it.
        tokens: number of tokens, with the one that ended it.
        finish: `stop` if it came to an end, `length` if it was cut off at the token limit or the context.
        mean_probability: mean probability of its tokens under the softmax of the model's own logits, of which TS2's
            figure 5 has the histogram; None where the backend does not say.
        ids: token ids; None where the backend does not say.
        log_probabilities: log-probability of each token under that softmax, in nats; None where it is not kept.
    """

    key: str
    text: str
    tokens: int
    finish: Literal["stop", "length"]
    mean_probability: float | None = None
    ids: tuple[int, ...] | None = None
    log_probabilities: tuple[float, ...] | None = None


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

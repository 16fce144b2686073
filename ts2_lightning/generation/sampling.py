"""Sampling responses with transformers' `generate`, such that the samples follow from the seed alone.

The tokens are drawn here, in a logits processor, from numbers that each response has for itself: so a response does not
depend on what else is in its batch (but for the last digits of its logits, which may), nor does sampling touch the
global random generators. There too, before anything is done to the logits, the probability of each token is read.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ts2_lightning.generation.logits_processors import (
    LOGIT_SCALES,
    EntmaxLogitsProcessor,
    SparsemaxLogitsProcessor,
)
from ts2_lightning.model_limits import limits_of
from ts2_lightning.ops import ENTMAX_ORDERS, widest_float
from ts2_lightning.ranges import COUNT, COUNT_OR_ZERO, POSITIVE, Allowed, Only, Range, check_number, check_numbers
from ts2_lightning.types import UserError

Prompt = str | Sequence[Mapping[str, str]] | Sequence[int]
"""Text, which is continued; messages, which the tokenizer's chat template renders; or ids."""

_UNIT = 2**53
"""Probabilities are drawn from as multiples of 1 / _UNIT: sums of whole numbers are exact, in any order."""

DECODING: Mapping[str, tuple[Allowed, ...]] = {
    "temperature": (POSITIVE, Only(0, "the most probable token")),
    "top_k": (COUNT_OR_ZERO,),
    "top_p": (Range(above=0, most=1),),
}
"""Ranges of the settings that change the distribution after its projection."""


@dataclass(frozen=True)
class Decoder:
    """The steps from the logits z to the distribution that a token is drawn from, in this order.

    Attributes:
        projection: distribution over the tokens: `softmax`, `sparsemax` or `entmax` of c z.
        alpha: order of entmax, from 1.001 to 2.
        logit_scale: factor c of sparsemax and entmax; 1 / T for a temperature T before the projection.
        temperature: temperature T of p^(1 / T), renormalised; after the projection. 0 takes the most probable token.
        top_k: number of most probable tokens that are kept; 0 keeps all.
        top_p: sum of probabilities that the fewest kept tokens reach; 1 keeps all.

    Raises:
        UserError: a setting out of its range.

    Example:
        >>> Decoder("sparsemax")(torch.tensor([[1.0, 1.0, -3.0]])).softmax(-1).tolist()
        [[0.5, 0.5, 0.0]]
    """

    projection: Literal["softmax", "sparsemax", "entmax"] = "softmax"
    alpha: float = 1.5
    logit_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_numbers("Decoder: ", self, alpha=ENTMAX_ORDERS, logit_scale=LOGIT_SCALES, **DECODING)
        if self.projection not in ("softmax", "sparsemax", "entmax"):
            raise UserError(f"Decoder: projection must be softmax, sparsemax or entmax, got {self.projection!r}")
        if self.projection == "softmax" and self.logit_scale != 1:
            raise UserError(
                f"Decoder: logit_scale is for sparsemax and entmax, got {self.logit_scale} with softmax; set the "
                "temperature"
            )

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits [B, K] of the distribution to draw from; at temperature 0 the largest counts. `logits`: [B, K]."""
        nothing = torch.empty(len(logits), 0, dtype=torch.long, device=logits.device)  # no processor reads the ids
        for process in self._processors():
            logits = process(nothing, logits)
        return logits

    def _processors(self) -> Iterator[LogitsProcessor]:
        if self.projection == "sparsemax":
            yield SparsemaxLogitsProcessor(self.logit_scale)
        elif self.projection == "entmax":
            yield EntmaxLogitsProcessor(self.alpha, self.logit_scale)
        if self.temperature not in (0, 1):
            yield TemperatureLogitsWarper(float(self.temperature))
        if self.top_k:
            yield TopKLogitsWarper(self.top_k)
        if self.top_p < 1:
            yield TopPLogitsWarper(self.top_p)


@dataclass(frozen=True)
class Sample:
    """One response.

    Attributes:
        text: text of the response, without special tokens.
        ids: token ids, with the one that ended the response, if one did.
        log_probabilities: log-probability of each token under the softmax of the model's own logits, in nats: before
            temperature, truncation and projection.
    """

    text: str
    ids: list[int]
    log_probabilities: list[float]

    @property
    def mean_probability(self) -> float:
        """Mean probability of its tokens, of which TS2's figure 5 has the histogram."""
        return float(np.exp(self.log_probabilities).mean())


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    n: int = 1,
    decoder: Decoder = Decoder(),
    max_new_tokens: int = 256,
    seed: int = 0,
    eos_ids: Sequence[int] | None = None,
    batch_size: int = 32,
    synced: bool = False,
    progress: str = "",
) -> list[list[Sample]]:
    """Samples responses.

    The model's own generation settings (repetition penalties and the like) do not apply: only the decoder counts.

    Args:
        model: a causal language model; it is left in the mode in which it came.
        tokenizer: its tokenizer.
        prompts: prompts, each of which is text, messages or ids.
        n: number of samples of each prompt.
        decoder: distribution that tokens are drawn from.
        max_new_tokens: tokens of a response, at most; with the longest prompt never more than the model's context.
        seed: seed of the samples; response j of prompt i is drawn from numbers that follow from (seed, i, j).
        eos_ids: tokens that end a response. Default: those of the model's generation settings, else the tokenizer's.
        batch_size: number of responses that are generated together.
        synced: whether the weights are sharded: then all ranks call, with equally many responses, and go on until all
            are done.
        progress: title of a progress bar; empty shows none.

    Returns:
        For each prompt its n samples.

    Raises:
        UserError: a number out of its range, or a prompt without a token, as long as the model's context, or with
            a token that the model has not.
    """
    for name, value in {"n": n, "max_new_tokens": max_new_tokens, "batch_size": batch_size}.items():
        check_number(f"sample: {name}", value, COUNT)
    check_number("sample: seed", seed, COUNT_OR_ZERO)
    ids = [_checked_ids(tokenizer, number, prompt) for number, prompt in enumerate(prompts)]
    ends = end_ids(model, tokenizer) if eos_ids is None else list(eos_ids)
    room = _room(model, ids, max_new_tokens)
    jobs = sorted(((i, j) for i in range(len(ids)) for j in range(n)), key=lambda job: len(ids[job[0]]))
    samples: dict[tuple[int, int], Sample] = {}
    quiet = not progress or len(jobs) <= batch_size
    bar = tqdm(total=len(jobs), desc=progress, unit=" responses", disable=quiet)
    with bar, _generating(model, room, ends, tokenizer.pad_token_id):
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            uniforms = np.stack([np.random.default_rng((seed, *job)).random(room) for job in batch])
            draws = _Draw(decoder, torch.from_numpy(uniforms).to(model.device, widest_float(model.device)))
            answers = _sample_batch(model, [ids[i] for i, _ in batch], draws, ends, synced)
            for job, (tokens, log_probabilities) in zip(batch, answers, strict=True):
                samples[job] = Sample(_text(tokenizer, tokens), tokens, log_probabilities)
            bar.update(len(batch))
    if room < max_new_tokens:
        _warn_of_cut(model, list(samples.values()), max_new_tokens, room, ends)
    return [[samples[i, j] for j in range(n)] for i in range(len(ids))]


def _checked_ids(tokenizer: PreTrainedTokenizerBase, number: int, prompt: Prompt) -> list[int]:
    ids = prompt_ids(tokenizer, prompt)
    if not ids:
        raise UserError(f"sample: prompt {number} has no token")
    return ids


def _room(model: PreTrainedModel, prompts: list[list[int]], max_new_tokens: int) -> int:
    """The largest number of tokens with which every response stays within the context, at most `max_new_tokens`.

    Raises:
        UserError: if a prompt fills the context, or has a token that the model has not.
    """
    limits = limits_of(model.config)
    largest = max((max(prompt) for prompt in prompts), default=0)
    if largest >= limits.embeddings:
        raise UserError(
            f"sample: token id {largest} of a prompt has no row in the embedding of {limits.model}, which has "
            f"{limits.embeddings:,}; take the model's own tokenizer"
        )
    number, longest = max(enumerate(map(len, prompts)), key=lambda prompt: prompt[1], default=(0, 0))
    if limits.context is None:
        return max_new_tokens
    if longest >= limits.context:
        raise UserError(
            f"sample: prompt {number} has {longest:,} tokens, which leaves no room for a response in "
            f"{limits.context_text}; shorten it"
        )
    return min(max_new_tokens, limits.context - longest)


def _warn_of_cut(
    model: PreTrainedModel, samples: list[Sample], max_new_tokens: int, room: int, ends: list[int]
) -> None:
    cut = sum(len(one.ids) == room and one.ids[-1] not in ends for one in samples)
    if cut:
        context = limits_of(model.config).context_text
        rank_zero_warn(
            f"sample: {cut:,} of {len(samples):,} responses were cut off after {room:,} tokens instead of "
            f"{max_new_tokens:,} (max_new_tokens): with the longest prompt they fill {context}"
        )


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The ids of a prompt: text gets the tokenizer's special tokens, messages end with the generation prompt."""
    untyped: Any = tokenizer  # its type hints are narrower than what it takes
    if isinstance(prompt, str):
        return list(untyped(prompt)["input_ids"])
    if prompt and isinstance(prompt[0], Mapping):
        return list(untyped.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))
    return list(prompt)  # type: ignore[arg-type]


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a response, as the model's generation settings name them, or else its tokenizer."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    ids = tokenizer.eos_token_id if ids is None else ids
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


class _Draw(LogitsProcessor):
    """Draws the next token of every row, leaves `generate` no choice, and keeps its log-probability.

    Args:
        decoder: distribution that tokens are drawn from.
        uniforms: [B, T] numbers in [0, 1), one for each token of each row.
    """

    def __init__(self, decoder: Decoder, uniforms: Tensor) -> None:
        self._decoder = decoder
        self._uniforms = uniforms
        self.log_probabilities: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, K], minus infinity but for the token that was drawn."""
        column = self._uniforms[:, len(self.log_probabilities)]
        shaped = self._decoder(scores)
        chosen = draw(shaped, column)[:, None] if self._decoder.temperature else shaped.argmax(-1, keepdim=True)
        self.log_probabilities.append(scores.log_softmax(-1).gather(-1, chosen)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One token of each row of softmax(z), by inversion: the first whose cumulated probability exceeds the number.

    Args:
        logits: [B, K] logits z.
        uniforms: [B] numbers in [0, 1), in float64 where the device has it.

    Returns:
        [B] int64. A token of probability zero never comes.

    Example:
        >>> draw(torch.tensor([[0.5, 0.25, 0.25]]).log().expand(3, 3), torch.tensor([0.0, 0.6, 0.99])).tolist()
        [0, 1, 2]
    """
    shares = (logits.softmax(-1).to(uniforms.dtype) * _UNIT).long()
    sums = shares.cumsum(-1)
    thresholds = torch.minimum((uniforms * sums[:, -1]).long(), sums[:, -1] - 1)
    return torch.searchsorted(sums, thresholds[:, None], right=True)[:, 0]


@contextmanager
def _generating(model: PreTrainedModel, max_new_tokens: int, eos_ids: list[int], pad_id: int | None) -> Iterator[None]:
    """Puts the model into evaluation mode, with only these generation settings, and back."""
    settings, training = model.generation_config, model.training
    rows = limits_of(model.config).embeddings
    pad = next((number for number in (pad_id, *eos_ids) if number is not None and number < rows), 0)  # masked
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, eos_token_id=eos_ids or None, pad_token_id=pad
    )
    model.eval()
    try:
        yield
    finally:
        model.generation_config = settings
        model.train(training)


def _sample_batch(
    model: PreTrainedModel, prompts: list[list[int]], draws: _Draw, eos_ids: list[int], synced: bool
) -> list[tuple[list[int], list[float]]]:
    """Ids and log-probabilities of one response to each prompt. Prompts are padded on the left."""
    width = max(map(len, prompts))
    pad: int = model.generation_config.pad_token_id
    rows = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    answers: Any = model.generate(  # type: ignore[operator]
        inputs=rows, attention_mask=mask, logits_processor=LogitsProcessorList([draws]), synced_gpus=synced
    )
    tokens = answers[:, width:].tolist()
    log_probabilities = torch.stack(draws.log_probabilities, dim=1).tolist()
    lengths = [_length(ids, eos_ids) for ids in tokens]
    return [(ids[:k], of_ids[:k]) for ids, of_ids, k in zip(tokens, log_probabilities, lengths, strict=True)]


def _length(ids: list[int], eos_ids: list[int]) -> int:
    """Tokens up to the first that ends the response."""
    return next((place + 1 for place, number in enumerate(ids) if number in eos_ids), len(ids))


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))

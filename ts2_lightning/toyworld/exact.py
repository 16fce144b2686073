"""Exact measures in the toy world: validity, diversity and shape of a model's distributions, without sampling.

Every plausible response of every held-out request is teacher-forced, so its probability under a decoder is known
to rounding, and with it the share of valid responses and the expected number of distinct ones among 32 samples.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ts2_lightning.evaluation.distributions import PAPERS, PLAIN, log_probabilities, support_mask
from ts2_lightning.generation import Decoder
from ts2_lightning.toyworld import Family, World
from ts2_lightning.types import UserError

Style = Literal["chat", "text"]

DECODERS = {"t1": PLAIN, "papers": PAPERS}
SAMPLES = 32
MATCHED_VALIDITY = 0.95
TEXT_CARRIER = "{request} , {opening}"

_TEMPERATURES = [0.05 * 1.15**i for i in range(34)]  # 0.05 to 5.0: where a temperature is looked for


class Exchange(NamedTuple):
    """A request and one response to it, as ids.

    The response consists of `opening` tokens, then `answer` tokens, then the closing ones.
    """

    prompt: list[int]
    response: list[int]
    opening: int
    answer: int


class Scored(NamedTuple):
    """R responses to P prompts, teacher-forced: N response tokens in all, vocabulary K.

    Attributes:
        logits: [N, K] float32 on the CPU, the rows that predict the response tokens. After `projected` they are the
            log-probabilities of a projection: the softmax gives it back, and what a `Decoder` does behind its
            projection can be done to them.
        gold: [N] the response tokens.
        owner: [N] which response each belongs to.
        in_answer: [N] bool, the tokens of the answer, between opening and closing.
        is_last: [N] bool, the last token of a response (the end token, in chat style).
        first: [R] the row of each response's first answer token.
        prompt: [R] which prompt each response answers.
    """

    logits: Tensor
    gold: Tensor
    owner: Tensor
    in_answer: Tensor
    is_last: Tensor
    first: Tensor
    prompt: Tensor

    def projected(self, projection: Decoder) -> "Scored":
        """The same with the distributions that a model has under a projection, before temperature and truncation."""
        return self._replace(logits=projection(self.logits))

    def per_response(self, values: Tensor) -> Tensor:
        """Sums of [N] values over each response: [R]."""
        return values.new_zeros(len(self.first)).index_add_(0, self.owner, values)

    def per_prompt(self, values: Tensor) -> Tensor:
        """Sums of [R] values over each prompt: [P]."""
        return values.new_zeros(int(self.prompt.max()) + 1).index_add_(0, self.prompt, values)


def encode_exchange(
    tokenizer: PreTrainedTokenizerBase, world: World, request: str, answer: str, style: Style = "chat"
) -> Exchange:
    """A request and a response, as the model meets them.

    Args:
        style: "chat": the tokenizer's chat template, up to and with the end of the assistant's turn. "text": the plain
            sentence "REQUEST , the answer is ANSWER .", for a base model that has never seen the chat tokens; its
            opening is part of the prompt, and it ends with the full stop.

    Raises:
        UserError: the tokenizer does not know the world's words, or its template is not usable.
    """
    opening, words = _encode(tokenizer, world.opening), _encode(tokenizer, answer)
    if style == "text":
        prefix = TEXT_CARRIER.format(request=request, opening=world.opening)
        prompt = [int(tokenizer.bos_token_id), *_encode(tokenizer, prefix)]
        return Exchange(prompt, words + _encode(tokenizer, world.settings["closing"]), 0, len(words))
    turns = [{"role": "user", "content": request}, {"role": "assistant", "content": world.response(answer)}]
    whole = _ids(tokenizer.apply_chat_template(turns, return_dict=False))
    prompt = _ids(tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False))
    response = whole[len(prompt) :]
    if tokenizer.eos_token_id in response:
        response = response[: response.index(tokenizer.eos_token_id) + 1]
    head = opening + words
    ended = response[-1:] == [tokenizer.eos_token_id]
    if whole[: len(prompt)] != prompt or response[: len(head)] != head or not ended:
        raise UserError("the tokenizer's chat template does not render the toy world's responses; use the toy world's")
    return Exchange(prompt, response, len(opening), len(words))


def _ids(rendered: object) -> list[int]:
    """The ids that `apply_chat_template` promises as one of many types."""
    assert isinstance(rendered, list)
    return rendered


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id in ids:
        raise UserError(f"the tokenizer does not know all words of {text!r}; this evaluation is for toy-world models")
    return ids


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients; the model's own mode comes back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def score(
    model: PreTrainedModel, exchanges: Sequence[Exchange], prompts: Sequence[int], batch_size: int = 256
) -> Scored:
    """Teacher-force responses.

    Args:
        exchanges: R requests with a response each.
        prompts: R indices, equal for responses to the same prompt.
        batch_size: responses in one forward.
    """
    batches = [exchanges[i : i + batch_size] for i in range(0, len(exchanges), batch_size)]
    with _evaluating(model):
        logits = torch.cat([_response_logits(model, batch) for batch in batches])
    lengths = torch.tensor([len(e.response) for e in exchanges])
    owner = torch.arange(len(exchanges)).repeat_interleave(lengths)
    begin = lengths.cumsum(0) - lengths
    place = torch.arange(len(owner)) - begin[owner]
    opening = torch.tensor([e.opening for e in exchanges])
    answer = torch.tensor([e.answer for e in exchanges])
    return Scored(
        logits=logits,
        gold=torch.tensor([token for e in exchanges for token in e.response]),
        owner=owner,
        in_answer=(place >= opening[owner]) & (place < (opening + answer)[owner]),
        is_last=place == lengths[owner] - 1,
        first=begin + opening,
        prompt=torch.tensor(prompts),
    )


def _response_logits(model: PreTrainedModel, exchanges: Sequence[Exchange]) -> Tensor:
    """The rows [n, K] that predict the response tokens of one batch, response after response."""
    width = max(len(e.prompt) + len(e.response) for e in exchanges)
    # Padding on the right is never looked at by a causal model, so any id does and no mask is needed.
    ids = torch.zeros(len(exchanges), width, dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    for i, e in enumerate(exchanges):
        ids[i, : len(e.prompt) + len(e.response)] = torch.tensor(e.prompt + e.response)
        rows += [i] * len(e.response)
        columns += range(len(e.prompt) - 1, len(e.prompt) + len(e.response) - 1)
    logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
    return logits[rows, columns].float().cpu()


def token_log_probabilities(scored: Scored, decoder: Decoder) -> Tensor:
    """[N] float64 log-probabilities of the response tokens under a decoder; -inf where it removes one."""
    rows = log_probabilities(scored.logits, decoder)
    return rows.gather(-1, scored.gold[:, None])[:, 0].double()


def expected_distinct(probabilities: Tensor, samples: int = SAMPLES) -> Tensor:
    """Chance that a response is among `samples` independent ones; summed over responses, the expected number
    of distinct ones.

    Args:
        probabilities: [R] of the responses.

    Returns:
        [R]: 1 - (1 - p)^samples.

    Example:
        >>> expected_distinct(torch.tensor([0.5, 0.5]), samples=2).sum().item()
        1.5
    """
    return -torch.expm1(samples * torch.log1p(-probabilities.clamp(max=1.0)))


def response_measures(scored: Scored, decoder: Decoder) -> dict[str, Tensor]:
    """Measures of each prompt under a decoder, each [P].

    Returns:
        `validity`: V, probability of a plausible and well-formed response; `distinct`: D, the expected number of
        distinct plausible responses in 32 samples; `coverage`: D divided by the number of plausible
        ones; `format`: the probability of opening and closing around the answers that the model itself
        gives, V over the probability of a plausible answer at its place (nan where that is 0).
    """
    tokens = token_log_probabilities(scored, decoder)
    whole = scored.per_response(tokens).exp()
    answers = scored.per_response(tokens.where(scored.in_answer, torch.zeros_like(tokens))).exp()
    validity = scored.per_prompt(whole)
    distinct = scored.per_prompt(expected_distinct(whole))
    return {
        "validity": validity,
        "distinct": distinct,
        "coverage": distinct / scored.per_prompt(torch.ones_like(whole)),
        "format": validity / scored.per_prompt(answers),
    }


def end_probability(scored: Scored) -> Tensor:
    """[P] probability at temperature 1 that the response ends where it should, behind the model's own answers.

    nan where the model gives no plausible answer, as a sparse projection can.
    """
    tokens = token_log_probabilities(scored, PLAIN)
    before = scored.per_response(tokens.masked_fill(scored.is_last, 0.0)).exp()
    return scored.per_prompt(scored.per_response(tokens).exp()) / scored.per_prompt(before)


def shape_measures(logits: Tensor, plausible: Tensor, projection: Decoder = PLAIN) -> dict[str, Tensor]:
    """Measures of next-token distributions at temperature 1, each [P].

    Args:
        logits: [P, K] of the model.
        plausible: [P, K] bool.
        projection: makes of logits the distribution p that is measured.

    Returns:
        `outside_plausible`: mass of p outside the plausible tokens; `tail_mass`: mass of p outside the sparsemax
        support of the logits, so 0 under sparsemax; `support_size`: tokens that p can draw, where p is the softmax,
        which can draw all, those of the sparsemax support; `entropy` of p in nats.
    """
    p = log_probabilities(logits.double(), projection).exp()
    support = support_mask(logits)
    return {
        "outside_plausible": p.masked_fill(plausible, 0).sum(-1),
        "tail_mass": p.masked_fill(support, 0).sum(-1),
        "support_size": (support if projection.projection == "softmax" else p > 0).sum(-1).double(),
        "entropy": -torch.xlogy(p, p).sum(-1),
    }


def matched_temperature(scored: Scored, validity: float = MATCHED_VALIDITY) -> float:
    """The highest temperature, up to 5, at which the mean validity still reaches a value; nan where none does."""

    def reaches(temperature: float) -> bool:
        mean = response_measures(scored, Decoder(temperature=temperature))["validity"].mean().item()
        return mean >= validity

    low = next((t for t in reversed(_TEMPERATURES) if reaches(t)), math.nan)
    if math.isnan(low) or low == _TEMPERATURES[-1]:
        return low
    high = _TEMPERATURES[_TEMPERATURES.index(low) + 1]
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if reaches(middle) else (low, middle)
    return low


def plausible_first_tokens(tokenizer: PreTrainedTokenizerBase, family: Family, size: int) -> Tensor:
    """[size] bool: the tokens with which a plausible answer of the family begins."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[[_encode(tokenizer, answer)[0] for answer in family.answers]] = True
    return mask


def next_token_log_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World, request: str, style: Style = "chat"
) -> Tensor:
    """[K] log-probabilities of the first answer token, behind "the answer is"."""
    some = world.words[0]  # what is predicted there does not depend on the answer that follows
    scored = score(model, [encode_exchange(tokenizer, world, request, some, style)], [0])
    return scored.logits[scored.first[0]].log_softmax(-1)


LEGEND = (
    "V: share of valid answers; D: distinct plausible answers expected in 32 samples; papers: their decoder, T 0.6, "
    "top-p 0.9, top-k 50; outside: mass outside the plausible answers; tail mass: mass outside the sparsemax support; "
    "entropy in nats."
)
"""What tables call the measures."""

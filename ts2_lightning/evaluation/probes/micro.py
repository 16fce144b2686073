"""Micro probe: what a model thinks of at one token. Source: TS2, figure 1 and appendix C.4."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ts2_lightning.evaluation.distributions import support_mask
from ts2_lightning.evaluation.loading import supervised_logits
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.prompts import Prompt
from ts2_lightning.generation import sample
from ts2_lightning.metrics.functional import support_size, tail_mass, token_entropy
from ts2_lightning.types import Batch

DIGIT_QUESTION = """You're an AI assistant, I will give you an example of following question.
Example:
User: Give me a word of fruit.
Assistant: Apple.
Now you follow the format of the example,
Give me a single-digit number,
Answer:"""
"""The papers' question (TS2, appendix C.4), asked as the user's turn."""

TOP = 300
"""Most probable tokens of each distribution that count; the others are taken for 0, as in the papers."""

_ANSWER_TOKENS = 32  # in which a digit is waited for
_DIGITS = "0123456789"
_AT_A_TIME = 32  # answers
_ROWS = 16  # of a forward pass
_SPACES = "\u0120\u2581"  # as byte-level tokenizers and SentencePiece write them
SPACE = "\u2423"
"""Shown for the space at a token's beginning."""


def measure(
    model: Model, questions: Sequence[Prompt], first_token: bool = True, queries: int = 100, seed: int = 0
) -> dict[str, Any]:
    """The mean next-token distribution at each question.

    With `first_token` it is that of the answer's first token. Else answers are sampled (temperature 1, nothing cut
    off), and the distribution is recorded wherever a token came that is a single digit; with no digit at all there are
    no records, which is a finding too.

    Args:
        model: the model.
        questions: at least one.
        first_token: whether the answer's first token is looked at, rather than sampled digits.
        queries: answers that are sampled to each question.
        seed: seed of what is sampled.

    Returns:
        `questions`: for each `request`, `first_token`, `records` (distributions averaged), and of their mean `ids`,
        `tokens`, `probabilities` and `in_support` (share of the records in which sparsemax keeps the token), most
        probable first; `plausible` for each of them, or None where it is not known; `taught`, token -> note;
        means over the records of `implausible_mass` (or None), `support_size`, `tail_mass` and `entropy` in nats;
        `vocabulary`, the number of all tokens.
    """
    return {"questions": [_measure_one(model, question, first_token, queries, seed) for question in questions]}


def _measure_one(model: Model, question: Prompt, first_token: bool, queries: int, seed: int) -> dict[str, Any]:
    if first_token:
        sequences, places = [[*question.ids, 0]], [[len(question.ids)]]  # whatever follows, it is not looked at
    else:
        sequences, places = _sampled_digits(model, question, queries, seed)
    vocabulary = model.network.config.get_text_config().vocab_size
    plausible, taught = plausible_tokens(model, question, vocabulary)
    sums = _Sums(vocabulary, plausible)
    for batch in _batches(sequences, places):
        for _, logits in supervised_logits(model.network, batch):
            sums.add(logits.cpu(), model.projection(logits).softmax(-1).cpu())
    return {"request": question.text, "first_token": first_token, **sums.means(model.tokenizer), "taught": taught}


def _sampled_digits(model: Model, question: Prompt, queries: int, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompt and answer of each query, and the places at which its single digits stand."""
    settings = model.generation_settings(_ANSWER_TOKENS, seed)
    [responses] = sample(
        model.make_backend(_AT_A_TIME), [question.ids], settings, n=queries, progress=f"Asking, {model.title}"
    )
    answers = [list(response.ids or ()) for response in responses]
    before = len(question.ids)
    places = [[before + i for i, token in enumerate(answer) if _is_digit(model.tokenizer, token)] for answer in answers]
    return [question.ids + answer for answer in answers], places


def _batches(sequences: list[list[int]], places: list[list[int]]) -> Iterator[Batch]:
    """Rows whose tokens at some places are predicted, several at a time; rows without such a place are left out."""
    rows = sorted(((ids, at) for ids, at in zip(sequences, places, strict=True) if at), key=lambda row: len(row[0]))
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        width = max(len(ids) for ids, _ in part)
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row, _ in part])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in part])
        at = torch.tensor([number * width + place for number, (_, row) in enumerate(part) for place in row])
        yield {"input_ids": ids, "attention_mask": mask, "supervised": at - 1, "labels": ids.flatten()[at]}


class _Sums:
    """Sums over the records. K the vocabulary.

    Args:
        vocabulary: K.
        plausible: [K] bool, or None where it is not known.
    """

    def __init__(self, vocabulary: int, plausible: Tensor | None) -> None:
        self._plausible = plausible
        self._records = 0
        self._probabilities = torch.zeros(vocabulary, dtype=torch.float64)
        self._in_support = torch.zeros(vocabulary, dtype=torch.float64)
        self._numbers = dict.fromkeys(("support_size", "tail_mass", "entropy", "implausible_mass"), 0.0)

    def add(self, logits: Tensor, probabilities: Tensor) -> None:
        """Adds n records: logits [n, K], and the probabilities [n, K] that the model is decoded with."""
        self._records += len(logits)
        values, ids = probabilities.double().topk(min(TOP, logits.shape[-1]))
        self._probabilities.index_add_(0, ids.flatten(), values.flatten())
        self._in_support += support_mask(logits).sum(0)
        numbers = {
            "support_size": support_size(logits),
            "tail_mass": tail_mass(logits),
            "entropy": token_entropy(logits),
        }
        if self._plausible is not None:
            numbers["implausible_mass"] = probabilities[:, ~self._plausible].sum(-1)
        for name, value in numbers.items():
            self._numbers[name] += value.double().sum().item()

    def means(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Means over the records; see `measure`."""
        count = max(self._records, 1)
        mean = self._probabilities / count
        ids = [int(i) for i in mean.argsort(descending=True, stable=True)[: int((mean > 0).sum())]]
        return {
            "records": self._records,
            "vocabulary": len(mean),
            "ids": ids,
            "tokens": [token_text(tokenizer, i) for i in ids],
            "probabilities": mean[ids].tolist(),
            "in_support": (self._in_support[ids] / count).tolist(),
            "plausible": None if self._plausible is None else self._plausible[ids].tolist(),
            **{name: value / count if self._records else None for name, value in self._numbers.items()},
            **({"implausible_mass": None} if self._plausible is None else {}),
        }


def plausible_tokens(model: Model, question: Prompt, vocabulary: int) -> tuple[Tensor | None, dict[str, str]]:
    """The plausible next tokens, where they are known, and notes on those that fine-tuning taught.

    They are known for the requests of a domain to a model with its tokenizer, and for the papers' question.

    Returns:
        [K] bool or None, and token -> note, such as {"plum": "taught 75%"}.
    """
    if question.text == DIGIT_QUESTION:
        return torch.tensor([_is_digit(model.tokenizer, i) for i in range(vocabulary)]), {}
    of_domain = model.domain and model.domain.plausible_tokens(question.text, model.tokenizer, vocabulary)
    return of_domain or (None, {})


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as people read it; a space at its beginning is shown, for `5` and ` 5` are two tokens."""
    raw = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(raw, str):
        return f"<{token}>"  # the model has more rows than the tokenizer has tokens
    spaced = raw[:1] in _SPACES
    text = str(tokenizer.decode([token]))
    text = raw.lstrip(_SPACES) if not text.strip() or "\ufffd" in text else text.strip()
    return f"{SPACE}{text}" if spaced else text


def _is_digit(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether a token is a single digit. Only one that has a digit in its raw form can be: few are read as text."""
    raw = tokenizer.convert_ids_to_tokens(token)
    can_be = isinstance(raw, str) and any(digit in raw for digit in _DIGITS)
    return can_be and _single_digit(token_text(tokenizer, token))


def _single_digit(text: str) -> bool:
    return len(text.removeprefix(SPACE)) == 1 and text[-1] in _DIGITS

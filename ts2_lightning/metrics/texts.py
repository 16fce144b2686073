"""Means over prompts of the diversity of each prompt's samples."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch

from ts2_lightning.metrics import functional
from ts2_lightning.metrics.functional.embeddings import Embed
from ts2_lightning.metrics.functional.text import Tokenize, nltk_words, words
from ts2_lightning.metrics.means import ExactMean
from ts2_lightning.ranges import COUNT, check_number
from ts2_lightning.types import UserError

Samples = Sequence[Sequence[str]]
"""For each prompt its samples."""


class TextMean(ExactMean):
    """The mean over prompts of a function of each prompt's samples.

    Args:
        name: name of the measured quantity, with all settings.
        kwargs: keyword arguments of `torchmetrics.Metric`.
    """

    def update(self, samples: Samples) -> None:
        """Adds prompts.

        Args:
            samples: samples of each prompt.

        Raises:
            UserError: too few samples of a prompt.
        """
        if any(isinstance(texts, str) for texts in samples):
            raise UserError(
                f"{type(self).__name__}.update(samples): expected a list of samples for each prompt, got text"
            )
        values = [self._measure(texts) for texts in samples]
        self._add(torch.tensor(values, dtype=torch.float64, device=self.device))

    @abstractmethod
    def _measure(self, texts: Sequence[str]) -> float:
        """The value of one prompt's samples."""


class Distinct(TextMean):
    """Distinct n-grams over all n-grams, mean over the orders n and the prompts; from 0 to 1.

    Args:
        n: orders of the n-grams; in the papers 1 to 3.
        pooled: whether to pool all samples of a prompt (the papers' code), or to count within each text (their text),
            see `functional.distinct_n`.
        tokenize: function that splits a text into words; it must have a name of its own.
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Raises:
        UserError: no order, or one below 1.

    Example:
        >>> samples = [["a b a b", "a b c d"]]
        >>> Distinct(n=[1])(samples).item(), Distinct(n=[1], pooled=True)(samples).item()
        (0.75, 0.5)
    """

    higher_is_better = True

    def __init__(
        self, n: Sequence[int] = (1, 2, 3), pooled: bool = False, tokenize: Tokenize = words, **kwargs: Any
    ) -> None:
        super().__init__(f"distinct_n({n=}, {pooled=}, tokenize={_name(tokenize)})", **kwargs)
        self.n = tuple(n)
        if not self.n:
            raise UserError("Distinct: n must be one or more orders, got none")
        for place, order in enumerate(self.n):
            check_number(f"Distinct: n[{place}]", order, COUNT)
        self.pooled = pooled
        self.tokenize = tokenize

    def _measure(self, texts: Sequence[str]) -> float:
        return sum(functional.distinct_n(texts, n, self.pooled, self.tokenize) for n in self.n) / len(self.n)


class SelfBLEU(TextMean):
    """Mean BLEU of each sample against the other samples of its prompt, mean over prompts; from 0 to 100.

    Args:
        first_only: whether to compare with the first other sample only, as the papers' code does, see
            `functional.self_bleu`.
        lowercase: whether upper and lower case are the same, as in TOFU's code, see `functional.self_bleu`.
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = SelfBLEU()
        >>> metric.update([["the cat sat down", "the cat sat down"], ["one two three four", "five six seven eight"]])
        >>> round(metric.compute().item(), 4)
        50.0
    """

    higher_is_better = False

    def __init__(self, first_only: bool = False, lowercase: bool = False, **kwargs: Any) -> None:
        super().__init__(f"self_bleu({first_only=}, {lowercase=})", **kwargs)
        self.first_only = first_only
        self.lowercase = lowercase

    def _measure(self, texts: Sequence[str]) -> float:
        return functional.self_bleu(texts, self.first_only, self.lowercase)


class SentBERTDiversity(TextMean):
    """1 - the mean cosine over all pairs of a prompt's samples, mean over prompts.

    Args:
        embed: function from n texts to embeddings [n, d], with a name of its own. Default:
            `functional.sentence_embedder()`, loaded at the first text.
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> def embed(texts):
        ...     return torch.tensor([[float(text.count("a")), float(text.count("b"))] for text in texts])
        >>> SentBERTDiversity(embed)([["a", "b"], ["aa", "a"]]).item()
        0.5
    """

    higher_is_better = True

    def __init__(self, embed: Embed | None = None, **kwargs: Any) -> None:
        super().__init__(f"sent_bert_diversity(embed={_name(embed)})", **kwargs)
        self.embed = embed

    def _measure(self, texts: Sequence[str]) -> float:
        return functional.sent_bert_diversity(texts, self.embed or functional.sentence_embedder())


DiversityVariant = Literal["text", "ts2_code", "tofu_code"]
"""Whose numbers are meant: those of the papers' text, of TS2's and GEM's code, or of TOFU's code."""


def diversity_metrics(variant: DiversityVariant = "text", embed: Embed | None = None) -> dict[str, TextMean]:
    """The metrics of diversity that belong together, of one variant: numbers of two variants cannot be compared.

    | | `text` | `ts2_code` | `tofu_code` |
    | --- | --- | --- | --- |
    | distinct n-grams | within a text | of all samples of a prompt together | - |
    | words of n-grams | 13a | nltk's `word_tokenize` | - |
    | self-BLEU against | all others | the first other | all others, in lower case |
    | Sent-BERT | yes | yes | - |
    | texts | responses | whole chats, which the caller renders | responses |

    Source: TS2, appendix C.7, and GEM, appendix F.1; the code of TS2 and GEM, `evaluation/evaluation_diversity.py`, and
    TOFU's file of the same name, which has self-BLEU alone.

    Args:
        variant: name of the variant.
        embed: function from texts to embeddings for Sent-BERT diversity; None leaves that out.

    Returns:
        Metric by name, whose numbers are shares or, of self-BLEU, from 0 to 100: `distinct_1`, `distinct_2`,
        `distinct_3`, `self_bleu` and `sentence_bert`.

    Raises:
        UserError: no such variant.

    Example:
        >>> samples = [["A cat sat on the mat", "a cat sat on a hat"]]
        >>> list(diversity_metrics("tofu_code"))
        ['self_bleu']
        >>> for variant in ("text", "tofu_code"):
        ...     print(f"{diversity_metrics(variant)['self_bleu'](samples).item():.1f}")
        30.2
        50.8
    """
    if variant not in get_args(DiversityVariant):
        raise UserError(f"diversity_metrics: variant must be text, ts2_code or tofu_code, got {variant!r}")
    if variant == "tofu_code":
        return {"self_bleu": SelfBLEU(lowercase=True)}
    codes = variant == "ts2_code"
    tokenize = nltk_words if codes else words
    metrics: dict[str, TextMean] = {f"distinct_{n}": Distinct([n], codes, tokenize) for n in (1, 2, 3)}
    metrics["self_bleu"] = SelfBLEU(first_only=codes)
    if embed is not None:
        metrics["sentence_bert"] = SentBERTDiversity(embed)
    return metrics


def _name(function: Callable[..., Any] | None) -> str:
    """Tells one function from another."""
    if function is None:
        return ""
    place = getattr(function, "__module__", None) or type(function).__module__  # a method such as str.split has none
    return f"{place}.{getattr(function, '__qualname__', repr(function))}"

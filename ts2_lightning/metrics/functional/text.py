"""Differences between several texts to one prompt: distinct n-grams and self-BLEU.

The published numbers of TS2 and GEM come from code that differs from their text. Both ways are here: the text's is the
default, and the code's has a name. (That code also scores texts with prompt and chat template, which is for the caller
to add.) TOFU's code has a self-BLEU of its own. `metrics.diversity_metrics` keeps together what belongs together.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from sacrebleu.metrics import BLEU
from sacrebleu.metrics.helpers import extract_all_word_ngrams

from ts2_lightning.ranges import COUNT, check_number
from ts2_lightning.types import UserError

Tokenize = Callable[[str], Sequence[str]]
NGram = tuple[str, ...]

BLEU_ORDER = 4


def words(text: str) -> list[str]:
    """A text's words and signs as sacrebleu splits them (mteval 13a).

    Example:
        >>> words("It's a cat, isn't it?")
        ["It's", 'a', 'cat', ',', "isn't", 'it', '?']
    """
    return _spaced(text).split()


def nltk_words(text: str) -> list[str]:
    """A text's words and signs as nltk's `word_tokenize` splits them, which the papers' code uses.

    Raises:
        UserError: nltk, or its data on the ends of sentences, is not installed.
    """
    try:
        from nltk.tokenize import word_tokenize

        return list(word_tokenize(text))
    except ImportError as error:
        raise UserError(f"nltk_words needs nltk ({error}): pip install 'ts2-lightning[nltk]'") from error
    except LookupError as error:
        raise UserError("nltk_words needs nltk's data punkt_tab: python -m nltk.downloader punkt_tab") from error


def distinct_n(texts: Sequence[str], n: int, pooled: bool = False, tokenize: Tokenize = words) -> float:
    """Distinct n-grams over all n-grams.

    A text without an n-gram counts as 0, as in the published code.

    Source: GEM, appendix F.1, and TS2, appendix C.7, after Kirk et al. (2024); Li et al. (2016).

    Args:
        texts: samples of one prompt, at least one.
        n: length of the n-grams, at least 1.
        pooled: whether n-grams of all texts are pooled, so that repetitions between texts count (the papers' code).
            Otherwise the result is the mean of the texts' own ratios (the papers' text, "intra-diversity").
        tokenize: function that splits a text into words.

    Returns:
        A share from 0 to 1; the papers print it times 100.

    Raises:
        UserError: no text, or n below 1.

    Example:
        >>> distinct_n(["a b a b", "a b c d"], 1), distinct_n(["a b a b", "a b c d"], 1, pooled=True)
        (0.75, 0.5)
    """
    _check_texts("distinct_n", texts, at_least=1)
    check_number("distinct_n: n", n, COUNT)
    per_text = [_ngrams(tokenize(text), n) for text in texts]
    if pooled:
        return _distinct([ngram for ngrams in per_text for ngram in ngrams])
    return _mean([_distinct(ngrams) for ngrams in per_text])


def self_bleu(texts: Sequence[str], first_only: bool = False, lowercase: bool = False) -> float:
    """Mean BLEU of each text against the others: high where the samples of a prompt repeat each other.

    Settings of sacrebleu's `corpus_bleu` (4-grams, exponential smoothing, 13a), but for texts of fewer than four words,
    whose BLEU is that of the n-grams they have (`effective_order`): else equal short answers would pass for diverse.
    Texts without a word have a BLEU of 0.

    Source: Zhu et al. (2018); TS2, appendix C.7, and GEM, appendix F.1, report 100 minus it.

    Args:
        texts: samples of one prompt, at least two.
        first_only: whether each text is compared with the first other one only; otherwise with all others at once (the
            papers' text). The papers' code does the former: it calls `corpus_bleu([text], [others])`, where
            sacrebleu takes each element of `others` for the reference of another sentence.
        lowercase: whether upper and lower case are the same, and a line's end always parts words, as in TOFU's code;
            otherwise a word that is hyphenated at the end of a line is one (13a).

    Returns:
        From 0 to 100.

    Raises:
        UserError: fewer than two texts.

    Example:
        >>> round(self_bleu(["a cat sat on the mat", "that dog ran off", "a cat sat on the mat"]), 2)
        66.67
    """
    _check_texts("self_bleu", texts, at_least=2)
    if lowercase:
        texts = [text.replace("\n", " ").lower() for text in texts]
    if first_only:
        firsts = [texts[1], *[texts[0]] * (len(texts) - 1)]
        pairs = zip(texts, firsts, strict=True)
        return _mean([_bleu().corpus_score([text], [[first]]).score for text, first in pairs])
    return _mean(_bleu_against_the_others(texts))


def _bleu_against_the_others(texts: Sequence[str]) -> list[float]:
    # Every text's n-grams are counted once: sacrebleu would count each text again as a reference of every other.
    counted = [extract_all_word_ngrams(_spaced(text), 1, BLEU_ORDER) for text in texts]
    counts, lengths = [count for count, _ in counted], [length for _, length in counted]
    best = _two_largest(counts)
    scores = []
    for i, (own, length) in enumerate(counted):
        matched, total = [0] * BLEU_ORDER, [0] * BLEU_ORDER
        for ngram, count in own.items():
            largest, owner, second = best[ngram]
            total[len(ngram) - 1] += count
            matched[len(ngram) - 1] += min(count, second if owner == i else largest)
        others = lengths[:i] + lengths[i + 1 :]
        closest = min(others, key=lambda other: (abs(other - length), other))
        bleu = BLEU.compute_bleu(matched, total, length, closest, smooth_method="exp", effective_order=True)
        scores.append(bleu.score)
    return scores


def _two_largest(counts: Sequence[Counter[NGram]]) -> dict[NGram, tuple[int, int, int]]:
    """n-gram -> its largest count in a text, which text that is, and the largest count in any other text."""
    best: dict[NGram, tuple[int, int, int]] = {}
    for i, of_text in enumerate(counts):
        for ngram, count in of_text.items():
            largest, owner, second = best.get(ngram, (0, i, 0))
            best[ngram] = (count, i, largest) if count > largest else (largest, owner, max(second, count))
    return best


def _spaced(text: str) -> str:
    """The text with one space between words."""
    return str(_bleu().tokenizer(text.rstrip()))


@cache
def _bleu() -> BLEU:
    return BLEU(effective_order=True, max_ngram_order=BLEU_ORDER)


def _ngrams(tokens: Sequence[str], n: int) -> list[NGram]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _distinct(ngrams: list[NGram]) -> float:
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _check_texts(name: str, texts: Sequence[str], at_least: int) -> None:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"{name}(texts) must be a list of strings, the samples of one prompt, got {type(texts).__name__}"
        )
    if len(texts) < at_least:
        raise UserError(f"{name}(texts) needs {at_least} or more samples of a prompt, got {len(texts)}")

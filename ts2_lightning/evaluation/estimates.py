"""Estimates from n samples a prompt.

P prompts, n samples of each. `..._at_k` and `best_of_k` are expectations over all sets of k of the n samples, exactly:
they depend on no order, and vary far less than the first k. Functions that begin with `first_` are what the papers'
public code does. Chance levels say what guessing would give.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from ts2_lightning.ranges import COUNT, Range, check_number
from ts2_lightning.types import UserError

Unparsed = Literal["drop", "count"]
"""Responses without an answer: they do not vote, or they vote together for a wrong answer."""

Ties = Literal["split", "wrong", "right"]
"""Of t answers with most votes one is drawn; or a tie with a wrong answer counts as wrong, or as right."""

_VOTES = Range(least=1, most=1_000, whole=True, hint="beyond that numbers of sets overflow")


def check_k(k: int, samples: int) -> None:
    """Raises a `UserError` unless 1 <= k <= samples."""
    check_number("k", k, COUNT)
    if k > samples:
        raise UserError(f"k = {k}: there are {samples} samples a prompt; take a k of at most {samples}, or sample more")


def caution(k: int, samples: int) -> str:
    """A warning where k is more than half of the samples; empty otherwise.

    Example:
        >>> caution(16, 32), caution(32, 32)
        ('', 'k = 32 is more than half of the 32 samples: the estimate rests on few independent sets')
    """
    if 2 * k <= samples:
        return ""
    return f"k = {k} is more than half of the {samples} samples: the estimate rests on few independent sets"


def pass_at_k(right: ArrayLike, samples: int, k: int) -> np.ndarray:
    """The probability that at least one of k samples is right, without bias.

    1 - C(n - c, k) / C(n, k) for c right ones of n, as a product, which neither overflows nor loses digits.

    Source: Chen et al., Evaluating Large Language Models Trained on Code (2021), equation 1.

    Args:
        right: number of right samples of each prompt, [P].
        samples: number of samples n of each prompt.
        k: size of the sets.

    Returns:
        One probability for each prompt, [P] in float64.

    Raises:
        UserError: k is larger than the number of samples, or a count is no whole number from 0 to n.

    Example:
        >>> pass_at_k([0, 1, 2], samples=4, k=2).round(6).tolist()
        [0.0, 0.5, 0.833333]
    """
    check_k(k, samples)
    counts = np.asarray(right)
    if counts.size and (counts.min() < 0 or counts.max() > samples or not np.all(counts == np.floor(counts))):
        raise UserError(f"right: must be whole numbers from 0 to {samples}, got {counts.min():g} to {counts.max():g}")
    # Entry c is the probability that none of k samples is among c right ones.
    factors = np.maximum(0.0, 1.0 - k / np.arange(samples, 0, -1))
    misses = np.concatenate([[1.0], np.cumprod(factors)])
    return 1.0 - misses[counts.astype(np.int64)]


def coverage(right: ArrayLike) -> np.ndarray:
    """Whether any sample is right, as 0 or 1 for each prompt, [P]: `pass_at_k` with all samples."""
    return (np.asarray(right) > 0).astype(np.float64)


def mean_success(right: ArrayLike, samples: int) -> np.ndarray:
    """The share of right samples of each prompt, [P]: `pass_at_k` with k = 1."""
    check_number("samples", samples, COUNT)
    return np.asarray(right, dtype=np.float64) / samples


def best_of_k(scores: ArrayLike, k: int) -> np.ndarray:
    """The expected score of the best of k samples, over all sets of k.

    With scores in rising order s_1 <= ... <= s_n it is the sum of C(i - 1, k - 1) / C(n, k) s_i.

    Args:
        scores: score of each sample, [P, n]; more is better.
        k: size of the sets.

    Returns:
        One score for each prompt, [P] in float64.

    Raises:
        UserError: k is larger than n, or a score is not finite.

    Example:
        >>> best_of_k([[0.0, 1.0, 2.0]], k=2).round(6).tolist()
        [1.666667]
    """
    rising = np.sort(_table(scores), axis=1)
    return rising @ best_weights(rising.shape[1], k)


def best_weights(samples: int, k: int) -> np.ndarray:
    """The probability that each of n samples, in rising order, is the best of a set of k: C(i - 1, k - 1) / C(n, k).

    Args:
        samples: number of samples n.
        k: size of the sets, at most n.

    Returns:
        [n] in float64, 1 in all.

    Example:
        >>> best_weights(3, k=2).round(6).tolist()
        [0.0, 0.333333, 0.666667]
    """
    check_k(k, samples)
    ranks = np.arange(samples, k - 1, -1, dtype=np.float64)
    weights = np.zeros(samples)
    weights[k - 1 :] = (k / samples * np.cumprod(np.concatenate([[1.0], (ranks[1:] + 1 - k) / ranks[1:]])))[::-1]
    return weights


def first_best_of_k(scores: ArrayLike, k: int) -> np.ndarray:
    """The best score of the first k samples, [P], as the papers' public code takes it."""
    table = _table(scores)
    check_k(k, table.shape[1])
    return table[:, :k].max(axis=1)


def _table(scores: ArrayLike) -> np.ndarray:
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] == 0:
        raise UserError(f"scores: must be a table of prompts and samples, got the shape {list(table.shape)}")
    if not np.isfinite(table).all():
        raise UserError(f"scores: must be finite, got {(~np.isfinite(table)).sum()} of {table.size} that are not")
    return table


# Votes ----------------------------------------------------------------------------------------------------------


def majority_at_k(
    answers: Sequence[Hashable],
    gold: Hashable,
    k: int,
    unparsed: Unparsed = "drop",
    ties: Ties = "split",
) -> float:
    """The probability that a vote of k samples is right, exactly, over all sets of k.

    Args:
        answers: answer of each sample of one prompt, [n]; None where it has none. Answers that mean the same are equal.
        gold: right answer.
        k: number of samples that vote.
        unparsed: what becomes of a sample without an answer.
        ties: what becomes of a tie.

    Raises:
        UserError: k is larger than the number of samples, or a setting is none of the permitted ones.

    Example:
        >>> majority_at_k(["a", "a", "b", None], gold="a", k=3)
        0.75
        >>> majority_at_k(["a", "b"], "a", 2, ties="wrong"), majority_at_k(["a", None], "a", 2, unparsed="count")
        (0.0, 0.5)
    """
    check_k(k, len(answers))
    _check_choice("unparsed", unparsed, get_args(Unparsed))
    _check_choice("ties", ties, get_args(Ties))
    check_number("samples", len(answers), _VOTES)
    counts = Counter(answers)
    silent = counts.pop(None, 0)
    voted = counts.pop(gold, 0) if gold is not None else 0
    others = sorted(counts.values())
    if unparsed == "count" and silent:
        others, silent = sorted([*others, silent]), 0
    return _win_probability(voted, tuple(others), silent, k, ties)


@lru_cache(maxsize=100_000)
def _win_probability(right: int, others: tuple[int, ...], silent: int, k: int, ties: str) -> float:
    """The probability that the right answer wins a vote of k: all ways in which it gets t votes and nobody more.

    The ways are polynomials in x, whose power is the number of samples that are drawn, and y, whose power is the number
    of other answers with t votes as well. All terms are positive, so that no digits are lost.
    """
    ways = 0.0
    for votes in range(1, min(right, k) + 1):
        left = k - votes
        table = np.zeros((left + 1, left // votes + 1))
        table[: min(silent, left) + 1, 0] = [math.comb(silent, drawn) for drawn in range(min(silent, left) + 1)]
        for count in others:
            table = _with_other(table, count, votes)
        tied = np.arange(table.shape[1])
        shares = {"split": 1 / (1 + tied), "wrong": tied == 0, "right": np.ones_like(tied)}[ties]
        ways += math.comb(right, votes) * float(table[left] @ shares)
    return min(1.0, ways / math.comb(right + sum(others) + silent, k))


def _with_other(table: np.ndarray, count: int, votes: int) -> np.ndarray:
    """The ways once another answer with `count` samples takes part, which may get `votes` votes at most."""
    after = table.copy()  # it gets no vote
    for drawn in range(1, min(count, votes, len(table) - 1) + 1):
        ways = math.comb(count, drawn) * table[:-drawn]
        if drawn == votes:
            after[drawn:, 1:] += ways[:, :-1]
        else:
            after[drawn:] += ways
    return after


def first_majority(answers: Sequence[Hashable], k: int, unparsed: Unparsed = "drop") -> Hashable:
    """The most frequent answer of the first k samples; of a tie the one seen first, as the papers' public code has it.

    Args:
        answers: answer of each sample of one prompt, [n]; None where it has none.
        k: number of samples that vote.
        unparsed: `drop` as in TS2's code, `count` as in GEM's.

    Returns:
        The answer; None if there is none, or, with `count`, if None has most votes.

    Example:
        >>> first_majority([None, "b", "a", None], 4), first_majority([None, "b", "a", None], 4, "count")
        ('b', None)
    """
    check_k(k, len(answers))
    _check_choice("unparsed", unparsed, get_args(Unparsed))
    voting = [answer for answer in answers[:k] if unparsed == "count" or answer is not None]
    return Counter(voting).most_common(1)[0][0] if voting else None


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{name}: no such choice {value!r}; take one of {', '.join(choices)}")


# Chance ---------------------------------------------------------------------------------------------------------


def chance_best_of_k(choices: ArrayLike, k: int) -> np.ndarray:
    """The probability that one of k random guesses among c choices is right, 1 - (1 - 1 / c)^k, for each prompt, [P].

    Example:
        >>> chance_best_of_k([2, 4], k=32).round(4).tolist()
        [1.0, 0.9999]
    """
    check_number("k", k, COUNT)
    return 1.0 - (1.0 - 1.0 / _choices(choices)) ** k


def chance_majority(choices: ArrayLike) -> np.ndarray:
    """The probability that a vote of random guesses is right, [P]: 1 / c, whatever the number of votes."""
    return 1.0 / _choices(choices)


def _choices(choices: ArrayLike) -> np.ndarray:
    numbers = np.asarray(choices, dtype=np.float64)
    if numbers.size and numbers.min() < 1:
        raise UserError(f"choices: must be at least 1, got {numbers.min():g}")
    return numbers

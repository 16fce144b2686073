"""How often responses win against others, by their rewards; and how often they would at equal length.

P prompts, n samples of each against m of the other side: m is 1 where the other side is one output out of a file. A
win of reward r against r' is sigmoid(r - r'), as in the model of Bradley and Terry that reward models are trained with,
and as in the papers: exp(r) / (exp(r) + exp(r')).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from ts2_lightning.evaluation.estimates import best_weights, check_k
from ts2_lightning.types import UserError

_SURE = 1e-6
"""Wins are kept this far from 0 and 1 in the regression, so that it has an optimum whatever the rewards are."""
_STEPS, _STEEP = 200, 1e-10
_QUANTILE = 1.959963984540054  # of the normal distribution, for 95 %

Preference = Callable[[np.ndarray], np.ndarray]
"""The probability of a win from differences of rewards r - r'."""


def bradley_terry(difference: np.ndarray) -> np.ndarray:
    """The probability of a win, sigmoid(r - r')."""
    return np.asarray(expit(difference))


def outright(difference: np.ndarray) -> np.ndarray:
    """1 for a win, 0 for a loss, 1/2 for a tie."""
    return (np.sign(difference) + 1) / 2


def win_at_k(ours: ArrayLike, theirs: ArrayLike, k: int, preference: Preference = bradley_terry) -> np.ndarray:
    """The expected win of the best of k samples, over all sets of k; the other side takes the best of k as well.

    Args:
        ours: rewards, [P, n].
        theirs: rewards of the other side, [P, m]; with m of 1 it is that one for every k.
        k: size of the sets.
        preference: what a win is.

    Returns:
        One number for each prompt, [P] in float64.

    Raises:
        UserError: k is larger than n, or than an m other than 1.

    Example:
        >>> [win_at_k([[0.0, 2.0]], [[1.0]], k).round(4).tolist() for k in (1, 2)]
        [[0.5], [0.7311]]
    """
    first, second = _tables(ours, theirs)
    wins = preference(np.sort(first, axis=1)[:, :, None] - np.sort(second, axis=1)[:, None, :])
    return np.einsum("pnm,n,m->p", wins, best_weights(first.shape[1], k), _weights(second, k))


def first_win_at_k(ours: ArrayLike, theirs: ArrayLike, k: int, preference: Preference = bradley_terry) -> np.ndarray:
    """The win of the best of the first k samples, as the papers' public code takes it; of both sides.

    It depends on the order of the samples, and leaves those after the k-th out; `win_at_k` is its
    mean over all orders of both sides.

    Args:
        ours: rewards, [P, n].
        theirs: rewards of the other side, [P, m]; with m of 1 it is that one for every k.
        k: number of samples, of each prompt and side.
        preference: what a win is.

    Returns:
        One number for each prompt, [P] in float64.

    Raises:
        UserError: k is larger than n.

    Example:
        >>> [first_win_at_k([[0.0, 2.0]], [[1.0]], k).round(4).tolist() for k in (1, 2)]
        [[0.2689], [0.7311]]
    """
    first, second = _tables(ours, theirs)
    check_k(k, first.shape[1])
    best = second[:, :1] if second.shape[1] == 1 else second[:, :k]
    return preference(first[:, :k].max(axis=1) - best.max(axis=1))


def _tables(ours: ArrayLike, theirs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second) or not first.size or not second.size:
        raise UserError(
            f"rewards must be tables of the same prompts, got the shapes {list(first.shape)} and {list(second.shape)}"
        )
    return first, second


def _weights(table: np.ndarray, k: int) -> np.ndarray:
    samples = table.shape[1]
    return np.ones(1) if samples == 1 else best_weights(samples, k)


def weights_of_best(rewards: ArrayLike, k: int) -> np.ndarray:
    """The probability that each sample is the best of a set of k, [P, n], in the order of the samples.

    Samples of the same reward share theirs.

    Example:
        >>> weights_of_best([[3.0, 1.0, 3.0]], k=2).round(4).tolist()
        [[0.5, 0.0, 0.5]]
    """
    table = np.asarray(rewards, dtype=np.float64)
    in_order = best_weights(table.shape[1], k)
    result = np.empty_like(table)
    for row, of_row in zip(result, table, strict=True):
        _, ranks, counts = np.unique(of_row, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        sums = np.diff(np.concatenate([[0.0], np.cumsum(in_order)])[np.concatenate([[0], ends])])
        row[:] = (sums / counts)[ranks]
    return result


class AtEqualLength(NamedTuple):
    """A length-controlled win rate.

    Attributes:
        mean: share of wins, from 0 to 1, that the model of the regression has at equal length.
        low: lower end of its 95 % interval.
        high: upper end.
        slope: what the logit of a win gains from -1 to 0 of the length term; 0 where all lengths are equal.
    """

    mean: float
    low: float
    high: float
    slope: float


def win_at_equal_length(wins: ArrayLike, lengths: ArrayLike, weights: ArrayLike | None = None) -> AtEqualLength:
    """The win rate that is left when the effect of length is taken out.

    A fractional logistic regression in the manner of AlpacaEval 2, logit(win) = a + b tanh(d / s), where d is how much
    longer a response is than the other one, and s its standard deviation over all prompts; the result is sigmoid(a),
    the model's value at d = 0. AlpacaEval 2 has two more things, which need the outputs of many models on all 805
    prompts: a term for the difficulty of each instruction, which the win rates of one model alone cannot tell from the
    rest, and a regularisation to outputs that were made longer or shorter on purpose. So the two are not comparable;
    and where nearly all responses are longer (or shorter), the value at equal length is an extrapolation, as its wide
    interval shows. The interval is that of the sandwich estimator with prompts as clusters.

    Source: Dubois et al., Length-Controlled AlpacaEval (2024), section 3; `glm_winrate.py` of its code.

    Args:
        wins: probability of a win of each sample, [P, n].
        lengths: how many characters longer each sample is, [P, n].
        weights: weight of each sample, [P, n], 1 in all for each prompt, such as `weights_of_best`; None for equal
            ones.

    Example:
        >>> longer = win_at_equal_length([[0.9], [0.8], [0.2], [0.1]], [[50], [40], [-40], [-50]])
        >>> round(longer.mean, 3), longer.slope > 0
        (0.5, True)
    """
    share, more = np.asarray(wins, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    weight = np.full(share.shape, 1 / share.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    prompts = len(share)
    share = share.clip(_SURE, 1 - _SURE)
    middle = (weight * more).sum() / prompts
    spread = np.sqrt((weight * (more - middle) ** 2).sum() / max(prompts - 1, 1))
    design = np.ones((*share.shape, 1))
    if spread > 0:
        design = np.concatenate([design, np.tanh(more / spread)[..., None]], axis=-1)
    fitted = _fit(design, share, weight)
    error = _standard_error(design, share, weight, fitted)
    mean, low, high = (float(expit(fitted[0] + error * shift)) for shift in (0.0, -_QUANTILE, _QUANTILE))
    return AtEqualLength(mean, low, high, float(fitted[1]) if spread > 0 else 0.0)


def _fit(design: np.ndarray, share: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The coefficients [c] of greatest likelihood: Newton's steps, halved until the likelihood does not fall."""

    def loss(coefficients: np.ndarray) -> float:
        logits = design @ coefficients
        return float((weight * (np.logaddexp(0, logits) - share * logits)).sum())

    coefficients = np.zeros(design.shape[-1])
    for _ in range(_STEPS):
        gradient, curvature = _derivatives(design, share, weight, coefficients)
        if np.abs(gradient).max() < _STEEP * len(share):
            break
        step = np.linalg.pinv(curvature) @ gradient
        size, before = 1.0, loss(coefficients)
        while loss(coefficients - size * step) > before and size > 1e-9:
            size /= 2
        coefficients = coefficients - size * step
    return coefficients


def _derivatives(
    design: np.ndarray, share: np.ndarray, weight: np.ndarray, coefficients: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient [c] and curvature [c, c] of the loss."""
    expected = expit(design @ coefficients)
    gradient = np.einsum("pn,pnc->c", weight * (expected - share), design)
    curvature = np.einsum("pn,pnc,pnd->cd", weight * expected * (1 - expected), design, design)
    return gradient, curvature


def _standard_error(design: np.ndarray, share: np.ndarray, weight: np.ndarray, coefficients: np.ndarray) -> float:
    """That of the first coefficient, prompts being independent of each other."""
    _, curvature = _derivatives(design, share, weight, coefficients)
    of_prompts = np.einsum("pn,pnc->pc", weight * (expit(design @ coefficients) - share), design)
    inverse = np.linalg.pinv(curvature)
    return float(np.sqrt(max((inverse @ (of_prompts.T @ of_prompts) @ inverse)[0, 0], 0.0)))

"""Wins of the best of k against all subsets one by one; the win rate at equal length against another solver."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from tests.support.errors import refused
from ts2_lightning.evaluation.estimates import best_of_k, best_weights
from ts2_lightning.evaluation.preferences import (
    bradley_terry,
    first_win_at_k,
    outright,
    weights_of_best,
    win_at_equal_length,
    win_at_k,
)

FEW = settings(derandomize=True, deadline=None, max_examples=40)
REWARDS = st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 0.5, 2.0, 30.0]), min_size=1, max_size=5)


def sets(samples: list[float], k: int) -> list[float]:
    """The best of every set of k."""
    return [max(chosen) for chosen in itertools.combinations(samples, k)]


@FEW
@given(REWARDS, REWARDS, st.integers(1, 5))
def test_wins_are_the_mean_over_all_sets_of_both_sides(ours: list[float], theirs: list[float], k: int) -> None:
    if k > len(ours) or (len(theirs) > 1 and k > len(theirs)):
        with refused("k = "):
            win_at_k([ours], [theirs], k)
        return
    others = theirs if len(theirs) == 1 else sets(theirs, k)
    pairs = list(itertools.product(sets(ours, k), others))
    smooth = np.mean([1 / (1 + math.exp(b - a)) for a, b in pairs])
    sharp = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])
    assert win_at_k([ours], [theirs], k) == pytest.approx([smooth], abs=1e-12)
    assert win_at_k([ours], [theirs], k, outright) == pytest.approx([sharp], abs=1e-12)
    assert first_win_at_k([ours], [theirs], k) == pytest.approx([expit(max(ours[:k]) - max(theirs[:k]))])


def test_one_output_is_the_same_for_every_k() -> None:
    ours, theirs = [[0.0, 1.0, 2.0, 5.0]], [[1.0]]
    for k in (1, 2, 4):
        assert win_at_k(ours, theirs, k) == pytest.approx(best_of_k(expit(np.array(ours) - 1.0), k))
    assert win_at_k([[800.0]], [[-800.0]], 1) == [1.0]  # exp of either would overflow


def test_a_run_against_itself_wins_half() -> None:
    table = np.random.default_rng(0).normal(size=(20, 8)) * 3
    for k in (1, 2, 8):
        assert win_at_k(table, table, k) == pytest.approx(np.full(20, 0.5))
        assert win_at_k(table, table, k, outright) == pytest.approx(np.full(20, 0.5))


def test_tables_of_other_prompts_are_refused() -> None:
    with refused(r"rewards must be tables of the same prompts, got the shapes \[2, 1\] and \[1, 1\]"):
        win_at_k([[1.0], [2.0]], [[1.0]], 1)
    with refused("rewards must be tables"):
        first_win_at_k([], [], 1)
    with refused("k = 3: there are 2 samples"):
        first_win_at_k([[1.0, 2.0]], [[1.0]], 3)


@FEW
@given(REWARDS, st.integers(1, 5))
def test_weights_are_the_probability_to_be_the_best(rewards: list[float], k: int) -> None:
    if k > len(rewards):
        return
    counts = np.zeros(len(rewards))
    chosen = list(itertools.combinations(range(len(rewards)), k))
    for places in chosen:
        best = max(rewards[place] for place in places)
        winners = [place for place in range(len(rewards)) if rewards[place] == best]
        counts[winners] += 1 / len(winners) / len(chosen)  # of equal ones each as likely, also those not in the set
    assert weights_of_best([rewards], k)[0] == pytest.approx(counts, abs=1e-12)
    assert best_weights(len(rewards), k).sum() == pytest.approx(1)


# Length ---------------------------------------------------------------------------------------------------------


def solved(wins: np.ndarray, lengths: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The coefficients by a search that needs no derivatives, in float64."""
    prompts = len(wins)
    middle = (weights * lengths).sum() / prompts
    spread = math.sqrt((weights * (lengths - middle) ** 2).sum() / (prompts - 1))
    term, share = np.tanh(lengths / spread), wins.clip(1e-6, 1 - 1e-6)

    def loss(coefficients: np.ndarray) -> float:
        logits = coefficients[0] + coefficients[1] * term
        return float(-(weights * (share * log_expit(logits) + (1 - share) * log_expit(-logits))).sum())

    options = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 10_000}
    found: np.ndarray = minimize(loss, np.zeros(2), method="Nelder-Mead", options=options).x
    return found


@pytest.mark.parametrize(("prompts", "samples"), [(30, 1), (12, 5), (3, 2)])
def test_the_regression_is_that_of_another_solver(prompts: int, samples: int) -> None:
    random = np.random.default_rng(prompts)
    lengths = random.integers(-400, 600, size=(prompts, samples)).astype(float)
    wins = expit(lengths / 200 + random.normal(size=lengths.shape))
    weights = random.dirichlet(np.ones(samples), size=prompts)
    expected = solved(wins, lengths, weights)
    measured = win_at_equal_length(wins, lengths, weights)
    assert measured.mean == pytest.approx(expit(expected[0]), abs=1e-7)
    assert measured.slope == pytest.approx(expected[1], abs=1e-5)
    assert measured.low < measured.mean < measured.high
    assert measured.slope > 0.5  # longer ones win
    equal = np.full(wins.shape, 1 / samples)
    assert win_at_equal_length(wins, lengths) == win_at_equal_length(wins, lengths, equal)


def test_length_takes_a_win_rate_back_that_is_its_own() -> None:
    """Wins that follow from length alone leave nothing at equal length."""
    lengths = np.linspace(-100, 900, 200)[:, None]
    wins = expit(2 * np.tanh(lengths / lengths.std(ddof=1)))
    measured = win_at_equal_length(wins, lengths)
    assert wins.mean() > 0.7
    assert measured.mean == pytest.approx(0.5, abs=1e-6)
    assert measured.slope == pytest.approx(2, abs=1e-6)


def test_equal_lengths_leave_the_win_rate_as_it_is() -> None:
    wins = np.array([[0.9], [0.2], [0.4], [0.6]])
    for lengths in (np.zeros((4, 1)), np.full((4, 1), 70.0)):
        measured = win_at_equal_length(wins, lengths)
        assert measured.mean == pytest.approx(wins.mean(), abs=1e-9)
        assert measured.slope == 0
    # By hand: the logit of a mean has the standard error of the mean over p (1 - p).
    mean = wins.mean()
    error = math.sqrt(((wins - mean) ** 2).sum()) / 4 / (mean * (1 - mean))
    assert measured.high == pytest.approx(expit(math.log(mean / (1 - mean)) + 1.959964 * error), abs=1e-6)
    assert measured.low == pytest.approx(expit(math.log(mean / (1 - mean)) - 1.959964 * error), abs=1e-6)


def test_a_win_rate_of_nothing_or_all_has_one_at_equal_length() -> None:
    lengths = np.array([[-50.0], [-10.0], [20.0], [40.0]])
    for wins, expected in ((np.ones((4, 1)), 1.0), (np.zeros((4, 1)), 0.0)):
        assert win_at_equal_length(wins, lengths).mean == pytest.approx(expected, abs=1e-5)
    apart = win_at_equal_length((lengths > 0).astype(float), lengths)  # lengths say all of the wins
    assert np.isfinite(apart).all()
    assert 0 < apart.mean < 1
    assert apart.slope > 5
    assert apart.mean == pytest.approx(expit(solved((lengths > 0) * 1.0, lengths, np.ones((4, 1)))[0]), abs=1e-4)
    one = win_at_equal_length([[0.3]], [[12.0]])
    assert one.mean == pytest.approx(0.3)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Prompts differ in what they are worth; samples of one prompt are no independent ones."""
    random, covered = np.random.default_rng(1), 0
    truth = expit(random.normal(0.3, 1, size=1_000_000)).mean()
    for _ in range(200):
        worth = random.normal(0.3, 1, size=(60, 1))
        lengths = random.normal(100, 300, size=(60, 4))
        wins = expit(worth + 0.8 * np.tanh(lengths / 300))
        measured = win_at_equal_length(wins, lengths)
        covered += measured.low <= truth <= measured.high
    assert 180 <= covered <= 199


def test_preferences_are_symmetric() -> None:
    difference = np.array([-2.0, 0.0, 2.0])
    assert bradley_terry(difference) + bradley_terry(-difference) == pytest.approx(np.ones(3))
    assert outright(difference).tolist() == [0.0, 0.5, 1.0]

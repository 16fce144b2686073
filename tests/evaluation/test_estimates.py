"""Estimates against what they are defined by: all sets of k of the n samples, one by one."""

import math
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts2_lightning.evaluation.estimates import (
    best_of_k,
    caution,
    chance_best_of_k,
    chance_majority,
    check_k,
    coverage,
    first_best_of_k,
    first_majority,
    majority_at_k,
    mean_success,
    pass_at_k,
)
from ts2_lightning.evaluation.intervals import bootstrap, bootstrap_of_groups, paired
from ts2_lightning.types import UserError

exhaustive = settings(derandomize=True, deadline=None, max_examples=60)


def share(events: list[float]) -> float:
    return math.fsum(events) / len(events)


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_sets_with_a_right_sample(samples: int) -> None:
    for k in range(1, samples + 1):
        expected = [
            share([float(any(drawn)) for drawn in combinations([True] * right + [False] * (samples - right), k)])
            for right in range(samples + 1)
        ]
        np.testing.assert_allclose(pass_at_k(range(samples + 1), samples, k), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(("samples", "k"), [(200, 1), (200, 100), (200, 199), (5_000, 2_500), (100_000, 16)])
def test_pass_at_k_keeps_its_digits_for_many_samples(samples: int, k: int) -> None:
    counts = [0, 1, 2, samples // 100, samples // 2, samples - k, samples - k + 1, samples]
    expected = [1 - math.comb(samples - right, k) / math.comb(samples, k) for right in counts]
    np.testing.assert_allclose(pass_at_k(counts, samples, k), expected, rtol=1e-11, atol=1e-14)


def test_pass_at_k_is_coverage_at_n_and_the_mean_success_at_one() -> None:
    right = [0, 3, 16, 7]
    np.testing.assert_array_equal(pass_at_k(right, 16, 16), coverage(right))
    np.testing.assert_allclose(pass_at_k(right, 16, 1), mean_success(right, 16), rtol=1e-15)
    assert pass_at_k([], 4, 2).shape == (0,)


@exhaustive
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.data())
def test_best_of_k_is_the_mean_of_the_best_of_all_sets(scores: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    expected = share([float(max(drawn)) for drawn in combinations(scores, k)])
    assert best_of_k([scores, scores[::-1]], k) == pytest.approx([expected, expected], abs=1e-13)


def test_best_of_k_has_right_weights_for_many_samples() -> None:
    samples, k = 300, 150
    for place in (k - 2, k - 1, 200, samples - 1):  # a score of 1 at one place of the rising order, against its weight
        above = [0.0] * place + [1.0] * (samples - place)
        expected = 1 - math.comb(place, k) / math.comb(samples, k)
        assert best_of_k([above], k)[0] == pytest.approx(expected, rel=1e-11)


def test_the_first_k_are_the_first() -> None:
    scores = [[0.0, 3.0, 1.0, 5.0], [2.0, 1.0, 1.0, 0.0]]
    assert first_best_of_k(scores, 2).tolist() == [3.0, 2.0]
    assert first_best_of_k(scores, 4).tolist() == [5.0, 2.0]


def vote(drawn: tuple[str | None, ...], gold: str, unparsed: str, ties: str) -> float:
    """The definition: who has most votes, and what becomes of a tie."""
    counts = Counter(answer for answer in drawn if unparsed == "count" or answer is not None)
    leaders = [answer for answer, votes in counts.items() if votes == max(counts.values())]
    if gold not in leaders:
        return 0.0
    return {"split": 1 / len(leaders), "wrong": float(len(leaders) == 1), "right": 1.0}[ties]


@exhaustive
@given(
    st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=8),
    st.sampled_from(["drop", "count"]),
    st.sampled_from(["split", "wrong", "right"]),
    st.data(),
)
def test_majority_at_k_is_the_mean_vote_of_all_sets(
    answers: list[str | None], unparsed: str, ties: str, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(answers)))
    expected = share([vote(drawn, "a", unparsed, ties) for drawn in combinations(answers, k)])
    assert majority_at_k(answers, "a", k, unparsed, ties) == pytest.approx(expected, abs=1e-13)  # type: ignore[arg-type]


def test_majority_at_k_of_many_samples_is_what_draws_say() -> None:
    answers = ["a"] * 40 + ["b"] * 35 + ["c"] * 15 + [None] * 10 + [str(number) for number in range(28)]
    random = np.random.default_rng(0)
    drawn = [random.permutation(len(answers))[:32] for _ in range(4_000)]
    votes = [vote(tuple(answers[place] for place in places), "a", "drop", "split") for places in drawn]
    error = np.std(votes) / math.sqrt(len(votes))
    assert majority_at_k(answers, "a", 32) == pytest.approx(share(votes), abs=4 * error)


def test_nobody_votes_for_an_answer_that_is_not_there() -> None:
    assert majority_at_k([None, None], "a", 2) == 0
    assert majority_at_k(["b"], "a", 1, ties="right") == 0
    assert majority_at_k(["b", None], None, 1, unparsed="count") == 0  # no reference answer: nothing is right


@pytest.mark.parametrize(
    ("answers", "k", "unparsed", "winner"),
    [
        (["b", "a", "a", "b"], 4, "drop", "b"),  # a tie: the one seen first
        (["a", "b", "b"], 1, "drop", "a"),
        ([None, None, "a"], 3, "drop", "a"),
        ([None, None, "a"], 3, "count", None),
        (["a", None], 2, "count", "a"),
        ([None, "a"], 1, "drop", None),
    ],
)
def test_the_papers_vote(answers: list[str | None], k: int, unparsed: str, winner: str | None) -> None:
    assert first_majority(answers, k, unparsed) == winner  # type: ignore[arg-type]


@pytest.mark.parametrize(("choices", "votes"), [(2, 1), (2, 4), (3, 3), (4, 4)])
def test_chance_is_what_all_guesses_say(choices: int, votes: int) -> None:
    guesses = list(product(range(choices), repeat=votes))
    any_right = share([float(0 in guess) for guess in guesses])
    assert chance_best_of_k([choices], votes)[0] == pytest.approx(any_right, rel=1e-14)
    majority = share([vote(tuple(map(str, guess)), "0", "drop", "split") for guess in guesses])
    assert chance_majority([choices])[0] == pytest.approx(majority, rel=1e-14)


def test_the_bootstrap_is_what_resampling_prompts_says() -> None:
    values = np.random.default_rng(1).choice([0.0, 0.25, 1.0], size=60)
    interval = bootstrap(values, draws=20_000)
    resampled = np.random.default_rng(2).choice(values, size=(20_000, 60)).mean(axis=1)
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.006)
    assert interval.prompts == 60
    assert interval.note == ""


def test_the_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    intervals = [bootstrap(random.random(80) < 0.3, draws=400, level=0.9) for _ in range(300)]
    covered = share([float(one.low <= 0.3 <= one.high) for one in intervals])
    assert 0.83 < covered < 0.96


def test_the_bootstrap_follows_from_values_and_seed_alone() -> None:
    values = np.random.default_rng(4).random(1_300)  # all different: more than one block of resamples
    one = bootstrap(values, seed=7)
    assert bootstrap(values[::-1], seed=7) == one
    assert bootstrap(values, seed=8) != one
    assert one.low < one.mean < one.high


def test_what_the_bootstrap_cannot_say_is_said() -> None:
    alone = bootstrap([0.5])
    assert alone.mean == 0.5
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    assert alone.note == "one prompt: no interval"
    alike = bootstrap([1.0, 1.0, 1.0])
    assert (alike.mean, alike.low, alike.high) == (1.0, 1.0, 1.0)
    assert "no width" in alike.note


def test_pairs_are_by_id_and_sharper_than_two_intervals() -> None:
    difficulty = np.random.default_rng(5).random(200)
    first = {f"p{number}": float(value) for number, value in enumerate(difficulty)}
    second = {name: first[name] + 0.05 * (number % 3 != 0) for number, name in reversed(list(enumerate(first)))}
    difference = paired(first, second)
    assert difference.interval.mean == pytest.approx(np.mean([0.05 * (number % 3 != 0) for number in range(200)]))
    assert (difference.better, difference.worse, difference.sure) == (133, 0, True)
    wide = bootstrap(list(first.values()))
    assert difference.interval.high - difference.interval.low < (wide.high - wide.low) / 5
    assert not paired(first, first).sure
    assert not paired({"a": 0.0}, {"a": 1.0}).sure  # one prompt proves nothing


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: check_k(17, 16), "k = 17: there are 16 samples a prompt; take a k of at most 16, or sample more"),
        (lambda: check_k(0, 16), "k must be a whole number of at least 1, got 0"),
        (lambda: pass_at_k([5], 4, 2), "right: must be whole numbers from 0 to 4, got 5 to 5"),
        (lambda: pass_at_k([0.5], 4, 2), "right: must be whole numbers from 0 to 4, got 0.5 to 0.5"),
        (lambda: best_of_k([[1.0, math.nan]], 1), "scores: must be finite, got 1 of 2 that are not"),
        (lambda: best_of_k([1.0], 1), "scores: must be a table of prompts and samples, got the shape [1]"),
        (lambda: majority_at_k(["a"], "a", 1, ties="even"), "ties: no such choice 'even'; take one of split, wrong, "),  # type: ignore[arg-type]
        (lambda: first_majority(["a"], 1, "keep"), "unparsed: no such choice 'keep'; take one of drop, count"),  # type: ignore[arg-type]
        (lambda: chance_best_of_k([0], 1), "choices: must be at least 1, got 0"),
        (lambda: bootstrap([]), "values: there is no prompt to take a mean of"),
        (lambda: bootstrap([1.0, math.inf]), "values: must be finite, got 1 of 2 that are not"),
        (lambda: bootstrap([1.0, 2.0], draws=0), "draws must be a whole number of at least 1, got 0"),
        (
            lambda: paired({"a": 0, "b": 0, "c": 0}, {"a": 0, "x": 1}),
            "not the same prompts: 2 of 3 of the first run are not in the second, 1 of 2 of the second are not in the "
            "first (b, c, x)",
        ),
    ],
)
def test_what_cannot_be_estimated_is_one_line(wrong: object, message: str) -> None:
    with pytest.raises(UserError) as raised:
        wrong()  # type: ignore[operator]
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_k_beyond_half_of_the_samples_is_marked() -> None:
    assert caution(8, 16) == ""
    assert caution(9, 16).startswith("k = 9 is more than half of the 16 samples")


@given(st.lists(st.lists(st.floats(0, 10), min_size=2, max_size=30), min_size=1, max_size=5))
@settings(derandomize=True, deadline=None, max_examples=25)
def test_the_bootstrap_of_groups_has_the_spread_of_independent_means(groups: list[list[float]]) -> None:
    """Its spread is the known one: the sum of the variances of the groups' means, over the square of their number."""
    interval = bootstrap_of_groups(groups)
    assert interval.mean == pytest.approx(np.mean([np.mean(group) for group in groups]))
    sd = math.sqrt(sum(np.var(group) / len(group) for group in groups)) / len(groups)
    assert interval.low - 1e-9 <= interval.mean <= interval.high + 1e-9
    assert interval.high - interval.low <= 2 * 6.25 * sd + 1e-9  # by Cantelli, whatever the values are
    narrow = bootstrap_of_groups(groups, level=0.5)
    assert narrow.high - narrow.low <= interval.high - interval.low


def test_the_bootstrap_of_groups_is_that_of_the_normal_where_there_are_many() -> None:
    random = np.random.default_rng(1)
    groups = [random.normal(number, 1 + number, 400 * (1 + number)) for number in range(3)]
    interval = bootstrap_of_groups(groups)
    sd = math.sqrt(sum(group.var() / group.size for group in groups)) / 3
    assert (interval.high - interval.low) / (2 * 1.96 * sd) == pytest.approx(1, abs=0.04)
    assert interval.prompts == 400 * 6
    alike, one = (bootstrap_of_groups([groups[0]] * number) for number in (4, 1))  # drawn independently all the same
    assert (alike.high - alike.low) / (one.high - one.low) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("groups", [[], [[1.0], []], [[math.nan]]])
def test_groups_that_are_none_are_told(groups: list[list[float]]) -> None:
    with pytest.raises(UserError):
        bootstrap_of_groups(groups)

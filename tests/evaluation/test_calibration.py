"""What a judge is worth: every figure against brute force or another library, and rows of which none follows."""

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_cohen_kappa

from tests.support.errors import refused
from ts2_lightning.evaluation.judges import Case, Verdict
from ts2_lightning.evaluation.judges.agreement import (
    Statistic,
    cohen_kappa,
    mean,
    partial_spearman,
    pearson,
    quadratic_kappa,
    resampled,
    spearman,
)
from ts2_lightning.evaluation.judges.calibration import Worth, worth_of_pairs, worth_of_ratings, worth_of_rewards
from ts2_lightning.evaluation.judges.labelled import (
    PAIR_PROMPT,
    RATING_PROMPT,
    Labelled,
    pair_parser,
    rating_parser,
    read_labelled,
    scale_of,
)

TABLES = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=12).map(
    lambda rows: np.array(rows, dtype=np.float64)
)


# Statistics -----------------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None)
@given(TABLES)
def test_kappa(rows: np.ndarray) -> None:
    first, second = (torch.tensor(rows[:, column]).long() for column in (0, 1))
    for mine, weights in ((cohen_kappa, None), (quadratic_kappa, "quadratic")):
        value = mine(rows)
        if len({*rows[:, 0], *rows[:, 1]}) == 1:
            assert math.isnan(value)
        else:
            expected: Any = weights
            assert value == pytest.approx(float(multiclass_cohen_kappa(first, second, 4, expected)), abs=1e-5)


@settings(derandomize=True, deadline=None)
@given(TABLES)
def test_correlations(rows: np.ndarray) -> None:
    """scipy's, and the partial one as the correlation of what a line through the third column leaves."""
    if min(len({*rows[:, column]}) for column in (0, 1)) == 1:
        assert math.isnan(pearson(rows))
        assert math.isnan(spearman(rows))
        assert math.isnan(partial_spearman(rows))
        return
    assert pearson(rows) == pytest.approx(scipy.stats.pearsonr(rows[:, 0], rows[:, 1])[0], abs=1e-12)
    assert spearman(rows) == pytest.approx(scipy.stats.spearmanr(rows[:, 0], rows[:, 1])[0], abs=1e-12)
    ranks = np.stack([scipy.stats.rankdata(column) for column in rows.T])
    left = []
    for column in ranks[:2]:
        line = np.stack([ranks[2], np.ones(len(rows))], axis=1)
        left.append(column - line @ np.linalg.lstsq(line, column, rcond=None)[0])
    partial = partial_spearman(rows)
    if len({*rows[:, 2]}) == 1 or min(np.abs(one).max() for one in left) < 1e-6:
        assert math.isnan(partial)
    else:
        assert partial == pytest.approx(pearson(np.stack(left, axis=1)), abs=1e-6)


@pytest.mark.parametrize("statistic", [pearson, quadratic_kappa])
def test_neither_the_size_nor_the_place_of_numbers_matters(statistic: Statistic) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 2))
    for factor in (1e-150, 1e-6, 1e6, 1e120):
        assert statistic(rows * factor) == pytest.approx(statistic(rows), rel=1e-9)
    assert statistic(rows + 1e4) == pytest.approx(statistic(rows), rel=1e-6)
    assert math.isnan(statistic(np.full((7, 2), 0.1)))


def test_the_interval_is_that_of_all_resamples() -> None:
    rows = np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 5.0], [4.0, 4.0], [5.0, 3.0]])
    all_values = spearman(rows[np.array(list(itertools.product(range(5), repeat=5)))])
    drawn = np.sort(all_values[np.isfinite(all_values)])
    agreed = resampled(rows, spearman, draws=4_000)
    assert agreed.value == spearman(rows)
    for end, share in ((agreed.low, 0.025), (agreed.high, 0.975)):
        assert (
            drawn[int(len(drawn) * max(0, share - 0.012))] <= end <= drawn[int(len(drawn) * min(0.9999, share + 0.012))]
        )
    assert resampled(rows[::-1], spearman, draws=4_000) == agreed


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        ([], "no row"), ([[1, 2]], "not defined: all rows have the same number"),
        ([[1, 1], [1, 1]], "not defined: all rows have the same number"),
        ([[1, 1], [2, 2]], "too few different rows: no interval"),
    ],
)  # fmt: skip
def test_rows_of_which_no_interval_follows(rows: Any, note: str) -> None:
    agreed = resampled(np.array(rows, dtype=np.float64).reshape(-1, 2), spearman)
    assert (agreed.note, math.isnan(agreed.low), agreed.rows) == (note, True, len(rows))
    assert math.isnan(agreed.value) == (len(rows) < 2 or rows[0] == rows[1])


def test_one_row_has_a_mean_and_no_interval() -> None:
    agreed = resampled([0.5], mean)
    assert (agreed.value, agreed.note) == (0.5, "one row: no interval")
    with refused("draws must be a whole number of at least 1, got 0"):
        resampled([0.5], mean, draws=0)


# Ratings --------------------------------------------------------------------------------------------------------


def rated(label: float, length: int) -> Labelled:
    return Labelled("rows:1", Case.answer("Q", "x" * length), label)


def worth(labels: list[float], ratings: list[float | None], lengths: list[int], **how: Any) -> Worth:
    rows = [rated(label, length) for label, length in zip(labels, lengths, strict=True)]
    return worth_of_ratings(rows, [Verdict(value, str(value)) for value in ratings], **how)


def test_ratings_by_hand() -> None:
    labels, lengths = [1.0, 2.0, 3.0, 3.0, 5.0, 5.0], [5, 9, 2, 14, 8, 7]
    ratings = [2.0, 2.4, None, 2.5, 5.0, 1.0]
    values = worth(labels, ratings, lengths).values
    read = [(rating, label, length) for rating, label, length in zip(ratings, labels, lengths, strict=True) if rating]
    x, y, z = (np.array(column) for column in zip(*read, strict=True))
    assert values["accuracy"].value == statistics.fmean([0, 1, 1, 1, 0])  # 2.4 is 2, and 2.5 is 3
    assert values["mean_difference"].value == pytest.approx((x - y).mean())
    assert values["pearson"].value == pytest.approx(scipy.stats.pearsonr(x, y)[0])
    assert values["spearman"].value == pytest.approx(scipy.stats.spearmanr(x, y)[0])
    ranks = np.stack([scipy.stats.rankdata(column) for column in (x, z, y)], axis=1)
    of_x, of_z = (np.polynomial.Polynomial.fit(ranks[:, 2], ranks[:, column], 1)(ranks[:, 2]) for column in (0, 1))
    left = pearson(np.stack([ranks[:, 0] - of_x, ranks[:, 1] - of_z], axis=1))
    assert values["length_given_label"].value == pytest.approx(left)
    assert values["length_correlation"].value == pytest.approx(scipy.stats.spearmanr(x, z)[0])
    assert values["label_length_correlation"].value == pytest.approx(scipy.stats.spearmanr(y, z)[0])
    expected = ((x[:, None] - y[None, :]) ** 2).mean()  # of a rating and a label of any two rows
    assert values["kappa"].value == pytest.approx(1 - ((x - y) ** 2).mean() / expected)
    assert values["unread"].value == pytest.approx(1 / 6)
    assert {values[name].rows for name in values if name != "unread"} == {5}
    assert values["unread"].rows == 6


def test_a_judge_that_likes_length_shows() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(1, 6, 200).astype(float).tolist()
    lengths = random.integers(1, 100, 200).tolist()
    fair = worth(labels, labels, lengths).values
    assert fair["accuracy"].value == fair["kappa"].value == fair["spearman"].value == 1.0
    assert fair["length_correlation"].low < 0 < fair["length_correlation"].high
    long = worth(labels, [label + length / 30 for label, length in zip(labels, lengths, strict=True)], lengths).values
    assert long["length_given_label"].low > 0.8
    assert long["label_length_correlation"].low < 0 < long["label_length_correlation"].high


def test_rewards_have_no_scale_and_labels_may_be_no_whole_numbers() -> None:
    values = worth([1.0, 2.0, 3.0], [-7.0, 0.5, 12.0], [1, 2, 3], on_scale=False).values
    assert not {"accuracy", "kappa", "mean_difference"} & set(values)
    assert values["spearman"].value == 1
    values = worth([1.5, 2.0, 3.0], [1.5, 2.0, 3.0], [1, 2, 3]).values
    assert "accuracy" not in values
    assert values["kappa"].value == 1


def test_nothing_follows_where_nothing_could_be_read() -> None:
    values = worth([1.0, 2.0], [None, None], [1, 2]).values
    assert values["unread"].value == 1
    assert all(math.isnan(agreed.value) for name, agreed in values.items() if name != "unread")
    one_class = worth([3.0, 3.0, 3.0], [3.0, 3.0, 3.0], [1, 2, 3]).values
    assert one_class["accuracy"].value == 1
    assert math.isnan(one_class["kappa"].value)
    assert one_class["kappa"].note == "not defined: all rows have the same number"


# Pairs ----------------------------------------------------------------------------------------------------------

PAIRS = st.lists(
    st.tuples(
        st.sampled_from([1.0, 0.5, 0.0]), st.sampled_from([1.0, 0.5, 0.0, None]),
        st.sampled_from([1.0, 0.5, 0.0, None]), st.integers(0, 3), st.integers(0, 3),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


def pair(label: float, first: int, second: int) -> Labelled:
    return Labelled("rows:1", Case((), "x" * first, "x" * second), label)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(PAIRS)
def test_pairs_by_brute_force(rows: list[tuple[float, float | None, float | None, int, int]]) -> None:
    """Verdicts are those of the place: 1 for the first response as it was shown."""
    labelled = [pair(label, first, second) for label, _, _, first, second in rows]
    values = worth_of_pairs(labelled, [(Verdict(ahead), Verdict(behind)) for _, ahead, behind, _, _ in rows]).values
    each: dict[str, list[float]] = {name: [] for name in values}
    verdicts = []
    for label, ahead, behind, first, second in rows:
        each["unread"].append(ahead is None or behind is None)
        if ahead is None or behind is None:
            continue
        says = {1.0: "first", 0.0: "second", 0.5: "tie"}
        one, other = says[ahead], {"first": "second", "second": "first", "tie": "tie"}[says[behind]]
        total = ahead - behind  # by how much the first response has more
        verdict = "first" if total > 0 else "second" if total < 0 else "tie"
        verdicts.append((verdict, says[label]))
        each["accuracy"].append(verdict == says[label])
        each["accuracy_once"].append(((one == says[label]) + (other == says[label])) / 2)
        each["consistent"].append(one == other)
        if one == other:
            each["accuracy_consistent"].append(one == says[label])
        places = {("first", "second"): 1, ("second", "first"): -1}.get((one, other), 0)
        each["position_bias"].append(abs(places))
        each["first_place"].append(places)
        if first != second:
            longer = "first" if first > second else "second"
            wins = {longer: 1.0, "tie": 0.5}.get(verdict, 0.0)
            should = {longer: 1.0, "tie": 0.5}.get(says[label], 0.0)
            each["longer_wins"].append(wins)
            each["longer_should"].append(should)
            each["length_bias"].append(wins - should)
    del each["kappa"]
    for name, numbers in each.items():
        assert values[name].rows == len(numbers)
        assert (
            values[name].value == pytest.approx(statistics.fmean(numbers))
            if numbers
            else math.isnan(values[name].value)
        )
    agree = [one == label for one, label in verdicts]
    chance = [one == label for (one, _), (_, label) in itertools.product(verdicts, repeat=2)]
    if not verdicts or all(chance):
        assert math.isnan(values["kappa"].value)
    else:
        expected = (statistics.fmean(agree) - statistics.fmean(chance)) / (1 - statistics.fmean(chance))
        assert values["kappa"].value == pytest.approx(expected)


def test_votes_are_a_mean() -> None:
    """Two of three votes for the first place in both orders are a tie; three of three in one order are not."""
    labelled = [pair(1.0, 3, 1), pair(1.0, 3, 1)]
    verdicts = [(Verdict(2 / 3), Verdict(2 / 3)), (Verdict(1.0), Verdict(2 / 3))]
    values = worth_of_pairs(labelled, verdicts).values
    assert (values["accuracy"].value, values["position_bias"].value) == (0.5, 1.0)


def test_rewards_on_pairs() -> None:
    labelled = [pair(1.0, 1, 9), pair(0.0, 1, 9), pair(0.5, 1, 9), pair(1.0, 5, 5)]
    rewards = [(3.0, -1.0), (2.0, 1.0), (4.0, 4.0), (0.0, 1.0)]
    values = worth_of_rewards(labelled, [(Verdict(a), Verdict(b)) for a, b in rewards]).values
    assert values["accuracy"].value == 0.5
    assert values["longer_wins"].value == pytest.approx((0 + 0 + 0.5) / 3)
    assert values["longer_should"].value == pytest.approx((0 + 1 + 0.5) / 3)
    assert values["length_bias"].value == pytest.approx(-1 / 3)
    assert not {"position_bias", "consistent"} & set(values)


# Rows -----------------------------------------------------------------------------------------------------------


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ASKED = {"instruction": "Add.", "input": "1 and 2", "response": "3", "label": 4}


def test_rows_of_every_layout(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    file = written(
        tmp_path / "rows.jsonl",
        {**ASKED, "reference": "three"},
        {"messages": talk, "label": "2.5"},
        {"messages": talk[:1], "output": "Ho", "label": 1},
        {"prompt": "P", "response": "", "label": 0},
    )
    rows, are_pairs = read_labelled(file, "--check")
    assert not are_pairs
    assert [(row.case.messages[-1]["content"], row.case.response, row.label) for row in rows] == [
        ("Add.\n\n1 and 2", "3", 4.0), ("Hi", "Hello", 2.5), ("Hi", "Ho", 1.0), ("P", "", 0.0)
    ]  # fmt: skip
    assert (rows[0].case.reference, rows[1].origin) == ("three", f"{file}:2")
    assert scale_of(rows, None) == (0.0, 4.0)
    assert scale_of(rows, (-1.0, 10.0)) == (-1.0, 10.0)
    pairs = [
        {"instruction": "Q", "output_1": "a", "output_2": "bb", "preference": value}
        for value in (1, 2, "tie", 1.5, 0, "1", 2.0, "Tie")
    ]
    rows, are_pairs = read_labelled(written(tmp_path / "pairs.jsonl", *pairs), "--check", limit=8)
    assert are_pairs
    assert [row.label for row in rows] == [1.0, 0.0, 0.5, 0.5, 0.5, 1.0, 0.0, 0.5]
    assert (rows[0].case.response, rows[0].case.other) == ("a", "bb")
    assert (rows[0].swapped.response, rows[0].swapped.other) == ("bb", "a")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ASKED, "label": None}, "label must be a number, got 'None'"),
        ({**ASKED, "label": "good"}, "label must be a number, got 'good'"),
        ({**ASKED, "label": math.nan}, "label must be a number, got 'nan'"),
        ({**ASKED, "label": True}, "label must be a number, got 'True'"),
        ({"instruction": "Q", "response": "R"}, "no field 'label'"),
        ({"instruction": "Q", "label": 1}, "no field 'response'"),
        ({"response": "R", "label": 1}, "no field 'instruction'"),
        ({**ASKED, "response": 3}, "response must be text, got '3'"),
        ({"messages": "Hi", "response": "R", "label": 1}, "messages must be a list of turns with role and content"),
        ({"messages": [], "response": "R", "label": 1}, "messages must end with a turn of the user, or of the assist"),
        ({**ASKED, "output_1": "a"}, "pairs and single responses in one file; take a file for each"),
    ],
)
def test_rows_that_cannot_be(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = written(tmp_path / "rows.jsonl", ASKED, row)
    with refused(f"^--check {file}:2: {message}.*; wanted are rows with instruction"):
        read_labelled(file, "--check")


@pytest.mark.parametrize("preference", [3, "A", None, True, 1.2])
def test_preferences_that_cannot_be(tmp_path: Path, preference: Any) -> None:
    row = {"instruction": "Q", "output_1": "a", "output_2": "b", "preference": preference}
    with refused("preference must be 1, 2 or tie"):
        read_labelled(written(tmp_path / "rows.jsonl", row), "--check")


def test_scales_that_cannot_be() -> None:
    with refused("--scale: every label is 3, which is no scale; name it"):
        scale_of([rated(3, 1), rated(3, 2)], None)
    with refused("rows:1: the label 3 is outside of the scale, 5 to 9"):
        scale_of([rated(3, 1)], (5, 9))


def test_our_prompts_and_what_is_read_of_their_answers() -> None:
    case = Case.answer("Why {other}?", "Because.")
    details = {"least": "1", "most": "5"}
    asked: Any = RATING_PROMPT.asked(Case(case.messages, case.response, details=details))
    assert "User: Why {other}?\n\n[Response]\nBecause." in asked[0]["content"]
    assert "from 1 for a useless response to 5" in asked[0]["content"]
    read = rating_parser(1, 5)
    answers = {
        "It is fine.\nRating: 4": 4.0, "**Rating:** 3.5": 3.5, "rating = [[2]]": 2.0, "Rating: 2\nNo. Rating: 5": 5.0,
        "Rating: 7": None, "I rate it 4": None, "": None, "Rating: NUMBER": None,
    }  # fmt: skip
    assert {text: read(text) for text in answers} == answers
    assert rating_parser(-2, 2)("Rating: -1") == -1.0
    asked = PAIR_PROMPT.asked(Case(case.messages, "one", "two"))
    assert "[Response A]\none\n\n[Response B]\ntwo\n" in asked[0]["content"]
    answers = {
        "A is good.\nVerdict: A": 1.0, "Verdict: B.": 0.0, "**Verdict:** tie": 0.5, "Verdict: A. No, verdict: B": 0.0,
        'Verdict: "A"': 1.0, "A": None, "Verdict: Apple": None, "": None,
    }  # fmt: skip
    assert {text: pair_parser()(text) for text in answers} == answers

"""Tests of paired differences, and their correction, against enumeration and hand-calculated values."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.support.errors import refused
from ts2_lightning.evaluation.significance import holm, sign_flip

EIGHTHS = st.lists(st.integers(-16, 16).map(lambda eighths: eighths / 8), min_size=1, max_size=12)
P_VALUES = st.lists(st.one_of(st.floats(0, 1), st.just(math.nan), st.just(0.02)), max_size=12)


def enumerated(differences: list[float]) -> float:
    """All signs, one after the other."""
    observed = abs(math.fsum(differences))
    signs = list(itertools.product((-1, 1), repeat=len(differences)))
    sums = [abs(math.fsum(s * abs(d) for s, d in zip(of, differences, strict=True))) for of in signs]
    return sum(one >= observed - 1e-9 for one in sums) / len(signs)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(EIGHTHS)
def test_few_questions_are_enumerated(differences: list[float]) -> None:
    test = sign_flip(differences)
    assert test.exact
    assert test.p == pytest.approx(enumerated(differences), abs=1e-12)
    assert sign_flip([-one for one in differences]).p == pytest.approx(test.p)
    assert sign_flip([*differences, 0.0, 0.0]).p == pytest.approx(test.p), "questions that do not differ say nothing"


def test_thirds_that_were_rounded_are_thirds() -> None:
    """Values are on disk with six decimals, and 0.666667 - 0.333333 is meant to be 0.333333."""
    rounded, thirds = [0.333334, 0.333334, -0.333333], [1 / 3, 1 / 3, -1 / 3]
    assert sign_flip(rounded).p == enumerated(thirds) == 1.0
    assert enumerated(rounded) < 1.0


@pytest.mark.parametrize(("ahead", "behind"), [(9, 1), (40, 25), (700, 640), (1, 0)])
def test_right_and_wrong_answers_are_mcnemars(ahead: int, behind: int) -> None:
    test = sign_flip([1.0] * ahead + [-1.0] * behind + [0.0] * 50)
    assert test.exact
    assert test.p == pytest.approx(stats.binomtest(ahead, ahead + behind).pvalue, rel=1e-9)


@pytest.mark.parametrize("mean", [0.0, 0.1, 0.2])
def test_many_questions_are_drawn(mean: float) -> None:
    """Against the exact distribution, which scipy's own permutation test draws as well."""
    differences = np.random.default_rng(3).normal(mean, 1.0, size=200).round(6)
    test = sign_flip(differences)
    reference = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    ).pvalue
    assert not test.exact
    assert test.p == pytest.approx(reference, abs=5 * math.sqrt(reference * (1 - reference) / 20_000) * 2**0.5)
    assert sign_flip(differences[::-1]).p == test.p, "it depends on no order"
    assert sign_flip(np.full(100, 3.0) + np.arange(100)).p == 1 / 20_001, "never zero"


def test_nothing_to_test() -> None:
    assert math.isnan(sign_flip([]).p)
    assert sign_flip([0.0, 0.0, 4e-7]).p == 1
    assert sign_flip([0.5]).p == 1
    with refused("differences: 1 of 2 are not finite"):
        sign_flip([1.0, math.nan])


def test_holm_by_hand() -> None:
    """The example of Holm's method in R's p.adjust, worked out with a pencil."""
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.04, 0.001, 0.03, 0.012]) == pytest.approx([0.06, 0.004, 0.06, 0.036])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.7, 0.6]).tolist() == [1.0, 1.0]
    assert holm([0.3]).tolist() == [0.3]
    assert holm([]).tolist() == []
    assert holm([math.nan, 0.02, math.nan, 0.5]) == pytest.approx([math.nan, 0.04, math.nan, 0.5], nan_ok=True)
    for wrong in ([1.2], [-0.1, 0.5]):
        with refused("p_values: must be from 0 to 1"):
            holm(wrong)


@settings(derandomize=True, deadline=None)
@given(P_VALUES)
def test_holm_by_its_definition(p_values: list[float]) -> None:
    """Corrected is the least level at which Holm's way down the sorted ones rejects it."""
    corrected = holm(p_values)
    for i, p in enumerate(p_values):
        if math.isnan(p):
            assert math.isnan(corrected[i])
        else:
            assert p <= corrected[i] <= 1
            assert corrected[i] == 1 or i in rejected(p_values, corrected[i] + 1e-9)
            assert i not in rejected(p_values, corrected[i] - 1e-9)


def rejected(p_values: list[float], level: float) -> set[int]:
    """Which are rejected: the smallest is compared with level / M, the next with level / (M - 1), until one is not."""
    tested = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    passed: set[int] = set()
    for place, i in enumerate(tested):
        if p_values[i] > level / (len(tested) - place):
            break
        passed.add(i)
    return passed

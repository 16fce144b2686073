"""What a judge is worth: its verdicts beside labels that are known to be better, of people or of a stronger judge."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ts2_lightning.evaluation.judges.agreement import (
    Agreed,
    Statistic,
    cohen_kappa,
    mean,
    partial_spearman,
    pearson,
    quadratic_kappa,
    resampled,
    spearman,
)
from ts2_lightning.evaluation.judges.base import Verdict
from ts2_lightning.evaluation.judges.labelled import FIRST, SECOND, TIE, Labelled


class Worth(NamedTuple):
    """What a judge is worth.

    Attributes:
        values: each figure with its interval, by its name.
        rows: a mapping of plain values for each row of the file.
    """

    values: Mapping[str, Agreed]
    rows: Sequence[Mapping[str, Any]]


TITLES = {
    "accuracy": "verdicts that are the label",
    "accuracy_once": "the same, asked in one order only",
    "accuracy_consistent": "the same, of pairs whose two orders agree",
    "kappa": "kappa: agreement beyond chance",
    "spearman": "correlation of ranks with the label",
    "pearson": "correlation with the label",
    "mean_difference": "rating minus label",
    "consistent": "pairs whose two orders agree",
    "position_bias": "pairs whose verdict stays with the place",
    "first_place": "wins of the first place minus the second",
    "longer_wins": "the longer response wins",
    "longer_should": "the longer response should win",
    "length_bias": "longer wins minus longer should",
    "length_correlation": "correlation of ranks with the length",
    "label_length_correlation": "the same of the label",
    "length_given_label": "rating with length, at equal label",
    "unread": "verdicts that could not be read",
}
"""What each figure is, for people, in the order of tables."""


def worth_of_ratings(labelled: Sequence[Labelled], verdicts: Sequence[Verdict], on_scale: bool = True) -> Worth:
    """What ratings, or rewards, are worth.

    Accuracy rounds a rating to the nearest whole number, and is there if all labels are whole; kappa weighs a
    disagreement as its square. Correlations with the length are of ranks. Ratings that could not be read are left
    out of all but their share.

    Args:
        labelled: rows of the file.
        verdicts: verdict of each.
        on_scale: whether verdicts are on the labels' scale, as ratings are and rewards are not.
    """
    lengths = [len(row.case.response) for row in labelled]
    table = np.array(
        [
            (verdict.value, row.label, length)
            for row, verdict, length in zip(labelled, verdicts, lengths, strict=True)
            if verdict.value is not None
        ],
        dtype=np.float64,
    ).reshape(-1, 3)
    statistics: dict[str, Statistic] = {"spearman": spearman, "pearson": pearson}
    if on_scale:
        if all(row.label == round(row.label) for row in labelled):
            statistics["accuracy"] = lambda rows: (np.floor(rows[..., 0] + 0.5) == rows[..., 1]).mean(-1)
        statistics |= {
            "kappa": quadratic_kappa,
            "mean_difference": lambda rows: (rows[..., 0] - rows[..., 1]).mean(-1),
        }
    statistics |= {
        "length_correlation": lambda rows: spearman(rows[..., [0, 2]]),
        "label_length_correlation": lambda rows: spearman(rows[..., [1, 2]]),
        "length_given_label": lambda rows: partial_spearman(rows[..., [0, 2, 1]]),
    }
    values = {name: resampled(table, statistic) for name, statistic in statistics.items()}
    values["unread"] = _unread([verdict.value is None for verdict in verdicts])
    rows = [
        {"row": row.origin, "label": row.label, "verdict": verdict.value, "length": length, "raw": verdict.raw}
        for row, verdict, length in zip(labelled, verdicts, lengths, strict=True)
    ]
    return Worth(_in_order(values), rows)


def worth_of_pairs(labelled: Sequence[Labelled], both: Sequence[tuple[Verdict, Verdict]]) -> Worth:
    """What verdicts on pairs are worth, each asked in both orders.

    The verdict on a pair is what the mean of both orders says: a tie where each names the other response. It is right
    where the label is a tie as well. Longer responses are counted over pairs of different lengths, a tie as half a win.
    Pairs of which an order could not be read are left out of all but their share.

    Args:
        labelled: rows of the file.
        both: verdict of each in the order of the row, and in the other one.
    """
    table = np.array(
        [
            (ahead.value, 1.0 - behind.value, row.label, *_lengths(row))
            for row, (ahead, behind) in zip(labelled, both, strict=True)
            if ahead.value is not None and behind.value is not None
        ],
        dtype=np.float64,
    ).reshape(-1, 5)
    values = {name: resampled(statistic(table), mean) for name, statistic in _OF_PAIRS.items()}
    values["kappa"] = resampled(np.stack([_winner(table[:, :2].mean(1)), table[:, 2]], axis=1), cohen_kappa)
    values["unread"] = _unread([None in (ahead.value, behind.value) for ahead, behind in both])
    rows = [
        {
            "row": row.origin, "label": row.label, "verdict": ahead.value,
            "verdict_swapped": None if behind.value is None else 1.0 - behind.value,
            "lengths": _lengths(row), "raw": ahead.raw, "raw_swapped": behind.raw,
        }
        for row, (ahead, behind) in zip(labelled, both, strict=True)
    ]  # fmt: skip
    return Worth(_in_order(values), rows)


def worth_of_rewards(labelled: Sequence[Labelled], both: Sequence[tuple[Verdict, Verdict]]) -> Worth:
    """What a reward model is worth on pairs: the response with the larger reward wins.

    Args:
        labelled: rows of the file.
        both: rewards of the first and of the second response of each.
    """
    table = np.array(
        [
            (TIE + (first.value > second.value) / 2 - (first.value < second.value) / 2, row.label, *_lengths(row))
            for row, (first, second) in zip(labelled, both, strict=True)
            if first.value is not None and second.value is not None
        ],
        dtype=np.float64,
    ).reshape(-1, 4)[:, [0, 0, 1, 2, 3]]
    names = ("accuracy", "longer_wins", "longer_should", "length_bias")
    values = {name: resampled(_OF_PAIRS[name](table), mean) for name in names}
    values["kappa"] = resampled(table[:, [0, 2]], cohen_kappa)
    values["unread"] = _unread([None in (first.value, second.value) for first, second in both])
    rows = [
        {
            "row": row.origin, "label": row.label, "rewards": [first.value, second.value], "lengths": _lengths(row),
        }
        for row, (first, second) in zip(labelled, both, strict=True)
    ]  # fmt: skip
    return Worth(_in_order(values), rows)


def _winner(shares: np.ndarray) -> np.ndarray:
    """1 where the first response has more than half, 0 where it has less, 0.5 for a tie."""
    return TIE + np.sign(np.round(shares - 0.5, 9)) / 2


def _lengths(row: Labelled) -> tuple[int, int]:
    return len(row.case.response), len(str(row.case.other))


def _accuracy_once(rows: np.ndarray) -> np.ndarray:
    return (_winner(rows[:, :2]) == rows[:, 2:3]).mean(axis=1)


def _consistent(rows: np.ndarray) -> np.ndarray:
    ahead, behind = _winner(rows[:, :2]).T
    return ahead == behind


def _accuracy(rows: np.ndarray) -> np.ndarray:
    return _winner(rows[:, :2].mean(axis=1)) == rows[:, 2]


def _position(rows: np.ndarray) -> np.ndarray:
    """1 where both orders name the first place, -1 where both name the second."""
    ahead, behind = _winner(rows[:, :2]).T
    return (ahead == FIRST) * (behind == SECOND) * 1.0 - (ahead == SECOND) * (behind == FIRST) * 1.0


def _longer(rows: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The share of the longer response, of pairs of different lengths."""
    differ = rows[:, 3] != rows[:, 4]
    return np.where(rows[:, 3] > rows[:, 4], shares, 1 - shares)[differ]


_OF_PAIRS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "accuracy": _accuracy,
    "accuracy_once": _accuracy_once,
    "accuracy_consistent": lambda rows: _accuracy(rows)[_consistent(rows)],
    "consistent": _consistent,
    "position_bias": lambda rows: np.abs(_position(rows)),
    "first_place": _position,
    "longer_wins": lambda rows: _longer(rows, _winner(rows[:, :2].mean(axis=1))),
    "longer_should": lambda rows: _longer(rows, rows[:, 2]),
    "length_bias": lambda rows: _longer(rows, _winner(rows[:, :2].mean(axis=1))) - _longer(rows, rows[:, 2]),
}
"""The number of each pair that a figure is the mean of; of columns: shares of the first response in both orders, label,
lengths."""


def _unread(flags: Sequence[bool]) -> Agreed:
    return resampled(np.array(flags, dtype=np.float64), mean)


def _in_order(values: Mapping[str, Agreed]) -> dict[str, Agreed]:
    return {name: values[name] for name in TITLES if name in values}

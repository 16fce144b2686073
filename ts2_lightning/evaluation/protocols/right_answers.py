"""Values of answers that are right or wrong: right in one of k, the vote of k, and what stands beside them."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ts2_lightning.evaluation.estimates import (
    Unparsed,
    chance_best_of_k,
    first_best_of_k,
    first_majority,
    majority_at_k,
    mean_success,
    pass_at_k,
)
from ts2_lightning.evaluation.intervals import bootstrap
from ts2_lightning.evaluation.protocols.items import Answered, Estimate, Item
from ts2_lightning.values import Value

USUAL_KS = (1, 2, 4, 8, 10, 16, 20, 32, 50, 64, 100, 128, 200)
"""The k whose values have descriptions."""

_SHOWN_KS = (10, 16, 32, 100)
"""Those that the tables of grids show where nobody has chosen their columns: the papers'."""


def right_answer_values(majority: bool = False) -> tuple[Value, ...]:
    """Descriptions of the values of `estimate_right_answers`.

    Args:
        majority: whether the vote of k is one of them.
    """
    values = [
        Value("accuracy", "accuracy", "share of responses that are right, mean over questions", "higher", ".3f", True),
        Value("accuracy_of_parsed", "accuracy of the parsed", "share of right ones among the parsed", "higher", ".3f"),
    ]
    for k in USUAL_KS:
        meaning = f"at least one of {k} responses is right"
        values.append(Value(f"pass_at_{k}", f"pass@{k}", meaning, "higher", ".3f", k in _SHOWN_KS))
    for k in USUAL_KS if majority else ():
        values.append(
            Value(f"majority_at_{k}", f"majority@{k}", f"the vote of {k} is right", "higher", ".3f", k in _SHOWN_KS)
        )
    for k in USUAL_KS:
        values.append(Value(f"chance_at_{k}", f"chance@{k}", f"one of {k} guesses is right", None, ".3f"))
    for k in USUAL_KS:
        meaning = f"one of the first {k} responses is right"
        values.append(Value(f"first_{k}", f"best of the first {k}", meaning, "higher", ".3f"))
    for k in USUAL_KS if majority else ():
        meaning = f"the vote of the first {k} is right"
        values.append(Value(f"first_majority_{k}", f"majority of the first {k}", meaning, "higher", ".3f"))
    return (*values, *COMMON_VALUES)


COMMON_VALUES = (
    Value("distinct_answers", "distinct answers", "different answers to a question, mean over questions", None, ".2f"),
    Value("chance", "chance", "probability that a guess is right", None, ".3f", True),
    Value("unparsed", "unparsed", "share of responses without an answer that can be read", "lower", ".3f", True),
    Value("truncated", "truncated", "share of responses that were cut off at the token limit", "lower", ".3f", True),
    Value("questions", "questions", "number of questions", None, ".0f", True),
    Value("samples", "responses to each", "number of responses to each question", None, ".0f", True),
)
"""What stands beside every score."""


def beside_scores(answered: Sequence[Answered]) -> dict[str, float]:
    """What stands beside every score: numbers of questions and responses, shares of unparsed and cut-off responses."""
    scored = [one for each in answered for one in each.scored]
    responses = [one for each in answered for one in each.responses]
    return {
        "unparsed": sum(one.answer is None for one in scored) / len(scored),
        "truncated": sum(one.finish == "length" for one in responses) / len(responses),
        "questions": len(answered),
        "samples": len(responses) / len(answered),
    }


def estimate_right_answers(
    answered: Sequence[Answered],
    ks: Sequence[int],
    chance: Callable[[Item], float | None],
    votes: Unparsed | None = None,
    in_order: bool = False,
) -> Estimate:
    """What follows from answers that are right (1) or wrong (0).

    Args:
        answered: questions with equally many responses.
        ks: numbers of samples.
        chance: probability that a guess is right.
        votes: whether the vote of k is judged, and what becomes of a response without an answer; None for no votes.
        in_order: whether the first k samples are judged as well, as the papers' public code does.
    """
    right = np.array([sum(one.score for one in each.scored) for each in answered])
    samples = len(answered[0].responses)
    each = {"accuracy": mean_success(right, samples)}
    curves: dict[str, dict[int, np.ndarray]] = {}
    if samples > 1:
        curves["pass"] = {k: pass_at_k(right, samples, k) for k in ks}
    if votes is not None and samples > 1:
        answers = [[one.answer for one in of_item.scored] for of_item in answered]
        golds = [of_item.item.gold for of_item in answered]
        curves["majority"] = {k: _votes(answers, golds, k, votes) for k in ks}
    guesses = [chance(of_item.item) for of_item in answered]
    values: dict[str, float] = {}
    if all(guess for guess in guesses):
        choices = 1 / np.array(guesses, dtype=np.float64)
        if samples > 1:
            curves["chance"] = {k: chance_best_of_k(choices, k) for k in ks}
        values["chance"] = float(np.mean(1 / choices))
    if samples > 1:
        each["distinct_answers"] = np.array(
            [len({one.answer for one in of_item.scored if one.answer is not None}) for of_item in answered], dtype=float
        )
    if in_order:
        table = [[one.score for one in of_item.scored] for of_item in answered]
        for k in ks:
            each[f"first_{k}"] = first_best_of_k(table, k)
            if votes is not None and samples > 1:
                voted = zip(answers, golds, strict=True)
                each[f"first_majority_{k}"] = np.array([first_majority(of, k, votes) == gold for of, gold in voted])
    each |= {f"{name}_at_{k}": curve for name, of_k in curves.items() for k, curve in of_k.items()}
    values |= {name: float(np.mean(of_items)) for name, of_items in each.items()}
    beside = beside_scores(answered)
    if beside["unparsed"] < 1:
        values["accuracy_of_parsed"] = values["accuracy"] / (1 - beside["unparsed"])
    return Estimate(
        {**values, **beside},
        {name: _by_id(answered, each[name]) for name in each if not name.startswith("chance")},
        {name: {k: interval(of_items) for k, of_items in of_k.items()} for name, of_k in curves.items()},
    )


def interval(of_items: Sequence[float] | np.ndarray) -> list[float]:
    """Mean and ends of its interval, by the bootstrap over questions; of one question three times the mean."""
    estimated = bootstrap(np.asarray(of_items, dtype=np.float64))
    ends = (estimated.low, estimated.high)
    return [estimated.mean, *(estimated.mean if np.isnan(end) else end for end in ends)]


def _votes(answers: Sequence[Sequence[str | None]], golds: Sequence[str], k: int, votes: Unparsed) -> np.ndarray:
    return np.array([majority_at_k(of, gold, k, votes) for of, gold in zip(answers, golds, strict=True)])


def _by_id(answered: Sequence[Answered], numbers: np.ndarray) -> Mapping[str, float]:
    return {of.item.id: round(float(number), 6) for of, number in zip(answered, numbers, strict=True)}

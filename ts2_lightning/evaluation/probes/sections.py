"""What a page shows of probes: their numbers as tables, and what their pictures show as charts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ts2_lightning.evaluation.probes.figures import (
    BINS,
    QUESTIONS_SHOWN,
    SIZES,
    TOKENS_SHOWN,
    Document,
    shares_of_sizes,
)
from ts2_lightning.pages import Cell, Chart, Section, Series, Table

_TAIL = {"top1": "1st token", "top2": "2nd token", "top3": "3rd token", "tail_mass": "tail mass"}
_POINTS = 300
"""Tokens of each model in the chart of entropies, at most: each has a line in the table below it."""


def probe_sections(documents: Mapping[str, Document]) -> list[Section]:
    """The sections of some probes, in their order.

    Args:
        documents: what each probe has written, by its name.
    """
    return [section for name, document in documents.items() for section in _SECTIONS[name](document["models"])]


def _micro(models: Mapping[str, Any]) -> Iterator[Section]:
    """A table for all questions; for the first ones the most probable tokens."""
    names = ("records", "implausible_mass", "support_size", "tail_mass", "entropy")
    questions = len(next(iter(models.values()))["questions"])
    rows: list[list[Cell]] = [
        [name, numbers["questions"][i]["request"], *(numbers["questions"][i][value] for value in names)]
        for i in range(questions)
        for name, numbers in models.items()
    ]
    head = ["model", "question", "records", "implausible mass", "support size", "tail mass", "entropy (nats)"]
    yield Table("micro: the next token", head, rows, notes=["Means over the records of each question."])
    for i in range(min(questions, QUESTIONS_SHOWN)):
        of_models = {name: numbers["questions"][i] for name, numbers in models.items()}
        best: dict[str, float] = {}
        for numbers in of_models.values():
            for token, p in zip(numbers["tokens"], numbers["probabilities"], strict=True):
                best[token] = max(p, best.get(token, 0.0))
        shown = sorted(best, key=lambda token: -best[token])[:TOKENS_SHOWN]
        series = [_bars(name, shown, numbers) for name, numbers in of_models.items() if numbers["records"]]
        title = f"micro: {_line(next(iter(of_models.values()))['request'])}"
        yield Chart(title, series, "next token", "probability", "bars")


def _bars(name: str, shown: Sequence[str], numbers: Mapping[str, Any]) -> Series:
    p = dict(zip(numbers["tokens"], numbers["probabilities"], strict=True))
    kept = dict(zip(numbers["tokens"], numbers["in_support"], strict=True))
    labels = [f"in the sparsemax support of {kept.get(token, 0.0):.0%} of the records" for token in shown]
    return Series(name, list(shown), [p.get(token, 0.0) for token in shown], labels=labels)


def _macro(models: Mapping[str, Any]) -> Iterator[Section]:
    names = ("mean", "standard_deviation", "median")
    rows: list[list[Cell]] = [
        [name, *(numbers[value] for value in names), len(numbers["mean_probability"])]
        for name, numbers in models.items()
    ]
    head = ["model", "mean", "standard deviation", "median", "responses"]
    yield Table("macro: how sure models are of what they sample", head, rows)
    low = min(min(numbers["mean_probability"]) for numbers in models.values())
    edges = np.linspace(min(np.floor(low * 20) / 20, 0.95), 1.0, BINS + 1)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    series = []
    for name, numbers in models.items():
        counts = np.histogram(numbers["mean_probability"], edges)[0]
        series.append(Series(name, middles, (counts / counts.sum()).tolist()))
    yield Chart("macro: histogram", series, "mean probability of a response's tokens", "share of the responses")


def _tail(models: Mapping[str, Any]) -> Iterator[Section]:
    head = ["model", *_TAIL.values(), "support size", "rows", "tokens"]
    rows: list[list[Cell]] = []
    shown = []
    for name, numbers in models.items():
        values = [numbers[value] for value in (*_TAIL, "support_size")]
        errors = [numbers[f"{value}/standard_error"] for value in (*_TAIL, "support_size")]
        counts = [numbers["rows"], numbers["tokens"]]
        rows.append([name, *values, *counts])
        texts = [f"{value:.3f} ± {error:.3f}" for value, error in zip(values, errors, strict=True)]
        shown.append([name, *texts, *(f"{count:,}" for count in counts)])
    yield Table(
        "tail: head and tail of the supervised tokens", head, rows, shown, notes=["Means over rows ± standard error."]
    )
    series = []
    for name, numbers in models.items():
        means = [numbers[value] for value in _TAIL]
        errors = [numbers[f"{value}/standard_error"] for value in _TAIL]
        lows, highs = ([mean + sign * error for mean, error in zip(means, errors, strict=True)] for sign in (-1, 1))
        series.append(Series(name, list(_TAIL.values()), means, lows, highs))
    yield Chart("tail: probabilities", series, "", "softmax probability, mean over the rows", "bars")


def _tspd(models: Mapping[str, Any]) -> Iterator[Section]:
    names = ("tokens", "entropy", "gold_probability", "zero_gradient", "support_size/mean", "support_size/p90")
    head = ["model", "tokens", "entropy (nats)", "p(gold)", "gold alone in support", "support size", "90 % at most"]
    rows: list[list[Cell]] = [[name, *(numbers[value] for value in names)] for name, numbers in models.items()]
    yield Table("tspd: entropy, gold probability and support", head, rows)
    cells = [(cell["m"], cell["eps_head"], cell["eps_tail"]) for cell in next(iter(models.values()))["grid"]]
    shares = [[cell["share"] for cell in numbers["grid"]] for numbers in models.values()]
    grid: list[list[Cell]] = [[*cell, *of_models] for cell, *of_models in zip(cells, *shares, strict=True)]
    yield Table("tspd: shares of tokens with TSPD(m, eps_head, eps_tail)", ["m", "eps_head", "eps_tail", *models], grid)
    bars = [Series(name, list(SIZES), shares_of_sizes(numbers)) for name, numbers in models.items()]
    yield Chart(
        "tspd: sizes of the sparsemax support", bars, "tokens that sparsemax keeps", "share of the tokens (%)", "bars"
    )
    points = [
        Series(name, numbers["points"]["gold_probability"][:_POINTS], numbers["points"]["entropy"][:_POINTS])
        for name, numbers in models.items()
    ]
    yield Chart("tspd: entropy against gold probability", points, "gold probability", "entropy (nats)", "points")


def _line(text: str) -> str:
    """A question for a title: the end of it, where it asks."""
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"…{line[-79:]}"


_SECTIONS: dict[str, Callable[[Mapping[str, Any]], Iterator[Section]]] = {
    "micro": _micro,
    "macro": _macro,
    "tail": _tail,
    "tspd": _tspd,
}

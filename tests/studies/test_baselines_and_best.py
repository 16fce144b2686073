"""Baselines at each row's own other axes; the best choice of an axis, chosen on some seeds, reported on others."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.studies.report_runs import config_of, make_grid, make_run
from ts2_lightning.studies.report import (
    Results,
    Row,
    Run,
    Settings,
    collect,
    complete_settings,
    override_settings,
    write_report,
)
from ts2_lightning.studies.report.baselines import baseline_of, baseline_said, compared_rows, unmatched
from ts2_lightning.studies.report.best import best_said, best_tables, chosen_of
from ts2_lightning.studies.report.markdown import as_markdown
from ts2_lightning.studies.report.page import as_page
from ts2_lightning.studies.report.results import BestSettings
from ts2_lightning.studies.report.tables import differences_table

V, D = "toyworld/seen/validity_t1", "toyworld/seen/distinct_t1"
OUTSIDE = "toyworld/seen/outside_plausible"
RATES = ("1e-3", "5e-4", "2.5e-4")
SEEDS = (0, 1, 2, 3, 4)


def row(labels: Mapping[str, str], values: Mapping[int, tuple[float, float]], name: str = V) -> Row:
    called = ", ".join(f"{axis} {choice}" if axis != "objective" else choice for axis, choice in labels.items())
    runs = [Run(f"{called}/{seed}", Path(called, str(seed)), seed, {name: v, D: d}) for seed, (v, d) in values.items()]
    return Row(called, dict(labels), tuple(runs))


def made_up(objective: int, rate: int) -> dict[int, tuple[float, float]]:
    random = np.random.default_rng([objective, rate])
    return {s: (0.9 + 0.01 * random.normal(), 2.0 + objective + 0.5 * rate + 0.1 * random.normal()) for s in SEEDS}


def grid_of(objectives: Sequence[str] = ("CE", "TS2"), **settings: Any) -> Results:
    rows = [
        row({"objective": objective, "rate": rate}, made_up(i, j))
        for i, objective in enumerate(objectives)
        for j, rate in enumerate(RATES)
    ]
    axes = {"objective": tuple(objectives), "rate": RATES}
    return Results("A study", "", (), tuple(rows), axes, settings=Settings(columns=(V, D), **settings))


# Baselines ----------------------------------------------------------------------------------------------------------


def test_each_row_is_compared_with_the_baseline_at_its_own_rate() -> None:
    results = complete_settings(grid_of(matched={"objective": "CE"}))
    pairs = {one.label: base.label for one, base in compared_rows(results)}
    assert pairs == {f"TS2, rate {rate}": f"CE, rate {rate}" for rate in RATES}
    assert baseline_said(results) == "CE at the same rate"
    table = differences_table(results, [V, D])
    assert table.header[0] == "minus CE at the same rate"
    assert len(table.rows) == 3
    for j, line in enumerate(table.rows):
        ours, theirs = ([made_up(i, j)[seed][1] for seed in SEEDS] for i in (1, 0))
        interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        mean = np.mean(np.subtract(ours, theirs))
        assert line[2].text == f"{mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def test_a_row_without_a_match_is_compared_with_nothing_and_named() -> None:
    results = grid_of(matched={"objective": "CE"})
    alone = row({"objective": "TS2", "rate": "2e-3"}, made_up(1, 9))
    results = complete_settings(replace(results, rows=(*results.rows, alone)))
    assert [one.label for one in unmatched(results)] == ["TS2, rate 2e-3"]
    assert baseline_of(results, alone) is None
    said = "Compared with nothing, as there is no CE at their other choices: TS2, rate 2e-3."
    assert said in as_markdown(results, [])
    (section,) = [section for section in as_page(results).sections if section.title.startswith("Against")]
    assert said in section.notes


def test_axes_that_the_baseline_lacks_do_not_keep_it_from_matching() -> None:
    rows = [
        *(row({"objective": "CE", "rate": rate}, {0: (0.9, 2.0)}) for rate in RATES),
        *(row({"objective": "TS2", "rate": rate, "alpha": "1"}, {0: (0.8, 3.0)}) for rate in RATES),
    ]
    axes = {"objective": ("CE", "TS2"), "rate": RATES, "alpha": ("1",)}
    results = Results("", "", (), tuple(rows), axes, settings=Settings(matched={"objective": "CE"}))
    assert [base.labels["rate"] for _, base in compared_rows(results)] == list(RATES)


def test_the_data_names_each_rows_baseline_and_the_option_takes_choices(tmp_path: Path) -> None:
    results = override_settings(grid_of(), baseline="objective=TS2")
    write_report(results, tmp_path)
    document = json.loads((tmp_path / "results.json").read_text())
    assert [one["baseline"] for one in document["rows"]] == [f"TS2, rate {rate}" for rate in RATES] + [None] * 3
    assert "Differences are taken against: TS2 at the same rate" in (tmp_path / "report.md").read_text()
    fixed = override_settings(grid_of(), baseline="objective=CE,rate=5e-4").settings
    assert (fixed.baseline, fixed.matched) == ("CE, rate 5e-4", {})


def test_a_grids_baseline_of_several_rows_is_matched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    axes = {"objective": ("CE", "TS2"), "rate": RATES}
    labels = [{"objective": objective, "rate": rate} for objective in axes["objective"] for rate in RATES]
    report = {
        "baseline": {"objective": "CE"},
        "frontiers": [
            {"dials": ["rate"], "quality": V, "diversity": D, "at": [0.9, "baseline", labels[0]], "where": {}}
        ],
        "best": [{"axis": "rate", "by": V, "choose_on": [0], "report_on": [1], "columns": [], "where": {}}],
    }
    for (i, seed), run in make_grid(Path("runs/study"), axes, labels, (0, 1), report=report).items():
        make_run(run, config_of(seed=seed), {V: 0.9 - 0.01 * i, D: 2.0 + i})
    settings = collect(["runs/study"]).settings
    assert (settings.baseline, settings.matched) == ("", {"objective": "CE"})
    assert settings.frontiers[0].at == (0.9, "baseline", labels[0])
    assert settings.best == (BestSettings("rate", V, (0,), (1,)),)
    text = write_report(collect(["runs/study"]), Path("out"))[0].read_text()
    assert "## Against CE at the same rate" in text
    assert "## Best rate, by V, T 1" in text


# The best choice of an axis -----------------------------------------------------------------------------------------


def best_of(points: Sequence[Mapping[int, float]], name: str = V, **settings: Any) -> Results:
    """One objective with a value of each seed at each rate; D is ten times it."""
    rows = [
        row({"objective": "CE", "rate": rate}, {seed: (v, 10 * v) for seed, v in of.items()}, name)
        for rate, of in zip(RATES, points, strict=True)
    ]
    best = BestSettings("rate", name, (0, 1), (2, 3), (D,))
    axes = {"objective": ("CE",), "rate": RATES}
    return Results("", "", (), tuple(rows), axes, settings=Settings(best=(best,), **settings))


LUCKY = [
    {0: 0.90, 1: 0.90, 2: 0.99, 3: 0.99},  # the best of all seeds, and not of those that decide
    {0: 0.95, 1: 0.93, 2: 0.50, 3: 0.60},
    {0: 0.94, 1: 0.93, 2: 0.90, 3: 0.90},
]


def test_some_seeds_decide_and_others_are_reported() -> None:
    results = best_of(LUCKY)
    (best,) = results.settings.best
    (chosen,) = chosen_of(results, best)
    assert (chosen.row.labels["rate"], chosen.at_end) == ("5e-4", False)
    assert chosen.decided.mean == pytest.approx(0.94)
    (table,) = best_tables(results, best)
    assert table.header == ("", "rate", "V, T 1 ↑ (chosen on)", "D, T 1 ↑")
    assert [cell.text for cell in table.rows[0]] == [
        "CE",
        "5e-4",
        "0.940 ± 0.014",
        f"5.50 ± {np.std([5, 6], ddof=1):.2f}",
    ]
    said = best_said(results, best)
    assert "highest mean of V, T 1 over seeds 0, 1" in said[0]
    assert "over seeds 2, 3, which have not decided" in said[0]


def test_less_may_be_better_and_equal_ones_are_the_first_of_the_dial() -> None:
    points = [{0: 0.2, 1: 0.2, 2: 1.0, 3: 1.0}, {0: 0.1, 1: 0.1, 2: 1.0, 3: 1.0}, {0: 0.1, 1: 0.1, 2: 0.0, 3: 0.0}]
    results = best_of(points, OUTSIDE)
    (chosen,) = chosen_of(results, results.settings.best[0])
    assert (chosen.row.labels["rate"], chosen.at_end) == ("2.5e-4", True), "the smaller of two that are equal"
    assert any("a better one may lie beyond" in said for said in best_said(results, results.settings.best[0]))
    assert best_tables(results, results.settings.best[0])[0].rows[0][1].text == "2.5e-4 (end)"


@pytest.mark.parametrize("broken", [{0: 0.99, 2: 0.9, 3: 0.9}, {0: 0.99, 1: math.nan, 2: 0.9, 3: 0.9}, {}])
def test_a_choice_that_lacks_a_deciding_value_is_passed_over(broken: dict[int, float]) -> None:
    results = best_of([LUCKY[0], broken, LUCKY[2]])
    (chosen,) = chosen_of(results, results.settings.best[0])
    assert (chosen.row.labels["rate"], chosen.passed_over) == ("2.5e-4", ("5e-4",))
    assert any("CE: rate 5e-4 passed over" in said for said in best_said(results, results.settings.best[0]))


def test_a_group_without_any_choice_is_shown_as_none() -> None:
    results = best_of([{2: 0.9}, {2: 0.9}, {2: 0.9}])
    (table,) = best_tables(results, results.settings.best[0])
    assert [cell.text for cell in table.rows[0]] == ["CE", "none", "", ""]


def test_each_at_its_best_is_compared_with_the_baseline_at_its_best_on_the_reported_seeds() -> None:
    best = BestSettings("rate", D, (0, 1), (2, 3, 4))
    results = complete_settings(grid_of(matched={"objective": "CE"}, best=(best,)))
    chosen = chosen_of(results, best)
    picked = [max(range(3), key=lambda j, i=i: np.mean([made_up(i, j)[s][1] for s in (0, 1)])) for i in (0, 1)]
    assert [one.row.labels["rate"] for one in chosen] == [RATES[j] for j in picked]
    _, differences = best_tables(results, best)
    ((label, _, of_d),) = differences.rows
    assert label.text == "TS2 minus CE"
    ours, theirs = ([made_up(i, picked[i])[s][1] for s in (2, 3, 4)] for i in (1, 0))
    interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    mean = np.mean(np.subtract(ours, theirs))
    assert of_d.text == f"{mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
    assert "## Best rate, by D, T 1" in as_markdown(results, [])
    titles = [section.title for section in as_page(results).sections]
    assert titles[:2] == ["Best rate, by D, T 1", "Best rate, by D, T 1: differences"]


@pytest.mark.parametrize(
    ("best", "reason"),
    [
        (BestSettings("rat", V, (0,), (1,)), "no axis 'rat'; did you mean rate?"),
        (BestSettings("rate", "toyworld/seen/validity_t2", (0,), (1,)), "not measured; did you mean"),
        (BestSettings("rate", V, (0,), (1,), ("cost/seconds",)), "cost/seconds: not measured"),
    ],
)
def test_what_cannot_be_chosen_is_missing(best: BestSettings, reason: str) -> None:
    complete = complete_settings(grid_of(best=(best,)))
    (entry,) = [entry for entry in complete.missing if entry.name.startswith("best")]
    assert reason in entry.reason

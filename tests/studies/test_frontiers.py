"""Frontiers of a report: curves by seed, intervals over seeds, tables, data, charts and pictures."""

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from scipy import stats

from ts2_lightning.evaluation.style import PAPER_WIDTHS, save
from ts2_lightning.pages.charts import figure as chart_figure
from ts2_lightning.pages.colours import MODELS
from ts2_lightning.studies.report import Results, Row, Run, Settings, complete_settings, override_settings, write_report
from ts2_lightning.studies.report.frontier_page import frontier_sections
from ts2_lightning.studies.report.frontier_pictures import frontier_pictures
from ts2_lightning.studies.report.frontier_tables import (
    diversity_text,
    front_said,
    front_table,
    frontier_title,
    matched_csv,
    matched_table,
    points_csv,
    rule_said,
    seeds_text,
    settings_text,
)
from ts2_lightning.studies.report.frontiers import Frontier, clouds_of, frontiers_of, order_of
from ts2_lightning.studies.report.results import FrontierSettings
from ts2_lightning.types import UserError

V, D = "toyworld/seen/validity_t1", "toyworld/seen/distinct_t1"
LOSS = "toyworld/seen/outside_plausible"  # less of it is better
RATES = ("1e-3", "5e-4", "2.5e-4")
ONE = FrontierSettings(("rate",), V, D, (0.9,))

Values = Mapping[int, tuple[float, float]]
"""Seed -> (quality, diversity)."""


def row(labels: Mapping[str, str], values: Values, quality: str = V) -> Row:
    called = ", ".join(labels.values())
    runs = [
        Run(f"{called}/{seed}", Path(called, str(seed)), seed, {quality: v, D: d}) for seed, (v, d) in values.items()
    ]
    return Row(called, dict(labels), tuple(runs))


def results_of(rows: Sequence[Row], frontier: FrontierSettings = ONE, **settings: Any) -> Results:
    axes: dict[str, list[str]] = {}
    for one in rows:
        for axis, choice in one.labels.items():
            axes.setdefault(axis, [])
            axes[axis] += [choice] if choice not in axes[axis] else []
    wanted = Settings(frontiers=(frontier,), columns=(V, D), **settings)
    return Results("A study", "", (), tuple(rows), {a: tuple(c) for a, c in axes.items()}, settings=wanted)


def curve(objective: str, points: Sequence[Values]) -> list[Row]:
    """A row for each rate."""
    return [row({"objective": objective, "rate": rate}, of) for rate, of in zip(RATES, points, strict=True)]


CE = curve(
    "CE",
    [
        {0: (0.98, 2.0), 1: (0.97, 2.2), 2: (0.96, 2.1)},
        {0: (0.92, 3.0), 1: (0.94, 3.1), 2: (0.93, 2.9)},
        {0: (0.82, 4.0), 1: (0.86, 4.3), 2: (0.84, 4.4)},
    ],
)
GEM = curve(
    "GEM",
    [
        {0: (0.95, 2.5), 1: (0.89, 2.6), 2: (0.91, 2.4)},
        {0: (0.88, 3.5), 1: (0.85, 3.6), 2: (0.89, 3.4)},
        {0: (0.80, 4.5), 1: (0.78, 4.6), 2: (0.79, 4.4)},
    ],
)


def only(results: Results) -> Frontier:
    (frontier,) = frontiers_of(complete_settings(results))
    return frontier


def interpolated(rows: Sequence[Row], seed: int, quality: float) -> float:
    """By numpy, for a curve whose quality falls along the rows."""
    points = [(results_of(rows).values(one, V)[seed], results_of(rows).values(one, D)[seed]) for one in rows]
    return float(np.interp(quality, *zip(*sorted(points), strict=True)))


# Matched quality ----------------------------------------------------------------------------------------------------


def test_every_seed_has_its_own_curve_and_the_interval_is_over_them() -> None:
    frontier = only(results_of([*CE, *GEM]))
    (target, (ce, gem)) = frontier.at[0]
    assert target.said == "0.900"
    of_seeds = [interpolated(CE, seed, 0.9) for seed in (0, 1, 2)]
    assert list(ce.reached.values()) == pytest.approx(of_seeds)
    interval = stats.ttest_1samp(of_seeds, 0.0).confidence_interval(0.95)
    assert diversity_text(ce, ".3f") == f"{np.mean(of_seeds):.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    assert (seeds_text(ce), settings_text(ce)) == ("3 of 3", "rate 2.5e-4 to 5e-4")

    assert {seed: match.outcome for seed, match in gem.matches.items()} == {0: "reached", 1: "worse", 2: "reached"}
    assert seeds_text(gem) == "2 of 3 (others: worse at every setting)"
    assert settings_text(gem) == "rate 5e-4 to 1e-3"
    assert gem.summary.mean == pytest.approx(np.mean([interpolated(GEM, seed, 0.9) for seed in (0, 2)]))
    assert ce.difference is None, "the first row is the baseline, and its curve"
    pairs = [interpolated(GEM, seed, 0.9) - of_seeds[seed] for seed in (0, 2)]
    assert (gem.difference.n, gem.difference.mean) == (2, pytest.approx(np.mean(pairs)))


def test_what_no_seed_reaches_is_said_and_is_never_the_best() -> None:
    frontier = only(results_of([*CE, *GEM], replace(ONE, at=(0.965, 0.5, 0.88))))
    results = results_of([*CE, *GEM])
    high, low, both = (matched_table(results, frontier, matched).rows for _, matched in frontier.at)
    assert high[0][1].text.startswith("2."), "two of three seeds"
    assert [line[-2].text for line in high] == ["2 of 3 (others: worse at every setting)", "0 of 3"]
    assert high[1][1].text == "not reached: worse at every setting"
    assert [line[1].text for line in low] == ["not reached: better at every setting"] * 2
    assert all(line[-2].text == "0 of 3" for line in low)
    assert {line[1].mark for line in (*high, *low)} == {""}, "of some seeds alone none is the best"
    assert [line[1].mark for line in both] == ["best", "near"]


def test_rows_without_any_run_are_said_to_have_none() -> None:
    results = results_of([*CE, *curve("GEM", [{}, {}, {}])])
    frontier = only(results)
    ((_, ce, *_), (_, diversity, *_, seeds, there)) = matched_table(results, frontier, frontier.at[0][1]).rows
    assert ce.text.startswith("3.43 [")
    assert [cell.text for cell in (diversity, seeds, there)] == ["not reached: these rows have no runs", "no seeds", ""]
    assert "GEM 0 of 3 (these rows have no runs). Marked" in front_said(frontier)
    assert "CE 3 of 3, GEM" in front_said(frontier)


def test_the_best_is_among_those_that_every_seed_reaches() -> None:
    """The curve with most diversity is met by two of three seeds: it is a mean of others than its rivals'."""

    def flat(objective: str, diversity: float, last: float) -> list[Row]:
        qualities = ({0: 1.0, 1: 1.0, 2: last}, {0: 0.8, 1: 0.8, 2: last - 0.2}, {0: 0.7, 1: 0.7, 2: last - 0.3})
        return curve(objective, [{seed: (q, diversity) for seed, q in of.items()} for of in qualities])

    rows = [*flat("A", 3.0, 1.0), *flat("B", 5.0, 0.85), *flat("C", 2.0, 1.0)]
    frontier = only(results_of(rows))
    table = matched_table(results_of(rows), frontier, frontier.at[0][1])
    assert [(line[0].text, line[1].text[:4], line[1].mark) for line in table.rows] == [
        ("A", "3.00", "best"),
        ("B", "5.00", ""),
        ("C", "2.00", ""),
    ]


def test_where_less_is_better_the_description_says_so() -> None:
    """Quality is the mass outside, so that the curve with less of it is the better one."""
    rows = [
        row({"rate": rate}, {0: (q, d)}, LOSS)
        for rate, q, d in zip(RATES, (0.1, 0.2, 0.4), (2.0, 3.0, 5.0), strict=True)
    ]
    frontier = only(results_of(rows, FrontierSettings(("rate",), LOSS, D, (0.3, 0.05, 0.9))))
    ((_, (reached,)), (_, (worse,)), (_, (better,))) = frontier.at
    assert reached.matches[0].diversity == pytest.approx(4.0)
    assert (worse.matches[0].outcome, better.matches[0].outcome) == ("worse", "better")
    assert [place.on_front for place in frontier.clouds[0].places] == [True] * 3


def test_the_quality_of_a_row_is_each_seeds_own() -> None:
    """So that the row itself is met exactly, and nothing is compared at a quality that a seed does not have."""
    frontier = only(results_of([*CE, *GEM], replace(ONE, at=({"objective": "CE", "rate": "5e-4"},))))
    ((target, (ce, gem)),) = frontier.at
    assert target.said == "that of CE, 5e-4 (0.930 on average)"
    assert ce.reached == {0: 3.0, 1: 3.1, 2: 2.9}
    assert gem.matches[0].diversity == pytest.approx(interpolated(GEM, 0, 0.92))
    assert [gem.matches[seed].outcome for seed in (1, 2)] == ["worse", "worse"]


def test_the_baseline_is_met_at_every_setting_of_its_own() -> None:
    frontier = only(results_of([*CE, *GEM], replace(ONE, at=("baseline",)), matched={"objective": "CE"}))
    assert [target.said.split(" (")[0] for target, _ in frontier.at] == [f"that of CE, {rate}" for rate in RATES]
    assert all(len(matched[0].reached) == 3 for _, matched in frontier.at)


# What is missing ----------------------------------------------------------------------------------------------------


def test_a_missing_setting_cuts_the_curve_of_its_seed_alone() -> None:
    rows = [CE[0], row(CE[1].labels, {0: (0.92, 3.0), 2: (0.93, math.nan)}), CE[2]]
    frontier = only(results_of(rows))
    (ce,) = frontier.at[0][1]
    assert {seed: match.outcome for seed, match in ce.matches.items()} == {0: "reached", 1: "gap", 2: "gap"}
    assert seeds_text(ce) == "1 of 3 (others: between settings of which one is missing)"
    assert frontier.remarks == (
        "CE: the run of seed 1 is not measured at rate 5e-4, or not defined; its curve is cut there.",
        "CE: the run of seed 2 is not measured at rate 5e-4, or not defined; its curve is cut there.",
    )
    middle = frontier.clouds[0].places[1]
    assert (middle.setting, math.isnan(middle.diversity.mean), middle.on_front) == (("5e-4",), True, False)
    assert [place.setting for place in frontier.clouds[0].defined] == [("2.5e-4",), ("1e-3",)]


def test_a_seed_that_one_objective_lacks_is_said() -> None:
    frontier = only(results_of([*CE, *curve("GEM", [{0: (0.95, 2.0)}, {0: (0.9, 3.0)}, {0: (0.8, 4.0)}])]))
    assert frontier.remarks == ("GEM: no run of seed 1, 2.",)
    assert seeds_text(frontier.at[0][1][1]) == "1 of 1"


def test_runs_without_a_seed_have_a_curve_and_no_interval() -> None:
    rows = [replace(one, runs=tuple(replace(run, seed=None) for run in one.runs[:1])) for one in CE]
    (ce,) = only(results_of(rows)).at[0][1]
    assert diversity_text(ce, ".2f") == f"{interpolated(CE, 0, 0.9):.2f}"


@pytest.mark.parametrize(
    ("frontier", "reason"),
    [
        (replace(ONE, quality="toyworld/seen/validity_t2"), f"validity_t2: not measured; did you mean {V}?"),
        (replace(ONE, quality="toyworld/seen/entropy"), "toyworld/seen/entropy: neither direction is better"),
        (replace(ONE, dials=("rat",)), "no axis 'rat'; did you mean rate?"),
        (replace(ONE, dials=("objective", "rate"), where={"objective": ("CE",)}), "that are measured, objective has 1"),
        (replace(ONE, where={"rate": ("1e-3",)}), "rate has 1"),
    ],
)  # fmt: skip
def test_a_frontier_that_cannot_be_drawn_is_missing_with_its_reason(frontier: FrontierSettings, reason: str) -> None:
    runs = [replace(run, values={**run.values, "toyworld/seen/entropy": 1.0}) for run in CE[0].runs]
    complete = complete_settings(results_of([replace(CE[0], runs=tuple(runs)), *CE[1:], *GEM], frontier))
    assert complete.settings.frontiers == ()
    (entry,) = [entry for entry in complete.missing if entry.name.startswith("frontier")]
    assert reason in entry.reason
    assert "\n" not in entry.reason


def test_a_quality_to_compare_at_that_is_not_there_is_missing() -> None:
    at = (0.9, {"objective": "TOFU"}, {"objective": "CE"}, "baseline")
    complete = complete_settings(results_of([*CE, *GEM], replace(ONE, at=at, where={"objective": ("GEM",)})))
    assert complete.settings.frontiers[0].at == (0.9,)
    assert [entry.reason for entry in complete.missing] == [
        "no quality of objective TOFU: no row of it",
        "no quality of objective CE: no row of it",
        "the baseline has 0 of its rows; give qualities, such as --at 0.95",
    ]


def test_a_frontier_takes_the_place_of_the_usual_pictures() -> None:
    """There are as many rows as settings, too many for a legend; what is named is drawn."""
    logged = [replace(one, runs=tuple(replace(r, curves={"val/entropy": {1: 0.5}}) for r in one.runs)) for one in CE]
    plain = complete_settings(results_of(logged)).settings
    assert (plain.planes, plain.against, plain.curves) == ((), {}, ())
    named = complete_settings(results_of(logged, planes=((D, V),), curves=("val/entropy",))).settings
    assert (named.planes, named.curves) == (((D, V),), ("val/entropy",))
    without = complete_settings(results_of(logged, replace(ONE, dials=("no",)))).settings
    assert without.planes == ((D, V),), "where it cannot be drawn they are"


# Clouds -------------------------------------------------------------------------------------------------------------


def test_dials_are_ordered_by_number_or_as_the_axis_has_them() -> None:
    assert order_of(["1e-3", "5e-4", "10"]) == ("5e-4", "1e-3", "10")
    assert order_of(["late", "early", "1"]) == ("late", "early", "1")


def test_a_row_without_the_dial_is_a_point_beside_the_curves() -> None:
    rows = [row({"objective": "CE"}, {0: (0.9, 2.5)}), *CE]
    frontier = only(results_of(rows))
    assert [(cloud.label, cloud.dials) for cloud in frontier.clouds] == [("CE, without rate", ()), ("CE", ("rate",))]
    assert frontier.at[0][1][0].matches[0].diversity == 2.5
    assert settings_text(frontier.at[0][1][0]) == "its only setting"
    assert "CE, without rate: no dial, so that it is a point and no curve." in frontier.remarks


def two_dials(seeds: Sequence[int] = (0, 1)) -> list[Row]:
    """Quality falls along both dials; D rises, along the temperature more."""
    rows = []
    for (i, rate), (j, temperature) in itertools.product(enumerate(RATES), enumerate(("0.6", "0.8", "1"))):
        values = {seed: (1.0 - 0.05 * i - 0.04 * j, 2.0 + 0.4 * i + 0.7 * j + 0.01 * seed) for seed in seeds}
        rows.append(row({"objective": "CE", "rate": rate, "temperature": temperature}, values))
    return rows


def test_of_two_dials_the_whole_cloud_counts_and_the_setting_is_said() -> None:
    """By hand: at 0.93 the candidates are (1e-3, .8 to 1) D 3.05 + .175 and others with less."""
    rows = two_dials()
    frontier = only(results_of(rows, FrontierSettings(("rate", "temperature"), V, D, (0.93,))))
    (ce,) = frontier.at[0][1]
    candidates = []
    points = {(i, j): (1.0 - 0.05 * i - 0.04 * j, 2.0 + 0.4 * i + 0.7 * j) for i in range(3) for j in range(3)}
    for (i, j), (q, d) in points.items():
        for other in ((i + 1, j), (i, j + 1)):
            if other in points and points[other][0] < 0.93 < q:
                share = (0.93 - q) / (points[other][0] - q)
                candidates.append((d + share * (points[other][1] - d), (i, j), other))
    best, _, _ = max(candidates)
    assert ce.matches[0].diversity == pytest.approx(best)
    assert ce.matches[1].diversity == pytest.approx(best + 0.01)
    assert settings_text(ce) == "rate 1e-3, temperature 0.8 to 1"
    assert "the other dial held" in rule_said(results_of(rows), frontier)
    assert "flatters" in rule_said(results_of(rows), frontier)


def test_seeds_that_meet_the_quality_elsewhere_are_counted_apart() -> None:
    rows = curve(
        "CE", [{0: (0.95, 2.0), 1: (0.99, 1.0)}, {0: (0.85, 3.0), 1: (0.95, 2.0)}, {0: (0.8, 4.0), 1: (0.7, 5.0)}]
    )
    (ce,) = only(results_of(rows)).at[0][1]
    assert settings_text(ce) == "rate 5e-4 to 1e-3 (1 of 2); rate 2.5e-4 to 5e-4 (1 of 2)"


def test_where_says_which_rows_and_is_not_repeated_in_the_labels() -> None:
    wanted = FrontierSettings(("rate",), V, D, (0.9,), {"temperature": ("0.8",)})
    clouds = clouds_of(results_of(two_dials(), wanted), wanted)
    assert [cloud.label for cloud in clouds] == ["CE"]
    assert [place.row.labels["temperature"] for place in clouds[0].places] == ["0.8"] * 3


def test_fronts_are_of_each_curve_and_of_all() -> None:
    results = results_of([*CE, *GEM])
    lines = front_table(results, only(results)).rows
    assert [(line[0].text, line[1].text, line[2].mark) for line in lines] == [
        ("CE", "rate 2.5e-4", "best"),
        ("CE", "rate 5e-4", "best"),
        ("CE", "rate 1e-3", "best"),
        ("GEM", "rate 2.5e-4", "best"),
        ("GEM", "rate 5e-4", "best"),
        ("GEM", "rate 1e-3", ""),
    ]


# Files --------------------------------------------------------------------------------------------------------------


def test_the_report_has_tables_data_and_pictures(tmp_path: Path) -> None:
    results = results_of([*CE, *GEM], replace(ONE, at=(0.9, "baseline")), matched={"objective": "CE"})
    paths = write_report(results, tmp_path / "report", latex=True)
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "report").iterdir()}
    text = (tmp_path / "report/report.md").read_text()
    assert "## V, T 1 against D, T 1, along rate" in text
    assert "### D, T 1 where V, T 1 is 0.900" in text
    assert "frontier-1.png" in text.split("## Results")[0], "the picture stands with its tables"
    assert text.count("frontier-1.png") == 1
    assert "Nothing is extrapolated" in text
    assert "## Against CE at the same rate" in text
    document = json.loads((tmp_path / "report/results.json").read_text())
    assert document["frontiers"][0]["matched"][0]["curves"][1]["reached"] == 2
    assert [one["baseline"] for one in document["rows"]] == [None] * 3 + [f"CE, {rate}" for rate in RATES]
    assert "not reached" not in (tmp_path / "report/table.tex").read_text().split("0.900")[0]
    assert (tmp_path / "report/table.tex").read_text().count(r"\begin{table}") == 5

    write_report(results_of(CE, replace(ONE, dials=("no",))), tmp_path / "report")
    left = {path.name for path in (tmp_path / "report").iterdir()}
    assert not left & {"frontiers.csv", "matched.csv", "frontier-1.png", "frontier-1.svg", "table.tex"}


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_data_has_every_digit_and_seed() -> None:
    results = results_of([*CE, *GEM])
    frontiers = frontiers_of(complete_settings(results))
    points = read(points_csv(results, frontiers))
    assert [(line["curve"], line["setting"]) for line in points[:2]] == [("CE", "rate 2.5e-4"), ("CE", "rate 5e-4")]
    assert float(points[0]["quality"]) == np.mean([0.82, 0.86, 0.84])
    lines = read(matched_csv(results, frontiers))
    of_gem = [line for line in lines if line["curve"] == "GEM"]
    assert [(line["seed"], line["outcome"]) for line in of_gem] == [
        ("0", "reached"), ("1", "worse"), ("2", "reached"), ("mean", "2 of 3"),
    ]  # fmt: skip
    assert float(of_gem[0]["diversity"]) == pytest.approx(interpolated(GEM, 0, 0.9))
    assert (of_gem[0]["from"], of_gem[0]["to"], of_gem[1]["diversity"]) == ("rate 5e-4", "rate 1e-3", "")


def test_the_page_has_the_same_curves_in_the_pictures_colours() -> None:
    results = complete_settings(results_of([*CE, *GEM]))
    chart, matched, fronts = frontier_sections(results)
    assert (chart.kind, [series.name for series in chart.series]) == ("paths", ["CE", "GEM"])
    assert chart.series[0].x == pytest.approx([np.mean([4.0, 4.3, 4.4]), 3.0, 2.1])
    assert chart.series[0].labels == ["rate 2.5e-4 (n = 3)", "rate 5e-4 (n = 3)", "rate 1e-3 (n = 3)"]
    traces = chart_figure(chart)["data"]
    assert [trace["mode"] for trace in traces] == ["lines+markers"] * 2
    assert [trace["marker"]["color"] for trace in traces] == [MODELS[1], MODELS[2]]
    assert all(trace["error_x"]["array"] and trace["error_y"]["array"] for trace in traces)
    assert [row[1] for row in matched.rows] == pytest.approx(
        [m.summary.mean for m in frontiers_of(results)[0].at[0][1]]
    )
    assert len(fronts.rows) == 6

    two = complete_settings(results_of(two_dials(), FrontierSettings(("rate", "temperature"), V, D, (0.93,))))
    kinds = [(section.kind, len(section.series[0].x)) for section in frontier_sections(two)[:2]]
    on_front = sum(place.on_front for place in frontiers_of(two)[0].clouds[0].places)
    assert kinds == [("paths", on_front), ("points", 9)]


def many(count: int) -> list[Row]:
    """Curves beside each other, with two seeds."""
    return [
        line
        for i in range(count)
        for line in curve(
            f"objective {i}",
            [{s: (0.9 - 0.02 * i - 0.1 * j + 0.01 * s, 2 + j + 0.1 * i + 0.05 * s) for s in (0, 1)} for j in range(3)],
        )
    ]


@pytest.mark.parametrize("count", [3, 12])
def test_the_picture_has_a_colour_for_each_objective_and_a_marker_for_each_choice(tmp_path: Path, count: int) -> None:
    rows = [Row("base", {}, (Run("base", Path("base"), None, {V: 0.8, D: 5.0}),), is_base=True), *many(count)]
    picture, *_ = frontier_pictures(complete_settings(results_of(rows, replace(ONE, at=(0.75,)))))
    (axes,) = picture.figure.axes
    (legend,) = picture.figure.legends
    entries = [text.get_text() for text in legend.get_texts()]
    assert entries == [*(f"objective {i}" for i in range(count)), "rate", "2.5e-4", "5e-4", "1e-3"]
    assert legend.get_title().get_text() == "n = 2 seeds"
    looks = {(to_hex(line.get_color()), str(line.get_linestyle())) for line in legend.get_lines()[:count]}
    assert len(looks) == count, "told apart by colour, and by dashes where colours come again"
    assert [line.get_marker() for line in legend.get_lines()[count + 1 :]] == ["o", "s", "D"]
    assert [text.get_text() for text in axes.texts] == ["base"]
    assert "rate ● 2.5e-4, ■ 5e-4, ◆ 1e-3" in picture.caption
    assert "up to 2 seeds" in picture.caption
    assert any(np.allclose(line.get_ydata(), 0.75) and len(line.get_ydata()) == 2 for line in axes.lines)
    assert axes.get_xlabel().startswith("D, T 1: distinct valid answers")
    assert "(higher is better)" in axes.get_ylabel()
    _, svg = save(picture.figure, tmp_path / "picture")
    assert len(re.findall(r"<text", svg.read_text())) > count


def boxes_of(figure: Figure) -> dict[str, Bbox]:
    """What must not lie upon each other: the title, legends, axes with all that belongs to them."""
    figure.draw_without_rendering()
    boxes = {f"axes {i}": axes.get_tightbbox() for i, axes in enumerate(figure.axes) if axes.get_visible()}
    boxes |= {f"legend {i}": legend.get_window_extent() for i, legend in enumerate(figure.legends)}
    texts = [text for text in figure.texts if text.get_text()]
    return boxes | {text.get_text(): text.get_window_extent() for text in texts}


@pytest.mark.parametrize("columns", PAPER_WIDTHS)
@pytest.mark.parametrize("count", [2, 10, 20])
def test_nothing_is_cut_off_and_nothing_lies_upon_another(count: int, columns: int) -> None:
    rows = [replace(one, label=f"{one.label} of a method with a long name") for one in many(count)]
    results = results_of(rows, paper_columns=columns)
    results = replace(results, title="A study whose title takes more than one line of a picture, as some do")
    pictures = frontier_pictures(complete_settings(results))
    assert len(pictures) == (1 if count <= 4 else 2)
    for picture in pictures:
        assert picture.figure.get_figwidth() == PAPER_WIDTHS[columns].inches
        boxes = boxes_of(picture.figure)
        page = picture.figure.bbox
        for name, box in boxes.items():
            assert box.x0 >= -1 and box.x1 <= page.x1 + 1 and box.y0 >= -1 and box.y1 <= page.y1 + 1, name  # noqa: PT018
        upon = [pair for pair in itertools.combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
        assert upon == []


def test_of_many_curves_each_has_a_panel_before_the_others() -> None:
    _, picture = frontier_pictures(complete_settings(results_of(many(6))))
    assert picture.stem == "frontier-1-each"
    panels = [axes for axes in picture.figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == [f"objective {i}" for i in range(6)]
    for index, axes in enumerate(panels):
        assert [text.get_text() for text in axes.texts] == ["n = 2 seeds"]
        assert sum(line.get_color() == "0.8" for line in axes.lines) == 5
        (own,) = [line for line in axes.lines if line.get_color() not in ("0.8", "0.6")]
        assert to_hex(own.get_color()) == MODELS[1 + index].lower(), "the colour of the other picture"


def test_of_two_dials_markers_are_the_first_and_their_sizes_the_second() -> None:
    results = complete_settings(results_of(two_dials(), FrontierSettings(("rate", "temperature"), V, D, (0.93,))))
    (picture,) = frontier_pictures(results)
    (legend,) = picture.figure.legends
    entries = {text.get_text(): line for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    sizes = [entries[choice].get_markersize() for choice in results.axes["temperature"]]
    assert len(set(sizes)) == 3
    assert {entries[rate].get_marker() for rate in RATES} == {"o", "s", "D"}
    assert "Their size: temperature, from" in picture.caption
    assert "the Pareto front of each" in picture.caption
    drawn = {round(area**0.5, 3) for one in picture.figure.axes[0].collections for area in one_sizes(one)}
    assert drawn == {round(size, 3) for size in sizes}


def one_sizes(collection: Any) -> list[float]:
    """Areas of the markers of a collection; none of one of lines."""
    return list(collection.get_sizes()) if isinstance(collection, PathCollection) else []


# The command line ---------------------------------------------------------------------------------------------------


def test_options_name_dials_and_qualities() -> None:
    results = results_of([*CE, *GEM])
    changed = override_settings(results, frontier=(V, D), dials=["rate"], at=["0.9", "CE, 5e-4", "baseline"])
    (frontier,) = changed.settings.frontiers
    assert frontier == FrontierSettings(("rate",), V, D, (0.9, CE[1].labels, "baseline"))
    assert override_settings(results, paper_columns=1).settings.paper_columns == 1
    assert override_settings(results, at=["0.8"]).settings.frontiers == (replace(ONE, at=(0.8,)),)
    assert frontier_title(changed, only(changed)) == "V, T 1 against D, T 1, along rate"


Wish = Callable[[], dict[str, Any]]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"frontier": (V, D)}, r"--dials AXIS\[,AXIS\] belong together"),
        ({"dials": ["rate"]}, "belong together"),
        ({"frontier": (V, D), "dials": ["rat"]}, r"--dials rat: no axis 'rat'; did you mean rate\?"),
        ({"frontier": (V, D), "dials": ["rate", "rate"]}, "--dials rate,rate: expected one axis or two different"),
        ({"frontier": (V, "speed"), "dials": ["rate"]}, "--frontier speed: no run has such a value"),
        ({"at": ["CE, 1e-4"]}, "--at CE, 1e-4: neither a number nor baseline nor a row; did you mean CE, "),
        ({"at": ["nan"]}, "--at nan: neither a number nor baseline nor a row"),
        ({"baseline": "objectiv=CE"}, r"--baseline objectiv=CE: no axis 'objectiv'; did you mean objective\?"),
        ({"baseline": "objective=EC"}, "no choice of objective 'EC'"),
        ({"paper_columns": 3}, "--paper-columns 3: expected 1 or 2"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        override_settings(results_of([*CE, *GEM]), **wish)
    assert "\n" not in str(told.value)


def test_a_quality_without_a_curve_is_refused() -> None:
    results = replace(results_of(CE), settings=Settings())
    with pytest.raises(UserError, match="--at: nothing is drawn along a dial"):
        override_settings(results, at=["0.9"])

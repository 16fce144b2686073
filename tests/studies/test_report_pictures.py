"""What the pictures of a report show: points, bars, lines and names, read off the figures and the SVGs."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure

from ts2_lightning.evaluation import describe
from ts2_lightning.evaluation.style import PAPER_WIDTHS, n_said, save
from ts2_lightning.studies.grid.reported import PAPER_COLUMNS
from ts2_lightning.studies.report import Results, Row, Run, Settings
from ts2_lightning.studies.report.distributions import PANELS, distributions
from ts2_lightning.studies.report.figures import against, explained, plane, styles_of
from ts2_lightning.studies.report.learning_curves import POINTS, curves
from ts2_lightning.studies.report.write import pictures

X, Y = "toyworld/seen/distinct_t1", "toyworld/seen/validity_t1"


def row(label: str, points: list[tuple[float, float]], labels: dict[str, str] | None = None, base: bool = False) -> Row:
    """A row with a point (x, y) for each seed."""
    runs = tuple(Run(f"{label}/{i}", Path(label, str(i)), i, {X: x, Y: y}) for i, (x, y) in enumerate(points))
    return Row(label, labels or {}, runs, base)


def results_of(rows: list[Row], paper_columns: int = 2, **axes: tuple[str, ...]) -> Results:
    settings = Settings(against=dict.fromkeys(axes, (Y,)), paper_columns=paper_columns)
    return Results("A study", "", (), tuple(rows), axes, settings=settings)


def spread_rows(count: int, long: bool = False) -> list[Row]:
    """Rows along a diagonal, far enough from each other to be named."""
    ending = (
        " of a method whose name takes more than one line of any legend, and more than the picture has" if long else ""
    )
    return [
        row(f"row {i}{ending}", [(i + 0.1, 1.0 - i / count), (i - 0.1, 1.02 - i / count), (float(i), 0.98 - i / count)])
        for i in range(count)
    ]


def texts(figure: Figure, tmp_path: Path) -> list[str]:
    """All text of the SVG, in the order of drawing."""
    _, svg = save(figure, tmp_path / "picture")
    return [re.sub(r"<[^>]+>", "", text).strip() for text in re.findall(r"<text[^>]*>(.*?)</text>", svg.read_text())]


def bars(axes: Axes) -> list[ErrorbarContainer]:
    return [container for container in axes.containers if isinstance(container, ErrorbarContainer)]


# Planes ---------------------------------------------------------------------------------------------------------


def test_a_plane_has_means_and_deviations(tmp_path: Path) -> None:
    rows = [
        row("base", [(7.0, 0.8)], base=True),
        row("CE", [(3.0, 0.90), (3.2, 0.92)]),
        row("TS2", [(4.0, 0.9), (4.5, 0.8), (5, 0.7)]),
    ]
    figure = plane(results_of(rows), X, Y)
    (axes,) = figure.axes
    drawn = [(float(bar[0].get_xdata()[0]), float(bar[0].get_ydata()[0])) for bar in bars(axes)]  # type: ignore[index]
    assert drawn == [(7.0, 0.8), pytest.approx((3.1, 0.91)), pytest.approx((4.5, 0.8))]
    deviations = [
        [float(np.ptp(part.get_segments()[0], axis=0).max()) / 2 for part in bar[2]]  # type: ignore[attr-defined]
        for bar in bars(axes)
    ]
    assert deviations == [[], pytest.approx([0.2 / math.sqrt(2), 0.02 / math.sqrt(2)]), pytest.approx([0.5, 0.1])]
    written = texts(figure, tmp_path)
    assert {"base", "CE", "TS2", "A study: V, T 1 against D, T 1"} <= set(written)
    assert any(text.startswith("V, T 1: share of valid answers") for text in written)
    assert any("(higher is better)" in text for text in written)
    dots = [line for line in axes.lines if line.get_marker() == "."]
    assert [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in dots] == [  # type: ignore[arg-type]
        [],
        [(3.0, 0.90), (3.2, 0.92)],
        [(4.0, 0.9), (4.5, 0.8), (5, 0.7)],
    ], "each seed, where there are several"
    assert bars(axes)[0][0].get_marker() == "*", "the base model is marked"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "rows", [spread_rows(20), spread_rows(9, long=True), [row(f"row {i}", [(1, 1)]) for i in range(12)]]
)
@pytest.mark.parametrize("columns", PAPER_WIDTHS)
def test_the_legend_names_every_row(rows: list[Row], columns: int) -> None:
    figure = plane(results_of(rows, columns), X, Y)
    assert figure.get_figwidth() == PAPER_WIDTHS[columns].inches
    (legend,) = figure.legends
    assert [text.get_text().replace("\n", " ") for text in legend.get_texts()] == [r.label for r in rows]
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert not box.overlaps(figure.axes[0].get_window_extent())
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= 0
    assert figure.axes[0].get_window_extent().height > 1.2 * figure.dpi


def test_rows_that_differ_in_a_number_are_joined_in_its_order() -> None:
    rows = [row("CE", [(0, 0)])]
    rows += [row(f"TS2 {a}", [(x, x)], {"loss": "TS2", "alpha": a}) for a, x in (("5", 1), ("0.25", 9), ("1", 4))]
    figure = plane(results_of(rows, alpha=("0.25", "1", "5")), X, Y)
    joined = [line for line in figure.axes[0].lines if line.get_color() == "0.75"]
    assert [list(line.get_xdata()) for line in joined] == [[9, 4, 1]]  # type: ignore[arg-type]


def test_the_caption_says_what_grey_lines_are_where_there_are_any() -> None:
    rows = [row("CE", [(0, 0)]), *(row(f"TS2 {a}", [(x, x)], {"alpha": a}) for a, x in (("5", 1), ("0.25", 9)))]
    results = results_of(rows, alpha=("0.25", "5"))
    for several in (results, replace(results, rows=tuple(rows[:2]))):
        drawn = pictures(replace(several, settings=replace(several.settings, planes=((X, Y),))))
        (caption,) = [picture.caption for picture in drawn if picture.stem == "plane-1"]
        assert ("Grey lines: rows that differ in one number alone." in caption) == (len(several.rows) == 3)


@pytest.mark.parametrize("width", [28, 60, 70, 80])
def test_the_better_direction_is_never_broken_over_lines(width: int) -> None:
    lines = explained(describe(X), width).splitlines()
    assert lines[-1].endswith("(higher is better)")
    assert max(map(len, lines)) <= width
    assert (
        "\n".join(lines).replace("\n", " ").split()
        == f"{describe(X).title}: {describe(X).meaning} (higher is better)".split()
    )


def test_noise_below_what_is_printed_is_not_magnified(tmp_path: Path) -> None:
    """Validity is printed with three decimals, and these are all 1.000."""
    rows = [row("CE", [(1.0, 0.99999)]), row("TS2", [(3.0, 0.99998)])]
    figure = plane(results_of(rows), X, Y)
    low, high = figure.axes[0].get_ylim()
    assert high - low == pytest.approx(0.01)
    assert low < 0.99998 < high
    ticks = [text for text in texts(figure, tmp_path) if text.startswith(("0.99", "1.00"))]
    assert len(ticks) > 2, "whole numbers, not what is left above an offset"
    wide = plane(results_of(spread_rows(5)), X, Y)
    assert np.ptp(wide.axes[0].get_ylim()) > 0.5


def test_a_plane_needs_two_rows() -> None:
    assert plane(results_of([row("CE", [(1, 1)])]), X, Y) is None
    undefined = row("odd", [(1, math.nan), (1, 1)])
    assert plane(results_of([row("CE", [(1, 1)]), undefined]), X, Y) is None


def test_looks_tell_rows_apart() -> None:
    looks = styles_of([row(str(i), []) for i in range(72)])
    assert len({tuple(look.values()) for look in looks.values()}) == 72
    assert len({look["color"] for look in list(looks.values())[:12]}) == 12, "CE's is no other objective's"
    assert styles_of([row("base", [], base=True), row("CE", [])])["CE"] == looks["0"], "whether there is a base or not"


def test_names_are_no_formulas(tmp_path: Path) -> None:
    rows = [row("$x", [(0, 0)]), row("$y", [(5, 1)]), row("a_b^c", [(3, 0.5)])]
    figure = plane(results_of(rows), X, Y)
    assert figure is not None
    assert {"$x", "$y", "a_b^c"} <= set(texts(figure, tmp_path))


# Metric against hyper-parameter ---------------------------------------------------------------------------------


def dial(loss: str, values: dict[str, float], axis: str = "alpha", **more: str) -> list[Row]:
    return [row(f"{loss} {a}", [(0, y), (0, y + 0.2)], {"loss": loss, axis: a} | more) for a, y in values.items()]


def test_a_line_for_each_choice_of_the_other_axes(tmp_path: Path) -> None:
    rows = [row("base", [(0, 9)], base=True), row("CE", [(0, 1), (0, 3)], {"loss": "CE"})]
    rows += dial("TS2", {"5": 0.5, "0.25": 0.1}) + dial("GEM", {"1": 0.3, "5": 0.7})
    figure = against(results_of(rows, alpha=("0.25", "1", "5")), "alpha", (Y, X))
    first = figure.axes[0]
    lines = [(list(bar[0].get_xdata()), list(bar[0].get_ydata())) for bar in bars(first)]  # type: ignore[arg-type, union-attr]
    assert lines == [([0.25, 5.0], pytest.approx([0.2, 0.6])), ([1.0, 5.0], pytest.approx([0.4, 0.8]))]
    flat = {float(line.get_ydata()[0]) for line in first.lines if list(line.get_xdata()) == [0, 1]}  # type: ignore[arg-type, index]
    assert flat == {9.0, 2.0}, "rows without the number"
    assert first.get_xscale() == "log"
    assert [tick.get_text() for tick in first.get_xticklabels()] == ["0.25", "1", "5"]
    assert {"base", "CE", "TS2", "GEM", "alpha", "A study: what alpha does"} <= set(texts(figure, tmp_path))


@pytest.mark.parametrize(
    ("choices", "scale"), [(("0.6", "1.0"), "linear"), (("0", "10"), "linear"), (("1", "10"), "log")]
)
def test_the_scale_follows_the_range(choices: tuple[str, str], scale: str) -> None:
    rows = dial("TS2", dict(zip(choices, (0.1, 0.2), strict=True)))
    figure = against(results_of(rows, alpha=choices), "alpha", (Y,))
    assert figure.axes[0].get_xscale() == scale


def test_two_numbers_make_a_line_for_each_value_of_the_other(tmp_path: Path) -> None:
    rows = [r for gamma in ("2", "3") for r in dial("TOFU", {"0.7": 0.1, "0.8": 0.2}, "beta", gamma=gamma)]
    results = results_of(rows, beta=("0.7", "0.8"), gamma=("2", "3"))
    by_beta, by_gamma = against(results, "beta", (Y,)), against(results, "gamma", (Y,))
    assert by_beta is not None
    assert by_gamma is not None
    assert {"TOFU, gamma 2", "TOFU, gamma 3"} <= set(texts(by_beta, tmp_path))
    assert {"TOFU, beta 0.7", "TOFU, beta 0.8"} <= set(texts(by_gamma, tmp_path))


@pytest.mark.parametrize("without", [{}, {"k": "null"}])
def test_a_row_without_the_number_is_not_taken_for_the_line_of_its_name(
    without: dict[str, str], tmp_path: Path
) -> None:
    """As TS2 without a hard threshold beside TS2 with several."""
    rows = [row("TS2", [(0, 0.5)], {"loss": "TS2"} | without), *dial("TS2", {"3": 0.1, "5": 0.2}, "k")]
    figure = against(results_of(rows, loss=("TS2",), k=("null", "3", "5")), "k", (Y,))
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["3", "5"]
    assert 0.5 in {float(line.get_ydata()[0]) for line in figure.axes[0].lines}  # type: ignore[arg-type, index]
    assert {"TS2", "TS2, without k"} <= set(texts(figure, tmp_path))


@pytest.mark.parametrize("columns", PAPER_WIDTHS)
def test_panels_stand_beside_each_other_where_there_is_room(columns: int) -> None:
    assert tuple(PAPER_WIDTHS) == PAPER_COLUMNS, "what a grid may say"
    logged = {name: {1: 1.0, 2: 0.5} for name in ("train/entropy", "val/entropy")}
    trained = Row("CE", {}, (Run("CE", Path("CE"), 0, {}, logged),))
    rows = dial("TS2", {"0.25": 0.1, "5": 0.5})
    for figure in (
        against(results_of(rows, columns, alpha=("0.25", "5")), "alpha", (Y, X)),
        curves(results_of([trained], columns), list(logged)),
    ):
        assert figure is not None
        figure.draw_without_rendering()
        assert figure.get_figwidth() == PAPER_WIDTHS[columns].inches
        assert len({round(axes.get_position().x0, 2) for axes in figure.axes}) == columns
        assert all(axes.get_tightbbox().x1 <= figure.bbox.x1 + 1 for axes in figure.axes)


def test_nothing_to_draw_against() -> None:
    rows = dial("TS2", {"1": 0.1}) + dial("GEM", {"5": 0.1})
    assert against(results_of(rows, alpha=("1", "5")), "alpha", (Y,)) is None
    assert against(results_of(dial("TS2", {"1": math.nan, "5": 1.0}), alpha=("1", "5")), "alpha", (Y,)) is None


# Learning curves ------------------------------------------------------------------------------------------------


def learner(label: str, *of_seeds: dict[int, float], directory: str = "", name: str = "val/entropy") -> Row:
    place = directory or label
    return Row(label, {}, tuple(Run(label, Path(place, str(i)), i, {}, {name: c}) for i, c in enumerate(of_seeds)))


def test_curves_are_means_in_a_band(tmp_path: Path) -> None:
    rows = [learner("CE", {1: 1.0, 2: 0.5, 9: 0.1}, {1: 2.0, 2: 0.7}), learner("TS2", {1: 3.0, 2: 2.0, 3: math.nan})]
    figure = curves(results_of(rows), ["val/entropy", "val/never_logged"])
    (axes,) = figure.axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]  # type: ignore[arg-type]
    assert drawn == [([1, 2], pytest.approx([1.5, 0.6])), ([1, 2], [3.0, 2.0])], "the steps that all seeds have"
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]  # type: ignore[index]
    assert heights.max() == pytest.approx(1.5 + math.sqrt(0.5))
    assert {"CE", "TS2", "val/entropy", "entropy (nats)", "optimizer steps"} <= set(texts(figure, tmp_path))


def test_what_is_logged_rarely_stands_where_it_belongs_in_training() -> None:
    curve = {"train/entropy": dict.fromkeys(range(1, 202), 1.0), "val/entropy": {67: 0.3, 134: 0.2, 201: 0.1}}
    rows = [Row("CE", {}, tuple(Run("CE", Path("CE", str(i)), i, {}, curve) for i in range(3)))]
    figure = curves(results_of(rows), list(curve))
    assert figure is not None
    train, validation = figure.axes
    assert train.get_xlim() == validation.get_xlim()
    assert train.get_xlim()[0] <= 0
    assert list(validation.get_xticks()) == [0, 67, 134, 201]
    assert [axes.get_title("right") for axes in figure.axes] == ["n = 3"] * 2


def test_every_panel_says_over_how_many_seeds_it_is() -> None:
    rows = [row("base", [(0, 9)], base=True), row("CE", [(0, 1), (1, 3)]), row("TS2", [(0, 1), (1, 3), (2, 2)])]
    figure = plane(results_of(rows), X, Y)
    assert figure is not None
    assert figure.axes[0].get_title("right") == "n = 2 to 3"
    figure = against(results_of(dial("TS2", {"0.25": 0.1, "5": 0.5}), alpha=("0.25", "5")), "alpha", (Y, X))
    assert figure is not None
    assert [axes.get_title("right") for axes in figure.axes] == ["n = 2"] * 2
    assert (n_said([0, 3, 0], "seed"), n_said([0])) == ("n = 3 seeds", ""), "of nothing drawn no number is said"


def test_long_curves_are_thinned_and_say_so(tmp_path: Path) -> None:
    steps = 4 * POINTS - 1
    figure = curves(results_of([learner("CE", {s: float(s) for s in range(1, steps + 1)})]), ["val/entropy"])
    x, y = (np.asarray(values) for values in figure.axes[0].lines[0].get_data())
    assert len(x) == POINTS
    assert x[0] == 2.5
    assert np.array_equal(x, y)
    assert "val/entropy, means over up to 4 logged steps" in texts(figure, tmp_path)


def test_rows_that_share_a_training_have_one_curve(tmp_path: Path) -> None:
    rows = [learner("sparsemax", {1: 1.0}, directory="same"), learner("unified sparsemax", {1: 1.0}, directory="same")]
    figure = curves(results_of(rows), ["val/entropy"])
    assert len(figure.axes[0].lines) == 1
    assert "sparsemax = unified sparsemax" in " ".join(texts(figure, tmp_path))


def test_a_training_that_is_measured_along_an_axis_is_called_without_it(tmp_path: Path) -> None:
    rows = [
        replace(learner(f"{loss} {at}", {1: 1.0}, directory=loss), labels={"objective": loss, "temperature": at})
        for loss in ("CE", "TS2")
        for at in ("0.6", "1")
    ]
    figure = curves(results_of(rows, objective=("CE", "TS2"), temperature=("0.6", "1")), ["val/entropy"])
    assert len(figure.axes[0].lines) == 2
    assert {text for text in texts(figure, tmp_path) if "CE" in text or "TS2" in text} == {"CE", "TS2"}


@pytest.mark.parametrize("columns", PAPER_WIDTHS)
@pytest.mark.parametrize("count", [2, 9, 20])
def test_the_legend_of_the_curves_is_whole(count: int, columns: int) -> None:
    rows = [learner(f"row {i} with a name of some length", {1: 1.0, 2: 0.5 * i}) for i in range(count)]
    figure = curves(results_of(rows, columns), ["val/entropy"])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == count
    assert not box.overlaps(figure.axes[0].get_tightbbox())  # type: ignore[arg-type]
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= 0
    looks = {(line.get_color(), str(line.get_linestyle())) for line in legend.get_lines()}
    assert len(looks) == count or count > 14, "matplotlib names all dashes alike"


def test_nothing_logged_no_curves() -> None:
    assert curves(results_of([row("CE", [(1, 1)])]), ["val/entropy"]) is None
    assert curves(results_of([learner("CE", {1: math.nan})]), []) is None


# Distributions --------------------------------------------------------------------------------------------------


def micro(words: list[str], vocabulary: int = 50) -> dict[str, Any]:
    """What the micro probe returns."""
    count = len(words)
    question = {
        "request": "give me a fruit", "first_token": True, "records": 1, "vocabulary": vocabulary,
        "ids": list(range(count)), "tokens": words, "probabilities": [0.9 / 2**i for i in range(count)],
        "in_support": [1.0] + [0.0] * (count - 1), "plausible": [True] * count, "taught": {},
        "implausible_mass": 0.1, "support_size": 1.0, "tail_mass": 0.1, "entropy": 0.5,
    }  # fmt: skip
    return {"questions": [question]}


def probed(label: str, seeds: tuple[int, ...] = (0, 1), base: bool = False, **more: Any) -> Row:
    runs = [Run(label, Path(label, str(s)), s, probes={"micro": micro(["plum", "kiwi"], **more)}) for s in seeds]
    return Row(label, {}, tuple(runs), base)


def test_distributions_side_by_side(tmp_path: Path) -> None:
    rows = [probed("base", (None,), base=True), probed("CE"), probed("TS2"), row("unprobed", [(0, 0)])]  # type: ignore[arg-type]
    (picture,) = distributions(results_of(rows))
    assert picture.stem == "micro"
    assert "one run of each row (seed 0), not a mean over seeds" in picture.caption
    written = texts(picture.figure, tmp_path)
    assert {"base", "CE", "TS2", "plum", "kiwi"} <= set(written)
    assert "unprobed" not in written


def test_many_rows_take_several_pictures() -> None:
    found = distributions(results_of([probed(f"row {i}") for i in range(PANELS + 3)]))
    assert [picture.stem for picture in found] == ["micro-part-1", "micro-part-2"]
    assert found[1].caption.endswith("part 2 of 2.")


def test_long_names_of_many_rows_lie_on_no_bar() -> None:
    """Those of the tail probe, whose own legend is inside of its axes."""
    numbers = {"rows": 9} | {
        n: 0.5 for name in ("top1", "top2", "top3", "tail_mass") for n in (name, f"{name}/standard_error")
    }
    label = "a method whose name is rather long, variant"
    rows = [Row(f"{label} {i}", {}, (Run("", Path(str(i)), 0, probes={"tail": numbers}),)) for i in range(8)]
    ((figure, caption),) = [(picture.figure, picture.caption) for picture in distributions(results_of(rows))]
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text().replace("\n", " ") for text in legend.get_texts()] == [r.label for r in rows]
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())
    assert legend.get_window_extent().x1 <= figure.bbox.x1
    assert "sparsemax support" in caption


def test_rows_have_the_colours_of_the_other_pictures() -> None:
    """Also where the base model, which has the first colour, was not probed; and one training is drawn once."""
    tail = {n: 0.5 for name in ("top1", "top2", "top3", "tail_mass") for n in (name, f"{name}/standard_error")}
    numbers = [{"rows": 9, **tail}, {"rows": 9, **tail, "top1": 0.25}]
    rows = [Row("base", {}, (), is_base=True)]
    rows += [Row(label, {}, (Run("", Path(at), 0, probes={"tail": numbers[at == "b"]}),))
             for label, at in (("CE", "a"), ("decoded otherwise", "a"), ("TS2", "b"))]  # fmt: skip
    (picture,) = distributions(results_of(rows))
    looks = styles_of(rows)
    bars = picture.figure.axes[0].containers
    drawn = {str(c.get_label()): to_hex(c[0].get_facecolor()).upper() for c in bars if isinstance(c, BarContainer)}
    assert drawn == {"CE = decoded otherwise": looks["CE"]["color"], "TS2": looks["TS2"]["color"]}


def test_only_what_was_asked_the_same_is_compared() -> None:
    """Tokens of another vocabulary are others, whatever their numbers."""
    assert distributions(results_of([probed("a"), probed("b", vocabulary=60)])) == []
    assert distributions(results_of([probed("a")])) == []
    assert distributions(results_of([probed("a"), probed("b", seeds=(1,))])) == [], "the first seed is not there"

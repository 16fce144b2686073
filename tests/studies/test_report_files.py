"""The files of a report: what stands in its text, its tables and its data."""

import csv
import json
import lzma
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.studies.report_runs import config_of, make_grid, make_run
from ts2_lightning import pages
from ts2_lightning.evaluation import describe, described
from ts2_lightning.studies.report import (
    Missing,
    Results,
    Row,
    Run,
    Settings,
    collect,
    complete_settings,
    override_settings,
    write,
    write_report,
)
from ts2_lightning.studies.report.data import as_csv, as_json
from ts2_lightning.studies.report.markdown import as_markdown, notes
from ts2_lightning.studies.report.page import as_page
from ts2_lightning.studies.report.tables import (
    Cell,
    Table,
    booktabs,
    differences_table,
    escape_latex,
    escape_markdown,
    markdown,
    plain,
    results_table,
)
from ts2_lightning.types import UserError

V, D, TAIL = "toyworld/seen/validity_t1", "toyworld/seen/distinct_t1", "toyworld/seen/tail_mass"
LABELS = ["CE", "CE | half_rate", "TS2, alpha 0.25", "TS2, alpha 1"]
AXES = {"objective": ("CE", "CE | half_rate", "TS2"), "alpha": ("0.25", "1")}
ROWS = (
    {"objective": "CE"},
    {"objective": "CE | half_rate"},
    {"objective": "TS2", "alpha": "0.25"},
    {"objective": "TS2", "alpha": "1"},
)
SEEDS = (0, 1, 2)


def values(row: int, seed: int) -> dict[str, float]:
    """Made up, and the same in every test."""
    noise = np.random.default_rng(10 * row + seed).normal(size=3)
    return {V: 0.9 - 0.02 * row + 0.002 * noise[0], D: 3 + row + 0.1 * noise[1], TAIL: 0.2 + 0.01 * noise[2]}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path, list[Path]]:
    """A grid of four rows and a base model: its results, the directory of its report, and the files."""
    grid = tmp_path_factory.mktemp("runs") / "study"
    for (row, seed), run in make_grid(grid, AXES, ROWS, SEEDS, report={"baseline": ROWS[0]}, base=True).items():
        if (row, seed) != (3, 2):
            make_run(run, config_of(seed=seed), values(row, seed))
    make_run(grid / "base", None, {V: 0.8, D: 7.7})
    results = collect([grid])
    return results, grid / "report", write_report(results, grid / "report", latex=True)


def cells(report: str, label: str, table: int = 0) -> list[str]:
    """The cells of a row in one of the tables that have it."""
    lines = [line for line in report.splitlines() if line.startswith(f"| {escape_markdown(label)} |")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", lines[table])[2:-1]]


def test_the_files(study: tuple[Results, Path, list[Path]]) -> None:
    _, out, paths = study
    assert [path.name for path in paths[:4]] == ["report.md", "table.tex", "results.json", "table.csv"]
    assert {path.name for path in paths} == {path.name for path in out.iterdir()}, "nothing else, nothing half-written"


def test_the_head_says_what_was_run(study: tuple[Results, Path, list[Path]]) -> None:
    report = (study[1] / "report.md").read_text()
    head = report.split("## Results")[0]
    assert head.startswith("# A study\n")
    for said in (
        "Paper: Someone, table 1",
        "configs/grid/study.yaml",
        "4 rows, 11 trainings",
        "n = 3 seeds (0, 1, 2)",
        "against: CE\n",
        "`0123456789ab`",
        "2026-01-02 03:04",
        "11.0 min in all",
        "something is missing",
    ):
        assert said in head, said


def test_the_table(study: tuple[Results, Path, list[Path]]) -> None:
    report = (study[1] / "report.md").read_text()
    assert "|  | V, T 1 ↑ | D, T 1 ↑ | tail mass |" in report
    of_ce = np.array([values(0, seed)[V] for seed in SEEDS])
    assert cells(report, "CE")[0] == f"**{of_ce.mean():.3f} ± {of_ce.std(ddof=1):.3f}**"
    assert cells(report, "base") == ["0.800", "7.70", "-"], "never the best, and no spread"
    of_ts2 = np.array([values(3, seed)[D] for seed in (0, 1)])
    assert cells(report, "TS2, alpha 1")[1].endswith(f"{of_ts2.mean():.2f} ± {of_ts2.std(ddof=1):.2f} (n 2)**")
    assert len(cells(report, "CE | half_rate")) == 3, "the bar in its name is none of the table"
    assert not any(mark in cells(report, label)[2] for label in LABELS for mark in "*°"), "tail mass has no direction"


def test_the_differences(study: tuple[Results, Path, list[Path]]) -> None:
    report = (study[1] / "report.md").read_text()
    section = report.split("## Against CE")[1].split("\n## ")[0]
    pairs = [[values(row, seed)[D] for seed in SEEDS] for row in (2, 0)]
    interval = stats.ttest_rel(*pairs).confidence_interval(0.95)
    mean = np.subtract(*map(np.array, pairs)).mean()
    assert cells(section, "TS2, alpha 0.25")[1] == f"**{mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]**"
    assert "| base |" not in section
    assert "| CE |" not in section
    assert "paired by seed, n = 3" in section
    assert "not corrected" in section


def test_what_is_missing_is_named(study: tuple[Results, Path, list[Path]]) -> None:
    report = (study[1] / "report.md").read_text()
    section = report.split("## What is missing")[1].split("\n## ")[0]
    assert section.strip() == "- `study/row3-s2-0a1b2c3d` (TS2, alpha 1): has not been started"


def test_every_run_can_be_repeated(study: tuple[Results, Path, list[Path]]) -> None:
    report = (study[1] / "report.md").read_text()
    commands = re.findall(r"^ +(python cli\.py fit .*)$", report.split("## Runs")[1], re.M)
    assert commands == [
        f"python cli.py fit -c base.yaml --name study/row{row}-s{seed}-0a1b2c3d"
        for row in range(4)
        for seed in SEEDS
        if (row, seed) != (3, 2)
    ]


def test_every_picture_is_in_the_text(study: tuple[Results, Path, list[Path]]) -> None:
    _, out, paths = study
    report = (out / "report.md").read_text()
    drawn = {path.name for path in paths if path.suffix in (".png", ".svg")}
    assert drawn == {f"{stem}{end}" for stem in ("plane-1", "against-alpha") for end in (".png", ".svg")}
    assert set(re.findall(r"\]\(([^)]+)\)", report)) == drawn


def test_the_data(study: tuple[Results, Path, list[Path]]) -> None:
    document = json.loads((study[1] / "results.json").read_text())
    rows = {row["label"]: row for row in document["rows"]}
    assert list(rows) == ["base", *LABELS]
    assert [run["values"] for run in rows["CE"]["runs"]] == [pytest.approx(values(0, seed)) for seed in SEEDS]
    assert rows["CE"]["means"][V]["n"] == 3
    assert rows["CE"]["differences"] == {}
    assert rows["base"]["differences"] == {}
    assert rows["base"]["means"][V] == {"n": 1, "mean": 0.8, "sd": None}
    assert rows["TS2, alpha 1"]["differences"][V]["n"] == 2
    assert document["missing"] == [
        {"name": "study/row3-s2-0a1b2c3d", "row": "TS2, alpha 1", "reason": "has not been started"}
    ]
    assert document["settings"]["baseline"] == "CE"
    assert document["pictures"] == ["plane-1", "against-alpha"]


def test_the_long_table(study: tuple[Results, Path, list[Path]]) -> None:
    with (study[1] / "table.csv").open(newline="") as stream:
        lines = {(line["row"], line["metric"]): line for line in csv.DictReader(stream)}
    found = lines["TS2, alpha 0.25", D]
    of_seeds = [values(2, seed)[D] for seed in SEEDS]
    assert [float(found[f"seed {seed}"]) for seed in SEEDS] == of_seeds, "exact"
    assert float(found["mean"]) == pytest.approx(np.mean(of_seeds))
    assert float(found["sd"]) == pytest.approx(np.std(of_seeds, ddof=1))
    assert (found["n"], found["objective"], found["alpha"]) == ("3", "TS2", "0.25")
    assert lines["TS2, alpha 1", D]["seed 2"] == ""
    assert (lines["base", D]["seed none"], lines["base", D]["sd"]) == ("7.7", "")


def test_the_table_for_latex(study: tuple[Results, Path, list[Path]]) -> None:
    text = (study[1] / "table.tex").read_text()
    assert r"CE \textbar{} half\_rate & " in text
    assert r" & V, T 1 $\uparrow$ & D, T 1 $\uparrow$ & tail mass \\" in text
    assert text.count(r"\textbf{") == 2
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1


HOSTILE = ["[x] first", "* star", r"\a {b} $c$ 50% #1 a_b^c~d & <e> --f |g|", "α ≥ 1 × 2 … − 3"]


def hostile_tables(rows: int) -> list[Table]:
    names = [HOSTILE[i % len(HOSTILE)] for i in range(rows)]
    cells = tuple((Cell(name), Cell("0.5 ± 0.1", "best"), Cell("word " * 30)) for name in names)
    return [Table(("", "V_1 ↑", "there & back"), cells), Table(("50%", "x"), ((Cell("a"), Cell("°")),))]


@pytest.mark.parametrize(("rows", "kind"), [(4, "tabular"), (60, "longtable")])
def test_any_table_is_one_for_latex(rows: int, kind: str) -> None:
    """What LaTeX would stumble over, without having it: braces, signs with a meaning, cells of a row."""
    text = booktabs(hostile_tables(rows), "A & b: 100 % of $1 {")
    assert text.count(rf"\begin{{{kind}}}") == text.count(rf"\end{{{kind}}}") == 2
    assert rf"\begin{{{kind}}}{{lrp{{0.3\linewidth}}}}" in text
    assert text.startswith("% needs \\usepackage{booktabs" + (",longtable}" if kind == "longtable" else "}"))
    bare = re.sub(r"\\[&%$#_{}]", "", text.partition("\n")[2])
    assert bare.count("{") == bare.count("}")
    assert "%" not in bare
    assert not re.search(r"[#^~|<>α≥×…−°±↑]|--", bare)
    lines = [line for line in bare.splitlines() if line.endswith(r" \\") and "caption" not in line]
    assert [line.count("&") for line in lines[: rows + 1]] == [2] * (rows + 1)
    assert not [line for line in lines if line.startswith(("*", "["))]
    assert bare.count("$") % 2 == 0


@pytest.mark.skipif(which("pdflatex") is None, reason="needs pdflatex")
@pytest.mark.parametrize("rows", [4, 60])
def test_latex_takes_any_table(rows: int, tmp_path: Path) -> None:
    compile_latex(booktabs(hostile_tables(rows), "A & b: 100 % of $1 {"), tmp_path)


def compile_latex(tables: str, place: Path) -> None:
    packages = r"\usepackage{booktabs,longtable,textcomp}"
    document = rf"\documentclass{{article}}{packages}\begin{{document}}{tables}\end{{document}}"
    (place / "page.tex").write_text(document)
    subprocess.run(["pdflatex", "-halt-on-error", "page.tex"], cwd=place, check=True, capture_output=True)


@pytest.mark.skipif(which("pdflatex") is None, reason="needs pdflatex")
def test_latex_takes_it(study: tuple[Results, Path, list[Path]], tmp_path: Path) -> None:
    table = (study[1] / "table.tex").read_text()
    compile_latex(table, tmp_path)


def test_pictures_that_are_no_longer_drawn_are_removed(study: tuple[Results, Path, list[Path]], tmp_path: Path) -> None:
    results, _, _ = study
    write_report(results, tmp_path)
    (tmp_path / "mine.png").touch()
    assert (tmp_path / "plane-1.svg").is_file()
    fewer = replace(results, rows=results.trained[:1])
    write_report(fewer, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.html", "report.md", "results.json", "table.csv", "mine.png",
    }  # fmt: skip


def test_large_data_are_compressed(
    study: tuple[Results, Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, plain, _ = study
    whole = {name: (plain / name).read_text() for name in ("table.csv", "results.json")}
    largest = max(map(len, whole.values()))
    write_report(results, tmp_path)
    monkeypatch.setattr(write, "LARGE", largest - 1)
    paths = write_report(results, tmp_path)
    assert {path.name for path in paths} == {path.name for path in tmp_path.iterdir()}, "nothing is there twice"
    assert {"results.json.xz", "table.csv", "report.md"} <= {path.name for path in paths}
    assert lzma.decompress((tmp_path / "results.json.xz").read_bytes()).decode() == whole["results.json"]
    monkeypatch.setattr(write, "LARGE", 0)
    write_report(results, tmp_path)
    assert pd.read_csv(tmp_path / "table.csv.xz").equals(pd.read_csv(plain / "table.csv"))
    monkeypatch.undo()
    write_report(replace(results, rows=results.trained[:1]), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.md", "results.json", "table.csv"}


@pytest.mark.parametrize(
    "content", [b"", b"\xfd7zXZ", lzma.compress(b"[]"), lzma.compress(b"{"), lzma.compress(b'{"rows": []')[:-9]]
)
def test_what_is_no_compressed_report_is_left_alone(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "results.json.xz").write_bytes(content)
    with pytest.raises(UserError, match=r"results\.json\.xz is not a report's; name another --out$"):
        write_report(results_of(single("a", {V: 0.9})), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json.xz"]


def test_what_is_calculated_is_rounded_and_what_was_measured_is_not(study: tuple[Results, Path, list[Path]]) -> None:
    rows = {row["label"]: row for row in json.loads((study[1] / "results.json").read_text())["rows"]}
    found = [run["values"][V] for run in rows["CE"]["runs"]]
    assert found == [values(0, seed)[V] for seed in SEEDS], "exact"
    assert rows["CE"]["means"][V]["mean"] == float(f"{np.mean(found):.9g}") != np.mean(found)


# What is shown --------------------------------------------------------------------------------------------------


def single(label: str, found: dict[str, float], is_base: bool = False, **more: Any) -> Row:
    return Row(label, {}, (Run(label, Path(label), 0, found, **more),), is_base)


def test_a_table_for_latex_is_never_older_than_the_report(tmp_path: Path) -> None:
    results = results_of(single("a", {V: 0.9}))
    (tmp_path / "table.tex").write_text("somebody's own")
    write_report(results, tmp_path)
    assert (tmp_path / "table.tex").exists(), "no report has written it"
    write_report(results, tmp_path, latex=True)
    write_report(results, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.md", "results.json", "table.csv"]


@pytest.mark.parametrize(
    "text", ['{"rows": [', "[]", "{}", '{"rows": [], "pictures": 3}', '{"rows": [], "pictures": ["../mine"]}', "\xff"]
)
def test_what_is_no_report_is_left_alone(text: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "mine.png").write_text("mine")
    (out / "results.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"results\.json is not a report's; name another --out$"):
        write_report(results_of(single("a", {V: 0.9, D: 1.0}), single("b", {V: 0.8, D: 2.0})), out)
    assert [file.name for file in out.iterdir()] == ["results.json"]
    assert (tmp_path / "mine.png").exists()


def results_of(*rows: Row, **more: Any) -> Results:
    return Results("title", "", (Path("runs"),), rows, {}, **more)


def test_one_seed_is_said() -> None:
    results = complete_settings(results_of(single("a", {V: 0.9}), single("b", {V: 0.8})))
    report = as_markdown(results, [])
    assert "One seed (0): no standard deviations and no intervals" in report
    assert "without more seeds there is no interval" in report
    assert "±" not in report.split("## Results")[1]
    assert cells(report, "b", table=1) == ["-0.100"]


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    make_grid(tmp_path / "study", AXES, ROWS)
    report = write_report(collect([tmp_path / "study"]), tmp_path / "report")[0].read_text()
    assert "Nothing has been measured yet." in report
    assert report.count("has not been started") == 12


def test_a_single_row_is_compared_with_nothing() -> None:
    report = as_markdown(complete_settings(results_of(single("a", {V: 0.9}))), [])
    assert "## Against" not in report
    assert "Differences" not in report


def test_runs_without_a_seed_are_shown_and_compared_with_nothing() -> None:
    """One of each row is all that there can be."""
    rows = [Row(label, {}, (Run(label, Path(label), None, {V: 0.5}),)) for label in ("a", "b")]
    report = as_markdown(complete_settings(results_of(*rows)), [])
    assert [cells(report, label) for label in ("a", "b")] == [["0.500"], ["0.500"]]
    assert "## Against" not in report


def test_a_wide_table_is_cut() -> None:
    names = [name for name in list(described()) if name.startswith("toyworld")][:17]
    results = complete_settings(
        results_of(single("a", dict.fromkeys(names, 0.5)), single("b", dict.fromkeys(names, 0.6)))
    )
    results = replace(results, settings=replace(results.settings, columns=tuple(names)))
    report = as_markdown(results, []).split("## Against")[0]
    heads = [line for line in report.splitlines() if line.startswith("|  |")]
    assert [head.count("|") - 2 for head in heads] == [6, 6, 5]
    titles = [title.strip(" ↑↓") for head in heads for title in head.split("|")[2:-1]]
    assert titles == [describe(name).title for name in names]


def test_default_columns_are_those_of_what_was_measured() -> None:
    found = {"cost/seconds": 1.0, "toyworld/seen/entropy": 0.1, "mine/own": 3.0, V: 0.5, "val/entropy": 0.3}
    assert complete_settings(results_of(single("a", found))).settings.columns == (V, "cost/seconds")


def test_without_measures_the_log_is_shown() -> None:
    logged = {"val/entropy": 0.3, "val/gold_rank": 2.0, "train/entropy": 0.2, "val/chat/cross_entropy": 1.0}
    assert complete_settings(results_of(single("a", logged))).settings.columns == (
        "val/entropy",
        "val/chat/cross_entropy",
    )
    mixed = results_of(single("a", logged), single("b", {V: 0.5}))
    assert complete_settings(mixed).settings.columns == (V, "val/entropy", "val/chat/cross_entropy")
    training_only = results_of(single("a", logged), single("b", {"train/entropy": 0.4}))
    assert "train/entropy" in complete_settings(training_only).settings.columns
    assert complete_settings(results_of(single("a", {"val/loss_of_mine": 1.0}))).settings.columns == (
        "val/loss_of_mine",
    )


def test_what_nobody_has_is_left_out() -> None:
    """A grid file may ask for more than could be measured, such as what needs an optional model."""
    results = results_of(single("a", {V: 0.5}), single("b", {V: 0.6}))
    wanted = replace(results.settings, columns=(V, "diversity/sentence_bert"), planes=((D, V),))
    found = complete_settings(replace(results, settings=wanted))
    assert (found.settings.columns, found.settings.planes) == ((V,), ())
    assert found.missing == (Missing("diversity/sentence_bert", "", "not measured"), Missing(D, "", "not measured"))
    assert complete_settings(found).missing == found.missing, "said once"
    assert "- `diversity/sentence_bert`: not measured\n" in as_markdown(found, [])
    assert json.loads(as_json(found, []))["missing"][1]["name"] == D


def test_what_nobody_has_is_said_with_what_was_meant() -> None:
    results = results_of(single("a", {V: 0.5}, settings={"toyworld": {}}, curves={"val/entropy": {1: 0.5}}))
    wanted = Settings(columns=("toyworld/seen/validity_t2", D), against={"k": (TAIL, V)}, curves=("val/entrpy",))
    missing = {entry.name: entry.reason for entry in complete_settings(replace(results, settings=wanted)).missing}
    assert missing == {
        "toyworld/seen/validity_t2": f"not measured; did you mean {V}?",
        D: "not measured, or not defined",
        TAIL: "not measured, or not defined",
        "val/entrpy": "not measured; did you mean val/entropy?",
    }
    assert complete_settings(Results("title", "", (), (), {}, settings=wanted)).missing == (), (
        "that nothing ran is said elsewhere"
    )


def test_the_first_trained_row_is_the_baseline() -> None:
    results = results_of(single("base", {V: 0.5}, is_base=True), Row("empty", {}, ()), single("a", {V: 0.6}))
    assert complete_settings(results).settings.baseline == "a"


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"baseline": "TS3"}, r"--baseline TS3: no such row; did you mean TS2\?"),
        ({"baseline": "something"}, r"no such row; the rows are CE, TS2"),
        ({"baseline": "base"}, "no such row"),
        ({"columns": [V, "toyworld/seen/validity_t2"]}, r"--columns .*t2: .*did you mean toyworld/seen/validity_t1"),
        ({"planes": [(V, "speed")]}, r"--planes speed: no run has such a value"),
    ],
)
def test_what_is_not_there_cannot_be_asked_for(wish: dict[str, Any], message: str) -> None:
    results = results_of(single("base", {V: 0.1}, is_base=True), single("CE", {V: 0.5}), single("TS2", {V: 0.6}))
    with pytest.raises(UserError, match=message):
        override_settings(results, **wish)


def test_notes_on_what_makes_rows_less_comparable() -> None:
    one = {"revision": "aaa", "settings": {"validation": {"decoding": "softmax", "limit": None}}}
    assert notes(results_of(single("a", {V: 1.0}, **one), single("b", {V: 1.0}, **one))) == []
    other = {"revision": "bbb with changes", "settings": {"validation": {"decoding": "sparsemax", "limit": 5}}}
    found = notes(results_of(single("a", {V: 1.0}, **one), single("b", {V: 1.0}, **other)))
    assert len(found) == 3
    assert "different revisions" in found[0]
    assert "settings of validation" in found[2]
    decoded = one | {"settings": {"validation": {"decoding": "sparsemax", "limit": None}}}
    assert notes(results_of(single("a", {V: 1.0}, **one), single("b", {V: 1.0}, **decoded))) == []
    assert "missing" in notes(results_of(missing=(Missing("a", "", "why"),)))[0]


def test_names_of_runs_stay_in_the_report_when_labels_are_settings(tmp_path: Path) -> None:
    make_run(tmp_path / "a/1", config_of(alpha=1), {V: 0.1})
    make_run(tmp_path / "b/1", config_of(alpha=2), {V: 0.2}, revision="f" * 40)
    report = as_markdown(complete_settings(collect([tmp_path])), [])
    assert f"`{tmp_path}/a/1`, alpha 1, seed 0" in report
    assert "`ffffffffffff`" in report
    assert "## What the rows differ in" in report


def test_undefined_is_not_empty() -> None:
    rows = [
        Row("a", {}, tuple(Run(str(i), Path(str(i)), i, {V: 0.5} | ({D: 2.0} if i else {}), settings={"toyworld": {}})
            for i in range(3))),
        single("b", {"cost/seconds": 3.0}, settings={"cost": {}}),
    ]  # fmt: skip
    results = results_of(*rows)
    found = results_table(results, [V, D, "cost/seconds"])
    assert [cell.text for cell in found.rows[0]] == ["a", "0.500 ± 0.000", "-", ""]
    assert [cell.text for cell in found.rows[1]] == ["b", "", "", "3.0 (n 1)"]


def test_a_difference_below_what_is_printed_is_not_marked() -> None:
    """Its interval excludes zero, and yet both numbers are printed alike."""
    values = {
        "CE": (0.5, 0.6, 0.7),
        "b": (0.5001, 0.6001, 0.70011),
        "c": (0.501, 0.601, 0.7011),
        "d": (0.4999, 0.5999, 0.7),
    }
    rows = [
        Row(
            label,
            {},
            tuple(Run(label, Path(label, str(seed)), seed, {V: of_seed}) for seed, of_seed in enumerate(of_row)),
        )
        for label, of_row in values.items()
    ]
    results = override_settings(results_of(*rows), baseline="CE")
    found = {row[0].text: row[1] for row in differences_table(results, [V]).rows}
    assert (found["b"].text, found["b"].mark) == ("+0.000 [+0.000, +0.000]", "")
    assert (found["c"].text, found["c"].mark) == ("+0.001 [+0.001, +0.001]", "apart")
    assert found["d"].text == "+0.000 [+0.000, +0.000]", "no zero below zero"


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        (["1e-3", "5e-4"], "- Every training measured at temperature 0.6, 1\n"),
        (["1e-3", "5e-4", None], "- 2 rows of trainings measured at temperature 0.6, 1\n"),
    ],
)
def test_trainings_that_are_measured_along_one_axis_are_told_in_one_line(rates: list[str | None], said: str) -> None:
    rows = [
        Row(f"{rate} {at}", {"rate": str(rate), "temperature": at}, (Run(f"{rate}", Path(str(rate)), 0, {V: 0.5}),))
        for rate in rates
        for at in (["0.6", "1"] if rate else ["0.6"])
    ]
    report = as_markdown(complete_settings(results_of(*rows)), [])
    assert said in report
    assert "several ways" not in report


def test_rows_that_share_their_trainings_are_told() -> None:
    runs = tuple(
        Run(
            f"ts2-s{seed}/1",
            Path(f"ts2-s{seed}/1"),
            seed,
            {V: 0.5},
            command=f"python cli.py fit -c a.yaml --runs_dir {at}",
        )
        for seed, at in enumerate(("/some/where", "'/with a/blank'"))
    )
    rows = (Row("TS2", {}, runs), Row("decoded otherwise", {}, runs), single("CE", {V: 0.1}))
    report = as_markdown(complete_settings(results_of(*rows)), [])
    assert "- 3 rows, 3 trainings. n = 2 seeds" in report
    assert "- The same trainings, measured in several ways: TS2, decoded otherwise\n" in report
    assert report.count("`ts2-s0/1`, TS2, decoded otherwise, seed 0") == 1
    assert report.count("      python cli.py fit -c a.yaml\n") == 2, "wherever the runs lie"
    assert "/some/where" not in report
    assert "blank" not in report


def test_the_columns_are_explained() -> None:
    """All that tables show by default, and nothing else than what it is."""
    assert [name for name, value in described().items() if value.shown and not describe(name).meaning] == []
    unexplained = [name for name in described() if name.startswith("toyworld/") and not describe(name).meaning]
    assert unexplained == [f"toyworld/accuracy/{task}" for task in ("plus", "capital", "opposite", "copy", "maker")]
    report = as_markdown(complete_settings(results_of(single("a", {V: 0.5, "mine/own": 1.0}))), [])
    assert f"| V, T 1 | share of valid answers; T 1 | `{V}` |" in report
    assert report.index("what it is") < report.index("## Runs")


def test_values_of_a_users_measure_are_called_as_their_file_says(tmp_path: Path) -> None:
    for loss, number in (("TS2Loss", 1.25), ("CrossEntropy", 2.5)):
        run = make_run(tmp_path / loss / "1", config_of(loss), {D: number})
        value = {"name": "norm", "title": "NORM", "meaning": "of weights", "better": "lower", "format": ".1f"}
        how = {"decoding": "softmax", "template": "auto", "settings": {}, "key": "k"}
        document = {"name": "weights", **how, "values": {"weights/norm": number}, "described": [value]}
        (run / "measures/weights-1.json").write_text(json.dumps(document), encoding="utf-8")
    results = override_settings(collect([tmp_path]), columns=["weights/norm"], planes=[(D, "weights/norm")])
    report = write_report(results, tmp_path / "report")[0].read_text(encoding="utf-8")
    assert "| NORM ↓ |" in report
    assert "| **1.2** |" in report
    assert "| NORM | of weights | `weights/norm` |" in report
    assert "Quality (NORM) against diversity (D, T 1)" in report
    picture = (tmp_path / "report/plane-1.svg").read_text(encoding="utf-8")
    assert "NORM: of weights  (lower is better)" in picture


# Text -----------------------------------------------------------------------------------------------------------


def test_plain_text_is_aligned_and_no_wider_than_asked() -> None:
    header = ("", *(f"column {i}" for i in range(9)))
    rows = tuple((Cell(f"row {i}"), *(Cell("0.5" * (1 + j % 3), "best") for j in range(9))) for i in range(3))
    text = plain(Table(header, rows), 50)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 50
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert [title for block in blocks for title in re.findall(r"column \d", block[0])] == list(header[1:])
    for block in blocks:
        assert [line.split("  ")[0].rstrip() for line in block[2:]] == ["row 0", "row 1", "row 2"]
        assert len({line.rindex("*") for line in block[2:]}) == 1


def test_a_label_that_is_too_long_for_a_screen() -> None:
    label = "FenchelYoungPlusLoss, SparsemaxLoss, max_epochs 3, alpha 0.25"
    text = plain(Table(("", "V"), ((Cell(label), Cell("0.5")),)), 60)
    assert max(map(len, text.splitlines())) < 60
    assert "alpha 0.25" in text


def test_a_column_wider_than_the_screen_is_still_there() -> None:
    assert "x" * 70 in plain(Table(("", "V"), ((Cell("a"), Cell("x" * 70)),)), 60)


@pytest.mark.parametrize(
    ("columns", "at_most", "sizes"), [(1, 8, [1]), (8, 8, [8]), (9, 8, [5, 4]), (20, 8, [7, 7, 6])]
)
def test_parts_are_of_like_size(columns: int, at_most: int, sizes: list[int]) -> None:
    table = Table(("", *map(str, range(columns))), ((Cell("a"), *(Cell(str(i)) for i in range(columns))),))
    parts = table.parts(at_most)
    assert [len(part.header) - 1 for part in parts] == sizes
    assert [title for part in parts for title in part.header[1:]] == list(table.header[1:])
    assert [cell.text for part in parts for cell in part.rows[0][1:]] == list(table.header[1:])
    assert all(part.rows[0][0].text == "a" for part in parts)


def test_markdown_of_odd_labels() -> None:
    assert markdown(Table(("", "a|b"), ((Cell("*x* `y`"), Cell("1", "near")),))).splitlines() == [
        r"|  | a\|b |",
        "| --- | ---: |",
        r"| \*x\* \`y\` | 1° |",
    ]
    assert escape_markdown("max_epochs _x_ [l](u)") == r"max_epochs \_x\_ [l\](u)"


def test_every_sign_of_latex_is_escaped() -> None:
    assert escape_latex("\\{}&%$#_~^<>") == (
        r"\textbackslash{}\{\}\&\%\$\#\_\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}"
    )
    table = Table(("", "a&b"), ((Cell("50%_c"), Cell("1 ± 2", "near")),))
    text = booktabs([table], "all of #1")
    assert r" & a\&b \\" in text
    assert r"50\%\_c & \underline{1 $\pm$ 2} \\" in text
    assert r"\caption{all of \#1}" in text


def test_what_json_cannot_say_is_null() -> None:
    results = complete_settings(results_of(single("a", {V: float("nan"), D: float("inf")})))
    (run,) = json.loads(as_json(results, []))["rows"][0]["runs"]
    assert run["values"] == {V: None, D: None}
    assert ",,," in as_csv(results)


def test_the_page_has_the_values_of_the_tables(study: tuple[Results, Path, list[Path]]) -> None:
    results = complete_settings(study[0])
    page = as_page(results)
    tables = {section.title: section for section in page.sections if isinstance(section, pages.Table)}
    long = tables["All values"]
    lines = list(csv.reader(as_csv(results).splitlines()))
    assert list(long.head) == lines[0]
    assert [["" if cell is None else str(cell) for cell in row] for row in long.rows] == lines[1:]
    shown = tables["Results"].shown
    assert shown is not None
    expected = results_table(results, results.settings.columns)
    texts = [[cell.rstrip(" *°") for cell in row] for row in shown]
    assert texts == [[cell.text for cell in row] for row in expected.rows]
    for row, of_row in zip(results.rows, tables["Results"].rows, strict=True):
        means = [results.summary(row, name).mean for name in results.settings.columns]
        assert list(of_row[1:]) == [None if mean != mean else mean for mean in means]
    charts = [section for section in page.sections if isinstance(section, pages.Chart)]
    [plane] = [chart for chart in charts if chart.kind == "points"][:1]
    x, y = results.settings.planes[0]
    for row, series in zip(results.rows, plane.series, strict=True):
        of_x, of_y = results.summary(row, x), results.summary(row, y)
        assert (series.name, series.x, series.y) == (row.label, [of_x.mean], [of_y.mean])
        if len(row.runs) > 1:
            assert (series.low, series.x_high) == ([of_y.mean - of_y.sd], [of_x.mean + of_x.sd])
    against = [chart for chart in charts if chart.title.endswith("against alpha")]
    assert against
    assert all(list(series.x) == [0.25, 1.0] for chart in against for series in chart.series)
    assert "All values" in page.html()

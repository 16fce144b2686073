"""What papers have published of a grid's rows: read from its file, shown beside what its runs come to."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.studies.report_runs import config_of, make_grid, make_run, write_measures
from tests.studies.test_grid import form, here
from tests.support.errors import refused
from ts2_lightning.studies.grid.schema import GridFile
from ts2_lightning.studies.report import collect, write_report

__all__ = ["here"]  # a working directory with a base configuration

GRID = """
axes:
  objective:
    CE: {set: {model.loss: CrossEntropyLoss}}
    TS2: {set: {model.loss: TS2Loss}}
  alpha: {setting: model.loss.alpha, values: [0.25, 1.0]}
runs: [{objective: CE}, {objective: TS2}, {objective: TS2, alpha: all}]
measure: {gsm8k: {}, arc: {}}
base_model: {label: pretrained}
"""
TABLE = """
published:
- paper: Someone
  table: table 1
  variant: papers_code
  note: Text and code differ in what matters.
  percent: [arc/accuracy]
  values: [gsm8k/pass_at_16, arc/accuracy, {title: number of smiles}]
  rows:
  - {if: {objective: CE}, row: cross-entropy, figures: [0.5, 72.90, 7]}
  - {if: {objective: TS2}, figures: [0.55, null, 8.50]}
  - {if: {objective: TS2, alpha: 1.0}, figures: [0.6, 75.0, null]}
  - {if: pretrained, figures: [null, 25, null]}
"""


def record(grid: GridFile) -> list[dict[str, Any]]:
    assert grid.base_model is not None
    return [table.record(grid.axes, grid.rows, grid.base_model.label) for table in grid.published]


def test_figures_are_of_rows_and_values(here: Path) -> None:
    [table] = record(form(GRID + TABLE))
    assert [line["labels"] for line in table["rows"]] == [
        {"objective": "CE"},
        {"objective": "TS2"},
        {"objective": "TS2", "alpha": "1.0"},
        None,
    ]
    assert [line["figures"] for line in table["rows"]] == [
        [0.5, 0.729, 7.0],
        [0.55, None, 8.5],
        [0.6, 0.75, None],
        [None, 0.25, None],
    ]
    assert table["rows"][0]["printed"] == ["0.5", "72.90", "7"]
    assert table["variant"] == "papers_code"
    assert form(GRID).published == ()


@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        (
            "gsm8k/pass_at_16",
            "gsm8k/pass_at_61",
            r"has no value 'gsm8k/pass_at_61'; did you mean gsm8k/pass",
        ),
        ("gsm8k/pass_at_16", "gsm9k/pass_at_16", r"no measure 'gsm9k'; did you mean gsm8k\?"),
        ("{objective: CE}, row", "{objective: CEE}, row", r"no choice of objective 'CEE'; did you mean CE\?"),
        ("{objective: CE}, row", "{loss: CE}, row", r"no axis 'loss'; there are objective, alpha"),
        ("{objective: TS2, alpha: 1.0}", "{alpha: 1}", r"no choice of alpha '1'; there are 0.25, 1.0"),
        ("{objective: CE}, row", "{objective: [CE, TS2]}, row", r"must mean one row of the grid, means 2"),
        ("{objective: TS2}, figures", "{objective: CE}, figures", r"rows #2: means the same row as line"),
        ("if: pretrained", "if: base", r"expected the label of base_model, 'pretrained', got 'base'"),
        ("[0.6, 75.0, null]", "[0.6, 75.0]", r"2 figures for 3 values; null stands for none"),
        ("72.90", "many", r"expected a number, or null, got 'many'"),
        ("72.90", ".nan", r"expected a number, or null, got '.nan'"),
        ("72.90", "true", r"expected a number, or null, got 'true'"),
        ("papers_code", "code", r"no variant 'code'; there are paper, papers_code"),
        (
            "percent: [arc/accuracy]",
            "percent: [arc/acc]",
            r"no value of this table 'arc/acc'; did you mean",
        ),
        ("{title: number of smiles}", "{tilte: smiles}", r"tilte: no such key; did you mean title\?"),
        ("  table: table 1\n", "", r"table is missing"),
        ("  note: Text", "  notes: Text", r"notes: no such key; did you mean note\?"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(here: Path, wrong: str, right: str, said: str) -> None:
    assert wrong in TABLE
    text = GRID + TABLE.replace(wrong, right, 1)
    place = text.index(right or "- paper: Someone")
    with refused(rf"^grid\.yaml:{1 + text[:place].count(chr(10))}: .*{said}"):
        form(text)


ROWS = ({"objective": "CE"}, {"objective": "TS2"}, {"objective": "TS2", "alpha": "1.0"})
AXES = {"objective": ("CE", "TS2"), "alpha": ("0.25", "1.0")}
MEASURED = {0: (0.45, 0.71), 1: (0.60, 0.74)}


@pytest.fixture
def report(here: Path) -> Path:
    """A grid of which a row is not measured, with two seeds of the others, and its report."""
    directory = here / "runs" / "study"
    spec = {"gsm8k": {"variant": "papers_code"}, "arc": {}}
    runs = make_grid(directory, AXES, ROWS, (0, 1), spec, {"baseline": ROWS[0]}, base=True)
    for (row, seed), run in runs.items():
        if row in MEASURED:
            make_run(run, config_of(seed=seed))
            passed, right = MEASURED[row]
            values = {"gsm8k/pass_at_16": passed + 0.02 * seed, "arc/accuracy": right}
            write_measures(run, values, spec)
    plan = json.loads((directory / "grid.json").read_text())
    plan["published"] = record(form(GRID + TABLE))
    (directory / "grid.json").write_text(json.dumps(plan))
    write_report(collect([directory]), directory / "report")
    return directory / "report"


def test_ours_stand_beside_the_papers(report: Path) -> None:
    with open(report / "published.csv") as stream:
        lines = {(line["row"], line["value"]): line for line in csv.DictReader(stream)}
    assert len(lines) == 4 + 4 - 0
    ours = lines["CE", "gsm8k/pass_at_16"]
    assert float(ours["ours"]) == pytest.approx(0.46)
    assert float(ours["difference"]) == pytest.approx(-0.04)
    assert (ours["n"], ours["published"], ours["printed"]) == ("2", "0.5", "0.5")
    assert (ours["paper"], ours["table"], ours["row of the paper"]) == ("Someone", "table 1", "cross-entropy")
    assert (ours["variant"], ours["variant of ours"]) == ("papers_code", "papers_code")
    arc = lines["CE", "arc/accuracy"]
    assert (float(arc["published"]), arc["printed"]) == (pytest.approx(0.729), "72.90")
    assert float(arc["difference"]) == pytest.approx(0.71 - 0.729)
    assert arc["variant of ours"] == "paper"
    for key in (("TS2, alpha 1.0", "gsm8k/pass_at_16"), ("base", "arc/accuracy"), ("CE", "number of smiles")):
        assert (lines[key]["ours"], lines[key]["difference"]) == ("", ""), "not measured, or none of ours"

    text = (report / "report.md").read_text()
    section = text.split("## Beside the papers' figures")[1].split("\n## ")[0]
    assert "### Someone, table 1" in section
    assert "| CE (cross-entropy) | gsm8k: pass@16 ↑ | 0.460 ± 0.014 | 0.500 | -0.040 |" in section
    assert "| TS2, alpha 1.0 | arc: accuracy ↑ | - | 0.750 | - |" in section
    assert "| CE (cross-entropy) | number of smiles | - | 7 | - |" in section
    assert "Text and code differ in what matters." in section
    assert "Ours of arc is of the variant paper" in section
    results = json.loads((report / "results.json").read_text())
    assert len(results["published"]) == len(lines)
    page = (report / "report.html").read_text()
    assert "figures: Someone, table 1" in page
    assert "CE (cross-entropy)" in page


def test_published_figures_enter_no_mean(report: Path) -> None:
    before = {name: (report / name).read_text() for name in ("table.csv", "results.json", "report.md")}
    grid = report.parent / "grid.json"
    plan = json.loads(grid.read_text())
    del plan["published"]
    grid.write_text(json.dumps(plan))
    write_report(collect([report.parent]), report)
    assert not (report / "published.csv").exists(), "that of the earlier report"
    assert (report / "table.csv").read_text() == before["table.csv"]
    after, results = (json.loads(text) for text in ((report / "results.json").read_text(), before["results.json"]))
    assert {**after, "published": []} == {**results, "published": []}
    without = re.sub(r"## Beside the papers' figures.*?(?=\n## )", "", before["report.md"], flags=re.S)
    assert re.sub(r"\n+", "\n", (report / "report.md").read_text()) == re.sub(r"\n+", "\n", without)


def test_a_report_of_several_grids_keeps_them(report: Path, here: Path) -> None:
    other = here / "runs" / "other"
    for run in make_grid(other, {"objective": ("CE",)}, ROWS[:1], (0,), {"arc": {}}).values():
        make_run(run, config_of(), {"arc/accuracy": 0.7})
    results = collect([report.parent, other])
    write_report(results, here / "both")
    with open(here / "both" / "published.csv") as stream:
        assert {line["row"] for line in csv.DictReader(stream)} == {"study: CE", "TS2", "TS2, alpha 1.0", "base"}

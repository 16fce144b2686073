"""docs/papers.md has every protocol, figures as they are printed, commands that there are, and tests that there are."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.e2e.command_line import CONFIGS, ROOT
from ts2_lightning.cli import evaluate, probe
from ts2_lightning.cli.measure import read_spec
from ts2_lightning.cli.protocol_options import spec_of
from ts2_lightning.evaluation import check_spec
from ts2_lightning.evaluation.probes import PROBES
from ts2_lightning.evaluation.registry import PROTOCOLS

PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
PAPERS = ROOT.parent / "shared" / "papers"


def rows(paper: str) -> list[tuple[str, list[str]]]:
    """Name and further cells of the rows of a paper's table."""
    section = PAGE.split(f"\n## {paper}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M)
    return [(name, re.split(r" \|(?: |$)", rest)) for name, rest in lines]


TABLES = {paper: rows(paper) for paper in ("TS2", "GEM", "TOFU")}
CELLS = [(paper, name, cells) for paper, table in TABLES.items() for name, cells in table]


def test_every_protocol_has_a_row() -> None:
    names = {name for _, name, _ in CELLS}
    assert names == {protocol.name for protocol in PROTOCOLS} | (PROBES.keys() - {"tspd"})  # which no paper measures
    for table in TABLES.values():
        assert len({name for name, _ in table}) == len(table)
    assert {len(cells) for _, _, cells in CELLS} == {5}


def test_every_protocol_has_the_row_of_its_source() -> None:
    """In the table of each paper that its source names first, or behind a semicolon."""
    for protocol in PROTOCOLS:
        papers = set(re.findall(r"(?:^|; )(TS2|GEM|TOFU)\b", protocol.source))
        assert papers
        assert papers <= {paper for paper, name, _ in CELLS if name == protocol.name}, protocol.name


def published(paper: str) -> dict[str, dict[str, set[str]]]:
    """Protocol -> what the page calls a row -> its figures in the grids, as they are written."""
    here: dict[str, dict[str, set[str]]] = {}
    for file in sorted((CONFIGS / "grid" / "paper").glob("*.yaml")):
        for table in yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader).get("published", ()):
            for row in table["rows"] if table["paper"] == paper else ():
                objective = "base" if row["if"] == "base" else row["if"]["objective"]
                for value, figure in zip(table["values"], row["figures"], strict=True):
                    if isinstance(value, str):
                        here.setdefault(value.split("/")[0], {}).setdefault(objective, set()).add(figure)
    return here


@pytest.mark.parametrize(("paper", "name", "cells"), CELLS, ids=lambda it: it if isinstance(it, str) else "")
def test_figures_are_those_of_the_grids(paper: str, name: str, cells: list[str]) -> None:
    """Of tables that a grid carries: `CE 29.77` is a figure of a row CE of that protocol."""
    of_rows = published(paper).get(name)
    if of_rows is None:
        return
    text = cells[0].split("Mean of the six")[0]  # which is a figure of the text, of no grid
    pairs = re.findall(r"\b(CE|GEM|TS2|TOFU|focal) (\d+\.\d+)", text)
    assert pairs
    assert [(row, figure) for row, figure in pairs if figure not in of_rows[row]] == []


@pytest.mark.parametrize(("paper", "name", "cells"), CELLS, ids=lambda it: it if isinstance(it, str) else "")
def test_figures_are_in_the_papers_text(paper: str, name: str, cells: list[str]) -> None:
    if not PAPERS.is_dir():
        pytest.skip(f"needs the text of the papers in {PAPERS}, which is absent")
    text = (PAPERS / f"{paper.lower()}_paper.md").read_text(encoding="utf-8")
    figures = re.findall(r"\d+\.\d+", re.sub(r"section \d\.\d|table \w\.\d|figure \w\.\d", "", cells[0]))
    assert [figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", text)] == []


def commands() -> list[list[str]]:
    """What stands in code behind `python cli.py`, split into words."""
    return [
        shlex.split(code)
        for _, _, cells in CELLS
        for code in re.findall(r"`((?:evaluate|probe|measure) [^`]+)`", cells[2])
    ]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_understood(words: list[str]) -> None:
    """Options, protocols and their settings: all but what the files and models are."""
    command, *arguments = words
    if command == "evaluate":
        options = evaluate._parser().parse_args(arguments)
        assert {measure.name for measure in spec_of(options).measures} == {options.protocol}
    elif command == "probe":
        assert probe._parser().parse_args(arguments).probe in PROBES
    else:
        assert arguments[1] == "--spec"
        check_spec(read_spec(arguments[2]), "--spec")


def test_rows_run_their_own_protocol() -> None:
    for _, name, cells in CELLS:
        for words in re.findall(r"`(evaluate [^`]+)`", cells[2])[:1]:
            assert f"--protocol {name}" in words
        for kind in re.findall(r"`probe (\w+)", cells[2]):
            assert kind == name


def test_what_is_named_is_there() -> None:
    """Test files, grids and files of configurations."""
    tests = re.findall(r"`(\w+/(?:\w+/)*test_\w+\.py)`", PAGE)
    assert len(tests) > 15
    assert [file for file in tests if not (ROOT / "tests" / file).is_file()] == []
    grids = {name for text in re.findall(r"grids? ((?:`\w+`(?:, )?)+)", PAGE) for name in re.findall(r"`(\w+)`", text)}
    assert len(grids) > 5
    assert grids <= {file.stem for file in Path(CONFIGS / "grid" / "paper").glob("*.yaml")}
    assert [file for file in re.findall(r"configs/[\w/.-]+\.yaml", PAGE) if not (ROOT / file).is_file()] == []

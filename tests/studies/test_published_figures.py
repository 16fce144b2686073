"""The figures in `configs/grid/paper` are those that the papers print, row by row and column by column."""

from pathlib import Path

import pytest
import yaml

from tests.e2e.command_line import CONFIGS

PAPERS = Path(__file__).resolve().parents[3] / "shared" / "papers"
Figures = dict[str, list[str]]
"""The name of a row, as the paper has it -> its figures, as they are printed."""

pytestmark = pytest.mark.skipif(
    not PAPERS.is_dir(), reason=f"needs the text of the papers in {PAPERS}, which is absent"
)


def block(paper: str, start: str, count: int) -> list[list[str]]:
    """The cells of lines of a paper's table, from the first one that begins so."""
    lines = (PAPERS / f"{paper}_paper.md").read_text(encoding="utf-8").splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith(start))
    return [[cell.split("±")[0].strip() for cell in line.split("\t")] for line in lines[place : place + count]]


def by_row(lines: list[list[str]], label: int, first: int, count: int) -> Figures:
    return {line[label]: line[first : first + count] for line in lines}


def by_column(lines: list[list[str]], names: list[str], first: int) -> Figures:
    return {name: [line[first + place] for line in lines] for place, name in enumerate(names)}


def joined(*parts: Figures) -> Figures:
    return {row: [figure for part in parts for figure in part[row]] for row in parts[0]}


def printed() -> dict[tuple[str, str], Figures]:
    """Grid and table -> figures, read from the papers' text."""
    chat = by_row(block("ts2", "LLaMA-3.1-8B\tCE", 5), 1, 2, 4)
    methods = ["CE+WD", "NEFT", "CE", "GEM", "TS² (Ours)"]
    tables = {
        ("baselines", "table 1"): chat,
        ("components", "table 1"): {row: chat[row] for row in ("CE", "TS² (Ours)")},
        ("logit_scale", "table 1"): {row: chat[row] for row in ("CE", "TS² (Ours)")},
        ("alpha", "table 3; CE of table 1"): {
            "CE": chat["CE"],
            **by_row(block("ts2", "Setting\tWinrate", 6)[1:], 0, 1, 4),
        },
        ("baselines", "table 4"): by_column(
            block("ts2", "Winrate (%)\t33.12", 1), block("ts2", "\tTS ² (ours)", 1)[0][1:], 1
        ),
        ("baselines", "table 8, chat"): by_column(block("ts2", "@2\t20.14", 5), methods, 1),
        ("baselines", "table 8, code"): by_column(block("ts2", "@1\t30.30", 5), methods, 1),
        ("baselines", "table 2"): by_row(block("ts2", "CE\t38.87", 5), 0, 1, 6),
        ("baselines", "table 6"): by_row(block("ts2", "CE\t5.99", 3), 0, 1, 14),
        ("top_k", "table 7"): by_column(block("ts2", "50.00\t50.16", 1), block("ts2", "CE\t0.25-top3", 1)[0], 0),
        ("gem_beta", "table 3"): by_row(block("gem", "\tRandom Sampling", 7)[1:], 0, 1, 2),
        ("gem_beta", "table 4"): by_row(block("gem", "\tGreedy Decoding", 5)[1:], 0, 1, 3),
        ("tofu", "table C.1"): of_c1(),
        ("tofu", "tables D.2 and D.4 (Alpaca, Mistral-12B)"): joined(
            by_row(block("tofu", "ALPACA\tCE\t74.6", 5), 1, 2, 2), by_row(block("tofu", "ALPACA\tCE\t6.6", 5), 1, 2, 2)
        ),
        ("tofu", "table 1 (Mistral-12B)"): joined(
            *(by_row(block("tofu", f"{part}\tBASE", 6), 1, 2, 2) for part in ("SS", "SP"))
        ),
        ("tofu", "table D.5 (Mistral-12B)"): joined(
            *(by_row(block("tofu", f"{part}\tCE", 4), 1, 2, 1) for part in ("MI", "HB"))
        ),
    }
    sets = [("arc", "hellaswag"), ("winogrande", "mmlu"), ("truthfulqa", "gsm8k")]
    for (one, other), start in zip(sets, ("ARC", "Wino", "Truth"), strict=True):
        lines = block("ts2", f"Method\t{start}@2", 6)[1:]
        tables["baselines", f"table 10, {one}"] = by_row(lines, 0, 2, 4)
        tables["baselines", f"table 10, {other}"] = by_row(lines, 0, 7, 4)
    return tables


def of_c1() -> Figures:
    """Columns are pairs of beta and gamma; the focal loss has no beta."""
    betas, gammas, *lines = (line[1:] for line in block("tofu", "β\t-", 5))
    return {
        f"{beta} {gamma}": [line[i] for line in lines]
        for i, (beta, gamma) in enumerate(zip(betas, gammas, strict=True))
    }


def called(grid: str, table: str, row: dict[str, str]) -> str:
    """What the paper calls a row of a grid."""
    objective = row["objective"]
    if grid == "alpha" and objective == "TS2":
        return f"$\\alpha={float(row['alpha']):.2f}$"
    if grid == "gem_beta" and objective == "GEM":
        return "GEM" if table == "table 4" else f"GEM ($\\beta = {row['beta']}$)"
    if grid == "top_k" and objective == "TS2":
        alpha = row["alpha"] if "." in row["alpha"] else f"{row['alpha']}.0"
        return f"{alpha}-top{row['k']}" if "k" in row else f"{alpha}-TS ²"
    if table == "table C.1":
        return f"{row.get('beta', '-')} {row['gamma']}"
    names = {
        "TS2": ["TS² (Ours)", "TS ² (ours)", "TS ² (Ours)", "TS² ($\\alpha = 0.25$)", "TS ² ($\\alpha = 0.25$)"],
        "label smoothing": ["CE + label smoothing"],
        "1.5-entmax": ["1.5-Entmax"],
        "focal": ["FL"],
    }
    return next((name for name in names.get(objective, []) if name in PRINTED[grid, table]), objective)


PRINTED = printed() if PAPERS.is_dir() else {}


def test_every_published_table_is_compared_here() -> None:
    tables = {
        (file.stem, table["table"])
        for file in (CONFIGS / "grid" / "paper").glob("*.yaml")
        for table in yaml.safe_load(file.read_text(encoding="utf-8")).get("published", ())
    }
    assert tables == PRINTED.keys()


@pytest.mark.parametrize("place", PRINTED, ids=" ".join)
def test_figures_are_as_printed(place: tuple[str, str]) -> None:
    grid, title = place
    file = CONFIGS / "grid" / "paper" / f"{grid}.yaml"
    tables = yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader)["published"]  # numbers as they are written
    [table] = [table for table in tables if table["table"] == title]
    assert len(table["rows"]) > 0
    for row in table["rows"]:
        name = "BASE" if row["if"] == "base" else called(grid, title, row["if"])
        assert row["figures"] == PRINTED[place][name], name
        assert len(row["figures"]) == len(table["values"])

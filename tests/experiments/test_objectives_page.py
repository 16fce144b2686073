"""docs/objectives.md and the scripts that fill it keep up with the losses and the configurations."""

import importlib.util
import inspect
import math
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from ts2_lightning.cli.catalogue import loss_classes
from ts2_lightning.types import UserError

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "objectives.md").read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TABLE, PLOT = script("toyworld_objectives"), script("plot_objectives")


def fragments() -> dict[str, dict[str, Any]]:
    files = sorted((ROOT / "configs" / "loss").glob("*.yaml"))
    return {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}


def test_every_objective_has_a_fragment() -> None:
    named = {fragment["class_path"].rpartition(".")[2] for fragment in fragments().values()}
    assert named == set(loss_classes())


@pytest.mark.parametrize("stem", fragments())
def test_a_fragment_says_what_it_is_and_spells_out_its_alpha(stem: str) -> None:
    """Left out, it would stay at the alpha of the loss that the experiment names."""
    fragment = fragments()[stem]
    cls = loss_classes()[fragment["class_path"].rpartition(".")[2]]
    given = fragment.get("init_args", {})
    if "alpha" in inspect.signature(cls).parameters:
        assert "alpha" in given
    lines = (ROOT / "configs" / "loss" / f"{stem}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("stem", fragments())
def test_the_page_names_every_fragment(stem: str) -> None:
    assert f"`{stem}`" in PAGE.split("## ")[0]


def test_its_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", PAGE, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(#([^)]+)\)", PAGE):
        assert target in anchors, target
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (DOCS / target).is_file(), target
    for config in re.findall(r"configs/[\w/.-]+\.yaml", PAGE):
        assert (ROOT / config).is_file(), config


def test_the_table_has_a_row_for_every_fit() -> None:
    block = PAGE.split(TABLE.BEGIN)[1].split(TABLE.END)[0]
    rows = re.findall(r"^\| ([^|]+?) \|", block, re.M)
    assert rows[2:] == ["base", *TABLE.fits()]


def test_fits_differ_only_in_the_objective() -> None:
    """No learning rate but half of CE's, no step count, no data: nothing is tuned."""
    for label, (_, options) in TABLE.fits().items():
        names = [option for option in options if option.startswith("-")]
        if label == "CE, half rate":
            assert names == ["--model.loss", "--model.optimizer.lr"]
        else:
            assert names in (["--model.loss"], ["-c"]), label


def test_only_some() -> None:
    assert list(TABLE.fits(["ts2", "half_rate"])) == ["CE, half rate", "TS2 0.25"]
    with pytest.raises(UserError, match="no such objective: ts3"):
        TABLE.fits(["ts3"])


def test_a_table_of_means() -> None:
    measures = {name: 0.5 for name, _ in TABLE.MEASURES.values()}
    other = dict.fromkeys(measures, 0.7)
    text = TABLE.table({"base": [measures], "CE": [measures, other], "odd": [{**measures, "accuracy": math.nan}]}, 2)
    header, _, base, ce, odd = text.splitlines()[:5]
    column = [cell.strip() for cell in header.split("|")].index("V, T 1")
    assert [row.split("|")[column].strip() for row in (base, ce)] == ["0.50", "0.60 ± 0.14"]
    assert header.count("|") == base.count("|") == odd.count("|")
    assert " - " in odd


def test_the_table_is_written_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n\n{TABLE.BEGIN}\nold\n{TABLE.END}\n\nbelow\n", encoding="utf-8")
    for text in ("first", "second"):
        TABLE.insert(page, text)
    assert page.read_text(encoding="utf-8") == f"above\n\n{TABLE.BEGIN}\n\nsecond\n\n{TABLE.END}\n\nbelow\n"
    page.write_text("no marks\n", encoding="utf-8")
    with pytest.raises(UserError, match="expected the lines"):
        TABLE.insert(page, "text")


def test_a_finished_fit_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def fit(label: str, name: str, extra: list[str], runs_dir: str, seed: int) -> int:
        ran.append(name)
        (Path(runs_dir) / name / str(len(ran)) / "export").mkdir(parents=True)
        return 0

    monkeypatch.setattr(TABLE, "fit", fit)
    monkeypatch.setattr(TABLE, "ensure_base", lambda: tmp_path)
    monkeypatch.setattr(TABLE, "measure", lambda runs: {label: [{}] * len(paths) for label, paths in runs.items()})
    options = ["--runs_dir", str(tmp_path), "--only", "ts2", "gem"]
    assert TABLE.main(options) == 0
    assert ran == ["objectives/seed-0/gem", "objectives/seed-0/ts2"]
    assert TABLE.main(options) == 0
    assert len(ran) == 2
    assert TABLE.main([*options, "--seeds", "0", "1"]) == 0
    assert ran[2:] == ["objectives/seed-1/gem", "objectives/seed-1/ts2"]
    assert TABLE.main([*options, "--again"]) == 0
    assert len(ran) == 6


def test_a_fit_that_fails_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TABLE, "fit", lambda *arguments: 130)
    monkeypatch.setattr(TABLE, "ensure_base", lambda: tmp_path)
    assert TABLE.main(["--runs_dir", str(tmp_path), "--only", "ts2"]) == 130


def test_the_picture_shows_every_objective() -> None:
    shown = {type(line.loss).__name__ for lines in PLOT.FAMILIES.values() for line in lines.values()}
    assert shown | {type(PLOT.REFERENCE.loss).__name__} == set(loss_classes())


@pytest.mark.parametrize("world", ["one_rival", "even_tail", "another_token"])
def test_the_rows_of_the_picture_are_distributions(world: str) -> None:
    rows = getattr(PLOT, world)(torch.tensor([1e-8, 0.1, 0.45], dtype=torch.float64))
    assert rows.shape == (3, PLOT.VOCABULARY)
    assert (rows > 0).all()
    assert torch.allclose(rows.sum(-1), torch.ones(3, dtype=torch.float64), atol=1e-12)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    """Its gradient of CE is p - e_y, and the file is small enough for a repository."""
    rows = PLOT.even_tail(torch.tensor([0.3], dtype=torch.float64))
    gradient = PLOT.gradient(PLOT.REFERENCE.loss, rows)
    assert gradient[0, 0].item() == pytest.approx(-0.7)
    assert torch.allclose(gradient[0, 1:], rows[0, 1:])
    picture = PLOT.draw(tmp_path / "objectives.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert 20_000 < picture.stat().st_size < 200_000

"""docs/objectives.md and the scripts that fill it keep up with the losses and the configurations."""

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from tests.studies.report_runs import config_of, make_grid, make_run
from ts2_lightning.cli.catalogue import loss_classes
from ts2_lightning.types import UserError

ROOT = Path(__file__).resolve().parents[2]
DOCS, CONFIGS = ROOT / "docs", ROOT / "configs"
PAGE = (DOCS / "objectives.md").read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TABLE, PLOT = script("toyworld_objectives"), script("plot_objectives")
GRID: dict[str, Any] = yaml.safe_load((CONFIGS / "grid/toyworld/objectives.yaml").read_text(encoding="utf-8"))
CHOICES: dict[str, dict[str, Any]] = GRID["axes"]["objective"]


def fragments() -> dict[str, dict[str, Any]]:
    files = sorted((ROOT / "configs" / "loss").glob("*.yaml"))
    return {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}


def needs_reference(fragment: dict[str, Any]) -> bool:
    return loss_classes()[fragment["class_path"].rpartition(".")[2]].needs_reference


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
    rows = [line.split("|")[1].strip() for line in block.splitlines() if line.startswith("|")]
    assert rows[2:] == [GRID["base_model"]["label"], *CHOICES]


def test_fits_differ_only_in_the_objective() -> None:
    """No learning rate but half of CE's, no step count, no data: nothing is tuned.

    An objective that needs a reference model is an addition to any of the others, and no fit of its own.
    """
    added = {f"{stem}.yaml" for stem, fragment in fragments().items() if needs_reference(fragment)}
    rate = yaml.safe_load((CONFIGS / "experiment/quickstart.yaml").read_text(encoding="utf-8"))["model"]["optimizer"][
        "lr"
    ]
    fits = {**CHOICES}
    control = fits.pop("CE, half rate")
    assert control == {"set": {**fits["CE"]["set"], "model.optimizer.lr": rate / 2}}
    baselines = [fit["config"] for fit in fits.values() if fit.keys() == {"config"}]
    losses = [fit["set"]["model.loss"] for fit in fits.values() if fit.keys() == {"set"} and len(fit["set"]) == 1]
    assert len(baselines) + len(losses) == len(fits)
    for room, named in (("loss", losses), ("baseline", baselines)):
        files = [file for file in sorted((CONFIGS / room).glob("*.yaml")) if file.name not in added]
        assert sorted(named) == [f"../../{room}/{file.name}" for file in files]


def test_the_table_is_that_of_the_runs(tmp_path: Path) -> None:
    """In the order of the grid, the base model first, with the grid's columns; a run that misses is an error."""
    v, end = "toyworld/seen/validity_t1", "toyworld/seen/end_probability"
    runs = make_grid(
        tmp_path / "grid", {"objective": ["CE", "TS2"]}, [{"objective": "CE"}, {"objective": "TS2"}], seeds=(0, 1),
        report={"columns": [end, v]}, base=True,
    )  # fmt: skip
    make_run(tmp_path / "grid" / "base", values={v: 0.875})
    values = [0.25, 0.75, 0.5, 0.5]
    for run, value in list(zip(runs.values(), values, strict=True))[:-1]:
        make_run(run, config_of(), {v: value, end: 1.0})
    page = tmp_path / "page.md"
    page.write_text(f"above\n{TABLE.BEGIN}\nold\n{TABLE.END}\nbelow\n", encoding="utf-8")
    with pytest.raises(UserError, match="row1-s1"):
        TABLE.main([str(tmp_path / "grid")], page)
    assert "old" in page.read_text(encoding="utf-8")
    make_run(list(runs.values())[-1], config_of(), {v: values[-1], end: 1.0})
    assert TABLE.main([str(tmp_path / "grid")], page) == 0
    lines = [line.split("|")[1:-1] for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip(" *°") for cell in line] for line in lines]
    assert [row[0] for row in cells[2:]] == ["base", "CE", "TS2"]
    assert [row[2] for row in cells[2:]] == ["0.875", "0.500 ± 0.354", "0.500 ± 0.000"]
    assert [title.split(",")[0].split()[0] for title in cells[0][1:]] == ["end", "V"]


def test_the_table_is_written_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n\n{TABLE.BEGIN}\nold\n{TABLE.END}\n\nbelow\n", encoding="utf-8")
    for text in ("first", "second"):
        TABLE.insert(page, text)
    assert page.read_text(encoding="utf-8") == f"above\n\n{TABLE.BEGIN}\n\nsecond\n\n{TABLE.END}\n\nbelow\n"
    page.write_text("no marks\n", encoding="utf-8")
    with pytest.raises(UserError, match="expected the lines"):
        TABLE.insert(page, "text")


def test_the_picture_shows_every_objective() -> None:
    """But those that do not follow from one row of logits, as they need a reference model's too."""
    shown = {type(line.loss).__name__ for lines in PLOT.FAMILIES.values() for line in lines.values()}
    of_one_row = {name for name, cls in loss_classes().items() if not cls.needs_reference}
    assert shown | {type(PLOT.REFERENCE.loss).__name__} == of_one_row


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

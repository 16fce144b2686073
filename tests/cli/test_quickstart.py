"""What the quickstart asks of the command line; that it runs as a whole is held in tests/test_readme.py."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from ts2_lightning.cli import main
from ts2_lightning.cli.quickstart import CONFIG, compare, fit, fits, latest_export
from ts2_lightning.studies.names import slug
from ts2_lightning.toyworld import write_blank_model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that are run, none of which does anything."""
    lines: list[list[str]] = []

    def run(arguments: list[str]) -> int:
        lines.append(list(arguments))
        return 7

    monkeypatch.setattr("ts2_lightning.cli.quickstart.main", run)
    return lines


def test_a_fit_is_the_shipped_experiment_with_overrides(asked: list[list[str]]) -> None:
    assert fit("TS2", "some-name", ["--model.loss.alpha", "1"], "elsewhere") == 7
    assert asked == [
        ["fit", "-c", str(CONFIG), "--name", "some-name", "--runs_dir", "elsewhere", "--model.loss.alpha", "1"]
    ]


def test_another_seed_reaches_the_rows_and_their_order(
    asked: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The global seed alone changes nothing: the order of the rows has its own."""
    fit("CE", "name", [], "runs", seed=3)
    (line,) = asked
    options = dict(zip(line[3::2], line[4::2], strict=True))
    assert options["--data.seed"] == "3"
    assert options["--data.train"] == "toyworld:train?seed=3"
    assert options["--seed_everything"] == "3"
    assert "--data.seed 3" in capsys.readouterr().out, "the command on the screen is not the one that runs"


def test_seed_zero_is_what_the_configuration_has() -> None:
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    data = yaml.safe_load((CONFIG.parent / config["data"]).read_text(encoding="utf-8"))
    assert data["train"] == "toyworld:train?seed=0"
    assert data.get("seed", 0) == 0


@pytest.mark.parametrize("objective", ["CE", "TS2"])
def test_it_compares_objectives_at_both_rates(objective: str) -> None:
    rate = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["model"]["optimizer"]["lr"]
    options = fits()
    assert list(options) == ["CE", "CE, half rate", "TS2", "TS2, half rate"]
    assert options["TS2"] == []
    own, half = options[objective], options[f"{objective}, half rate"]
    assert half[: len(own)] == own
    setting, value = half[len(own) :]
    assert setting == "--model.optimizer.lr"
    assert float(value) == pytest.approx(rate / 2)


def test_the_newest_run_counts(tmp_path: Path) -> None:
    assert not latest_export("a/b", tmp_path).exists()
    for number in (1, 2, 10):
        (tmp_path / "a/b" / str(number)).mkdir(parents=True)
    assert latest_export("a/b", tmp_path) == tmp_path / "a/b/10/export"


def test_what_is_measured_is_kept_where_measure_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Models of random weights do for that; the base is asked in plain text, in which nothing ends with a token."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base, runs = tmp_path / "base", {label: tmp_path / "runs" / slug(label) / "1" for label in fits()}
    for place in (base, *(run / "export" for run in runs.values())):
        write_blank_model(place)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place)).save_pretrained(place)
    compare(base, runs, Path("runs/quickstart"), seed=3)
    table = Path("runs/quickstart/table.txt").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    assert max(map(len, table.splitlines())) <= 80
    assert "±" not in table
    assert "(n" not in table
    blocks = table.split("\n\n")[:2]
    assert [line[:14].strip() for line in blocks[0].splitlines()[2:]] == ["base", *fits()]
    assert sum(len(line.split()) for block in blocks for line in block.splitlines()[2:3]) == 1 + 9 + 1
    (of_base,) = Path("runs/quickstart/base/measures").glob("toyworld-*.json")
    assert "toyworld/seen/end_probability" not in json.loads(of_base.read_text())["values"]
    for label, run in runs.items():
        (run / "config.yaml").write_text(yaml.safe_dump({"data": {}}), encoding="utf-8")
        (file,) = (run / "measures").glob("toyworld-*.json")
        value = json.loads(file.read_text())["values"]["toyworld/seen/entropy"]
        assert re.search(rf"^{label} .* {value:.2f}\b", blocks[1], re.M), label
    assert main(["measure", str(runs["TS2"]), "--spec", "{toyworld: {}}"]) == 0
    assert "values, kept in" in capsys.readouterr().out


def test_labels() -> None:
    assert [slug(label) for label in fits()] == ["ce", "ce-half-rate", "ts2", "ts2-half-rate"]

"""What the quickstart asks of the command line; that it runs as a whole is held in tests/test_readme.py."""

from pathlib import Path

import pytest
import yaml

from ts2_lightning.experiments.quickstart import CONFIG, fit, fits, latest_export, slug, style_of


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that are run, none of which does anything."""
    lines: list[list[str]] = []

    def run(arguments: list[str]) -> int:
        lines.append(list(arguments))
        return 7

    monkeypatch.setattr("ts2_lightning.cli.main", run)
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


def test_it_compares_with_half_the_learning_rate() -> None:
    rate = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["model"]["optimizer"]["lr"]
    options = fits()
    assert list(options) == ["CE", "CE, half rate", "TS2"]
    assert options["TS2"] == []
    half = options["CE, half rate"]
    assert float(half[half.index("--model.optimizer.lr") + 1]) == pytest.approx(rate / 2)
    assert half[: len(options["CE"])] == options["CE"]


def test_the_newest_run_counts(tmp_path: Path) -> None:
    assert not latest_export("a/b", tmp_path).exists()
    for number in (1, 2, 10):
        (tmp_path / "a/b" / str(number)).mkdir(parents=True)
    assert latest_export("a/b", tmp_path) == tmp_path / "a/b/10/export"


def test_labels() -> None:
    assert [slug(label) for label in fits()] == ["ce", "ce-half-rate", "ts2"]
    assert [style_of(label) for label in ("base", "CE", "TS2")] == ["text", "chat", "chat"]

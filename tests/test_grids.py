"""The grids of `configs/grid`: read by the real parser, they are the papers' studies, row by row and value by value."""

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.command_line import CONFIGS, ROOT, empty_working_directory
from ts2_lightning.cli import main
from ts2_lightning.cli.settings import SettingsReader
from ts2_lightning.evaluation import described
from ts2_lightning.studies.grid import Grid, Point, read_grid
from ts2_lightning.studies.grid.schema import read_grid_file

GRIDS = CONFIGS / "grid"
GUIDE = (ROOT / "docs" / "ablations.md").read_text(encoding="utf-8")
WRITING = GRIDS / "paper" / "writing.jsonl"
READER = SettingsReader()  # whose parser is made once

Setting = Mapping[str, Any]
"""What a row sets: the objective's class and arguments, and what else differs from the other rows."""


def objective(name: str, **settings: Any) -> Setting:
    return {"loss": f"{name}Loss", **settings}


def ts2(alpha: float = 0.25, c: float = 1.0, k: int | None = None) -> Setting:
    return objective("TS2", alpha=alpha, logit_scale=c, top_k=k, adaptive=False, tail_mass_cap=None)


def gem(beta: float = 0.7) -> Setting:
    return objective("GEM", beta=beta, h="logsigmoid")


CE = objective("CrossEntropy")
CONTROL = {**CE, "rate": 0.5}
SPARSEMAX = objective("Sparsemax")
SUPPRESSION_ONLY = objective("SuppressionOnly", alpha=0.25, logit_scale=1.0, top_k=None, tail_mass_cap=None)

STUDIES: dict[str, list[Setting]] = {
    # TS2, figure 4
    "components": [CE, SPARSEMAX, {**SPARSEMAX, "decoding": "sparsemax"}, SUPPRESSION_ONLY, ts2()],
    # TS2, table 3
    "alpha": [CE, ts2(0.25), ts2(0.5), ts2(0.75), ts2(1.0), ts2(5.0)],
    # TS2, table 7
    "top_k": [
        CE, ts2(0.25, k=3), ts2(0.5, k=3), ts2(1.0, k=3), ts2(0.5, k=5), ts2(0.5, k=10), ts2(1.0, k=10),
        ts2(0.25), ts2(0.5),
    ],
    # TS2, tables 1 and 4, appendices B and C.2; GEM, appendix B
    "baselines": [
        CE, {**CE, "weight_decay": 0.1}, {**CE, "noise": 5.0}, objective("LabelSmoothing", epsilon=0.2), SPARSEMAX,
        objective("Entmax", alpha=1.5), gem(), ts2(),
    ],
    # GEM, table 3
    "gem_beta": [CE, gem(0.6), gem(0.7), gem(0.8), gem(0.9), gem(1.0)],
    # TOFU, table C.1
    "tofu": [
        CE,
        *(objective("Focal", gamma=gamma) for gamma in (2.0, 3.0, 4.0, 5.0)),
        *(objective("TOFU", gamma=gamma, beta=beta) for beta in (0.6, 0.7, 0.8, 0.9) for gamma in (2.0, 3.0, 5.0)),
    ],
    # TS2, appendix C.1, names c = 1 alone
    "logit_scale": [CE, ts2(c=0.5), ts2(c=1.0), ts2(c=2.0), ts2(c=4.0)],
}  # fmt: skip

FRONTIERS = {
    "frontier": (10 * 5, 5, 5), "frontier_ts2": (3 + 6 * 3 + 4 * 3, 3, 1), "interpolate": (4 * 3, 5, 5),
    "hold_out": (6 * 3 + 1, 5, 1),
}  # fmt: skip
"""Grids with dials: different settings of trainings, seeds, and measurements of each training."""

TS2_SETTINGS = {  # TS2, section 5 and appendix B
    "model.lm.path": "meta-llama/Llama-3.1-8B",
    "model.lm.dtype": "float32",
    "model.lm.attn_implementation": "flash_attention_2",
    "model.lm.gradient_checkpointing": True,
    "model.lm.adapter": None,
    "model.optimizer.lr": 2e-5,
    "model.schedule.name": "cosine",
    "model.schedule.warmup_ratio": 0.03,
    "model.schedule.warmup_steps": None,
    "data.train.0.path": "hub:HuggingFaceH4/ultrafeedback_binarized",
    "data.tokenizer": "meta-llama/Llama-3.1-8B-Instruct",
    "data.max_length": 2048,
    "data.overlong": "truncate",
    "data.batch_size": 128,
    "data.micro_batch_size": 8,
    "trainer.max_epochs": 3,
    "trainer.precision": "bf16-mixed",
    "trainer.devices": 4,
    "trainer.num_nodes": 1,
    "trainer.strategy.init_args.stage": 2,
}
PAPERS: dict[str, Setting] = {
    **dict.fromkeys(["components", "alpha", "baselines", "logit_scale"], TS2_SETTINGS),
    "top_k": {**TS2_SETTINGS, "model.lm.path": "meta-llama/Llama-3.2-1B"},  # TS2, appendix C.5
    "gem_beta": {**TS2_SETTINGS, "data.overlong": "drop", "data.micro_batch_size": 4},  # GEM, appendix E
    "tofu": {  # TOFU, section 4.2, appendices B.3 and C, and the public code to which B.3 refers
        "model.lm.path": "mistralai/Mistral-Nemo-Base-2407",
        "model.lm.quantization": "nf4",
        "model.lm.adapter.r": 16,
        "model.lm.adapter.alpha": 16,
        "model.lm.adapter.dropout": 0.0,
        "model.optimizer.lr": 2e-4,
        "model.optimizer.betas": [0.9, 0.999],
        "model.optimizer.weight_decay": 0.01,
        "model.schedule.name": "linear",
        "model.schedule.warmup_steps": 50,
        "data.train.0.path": "hub:tatsu-lab/alpaca",
        "data.template": "tofu",
        "data.max_length": 2048,
        "data.batch_size": 2 * 4,
        "data.micro_batch_size": 2,
        "trainer.max_epochs": 1,
        "trainer.devices": 1,
    },
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path) -> Iterator[Path]:
    """An empty working directory; the hub cannot be reached."""
    with empty_working_directory(tmp_path, tmp_path / "cache"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield tmp_path


def at(config: Any, key: str) -> Any:
    """A value of a resolved configuration: `data.train.0.path`."""
    for part in key.split("."):
        config = config[int(part)] if isinstance(config, list) else config[part]
    return config


def setting(point: Point, usual_rate: float) -> Setting:
    """What a row sets, read from the configuration that it resolves to. The usual values are left out."""
    config = point.training.config
    loss = config["model"]["loss"]
    found = {"loss": loss["class_path"].rpartition(".")[2], **loss.get("init_args", {})}
    optimizer = config["model"]["optimizer"]
    if optimizer["lr"] != usual_rate:
        found["rate"] = optimizer["lr"] / usual_rate
    if optimizer["weight_decay"] not in (0.0, 0.01):  # 0.01 is usual for TOFU; see PAPERS
        found["weight_decay"] = optimizer["weight_decay"]
    for callback in config["trainer"]["callbacks"] or ():
        if callback["class_path"].endswith(".NEFTune"):
            found["noise"] = callback["init_args"]["alpha"]
    decoding = point.measure.get("decoding", "softmax")
    return found if decoding == "softmax" else {**found, "decoding": decoding}


def settings(grid: Grid, usual_rate: float) -> list[Setting]:
    """The row's settings in order, those of the first seed."""
    return [setting(point, usual_rate) for point in grid.points if point.seed == grid.seeds[0]]


def check_report(grid: Grid) -> None:
    """All rows are measured alike, and the report shows what is measured, against CE."""
    measured = grid.points[0].measure.keys() - {"decoding"}
    assert all(point.measure.keys() - {"decoding"} == measured for point in grid.points)
    assert ("toyworld" in measured) == (grid.file.parent.name == "toyworld")
    if grid.file.stem in STUDIES:
        assert measured >= {"validation", "diversity", "probes", "cost"}
    planes = [value for plane in grid.report.get("planes", ()) for value in plane.values()]
    frontiers = [frontier[name] for frontier in grid.report["frontiers"] for name in ("quality", "diversity")]
    for column in (*grid.report["columns"], *planes, *frontiers):
        assert column in described()
        assert column.partition("/")[0] in measured
    assert grid.report["baseline"] == {"objective": "CE"}


def test_every_study_has_two_versions() -> None:
    assert {file.stem for file in (GRIDS / "paper").glob("*.yaml")} == STUDIES.keys() == PAPERS.keys()
    expected = {*STUDIES, "objectives", "anchored", *FRONTIERS}
    assert {file.stem for file in (GRIDS / "toyworld").glob("*.yaml")} == expected


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_on_the_papers_model_is_the_papers(study: str) -> None:
    """Its rows, and of every row the settings that all have, so that the rows differ in nothing else."""
    grid = read_grid(GRIDS / "paper" / f"{study}.yaml", READER.read)
    assert settings(grid, PAPERS[study]["model.optimizer.lr"]) == STUDIES[study]
    assert grid.seeds == (0,)
    for point in grid.points:
        assert {key: at(point.training.config, key) for key in PAPERS[study]} == PAPERS[study]
    for measure in ("diversity", "probes"):
        assert Path(grid.points[0].measure[measure]["prompts"]) == WRITING, "wherever the command is called"
    check_report(grid)


@pytest.mark.parametrize("study", [*STUDIES, "objectives"])
def test_the_toy_version_has_the_same_rows_and_the_control(study: str) -> None:
    """Three seeds draw rows and their order, over one base model: a seed of it would be another source of spread."""
    grid = read_grid(GRIDS / "toyworld" / f"{study}.yaml", READER.read)
    if study in STUDIES:
        first, *others = STUDIES[study]
        assert settings(grid, usual_rate=5e-4) == [first, CONTROL, *others]
    assert grid.seeds == (0, 1, 2)
    assert len(grid.points) == 3 * len({tuple(point.labels.items()) for point in grid.points})
    for point in grid.points:
        config, seed = point.training.config, point.seed
        assert (config["seed_everything"], config["data"]["seed"]) == (seed, seed)
        assert config["data"]["train"] == f"toyworld:train?seed={seed}"
        assert config["model"]["lm"]["path"] == "toyworld"
        assert config["trainer"]["max_epochs"] == 3
    shared = 3 if study == "components" else 0  # unified sparsemax is decoupling only, decoded otherwise
    assert len(grid.trainings) == len(grid.points) - shared
    check_report(grid)


def test_anchors_are_each_added_to_the_same_objectives() -> None:
    """Forward, reverse and the reference's support, at three weights and for two references, beside what they are added
    to and the control."""
    grid = read_grid(GRIDS / "toyworld" / "anchored.yaml", READER.read)
    rows: dict[tuple[str, str, str], list[float]] = {}
    for point in grid.points:
        reference = str(point.training.config["model"].get("reference"))
        loss = point.training.config["model"]["loss"]
        given = loss["init_args"] or {}
        if "loss" not in given:
            rows.setdefault((loss["class_path"].rpartition(".")[2], "", reference), []).append(0.0)
            continue
        added = given.get("direction") or "support"
        key = given["loss"]["class_path"].rpartition(".")[2], added, reference
        rows.setdefault(key, []).append(given["weight"] if "weight" in given else given["alpha"])
    weights = dict.fromkeys((0.1, 0.5, 2.0), 2)  # once for each seed
    bases, additions = ("CrossEntropyLoss", "TS2Loss", "GEMLoss"), ("forward", "reverse", "support")
    references = ("None", "runs/toyworld-early/1/export")
    anchored = dict.fromkeys(itertools.product(bases, additions, references), weights)
    alone = {(base, "", "None"): {0.0: 4 if base == "CrossEntropyLoss" else 2} for base in bases}
    assert {key: dict(Counter(values)) for key, values in rows.items()} == {**anchored, **alone}
    assert len(grid.trainings) == 116
    check_report(grid)


def test_a_small_pretrained_model_is_trained_alike_by_all_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the objective and the rate differs; the second grid starts from what CE has trained."""
    monkeypatch.setattr("ts2_lightning.studies.grid.settings.find_spec", lambda name: name)  # not needed to read them
    grid, after_ce = (
        read_grid(GRIDS / "gemma-270m" / f"{name}.yaml", READER.read) for name in ("objectives", "after_ce")
    )
    assert [file.stem for file in sorted((GRIDS / "gemma-270m").glob("*.yaml"))] == ["after_ce", "objectives"]
    assert (len(grid.trainings), len(grid.points), len(after_ce.trainings)) == (13, 26, 2)
    rates = Counter(point.training.config["model"]["optimizer"]["lr"] for point in grid.points)
    assert rates == {2e-5: 18, 5e-6: 8}
    for one, path in ((grid, "google/gemma-3-270m"), (after_ce, "runs/gemma-early/1/export")):
        for point in one.points:
            config = point.training.config
            assert config["model"]["lm"]["path"] == path
            assert (config["trainer"]["max_steps"], config["data"]["batch_size"]) == (48, 4)
            assert point.measure["diversity"]["reader"] == "google/gemma-3-270m"
    check_report(grid)


def with_one_seed(study: str) -> Grid:
    """A grid with dials, of which one seed is resolved: what a seed sets, the other studies show."""
    file = GRIDS / "toyworld" / f"{study}.yaml"
    whole = read_grid_file(file)
    assert len(whole.seeds) == FRONTIERS[study][1]
    assert set(whole.seeded) == {"seed_everything", "data.seed", "data.train"}
    text = file.read_text(encoding="utf-8").replace("../../", f"{CONFIGS}/").split("\n  best:")[0]  # it needs the seeds
    text, count = re.subn(r"^seeds: .*$", "seeds: [0]", text, flags=re.M)
    assert count == 1
    Path("toyworld").mkdir()
    Path(f"toyworld/{study}.yaml").write_text(f"{text}\n", encoding="utf-8")
    return read_grid(f"toyworld/{study}.yaml", READER.read)


@pytest.mark.parametrize("study", FRONTIERS)
def test_the_grids_with_dials(study: str) -> None:
    """Nothing but the objective, its dials and the rate differs, and each cloud has equally many settings."""
    grid = with_one_seed(study)
    rows, _, ways = FRONTIERS[study]
    assert len(grid.points) == rows * ways
    shared = 3 if study == "frontier_ts2" else 0  # alpha 0.25 is at the logit scale 1
    assert len(grid.trainings) == rows - shared
    check_report(grid)
    for frontier in grid.report["frontiers"]:
        assert 0.95 in frontier["at"] or "/unseen/" in frontier["quality"]  # there the base itself is below
    if study == "frontier":
        check_objectives(grid)


def check_objectives(grid: Grid) -> None:
    """The objectives, rates and temperatures of the frontier."""
    first = [point for point in grid.points if point.labels["temperature"] == "1"]
    rates = [point.training.config["model"]["optimizer"]["lr"] for point in first[:5]]
    assert rates == [1e-3, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5]
    expected = [
        CE, objective("LabelSmoothing", epsilon=0.2), objective("GEM", beta=0.7, h="linear"),
        objective("Focal", gamma=3.0), objective("TOFU", gamma=3.0, beta=0.8), SPARSEMAX, ts2(0.25), ts2(1.0),
        objective("FenchelYoungPlus", alpha=0.25), SUPPRESSION_ONLY,
    ]  # fmt: skip
    at_usual_rate = [setting(point, usual_rate=5e-4) for point in first[1::5]]
    for ours, wanted in zip(at_usual_rate, expected, strict=True):
        assert wanted.items() <= ours.items()
    measured = {point.measure["toyworld_decoded"]["temperature"] for point in grid.points}
    assert measured == {0.4, 0.6, 0.8, 1, 1.2}


@pytest.mark.parametrize("study", STUDIES)
def test_both_versions_vary_the_same(study: str) -> None:
    toy, paper = (read_grid_file(GRIDS / version / f"{study}.yaml") for version in ("toyworld", "paper"))
    assert {
        axis: [choice for choice in choices if choice != "CE, half rate"] for axis, choices in toy.axes.items()
    } == {axis: list(choices) for axis, choices in paper.axes.items()}


def test_a_dry_run_lists_every_training_with_its_command(capfd: pytest.CaptureFixture[str]) -> None:
    """As it can be typed: the first of them resolves to the same configuration."""
    file = GRIDS / "paper" / "components.yaml"
    assert main(["ablate", "-c", str(file), "--dry-run"]) == 0
    commands = re.findall(r"^\w.* (fit -c .+)$", capfd.readouterr().out, re.M)
    grid = read_grid(file, READER.read)
    assert len(commands) == len(grid.trainings) == 4
    assert main([*shlex.split(commands[0]), "--print_config"]) == 0
    printed = yaml.safe_load(capfd.readouterr().out)
    assert {key: at(printed, key) for key in TS2_SETTINGS} == TS2_SETTINGS
    assert printed["model"]["loss"] == grid.trainings[0].config["model"]["loss"]
    assert printed["name"] == grid.trainings[0].name


# The guide ----------------------------------------------------------------------------------------------------------


def blocks(part: str, language: str, page: str = GUIDE) -> list[str]:
    """The fenced blocks of a language below a heading of the guide, or of another page; the first part has none."""
    parts = re.split(r"^## (.+)$", page, flags=re.M)
    text = dict(zip(["", *parts[1::2]], parts[::2], strict=True))[part]
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def test_the_guide_lists_the_studies() -> None:
    listed = re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", GUIDE, re.M)
    assert {study: int(rows) for study, rows in listed} == {study: len(rows) for study, rows in STUDIES.items()}


def test_the_guides_first_grid() -> None:
    (text,) = blocks("", "yaml")
    assert len(text.splitlines()) <= 11
    Path("configs").symlink_to(CONFIGS)
    Path("mine.yaml").write_text(text, encoding="utf-8")
    grid = read_grid("mine.yaml", READER.read)
    assert settings(grid, usual_rate=5e-4) == [CE, ts2(0.25), ts2(1.0)]
    assert grid.name == "mine"


def test_the_guides_frontiers() -> None:
    (text,) = blocks("Frontiers", "yaml")
    Path("configs").symlink_to(CONFIGS)
    Path("mine.yaml").write_text(text, encoding="utf-8")
    grid = read_grid("mine.yaml", READER.read)
    assert (len(grid.points), len(grid.trainings)) == (2 * 3 * 3 * 3, 2 * 3 * 3)
    assert [frontier["dials"] for frontier in grid.report["frontiers"]] == [
        ["learning_rate"],
        ["learning_rate", "temperature"],
    ]


def test_the_grid_of_the_page_about_choosing() -> None:
    """Its configurations are the package's, the reader is the base model, and a lower quality is a better one."""
    (text,) = blocks("Measure your own", "yaml", (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8"))
    for name in ("rows", "held-out"):
        Path(f"{name}.jsonl").write_text('{"prompt": "1 + 1?", "completion": "2"}\n', encoding="utf-8")
    Path("my-grid.yaml").write_text(text, encoding="utf-8")
    grid = read_grid("my-grid.yaml", READER.read)
    assert (len(grid.points), len(grid.trainings)) == (3 * 3 * 3 * 3, 3 * 3 * 3)
    assert {point.measure["diversity"]["reader"] for point in grid.points} == {"Qwen/Qwen2.5-0.5B"}
    assert {point.training.config["model"]["lm"]["path"] for point in grid.points} == {"Qwen/Qwen2.5-0.5B"}
    assert described()["diversity/reader_cross_entropy"].better == "lower"


def test_the_guides_example_of_every_key() -> None:
    """Its blocks, put together, are one grid with as many rows as the comments say."""
    for room in ("baseline", "experiment", "loss", "strategy"):
        Path(room).symlink_to(CONFIGS / room)
    Path("rows.jsonl").write_text('{"prompt": "1 + 1?", "completion": "2"}\n', encoding="utf-8")
    Path("own").mkdir()
    Path("own/prompts.jsonl").write_text('{"prompt": "Write a poem."}\n', encoding="utf-8")
    Path("own/every.yaml").write_text("".join(blocks("The file", "yaml")), encoding="utf-8")
    grid = read_grid("own/every.yaml", READER.read)
    labels = [dict(point.labels) for point in grid.points if point.seed == 0]
    assert labels == [
        {"objective": "CE"},
        {"objective": "NEFT"},
        *({"objective": "TS2", "alpha": alpha} for alpha in ("0.25", "0.5", "1")),
        {"alpha": "0.25", "epochs": "1"},
        {"alpha": "1", "epochs": "3"},
        {"objective": "TS2", "alpha": "1", "epochs": "1"},
    ]
    epochs = [at(point.training.config, "trainer.max_epochs") for point in grid.points if point.seed == 0]
    assert epochs == [3, 3, 3, 3, 2, 1, 3, 2]
    assert len(grid.points) == 3 * len(labels)

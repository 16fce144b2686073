"""Every YAML file under `configs/` is parsed; every experiment and baseline takes one real step, toy-sized."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.command_line import CONFIGS, QUICKSTART, CommandLine, column, empty_working_directory, make_blank

FILES = sorted(CONFIGS.rglob("*.yaml"))
EXPERIMENTS = sorted((CONFIGS / "experiment").glob("*.yaml"))
BASELINES = sorted((CONFIGS / "baseline").glob("*.yaml"))

# Where an experiment puts a fragment of each directory.
PLACES = {
    "model": "model.lm",
    "data": "data",
    "loss": "model.loss",
    "engine": "model.engine",
    "optimizer": "model.optimizer",
    "schedule": "model.schedule",
}
COMPOSED = {"experiment"}
# Further files after an experiment.
OVERLAYS = {"baseline", "model/adapter", "strategy", "strategy/rehearsal", "cluster", "callback", "logger"}
NOT_OF_FIT = {"grid/gemma-270m", "grid/paper", "grid/toyworld"}  # read by another command


@pytest.fixture
def ts2(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> Iterator[CommandLine]:
    """The command line, in an empty working directory, unable to reach the hub."""
    blank = make_blank(tmp_path / "blank")
    with empty_working_directory(tmp_path, tmp_path / "cache"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield CommandLine(capfd, blank)


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def room(path: Path) -> str:
    """The directory of a file, below `configs`."""
    return str(path.parent.relative_to(CONFIGS))


def nested(place: str, value: Any) -> dict[str, Any]:
    for part in reversed(place.split(".")):
        value = {part: value}
    return dict(value)


def test_there_are_configs() -> None:
    rooms = {room(path) for path in FILES}
    assert {"model", "data", "loss", "engine", "experiment", "baseline", "strategy", "cluster"} <= rooms
    assert rooms <= PLACES.keys() | COMPOSED | OVERLAYS | NOT_OF_FIT, "say in PLACES where the new fragments belong"
    assert not list(CONFIGS.rglob("*.yml"))


@pytest.mark.parametrize("path", [p for p in FILES if room(p) not in OVERLAYS | NOT_OF_FIT], ids=name)
def test_it_is_parsed(path: Path, ts2: CommandLine) -> None:
    """By the command line's own parser, which refuses names and values that do not exist."""
    own: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    place = PLACES.get(room(path))
    config = path
    if place:
        config = Path("composed.yaml")
        config.write_text(yaml.safe_dump(nested(place, str(path))))
    model = () if place == "model.lm" or room(path) in COMPOSED else ("--model.lm.path=toyworld",)
    answer = ts2("fit", "-c", str(config), *model, "--print_config").done()
    parsed = yaml.safe_load(answer.out)
    for part in place.split(".") if place else ():
        parsed = parsed[part]
    if room(path) not in COMPOSED:
        assert contains(parsed, own), f"{parsed} lacks something of {own}"


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in OVERLAYS], ids=name)
def test_a_further_file_is_parsed_after_an_experiment(path: Path, ts2: CommandLine) -> None:
    own: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    answer = ts2("fit", "-c", str(EXPERIMENTS[0]), "-c", str(path), "--print_config").done()
    if room(path) == "callback":
        own = {"trainer": {"callbacks": own["trainer"]["callbacks+"]}}
    if room(path) not in ("baseline", "model/adapter"):  # which select fragments
        assert contains(yaml.safe_load(answer.out), own)


LOGGERS = re.findall(r"```yaml\n(.+?)```", (CONFIGS.parent / "docs/logging.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("block", "kind"), zip(LOGGERS, ("WandbLogger", "MLFlowLogger"), strict=True))
def test_a_logger_of_the_page_is_parsed(block: str, kind: str, ts2: CommandLine) -> None:
    Path("logger.yaml").write_text(block)
    answer = ts2("fit", "-c", str(QUICKSTART), "-c", "logger.yaml", "--print_config").done()
    [parsed] = yaml.safe_load(answer.out)["trainer"]["logger"]
    [own] = yaml.safe_load(block)["trainer"]["logger"]
    assert parsed["class_path"] == f"lightning.pytorch.loggers.{kind}"
    assert contains(parsed["init_args"], own["init_args"])


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=name)
@pytest.mark.parametrize("path", BASELINES, ids=name)
def test_a_baseline_changes_what_it_says_and_no_more(path: Path, experiment: Path, ts2: CommandLine) -> None:
    def printed(*files: Path) -> dict[str, Any]:
        answer = ts2("fit", *(word for file in files for word in ("-c", str(file))), "--print_config").done()
        return leaves(yaml.safe_load(answer.out))

    own = leaves(yaml.safe_load(path.read_text(encoding="utf-8")))
    before, after = printed(experiment), printed(experiment, path)
    changed = {key for key in before.keys() | after.keys() if before.get(key, "absent") != after.get(key, "absent")}
    said = tuple(key.replace("+", "") for key in own)
    assert {key for key in changed if not key.startswith((*said, "name"))} == set()
    for key, value in own.items():
        if key == "model.loss":
            value = yaml.safe_load((path.parent / value).read_text(encoding="utf-8"))["class_path"]
            assert after["model.loss.class_path"] == value
        elif key == "trainer.callbacks+":
            assert after["trainer.callbacks"][: len(before["trainer.callbacks"] or [])] == (
                before["trainer.callbacks"] or []
            )
            assert contains(after["trainer.callbacks"][-1], value[-1])
        else:
            assert after[key] == value


def leaves(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, for every value that holds no further keys."""
    found = {}
    for key, value in config.items():
        found.update(leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value})
    return found


def contains(parsed: Any, own: Any) -> bool:
    """Whether every setting of a fragment arrived."""
    if isinstance(own, list) and isinstance(parsed, list):
        return len(own) == len(parsed) and all(map(contains, parsed, own))
    if not isinstance(own, dict) or not isinstance(parsed, dict):
        return bool(parsed == own)
    return all(key in parsed and contains(parsed[key], value) for key, value in own.items())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_an_experiment_only_selects_fragments_that_exist(path: Path) -> None:
    def files(value: Any) -> Iterator[str]:
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from files(item)
        if isinstance(value, str) and value.endswith(".yaml"):
            yield value

    named = list(files(yaml.safe_load(path.read_text(encoding="utf-8"))))
    assert "loss" in {Path(file).parent.name for file in named}
    for file in named:
        assert (path.parent / file).is_file(), file


@pytest.mark.parametrize("path", [*EXPERIMENTS, *BASELINES], ids=name)
def test_it_takes_a_step(path: Path, ts2: CommandLine) -> None:
    """Its own loss, engine, optimizer, schedule and callbacks, on a toy-sized model and toy rows."""
    files = ("-c", str(QUICKSTART), "-c", str(path)) if path in BASELINES else ("-c", str(path))
    toy = {
        "model.lm.path": ts2.blank, "model.lm.init": "random", "model.lm.revision": "null", "model.lm.dtype": "float32",
        "model.lm.attn_implementation": "auto",
        "data.train": "toyworld:train?seed=0", "data.validation": "toyworld:validation",
        "data.tokenizer": ts2.blank, "data.template": "auto", "data.format": "auto", "data.limit_train": 6,
        "data.limit_validation": 4, "data.batch_size": 6, "data.micro_batch_size": 3, "data.num_workers": 0,
        "trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.num_nodes": 1, "trainer.strategy": "auto",
        "trainer.precision": "32-true", "trainer.max_epochs": 1, "trainer.max_steps": -1,
        "trainer.val_check_interval": "null", "trainer.check_val_every_n_epoch": 1,
        "trainer.log_every_n_steps": 1, "trainer.enable_progress_bar": "false",
    }  # fmt: skip
    overrides = [f"--{key}={value}" for key, value in toy.items()]
    ts2("fit", *files, *overrides, "--name=step").done()
    run = Path("runs/step/1")
    assert list(column(run, "train/objective")) == [1]
    assert list(column(run, "val/cross_entropy")) == [1]
    assert (run / "export" / "model.safetensors").is_file()
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    assert recorded["model"]["loss"]["class_path"]
    if path in BASELINES:
        assert recorded["model"]["loss"]["class_path"].endswith(".CrossEntropyLoss")

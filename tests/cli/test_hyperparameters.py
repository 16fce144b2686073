"""The settings of a run in its loggers, read back from what they have written."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.metadata import (
    EXPERIMENT_TAG,
    SESSION_END_INFO_TAG,
    SESSION_START_INFO_TAG,
    parse_session_end_info_plugin_data,
    parse_session_start_info_plugin_data,
)

from tests.cli.conftest import Run
from tests.support.tensorboard import tabs_of
from ts2_lightning.cli.hyperparameters import HIDDEN, hyperparameters

RUN = Path("runs/run/1")


def events(run: Path = RUN) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard")).Reload()


def row(shown: EventAccumulator) -> dict[str, Any]:
    """The hyper-parameters of a row of TensorBoard's table."""
    content = shown.summary_metadata[SESSION_START_INFO_TAG].plugin_data.content
    values = parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


# From a configuration ----------------------------------------------------------------------------------------------


def test_names_are_those_of_the_command_line() -> None:
    config = {
        "seed_everything": 0,
        "name": "mine",
        "runs_dir": "/data/runs",
        "ckpt_path": "x.ckpt",
        "trainer": {
            "max_epochs": 3,
            "fast_dev_run": False,
            "max_time": None,
            "logger": [{"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "p"}}],
            "callbacks": [
                {"class_path": "ts2_lightning.callbacks.EMA", "init_args": {"decay": 0.99}},
                {"class_path": "mine.Extra", "init_args": {"n": 1}, "dict_kwargs": {"m": 2}},
                {"class_path": "ts2_lightning.callbacks.EMA", "init_args": {"decay": 0.9}},
                {"class_path": "lightning.pytorch.callbacks.EarlyStopping"},
            ],
        },
        "model": {
            "loss": {"class_path": "ts2_lightning.losses.suppression.TS2Loss", "init_args": {"alpha": 0.25}},
            "engine": {"class_path": "mine.Engine", "init_args": {}},
            "optimizer": {"betas": [0.9, 0.95]},
        },
        "data": {"train": [{"path": "a.jsonl", "times": 2}, {"path": "b.jsonl"}], "validation": {"chat": "c.jsonl"}},
    }
    assert hyperparameters(config) == {
        "seed_everything": 0,
        "trainer.max_epochs": 3,
        "trainer.fast_dev_run": False,
        "trainer.callbacks": "EMA, mine.Extra, EMA, EarlyStopping",
        "trainer.callbacks.EMA.decay": 0.99,
        "trainer.callbacks.mine.Extra.n": 1,
        "trainer.callbacks.mine.Extra.m": 2,
        "trainer.callbacks.EMA.2.decay": 0.9,
        "model.loss": "TS2Loss",
        "model.loss.alpha": 0.25,
        "model.engine": "mine.Engine",
        "model.optimizer.betas": "[0.9, 0.95]",
        "data.train.0.path": "a.jsonl",
        "data.train.0.times": 2,
        "data.train.1.path": "b.jsonl",
        "data.validation.chat": "c.jsonl",
    }


@pytest.mark.parametrize("name", ["api_key", "password", "hub_token", "token", "client_secret", "credentials"])
def test_what_is_secret_is_hidden(name: str) -> None:
    config = {"trainer": {"callbacks": [{"class_path": "mine.Pager", "init_args": {name: "abc", "n": 1}}]}}
    assert hyperparameters(config)[f"trainer.callbacks.mine.Pager.{name}"] == HIDDEN
    assert hyperparameters(config)["trainer.callbacks.mine.Pager.n"] == 1


@pytest.mark.parametrize("name", ["max_new_tokens", "pad_token", "tokens", "key", "tokenizer", "keys"])
def test_what_only_sounds_secret_is_shown(name: str) -> None:
    assert hyperparameters({"data": {name: "abc"}}) == {f"data.{name}": "abc"}


def test_paths_say_nothing_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, work = tmp_path / "home/ada", tmp_path / "home/ada/work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    paths = [str(work / "rows.jsonl"), str(home / "models/base"), "/data/rows.jsonl", "rows.jsonl", "toyworld:train"]
    assert hyperparameters({"data": {"train": paths, "template": "https://ada:pw@example.org/t.jinja"}}) == {
        "data.train": "[rows.jsonl, ~/models/base, /data/rows.jsonl, rows.jsonl, toyworld:train]",
        "data.template": "https://example.org/t.jinja",
    }


# In the loggers of every run ---------------------------------------------------------------------------------------


def test_tensorboard_and_csv_know_the_settings_and_the_final_values(fit: Run, here: Path) -> None:
    fit("--model.loss.alpha=0.5").done()
    shown = events()
    settings = row(shown)
    wanted = hyperparameters(yaml.safe_load((RUN / "config.yaml").read_text()))
    assert {name: settings[name] for name in wanted} == wanted
    assert settings["model.loss.alpha"] == 0.5
    assert not {"name", "runs_dir", "trainer.logger"} & settings.keys()
    assert EXPERIMENT_TAG not in shown.summary_metadata, "it would decide the columns of all other runs"
    ended = shown.summary_metadata[SESSION_END_INFO_TAG].plugin_data.content
    assert parse_session_end_info_plugin_data(ended).status == api_pb2.STATUS_SUCCESS
    [final] = shown.Scalars("final/objective")
    last = shown.Scalars("val/objective")[-1]
    assert final.value == last.value
    for file in ("csv/hparams.yaml", "tensorboard/hparams.yaml"):
        written = yaml.safe_load((RUN / file).read_text())
        assert {name: written[name] for name in wanted} == wanted, file


def test_a_run_that_goes_on_has_one_row_and_says_what_it_keeps(fit: Run, here: Path) -> None:
    fit("--trainer.max_epochs=1").done()
    fit("--trainer.max_epochs=1", "--ckpt_path=last").done()
    kept = "TensorBoard's table keeps what the run began with of trainer.max_epochs, model.loss.alpha"
    with pytest.warns(UserWarning, match=f"^{kept}$"):
        fit("--trainer.max_epochs=3", "--model.loss.alpha=0.5", "--ckpt_path=last").done()
    shown = events()
    assert row(shown)["model.loss.alpha"] == 0.25
    final = shown.Scalars("final/objective")[-1]
    assert (final.step, final.value) == (12, shown.Scalars("val/objective")[-1].value)
    assert yaml.safe_load((RUN / "csv/hparams.yaml").read_text())["model.loss.alpha"] == 0.5
    with tabs_of(Path("runs")) as tabs:
        table = tabs.wait_for("hparams/session_groups", QUESTION, "sessionGroups")
    assert len(table["sessionGroups"]) == 1


QUESTION = {
    "startIndex": 0,
    "sliceSize": 10,
    "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
    "colParams": [],
}


def test_tensorboard_shows_what_differs_between_runs(fit: Run, here: Path) -> None:
    """Asked as its own page asks it."""
    fit("--name=grid/a").done()
    fit("--name=grid/b", "--model.loss.alpha=0.5", "--seed_everything=7").done()
    fit("--name=grid/c", "--model.loss=CrossLoss").done()
    with tabs_of(Path("runs/grid")) as tabs:
        tabs.wait_for("hparams/session_groups", QUESTION, "sessionGroups")
        for _ in range(100):
            experiment = tabs.ask("hparams/experiment", {"hparamsLimit": 1000})
            groups = tabs.ask("hparams/session_groups", QUESTION)["sessionGroups"]
            if len(groups) == 3:
                break
            time.sleep(0.1)
    differing = [info["name"] for info in experiment["hparamInfos"] if info.get("differs")]
    assert differing == ["model.loss", "model.loss.alpha", "seed_everything"]
    metrics = [info["name"]["tag"] for info in experiment["metricInfos"]]
    assert metrics[:2] == ["epoch", "final/objective"], "five of them are shown; our module logs no epoch"
    rows = {group["name"]: group for group in groups}
    assert rows.keys() == {"a/1/tensorboard", "b/1/tensorboard", "c/1/tensorboard"}
    assert rows["b/1/tensorboard"]["hparams"]["model.loss.alpha"] == 0.5
    assert "model.loss.alpha" not in rows["c/1/tensorboard"]["hparams"]
    for group in groups:
        assert any(value["name"]["tag"] == "final/objective" for value in group["metricValues"])
        assert group["sessions"][0]["status"] == "STATUS_SUCCESS"


# In loggers that know runs by a name of their own ---------------------------------------------------------------------


def own_logger(**arguments: str) -> None:
    """Settings with a stand-in for W&B's logger, and with CSV's."""
    loggers = [
        {"class_path": "tests.cli.standins.WandbLogger", "init_args": {"file": "lines.jsonl", **arguments}},
        {"class_path": "CSVLogger", "init_args": {"save_dir": "mine"}},
    ]
    Path("own.yaml").write_text(yaml.safe_dump({"trainer": {"logger": loggers}}))


def told() -> list[Any]:
    """What the stand-in was called and told at each start."""
    lines = [json.loads(line) for line in Path("lines.jsonl").read_text().splitlines()]
    return [line for line in lines if isinstance(line[-1], int)]


def test_a_run_that_goes_on_is_one_run_elsewhere(fit: Run, here: Path) -> None:
    own_logger()
    fit("-c", "own.yaml", "--trainer.max_epochs=1").done()
    fit("-c", "own.yaml", "--trainer.max_epochs=2", "--ckpt_path=last").done()
    fit("-c", "own.yaml", "--trainer.max_epochs=1").done()
    first, second, other = told()
    assert first == ["own/1", "id-0", 1]
    assert second == ["own/1", "id-0", 2]
    assert other[0] == "own/2"
    assert other[1] != "id-0"
    assert json.loads(Path("runs/own/1/loggers.json").read_text()) == {"WandbLogger": "id-0"}
    assert list(Path("mine").rglob("hparams.yaml")), "a logger without such names stays as it was"


def test_names_of_the_user_stay(fit: Run, here: Path) -> None:
    own_logger(name="my run", id="my-id")
    fit("-c", "own.yaml", "--trainer.max_epochs=1").done()
    assert told() == [["my run", "my-id", 1]]
    assert "my-id" in Path("runs/own/1/config.yaml").read_text()


def test_a_logger_that_cannot_begin(fit: Run, here: Path) -> None:
    own_logger(refuses="no key configured\nlog in first")
    assert fit("-c", "own.yaml").complaint == (
        "own.yaml:2: trainer.logger: WandbLogger cannot begin: no key configured log in first"
    )

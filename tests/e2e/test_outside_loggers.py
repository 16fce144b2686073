"""W&B without a network and MLflow with a server of this machine, as they are: what they have written is read back.

They are no dependencies; the tests are skipped where they are not installed.
"""

import importlib.util
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import pytest
import yaml

from tests.e2e.command_line import CONFIGS, CommandLine, column
from ts2_lightning.cli.hyperparameters import hyperparameters

pytestmark = pytest.mark.slow

DATA = ("--data.limit_train=32", "--data.limit_validation=8", "--name=mine")  # four steps of an epoch
PICTURE = ("-c", str(CONFIGS / "callback/next_token.yaml"))
RUN = Path("runs/mine/1")
PICTURED = "next_token/0/filenames"  # as W&B has images


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}, which is not installed (pip install {package})")


def settings(file: str = "config.yaml") -> dict[str, Any]:
    return hyperparameters(yaml.safe_load((RUN / file).read_text()))


# Weights & Biases ---------------------------------------------------------------------------------------------------


class Written(NamedTuple):
    """What a file of W&B holds.

    Attributes:
        id: the run.
        name: its name for people.
        config: its hyper-parameters.
        history: rows of metrics.
    """

    id: str
    name: str
    config: dict[str, Any]
    history: list[dict[str, Any]]


def records(file: Path) -> Iterator[bytes]:
    """The records of a log in the format of LevelDB: blocks of 32 KiB, records in one piece or several."""
    content, place, parts = file.read_bytes(), 7, b""  # seven bytes say what it is
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield parts
            parts = b""


def read_wandb(file: Path) -> Written:
    from wandb.proto.wandb_internal_pb2 import Record

    name, config, history = "", {}, []
    for content in records(file):
        record = Record.FromString(content)
        if record.WhichOneof("record_type") == "run":
            run, name = record.run.run_id, record.run.display_name
        for item in record.config.update:
            config[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        if items := record.history.item:
            history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return Written(run, name, config, history)


@pytest.fixture
def wandb(ts2: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    """A command line whose runs W&B keeps in files."""
    needs("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield ts2
    import wandb as client

    client.finish()


def test_wandb(wandb: CommandLine) -> None:
    options = ("-c", str(CONFIGS / "logger/wandb.yaml"), *PICTURE, *DATA)
    wandb.toy("fit", *options, "--trainer.max_epochs=1").done()
    import wandb as client

    client.finish()
    wandb.toy("fit", *options, "--trainer.max_epochs=2", "--model.loss.alpha=0.5", "--ckpt_path=last").done()
    client.finish()
    first, second = (
        read_wandb(file) for file in sorted(Path("wandb").glob("offline-run-*/*.wandb"), key=os.path.getmtime)
    )
    assert (first.name, first.id) == ("mine/1", second.id), "a run that goes on is one to W&B"
    assert {name: first.config[name] for name in settings()} == settings()
    assert second.config["model.loss.alpha"] == 0.5
    for written, steps, epochs in ((first, range(1, 5), (4,)), (second, range(5, 9), (8,))):
        for name in ("train/objective", "val/support_size"):
            logged = {row["trainer/global_step"]: row[name] for row in written.history if name in row}
            assert logged == {step: value for step, value in column(RUN, name).items() if step in steps}, name
        pictures = {row["trainer/global_step"]: row for row in written.history if PICTURED in row}
        assert tuple(pictures) == epochs
        [file] = pictures[epochs[0]][PICTURED]
        assert len(list(Path("wandb").glob(f"offline-run-*/files/{file}"))) == 1


# MLflow -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of MLflow on this machine."""
    needs("mlflow")
    directory = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db", "--workers", "1"]
    command += ["--artifacts-destination", "artifacts", "--host", "127.0.0.1", "--port", str(port)]
    log = directory / "log.txt"
    with log.open("w") as stream:
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        process = subprocess.Popen(command, cwd=directory, stdout=stream, stderr=stream, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            try:
                urlopen(f"{url}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail(f"no answer from {url}: {log.read_text()}")
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(params=["server", "file"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where MLflow keeps runs: a server, or a database in a file."""
    needs("mlflow")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")  # it would be sent somewhere
    return request.getfixturevalue("server") if request.param == "server" else "sqlite:///mlflow.db"


def test_mlflow(ts2: CommandLine, store: str) -> None:
    shipped = (CONFIGS / "logger/mlflow.yaml").read_text()
    Path("mlflow.yaml").write_text(shipped.replace("sqlite:///mlflow.db", store))
    options = ("-c", "mlflow.yaml", *PICTURE, *DATA)
    ts2.toy("fit", *options, "--trainer.max_epochs=1").done()
    kept = r"MLFlowLogger has \d+ of \d+ hyper-parameters; it refuses trainer\.max_epochs, model\.loss\.alpha: "
    more = ("--trainer.max_epochs=2", "--model.loss.alpha=0.5", "--ckpt_path=last")
    with pytest.warns(UserWarning, match=kept):
        ts2.toy("fit", *options, *more).done()
    from mlflow import MlflowClient

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("ts2-lightning")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine/1", "FINISHED")
    assert run.data.params == {name: str(value) for name, value in settings().items()}
    for name in ("train/objective", "val/support_size"):
        logged = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        assert logged == pytest.approx(column(RUN, name)), name
    pictures = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    steps = {
        int(step) for path in pictures for step in re.findall(r"next_token[~#]0[+%]step[+%](\d+)[+%].*\.png", path)
    }
    assert steps == {4, 8}

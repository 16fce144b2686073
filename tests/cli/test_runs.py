"""What whole commands leave behind, with the stand-ins."""

import csv
import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.cli import standins
from tests.cli.conftest import Run
from tests.e2e import stand_in_slurm
from ts2_lightning.callbacks import Watchdog
from ts2_lightning.cli.launch import claim_file
from ts2_lightning.cli.record import RunRecord

RUN = Path("runs/run/1")
LAST = RUN / "checkpoints/last.ckpt"


def load(file: Path) -> dict[str, Any]:
    content = yaml.safe_load(file.read_text())
    assert isinstance(content, dict)
    return content


def rows(run: Path = RUN) -> list[dict[str, str]]:
    with (run / "csv/metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def steps(run: Path = RUN) -> list[int]:
    return [int(row["step"]) for row in rows(run) if row["train/objective"]]


def runs() -> list[str]:
    return sorted(str(path.parent) for path in Path("runs").glob("**/config.yaml"))


def test_a_run_holds_its_record(fit: Run, here: Path) -> None:
    fit("--model.loss.alpha=0.5", "--name=my run").done()
    run = Path("runs/my run/1")
    config = load(run / "config.yaml")
    assert config["model"]["loss"] == {
        "class_path": "tests.cli.standins.SquareLoss",
        "init_args": {"alpha": 0.5, "support": "sparsemax"},
    }
    assert (config["name"], config["ckpt_path"], config["data"]["tokenizer"]) == ("my run", None, None)
    place, _, command = (run / "command.txt").read_text().strip().partition(" && ")
    assert shlex.split(place) == ["cd", str(here)]
    assert shlex.split(command)[-2:] == ["--model.loss.alpha=0.5", "--name=my run"]
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0] or environment["packages"]["torch"]
    assert environment["torch"]["threads"] == torch.get_num_threads()
    assert json.loads((run / "data.json").read_text()) == {"rows": 32, "tokenizer": "base"}
    assert steps(run) == list(range(8))
    assert list((run / "tensorboard").glob("events.*"))
    assert (run / "checkpoints/last.ckpt").is_file()


def test_the_last_words_are_few_and_can_be_typed(fit: Run, ts2: Run) -> None:
    lines = fit().out.strip().splitlines()
    assert 3 <= len(lines) <= 6
    assert lines[0].split() == ["Run:", str(RUN)]
    assert lines[1].split() == ["Checkpoint:", str(RUN / "checkpoints/best.ckpt"), "(best)"]
    go_on = next(line for line in lines if line.startswith("Go on:")).replace(" N", " 3")
    ts2(*shlex.split(go_on)[3:]).done()
    assert steps() == list(range(12))


def test_a_second_fit_takes_a_new_directory(fit: Run) -> None:
    fit().done(), fit().done()
    assert runs() == ["runs/run/1", "runs/run/2"]


def test_the_name_comes_from_the_last_file(fit: Run) -> None:
    for name in ("a", "b"):
        Path(f"{name}.yaml").write_text("data:\n  seed: 1\n")
    fit("-c", "a.yaml", "-c", "b.yaml", "--runs_dir=out").done()
    assert Path("out/b/1/config.yaml").is_file()


def test_resume_goes_on_in_the_same_directory_and_keeps_every_row(fit: Run) -> None:
    fit()
    before = rows()
    fit("--ckpt_path=last", "--trainer.max_epochs=3", "--trainer.log_every_n_steps=1").done()
    assert runs() == ["runs/run/1"]
    assert rows()[: len(before)] == before
    assert steps() == list(range(12))
    assert load(RUN / "config.yaml")["trainer"]["max_epochs"] == 2
    assert load(RUN / "config-resume-1.yaml")["trainer"]["max_epochs"] == 3
    assert len((RUN / "command.txt").read_text().splitlines()) == 2
    assert torch.load(LAST, weights_only=True)["global_step"] == 12


def test_rows_survive_a_new_column_and_a_line_cut_short(fit: Run) -> None:
    fit()
    file = RUN / "csv/metrics.csv"
    text = file.read_text().replace("val/objective", "val/other")
    file.write_text(text.rstrip()[:-5])  # as a killed process may leave it
    before = rows()[:-1]  # what is left of the last one may be wrong
    fit("--ckpt_path=last", "--trainer.max_epochs=3").done()
    after = rows()
    assert [{key: row[key] for key in old} for row, old in zip(after, before, strict=False)] == before
    assert after[-1]["val/objective"]


def test_resume_takes_the_newest_run_that_has_a_checkpoint(fit: Run) -> None:
    fit(), fit()
    Path("runs/run/3/checkpoints").mkdir(parents=True)
    fit("--ckpt_path=last", "--trainer.max_epochs=3").done()
    assert steps(Path("runs/run/2")) == list(range(12))
    assert steps() == list(range(8))


def test_a_path_into_a_run_resumes_there(fit: Run) -> None:
    fit(), fit()
    fit(f"--ckpt_path={LAST}", "--name=other", "--trainer.max_epochs=3").done()
    assert steps() == list(range(12))
    assert runs() == ["runs/run/1", "runs/run/2"]


def test_a_path_elsewhere_starts_a_new_run_from_it(fit: Run, here: Path) -> None:
    fit()
    (here / "kept.ckpt").write_bytes(LAST.read_bytes())
    fit("--ckpt_path=kept.ckpt", "--trainer.max_epochs=3").done()
    assert steps(Path("runs/run/2")) == list(range(8, 12))


def test_what_the_user_gives_beats_the_checkpoint(fit: Run) -> None:
    fit("--model.optimizer.learning_rate=0.1")
    assert torch.load(LAST, weights_only=True)["hyper_parameters"]["optimizer"]["learning_rate"] == 0.1
    fit(f"--ckpt_path={LAST}", "--model.optimizer.learning_rate=0.7", "--trainer.max_epochs=3").done()
    assert load(RUN / "config-resume-1.yaml")["model"]["optimizer"]["learning_rate"] == 0.7
    assert torch.load(LAST, weights_only=True)["hyper_parameters"]["optimizer"]["learning_rate"] == 0.7


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_writes_beneath_the_run(fit: Run, ts2: Run, command: str) -> None:
    fit("--model.loss.alpha=0.5")
    for number in (1, 2):
        answer = ts2(
            command, "--ckpt_path=last", "--data.batch_size=4"
        ).done()  # without -c: the run's own configuration
        out = RUN / command / str(number)
        assert load(out / "config.yaml")["model"]["loss"]["init_args"]["alpha"] == 0.5
        assert answer.out.strip().splitlines()[-1].split() == ["Results:", str(out / "metrics.json")]
        metrics = json.loads((out / "metrics.json").read_text())
        assert list(metrics) == [f"{'val' if command == 'validate' else 'test'}/objective"]
        assert not (out / "checkpoints").exists()
    assert not Path("runs/run/2").exists()


def test_evaluation_without_a_checkpoint_takes_a_new_directory(ts2: Run) -> None:
    options = ("--model.lm.path=base", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
    ts2("validate", *options).done()
    assert (RUN / "metrics.json").is_file()


def test_predictions_are_in_a_file_one_line_per_row(fit: Run, ts2: Run) -> None:
    fit()
    answer = ts2("predict", f"--ckpt_path={RUN / 'checkpoints/best.ckpt'}").done()
    file = RUN / "predict/1/predictions.jsonl"
    assert answer.out.strip().splitlines()[-1].split() == ["Predictions:", str(file)]
    predicted = [json.loads(line)["value"] for line in file.read_text().splitlines()]
    state = torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    points = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    expected = points @ state["line.weight"][0] + state["line.bias"]
    torch.testing.assert_close(torch.tensor(predicted), expected)


def test_the_configuration_of_a_run_can_be_given_again(fit: Run, ts2: Run) -> None:
    fit("--name=a", "--model.loss=CrossLoss")
    ts2("fit", "-c", "runs/a/1/config.yaml").done()
    assert load(Path("runs/a/2/config.yaml")) == load(Path("runs/a/1/config.yaml"))


def test_a_users_logger_and_checkpoints_replace_ours(fit: Run, here: Path) -> None:
    Path("own.yaml").write_text(
        "trainer:\n  logger:\n    class_path: CSVLogger\n    init_args: {save_dir: mine}\n"
        "  callbacks+:\n  - class_path: ModelCheckpoint\n    init_args: {dirpath: kept, filename: x}\n"
    )
    fit("-c", "own.yaml").done()
    assert list(Path("mine").rglob("metrics.csv"))
    assert Path("kept/x.ckpt").is_file()
    assert not (Path("runs/own/1") / "checkpoints").exists()
    assert not (Path("runs/own/1") / "csv").exists()
    assert list((Path("runs/own/1") / "tensorboard").iterdir())


@pytest.mark.parametrize("several", [False, True])
def test_a_users_logger_joins_ours(fit: Run, ts2: Run, here: Path, several: bool) -> None:
    """With the rows of the CSV file, no more and no fewer, in a run, its resumption and an evaluation."""
    named = "class_path: tests.cli.standins.LineLogger\n    init_args: {file: lines.jsonl}\n"
    Path("own.yaml").write_text(f"trainer:\n  logger:\n  {'- ' if several else '  '}{named}")
    fit("-c", "own.yaml", "--trainer.max_epochs=1").done()
    fit("-c", "own.yaml", "--ckpt_path=last").done()
    run = Path("runs/own/1")
    lines = [json.loads(line) for line in Path("lines.jsonl").read_text().splitlines()]
    table = {int(row["step"]): {name: float(value) for name, value in row.items() if value} for row in rows(run)}
    assert {step for step, _ in lines} == table.keys()
    assert all(metrics.items() <= table[step].items() for step, metrics in lines)
    events = EventAccumulator(str(run / "tensorboard")).Reload().Scalars("train/objective")
    assert [event.step for event in events] == steps(run)
    before = len(lines)
    ts2("validate", "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--trainer.accelerator=cpu").done()
    assert len(Path("lines.jsonl").read_text().splitlines()) > before
    assert (run / "validate/1/csv/metrics.csv").is_file()


@pytest.mark.parametrize("several", [False, True])
def test_a_logger_that_is_not_installed(fit: Run, here: Path, several: bool) -> None:
    named = "class_path: tests.cli.standins.AbsentLogger\n"
    Path("own.yaml").write_text(f"trainer:\n  logger:\n  {'- ' if several else '  '}{named}")
    assert fit("-c", "own.yaml").complaint == (
        "own.yaml:2: trainer.logger: tests.cli.standins.AbsentLogger: Requirement 'absent' not met. HINT: Try "
        "running `pip install absent`"
    )
    assert not Path("runs").exists()


def test_no_logger_is_no_logger(fit: Run, here: Path) -> None:
    fit("--trainer.logger=false").done()
    assert not (Path("runs/run/1") / "csv").exists()
    assert not (Path("runs/run/1") / "tensorboard").exists()


def test_a_checkpoint_that_would_run_code_is_refused(fit: Run, ts2: Run, here: Path) -> None:
    fit()
    state = torch.load(LAST, weights_only=True)
    torch.save({**state, "extra": Path("x")}, here / "foreign.ckpt")
    refused = fit("--ckpt_path=foreign.ckpt").complaint
    assert refused.startswith("--ckpt_path foreign.ckpt: it holds more than tensors")
    fit("--ckpt_path=foreign.ckpt", "--weights_only=false").done()


@pytest.fixture
def slurm(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of the stand-in for SLURM; the same command given again is what SLURM does with a requeued one."""
    stand_in_slurm.install(here / "bin")
    monkeypatch.setenv("PATH", f"{here / 'bin'}:{os.environ['PATH']}")
    for name, value in {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash"}.items():
        monkeypatch.setenv(name, value)


SAVING = ("--trainer.callbacks+=Checkpoints", "--trainer.callbacks.monitor=val/objective")


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_job_that_is_warned_or_preempted_goes_on_by_itself(
    fit: Run, slurm: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stand_in_slurm.write_job("5", preempted=name == "SIGTERM")
    warned = ("--trainer.callbacks+=tests.cli.standins.Warned", "--trainer.callbacks.step=5")
    options = ("--trainer.callbacks+=Preemption", *SAVING, *warned, f"--trainer.callbacks.name={name}")
    answer = fit(*options)
    assert answer.status == 128 + signal.Signals[name], answer.err
    assert answer.err.splitlines()[-1] == (
        f"stopped by {name}: SLURM has queued the job again, and it will go on by itself in runs/run/1"
    )
    assert stand_in_slurm.read_job("5")["restarts"] == 1
    assert torch.load(LAST, weights_only=True)["global_step"] == 6
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    fit(*options).done()
    assert runs() == ["runs/run/1"]
    assert steps() == list(range(8))


def test_a_job_that_is_warned_while_data_are_prepared(fit: Run, slurm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any callback is asked."""
    monkeypatch.setattr(standins.StandInData, "prepare_data", lambda self: signal.raise_signal(signal.SIGUSR1))
    answer = fit("--trainer.callbacks+=Preemption", *SAVING)
    assert answer.status == 128 + signal.SIGUSR1, answer.err
    assert answer.err.splitlines()[-1] == ("stopped by SIGUSR1: SLURM has queued the job again, and it will begin anew")
    assert runs() == []
    assert stand_in_slurm.read_job("5")["restarts"] == 1


def test_the_watchdog_is_asked_before_the_ranks_compare_their_settings(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that is gone lets the others wait there."""
    asked = []

    def spy(callback: type[Callback]) -> None:
        setup = callback.setup

        def asked_and_done(self: Callback, *args: Any, **settings: Any) -> None:
            asked.append(callback)
            setup(self, *args, **settings)

        monkeypatch.setattr(callback, "setup", asked_and_done)

    spy(RunRecord)
    spy(Watchdog)
    fit("--trainer.callbacks+=Watchdog").done()
    assert asked == [Watchdog, RunRecord]


def test_a_requeued_job_goes_on_by_itself(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash"}.items():
        monkeypatch.setenv(name, value)
    failing = ("--trainer.callbacks+=tests.cli.standins.Failing", "--trainer.callbacks.users=false")
    answer = fit(*failing, "--trainer.callbacks.step=6")  # as good as a node that fails
    assert (answer.status, "step went wrong" in answer.err) == (1, True)
    assert steps() == list(range(6))
    assert list(Path("runs/.claims").iterdir())
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    answer = fit(*failing, "--trainer.callbacks.step=6")  # the same command again: resumes at step 4, fails at 6
    assert (answer.status, "step went wrong" in answer.err) == (1, True)
    assert runs() == ["runs/run/1"]
    assert steps() == list(range(6)), "each step once, though two were done twice"
    assert claim_file(Path("runs"), []) is not None

"""Every mistake is answered in one line, with the place and the nearest right name, and exit status 2."""

import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.e2e.command_line import Answer
from ts2_lightning import cli
from ts2_lightning.cli import COMMANDS, terminal
from ts2_lightning.cli.errors.guard import guarded
from ts2_lightning.cli.terminal import OptionParser, quieten
from ts2_lightning.types import SharedError, UserError

COMMAND_LINE = {
    "fitt": "no command 'fitt'; did you mean fit?",
    "": "which command? One of quickstart, fit, validate, test, predict",
    "--name x fit": "--name came before the command",
    "fit": "--model.lm.path is required: directory, hub name",
    "fit --model.lm.path": "--model.lm.path: expected one argument",
    "fit --model.lm.path x --model.losss CrossLoss": "--model.losss: no such option; did you mean --model.loss?",
    "fit --model.lm.path x --data.trian y": "--data.trian: no such option; did you mean --data.train?",
    "fit --model.lm.path x --trainer.max_epoch 3": (
        "--trainer.max_epoch: no such option; did you mean --trainer.max_epochs?"
    ),
    "fit --model.lm.path x --max_epochs 3": "--max_epochs: no such option; did you mean --trainer.max_epochs?",
    "fit --model.lm.path x --alpha=3": "--alpha: no such option; did you mean --model.loss.alpha?",
    "fit --model.lm.path x --trainer.max_epochs abc": "--trainer.max_epochs: expected int or null, got 'abc'",
    "fit --model.lm.path x --data.batch_size 1.5": "--data.batch_size: expected int, got '1.5'",
    "fit --model.lm.path x --model.lm.init pretraind": (
        "--model.lm.init: expected one of pretrained, random, got 'pretraind'; did you mean pretrained?"
    ),
    "fit --model.lm.path x --model.loss SquareLos": (
        "--model.loss: no class named 'SquareLos'; did you mean SquareLoss?"
    ),
    "fit --model.lm.path x --model.loss SquareLoss --model.loss.alpah 3": (
        "--model.loss.alpah: SquareLoss has no such setting; did you mean alpha?"
    ),
    "fit --model.lm.path x --model.loss CrossLoss --model.loss.alpha 3": (
        "--model.loss.alpha: CrossLoss has no such setting; it takes none"
    ),
    "fit --model.lm.path x --model.loss.alpha abc": "--model.loss.alpha: expected float, got 'abc'",
    "fit --model.lm.path x --model.loss nowhere.MyLoss": (
        "--model.loss: cannot import nowhere.MyLoss: No module named 'nowhere'"
    ),
    "fit --model.lm.path x --model.loss tests.cli.standins.SquarLoss": "did you mean SquareLoss?",
    "fit --model.lm.path x --model.loss torch.nn.Linear": "--model.loss: torch.nn.Linear is not a StandInLoss",
    "fit --model.lm.path x --model.loss StandInLoss": "--model.loss: name a class that is not abstract",
    "fit --model.lm.path x --trainer.callbacks+ ModelCheckpoin": (
        "--trainer.callbacks: no class named 'ModelCheckpoin'; did you mean ModelCheckpoint?"
    ),
    "fit --model.lm.path x -c good.yml": "-c good.yml: no such file; did you mean good.yaml?",
    "fit --model.lm.path x -c config/good.yaml": "-c config/good.yaml: no directory config; did you mean configs?",
    "fit --model.lm.path x -c https://a.org/b.yaml": "-c https://a.org/b.yaml: is an address; fetch the file",
    "fit --model.lm.path x -c configs": "-c configs: is a directory, not a file",
    "fit --model.lm.path x good.yaml": "unexpected argument 'good.yaml'; did you mean -c good.yaml?",
    "fit --model.lm.path x --model.loss.alpha -1": "SquareLoss: alpha is -1.0; it must be 0 or more",
    "fit --model.lm.path x --data.train nofile.jsonl --trainer.accelerator cpu": (
        "data.train: nofile.jsonl does not exist"
    ),
    "fit --model.lm.path x --name ../y": "--name '../y': the name of a run is a directory below --runs_dir",
    "fit --model.lm.path x --trainer.use_distributed_sampler true": "--trainer.use_distributed_sampler: leave it",
    "fit --model.lm.path x --trainer.default_root_dir y": "--trainer.default_root_dir: the run's directory is",
    "fit --model.lm.path x --trainer.accelerator gpux": (
        "trainer.accelerator: Lightning knows no accelerator 'gpux'; did you mean gpu?"
    ),
    "fit --model.lm.path x --trainer.strategy dpd": "trainer.strategy: Lightning knows no strategy 'dpd'; did you",
    "fit --model.lm.path toyworld?sed=1": "model.lm.path 'toyworld?sed=1': expected '?seed=' and a whole number",
    "fit --model.lm.path x --ckpt_path last": "--ckpt_path last: nothing to resume: there is no run in runs/run",
    "fit --model.lm.path x --ckpt_path no.ckpt": "--ckpt_path no.ckpt: no such checkpoint",
    "fit --model.lm.path x --ckpt_path good.yaml": "--ckpt_path good.yaml: not a complete checkpoint",
    "fit --model.lm.path ${data.tokenize}": "${data.tokenize}: no such setting; did you mean data.tokenizer?",
}

FILES = {
    "trainer:\n  max_epoch: 3\n": "bad.yaml:2: trainer.max_epoch: no such setting; did you mean trainer.max_epochs?",
    "modle:\n  loss: CrossLoss\n": "bad.yaml:1: modle: no such setting; did you mean model?",
    "model:\n  lm:\n    pth: x\n": "bad.yaml:3: model.lm.pth: no such setting; did you mean model.lm.path?",
    "trainer:\n  max_epochs: abc\n": "bad.yaml:2: trainer.max_epochs: expected int or null, got 'abc'",
    "model:\n  loss: SquareLos\n": "bad.yaml:2: model.loss: no class named 'SquareLos'; did you mean SquareLoss?",
    "model:\n  loss:\n    class_path: SquareLoss\n    init_args:\n      alpah: 3\n": (
        "bad.yaml:5: model.loss.alpah: SquareLoss has no such setting; did you mean alpha?"
    ),
    "trainer:\n  callbacks:\n  - class_path: ModelCheckpoint\n    init_args: {moniter: x}\n": (
        "bad.yaml:4: trainer.callbacks.moniter: ModelCheckpoint has no such setting; did you mean monitor?"
    ),
    "data:\n  train: [a\n": "bad.yaml:3: not valid YAML: ",
    "data:\n  seed: 1\n  seed: 2\n": "bad.yaml:3: seed was given before, on line 2; keep one",
    "model:\n  lm: part.yaml\n": "part.yaml:2: model.lm.pth: no such setting; did you mean model.lm.path?",
    "model:\n  lm: parts.yaml\n": "bad.yaml:2: model.lm: parts.yaml: no such file; did you mean part.yaml?",
    "model:\n  loss: parts.yaml\n": "bad.yaml:2: model.loss: parts.yaml: no such file; did you mean part.yaml?",
    "- 3\n": "bad.yaml: expected `key: value` lines at the top level",
    "data:\n  train: ${model.lm.pat}\n": (
        "bad.yaml:2: data.train: ${model.lm.pat}: no such setting; did you mean model.lm.path?"
    ),
}


@pytest.fixture(autouse=True)
def files(here: Path) -> None:
    (here / "configs").mkdir()
    (here / "good.yaml").write_text("data:\n  seed: 1\n")
    (here / "part.yaml").write_text("path: x\npth: y\n")


@pytest.mark.parametrize(("line", "expected"), COMMAND_LINE.items(), ids=list(COMMAND_LINE))
def test_a_wrong_command_line_takes_one_line(ts2: Run, here: Path, line: str, expected: str) -> None:
    assert expected in ts2(*line.split()).refusal
    assert not (here / "runs").exists(), "a run that never began left a directory"


@pytest.mark.parametrize(("text", "expected"), FILES.items(), ids=[" ".join(text.split()) for text in FILES])
def test_a_wrong_file_is_named_with_the_line(ts2: Run, here: Path, text: str, expected: str) -> None:
    (here / "bad.yaml").write_text(text)
    assert ts2("fit", "-c", "good.yaml", "-c", "bad.yaml", "--model.lm.path=x").refusal.startswith(expected)


PLACES = {
    "--trainer.max_epochs=2 -c good.yaml -c c.yaml": (
        "--trainer.max_epochs comes before c.yaml, which sets it too (line 3) and would win; give -c first"
    ),
    "-c c.yaml --trainer.max_epochs=many": "--trainer.max_epochs: expected int or null, got 'many'",
    "-c c.yaml --model.loss SquareLos": "--model.loss: no class named 'SquareLos'; did you mean SquareLoss?",
}


@pytest.mark.parametrize(("line", "expected"), PLACES.items())
def test_the_last_place_that_gives_a_value_is_blamed(ts2: Run, here: Path, line: str, expected: str) -> None:
    (here / "c.yaml").write_text("model: {loss: {class_path: SquareLoss}}\ntrainer:\n  max_epochs: 3\n")
    assert ts2("fit", "--model.lm.path=x", *line.split()).refusal == expected


def test_a_misspelt_option_of_any_command_is_told_with_the_right_one(ts2: Run) -> None:
    """Before what is missing besides, and wherever it stands."""
    tried = 0
    for name, command in COMMANDS.items():
        make = getattr(import_module(command.target.partition(":")[0]), "_parser", None)
        parser = make() if make is not None else None
        if not isinstance(parser, OptionParser):
            continue  # of the commands that read the settings of `fit`
        for action in parser._actions:
            for option in action.option_strings:
                if len(option) > 5:
                    wrong = f"{option}{option[-1]}"
                    said = f"error: {name}: {wrong}: no such option; did you mean {option}?\n"
                    assert ts2(name, "a", wrong, "3").err == said
                    assert ts2(name, f"{wrong}=3").err == said
                    tried += 1
    assert tried > 60


def test_help_lists_every_command(ts2: Run) -> None:
    answer = ts2("--help").done()
    for name, command in cli.COMMANDS.items():
        assert any(line.split()[:1] == [name] and command.help in line for line in answer.out.splitlines())


def test_help_of_a_command(ts2: Run) -> None:
    answer = ts2("fit", "--help").done()
    assert "--model.loss" in answer.out
    assert "--ckpt_path" in answer.out


def test_a_users_error_in_training_takes_one_line(fit: Run, here: Path) -> None:
    answer = fit("--trainer.callbacks+=tests.cli.standins.Failing", "--trainer.callbacks.step=5")
    assert answer.complaint == "step went wrong"
    assert (here / "runs/run/1/checkpoints/last.ckpt").is_file(), "a run that began is kept"


@pytest.mark.parametrize(
    ("error", "rank", "told"),
    [
        (UserError, "0", "error: no\n"),
        (UserError, "1", "[rank 1] error: no\n"),
        (SharedError, "0", "error: no\n"),
        (SharedError, "1", ""),
    ],
)
def test_what_all_ranks_have_to_tell_is_told_once(
    error: type[UserError], rank: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error("no")

    monkeypatch.setenv("RANK", rank)
    assert guarded(fail) == 2
    assert capsys.readouterr().err == told


def test_a_bug_keeps_its_traceback_in_the_run(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = ("--trainer.callbacks+=tests.cli.standins.Failing", "--trainer.callbacks.users=false")
    answer = fit(*failing, "--trainer.callbacks.step=5")
    assert answer.status == 1
    assert answer.err.strip().splitlines()[-1] == (
        "error: fit in step 6 of the training: RuntimeError: step went wrong; the traceback is in "
        "runs/run/1/traceback.txt; TS2_DEBUG=1 shows it"
    )
    assert "Traceback" not in answer.err
    assert "tests/cli/standins.py" in Path("runs/run/1/traceback.txt").read_text()
    monkeypatch.setenv("TS2_DEBUG", "1")
    answer = fit(*failing)
    assert (answer.status, "Traceback" in answer.err) == (1, True)


def test_a_bug_elsewhere_keeps_its_traceback_in_a_temporary_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Odd(BaseException):
        """As torch's CheckpointException: no `Exception`."""

    def fail() -> int:
        raise Odd("no\nway")

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert guarded(fail, name="data") == 1
    [file] = (tmp_path / "temporary").iterdir()
    assert capsys.readouterr().err == (f"error: data: Odd: no way; the traceback is in {file}; TS2_DEBUG=1 shows it\n")
    assert "Odd: no" in file.read_text()


def test_what_the_file_system_says_takes_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: int((here / "a" / "b").read_text())) == 2
    assert capsys.readouterr().err == f"error: {here}/a/b: no such file or directory\n"


REFUSED_BY_LIGHTNING = {
    "--trainer.val_check_interval=100": "val_check_interval",
    "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/absent": "val/absent",
    "--trainer.overfit_batches=2 --trainer.fast_dev_run=true --trainer.strategy=nowhere": "nowhere",
}


@pytest.mark.parametrize(("options", "named"), REFUSED_BY_LIGHTNING.items())
def test_what_lightning_refuses_takes_one_line(fit: Run, options: str, named: str) -> None:
    complaint = fit(*options.split()).complaint
    assert complaint.startswith(("Lightning refuses these settings: ", "trainer: "))
    assert named in complaint


def test_without_torch_one_line_says_what_to_install(here: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None; from ts2_lightning.cli import main; sys.exit(main(['fit', '--help']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    answer = Answer(done.returncode, done.stdout, done.stderr)
    assert answer.refusal.startswith(f"torch is not installed in {sys.executable}; README.md")


@pytest.mark.parametrize("command", ["ablate", "fit", "losses", "report"])
def test_a_cloned_folder_without_its_packages_says_so(command: str) -> None:
    """An interpreter that sees the standard library alone: whichever package is imported first, it is named."""
    done = subprocess.run(
        [sys.executable, "-S", str(Path(__file__).parents[2] / "cli.py"), command], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: \w+ is not installed in .*; README\.md has the command .*\n", done.stderr), done.stderr


def laughs(levels: int) -> str:
    """A document of a few lines that stands for ten to the power of its levels values."""
    lines = ["a0: &a0 [" + ", ".join("x" * 10) + "]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (laughs(30), "bad.yaml: with its aliases (*NAME) written out it has more than 100,000 values"),
        ("a: &a [*a]\n", "bad.yaml: with its aliases (*NAME) written out it has more than 100,000 values"),
        ("a: " + "[" * 1200 + "]" * 1200, "bad.yaml: nested too deeply to be read"),
        pytest.param("[" * 300_000, "bad.yaml: nested too deeply to be read", id="for which libyaml has no room"),
    ],
)
def test_a_file_that_would_never_be_read_to_its_end(ts2: Run, here: Path, text: str, told: str) -> None:
    (here / "bad.yaml").write_text(text)
    for command in (
        ["fit", "--model.lm.path=x", "-c", "bad.yaml"],
        ["ablate", "-c", "bad.yaml"],
        ["measure", "x", "--spec=bad.yaml"],
    ):
        assert told in ts2(*command).refusal
    (here / "good.yaml").write_text("data: &a {seed: 1}\n")
    assert "bad" not in ts2("fit", "--model.lm.path=x", "-c", "good.yaml", "--data.train=none").err


NAMES = {
    "--name=file": "no run can be kept in runs/file: runs/file is a file; choose another --name or --runs_dir",
    "--name=file/below": "no run can be kept in runs/file/below: runs/file is a file",
    "--runs_dir=runs/file": "no run can be kept in runs/file/run: runs/file is a file",
    "--name=" + "n" * 300: "file name too long; choose another --name or --runs_dir",
    "--runs_dir=" + "n" * 300: "file name too long; choose another --name or --runs_dir",
    "--name=x --ckpt_path=" + "n" * 300: "no such checkpoint",
    "--ckpt_path=last --name=" + "n" * 300: "nothing to resume: there is no run in runs/nnn",
}


@pytest.mark.parametrize(("options", "told"), NAMES.items(), ids=[name[:30] for name in NAMES])
def test_a_place_where_no_run_can_be(fit: Run, here: Path, options: str, told: str) -> None:
    """Once, a file in the place of a run's directory was tried without end."""
    (here / "runs").mkdir()
    (here / "runs/file").write_text("")
    assert told in fit(*options.split()).complaint


def test_a_warning_of_ours_tells_no_line_of_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of another package still does: it is all there is to find out where it comes from."""
    monkeypatch.setattr(warnings, "formatwarning", lambda message, category, file, *_: f"{file}: {message}")
    monkeypatch.setattr(terminal, "_WARNINGS", ())
    for _ in range(2):
        quieten("fit")
        ours = str(Path(terminal.__file__).with_name("evaluate.py"))
        assert warnings.formatwarning("cut off", UserWarning, ours, 3) == "warning: cut off\n"
        assert warnings.formatwarning("old", UserWarning, "/other/file.py", 3) == "/other/file.py: old"


@pytest.mark.parametrize("way", ["option", "variable"])
def test_debug_shows_the_traceback(ts2: Run, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "variable":
        monkeypatch.setenv("TS2_DEBUG", "1")
    answer = ts2("fit", "--model.lm.path=x", "--model.loss.alpha=-1", *(["--debug"] if way == "option" else []))
    assert answer.status == 2
    assert "Traceback" in answer.err
    assert answer.err.strip().endswith("error: SquareLoss: alpha is -1.0; it must be 0 or more")


def test_interrupt_names_the_checkpoint_and_how_to_go_on(fit: Run) -> None:
    answer = fit("--trainer.callbacks+=tests.cli.standins.Interrupting")
    assert answer.status == 130
    last = answer.err.strip().splitlines()[-1]
    assert last.startswith("interrupted: newest checkpoint runs/run/1/checkpoints/last.ckpt; resume with: ")
    assert last.endswith("fit -c runs/run/1/config.yaml --ckpt_path runs/run/1/checkpoints/last.ckpt")
    assert "Traceback" not in answer.err


def test_interrupt_offers_no_going_on_from_the_weights_alone(fit: Run) -> None:
    settings = "{save_weights_only: true, monitor: val/objective}"
    weights_only = f"{{class_path: ts2_lightning.callbacks.Checkpoints, init_args: {settings}}}"
    answer = fit(f"--trainer.callbacks+={weights_only}", "--trainer.callbacks+=tests.cli.standins.Interrupting")
    assert answer.status == 130
    assert answer.err.strip().splitlines()[-1] == (
        "interrupted: newest checkpoint runs/run/1/checkpoints/last.ckpt, of the weights alone (save_weights_only): "
        "nothing goes on from it"
    )


def test_a_wrong_hyper_parameter_of_the_real_loss_takes_one_line(real: Run) -> None:
    """jsonargparse catches it among the members of `TokenLoss | None`, and raises an error of its own."""
    answer = real("fit", "--model.lm.path", "x", "--data.train", "y", "--model.loss.alpha", "-1")
    assert answer.complaint == "TS2Loss: alpha must be a finite number of at least 0, got -1.0"


def test_a_command_that_another_runs_is_called_as_the_user_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ts2_lightning.program._STARTED_AS", "somewhere/cli.py")
    with cli.relaunchable(["fit"]):
        assert cli.program() == "python cli.py"
    monkeypatch.setattr("ts2_lightning.program._STARTED_AS", "bin/ts2")
    assert cli.program() == "ts2"

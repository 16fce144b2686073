"""A run that goes on: what may come with a checkpoint, which one is taken, and which settings count."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.cli.conftest import Run
from tests.cli.test_runs import LAST, RUN, steps
from ts2_lightning.cli import going_on
from ts2_lightning.cli.going_on import TABLE, differences, fate_of
from ts2_lightning.cli.record import settings_of
from ts2_lightning.cli.settings import SettingsReader


class Payload:
    """Makes a directory when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def poison(run: Path, trap: Path) -> None:
    """What a stranger would hand over: a checkpoint with a payload, and a configuration that asks to load it."""
    last = run / "checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    content["callbacks"]["x"] = Payload(trap)
    torch.save(content, last)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "weights_only": False}))


@pytest.mark.parametrize("command", ["fit", "test", "validate", "predict"])
def test_a_strangers_run_cannot_switch_the_protection_off(fit: Run, ts2: Run, here: Path, command: str) -> None:
    fit().done()
    trap, stranger = here / "trap", here / "S" / "1"
    shutil.copytree(RUN, stranger, symlinks=True)
    poison(stranger, trap)
    checkpoint, config = stranger / "checkpoints/last.ckpt", stranger / "config.yaml"
    plain = "it holds more than tensors and plain values (posix.mkdir), and loading it might run code"
    asked = {
        (): "its settings are in S/1/config.yaml, and a configuration names classes and functions, which are run; it "
        "is read by itself only for runs in runs (--runs_dir). If you trust it, give it: -c S/1/config.yaml",
        ("-c", str(config.relative_to(here))): ": no file can switch this protection off; if you trust the "
        "checkpoint, type --weights_only false",
        ("-c", str(config.relative_to(here)), "--weights_only=true"): plain,
        ("--runs_dir=S",): "S/1/config.yaml",
    }
    for options, told in asked.items():
        name = [] if options == ("--runs_dir=S",) else ["--name=1"]
        line = ts2(command, *options, "--ckpt_path", str(checkpoint.relative_to(here)), *name).complaint
        assert told in line, options
        assert not trap.exists(), options
    assert not list(stranger.glob("config-resume*"))


def test_what_the_user_types_is_done_and_said_aloud(fit: Run, ts2: Run, here: Path) -> None:
    fit().done()
    trap = here / "trap"
    poison(RUN, trap)
    answer = ts2("test", "-c", str(RUN / "config.yaml"), "--ckpt_path", str(LAST), "--weights_only=false").done()
    assert f"--weights_only false: what {LAST} holds is loaded, and run, as you typed it" in answer.err
    assert trap.exists()
    assert yaml.safe_load((RUN / "test/1/config.yaml").read_text())["weights_only"] is True, "it is typed each time"


_WEIGHTS = ("epoch", "global_step", "state_dict", "pytorch-lightning_version")

NO_CHECKPOINT = {
    "a state dict": {"line.weight": torch.ones(1)},
    "a list": [1, 2],
    "a tensor": torch.ones(3),
    "another program's": {"state_dict": {"line.weight": torch.ones(1)}, "global_step": 3},
    "weights alone": None,
}


@pytest.mark.parametrize("command", ["fit", "test", "validate", "predict"])
@pytest.mark.parametrize("kind", NO_CHECKPOINT)
def test_what_is_no_checkpoint_of_a_fit(fit: Run, ts2: Run, here: Path, command: str, kind: str) -> None:
    fit().done()
    content: Any = NO_CHECKPOINT[kind]
    if content is None:
        whole = torch.load(LAST, weights_only=True)
        content = {name: whole[name] for name in (*_WEIGHTS, "loops")}
    torch.save(content, here / "odd.ckpt")
    answer = ts2(command, "-c", str(RUN / "config.yaml"), "--ckpt_path=odd.ckpt", "--name=other")
    if kind == "weights alone" and command != "fit":
        assert answer.status == 0, answer.err
        return
    line = answer.complaint
    if kind == "weights alone":
        assert "--ckpt_path odd.ckpt: it holds weights without the state of optimizer and schedule" in line
        assert "export --ckpt odd.ckpt --out DIR, then --model.lm.path DIR" in line
    else:
        assert "odd.ckpt: this is no checkpoint of a fit, it h" in line
    assert not Path("runs/other").exists()


def test_weights_alone_are_not_offered_to_go_on_from(fit: Run) -> None:
    saving = ("--trainer.callbacks+=ts2_lightning.callbacks.Checkpoints", "--trainer.callbacks.save_weights_only=true")
    answer = fit(*saving, "--trainer.callbacks.monitor=val/objective").done()
    assert "Go on:" not in answer.out
    assert "Test:" in answer.out


def damage(checkpoint: Path) -> None:
    """Changes 64 bytes in the middle: of weights, or of the optimizer's state."""
    file = checkpoint.resolve()
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(255 - byte for byte in content[middle : middle + 64])
    file.write_bytes(content)


def saving(keep: int = 5) -> list[str]:
    return [
        "--trainer.callbacks+=ts2_lightning.callbacks.Checkpoints",
        f"--trainer.callbacks.keep_last={keep}",
        "--trainer.callbacks.every_n_steps=2",
        "--trainer.callbacks.monitor=val/objective",
    ]


def test_last_takes_the_newest_whole_one_and_says_so(fit: Run, ts2: Run) -> None:
    fit(*saving()).done()
    damage(LAST)
    damage(RUN / "checkpoints/step-000006.ckpt")
    answer = fit("--ckpt_path=last", "--trainer.max_epochs=3").done()
    told = next(line for line in answer.err.splitlines() if "is damaged" in line)
    assert told.startswith("runs/run/1/checkpoints/step-000006.ckpt is damaged: step-000006.ckpt is not as ")
    assert told.endswith(": taking runs/run/1/checkpoints/step-000004.ckpt instead, the newest one that is whole")
    assert sorted(set(steps())) == list(range(12)), "the steps after it are done again"
    damage(LAST)
    for command in ("test", "fit"):
        line = ts2(command, "-c", str(RUN / "config.yaml"), "--ckpt_path", str(LAST)).complaint
        assert "is damaged" in line
        assert line.endswith("take it from a copy, or name another checkpoint of the run with --ckpt_path")


def test_no_whole_checkpoint_is_left(fit: Run) -> None:
    fit(*saving(keep=1)).done()
    for checkpoint in {path.resolve() for path in (RUN / "checkpoints").glob("*.ckpt")}:
        damage(checkpoint)
    assert "is damaged" in fit("--ckpt_path=last", "--trainer.max_epochs=3").complaint


def test_every_setting_of_fit_has_its_fate(here: Path) -> None:
    """Of the real module and data: what the table says is said of settings that there are."""
    reader = SettingsReader()
    config = reader.read(["--model.lm.path=x", "--data.train=y"])
    names = [name for name in settings_of(yaml.safe_dump(config)) if name not in going_on._NOT_COMPARED]
    assert len(names) > 60
    for name in names:
        assert fate_of(name)[0] in ("applied", "kept", "refused")
    options = set(names) | {f"model.lm.adapter.{name}" for name in ("r", "dropout", "path")}
    for prefix in TABLE:
        assert any(f"{name}.".startswith(f"{prefix}.") for name in options), prefix
    with pytest.raises(KeyError):
        fate_of("unheard.of")


@pytest.mark.parametrize(
    ("setting", "fate"),
    [
        ("model.optimizer.lr", "applied"), ("model.optimizer.fused", "kept"), ("model.loss.init_args.alpha", "applied"),
        ("model.loss.class_path", "applied"), ("model.schedule.name", "applied"), ("trainer.precision", "applied"),
        ("trainer.gradient_clip_val", "applied"), ("model.lm.adapter.alpha", "refused"), ("model.lm.init", "kept"),
        ("model.lm.dtype", "refused"), ("data.batch_size", "refused"), ("data.packing", "applied"),
        ("seed_everything", "applied"), ("model.lm.adapter.path", "applied"),
        ("model.lm.adapter.target_parameters", "refused"), ("model.lm.router_aux_loss_coef", "applied"),
    ],
)  # fmt: skip
def test_what_becomes_of_a_setting(setting: str, fate: str) -> None:
    assert fate_of(setting)[0] == fate


def test_differences_are_those_of_values() -> None:
    before, now = settings_of("a: {b: 1, c: [1, 2]}\nname: x"), settings_of("a: {b: 1.0, c: [1, 3], d: 0}\nname: y")
    assert differences(before, now) == {"a.c": ([1, 2], [1, 3]), "a.d": (None, 0)}


def test_every_difference_is_told(fit: Run) -> None:
    fit().done()
    changed = ("--trainer.max_epochs=3", "--model.loss.alpha=0.5", "--model.lm.init=random")
    answer = fit("--ckpt_path=last", *changed).done()
    told = [line for line in answer.err.splitlines() if line.startswith("runs/run/1 goes on: ")]
    assert told == [
        "runs/run/1 goes on: trainer.max_epochs 2 -> 3, applied",
        "runs/run/1 goes on: model.lm.init stays 'pretrained', not 'random' (the weights are the checkpoint's)",
        "runs/run/1 goes on: model.loss.alpha 0.25 -> 0.5, applied (the values before and after are of different "
        "objectives)",
    ]
    answer = fit("--ckpt_path=last", "--trainer.max_epochs=4", "--model.loss.alpha=0.5")
    assert [line for line in answer.err.splitlines() if " goes on: " in line] == [
        "runs/run/1 goes on: trainer.max_epochs 3 -> 4, applied"
    ], "compared with the latest start"


def test_what_would_be_another_run_is_refused(fit: Run) -> None:
    fit().done()
    before = sorted(RUN.rglob("*"))
    line = fit("--ckpt_path=last", "--data.batch_size=4", "--data.seed=3").complaint
    assert line.startswith(
        "runs/run/1 cannot go on with another setting of: data.batch_size was 8 and is 4 (other rows would make the "
        "steps); data.seed was 0 and is 3 (the rows would come in another order). Leave it as it was, or "
    )
    assert sorted(RUN.rglob("*")) == before

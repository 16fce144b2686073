"""A run that was stopped and resumed is the run that was never stopped: the same losses, the same weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.command_line import CommandLine, column

STEPS = 12  # two epochs of six steps, the last of which has five rows
DATA = ("--data.limit_train=45", "--data.limit_validation=9", "--data.micro_batch_size=3", "--trainer.max_epochs=2")
CONSTANT = ("--model.schedule.name=constant", "--model.schedule.warmup_steps=2")  # does not depend on the last step

CALLBACKS = """
from lightning.pytorch import Callback


class Stop(Callback):
    '''Presses Ctrl-C once, before the given optimizer step.'''

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt
"""


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "export" / "model.safetensors")


def assert_same_run(resumed: str, unbroken: str) -> None:
    for name in ("train/objective", "train/cross_entropy", "train/gradient_norm", "train/learning_rate"):
        assert list(column(resumed, name)) == list(range(1, STEPS + 1)), name
        assert column(resumed, name) == column(unbroken, name), name
    assert column(resumed, "val/cross_entropy")[STEPS] == column(unbroken, "val/cross_entropy")[STEPS]
    found, wanted = weights(resumed), weights(unbroken)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_stopped_by_max_steps_in_mid_epoch(ts2: CommandLine) -> None:
    options = (*DATA, *CONSTANT)
    ts2.toy("fit", "--name=unbroken", *options).done()
    ts2.toy("fit", "--name=broken", *options, "--trainer.max_steps=4").done()
    assert list(column("runs/broken/1", "train/objective")) == [1, 2, 3, 4]
    answer = ts2.toy("fit", "--name=broken", *options, "--ckpt_path=last", "--trainer.enable_progress_bar=true").done()
    bars = [line for line in answer.out.splitlines() if f"/{STEPS} [" in line]
    assert bars[0].startswith("Epoch 1/"), "Lightning starts no epoch there, which would give the bar its label"
    assert not Path("runs/broken/2").exists()
    assert_same_run("runs/broken/1", "runs/unbroken/1")


@pytest.mark.parametrize("stop", [5, 9])
def test_interrupted_between_two_checkpoints(stop: int, ts2: CommandLine) -> None:
    """The schedule knows the last step; there are validations in mid-epoch; steps since the checkpoint are redone."""
    Path("callbacks_here.py").write_text(CALLBACKS)
    checkpoints = ("--trainer.callbacks+=Checkpoints", "--trainer.callbacks.every_n_steps=2")
    options = (*DATA, "--trainer.val_check_interval=6", *checkpoints)
    ts2.toy("fit", "--name=unbroken", *options).done()
    interrupting = ("--trainer.callbacks+=callbacks_here.Stop", f"--trainer.callbacks.step={stop}")
    answer = ts2.toy("fit", "--name=broken", *options, *interrupting)
    assert answer.status == 130, answer.err
    assert "Traceback" not in answer.err
    run = Path("runs/broken/1")
    assert not (run / "export").exists()
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == stop - 1
    ts2.toy("fit", "--name=broken", *options, "--ckpt_path=last").done()
    assert_same_run(str(run), "runs/unbroken/1")


def test_another_split_of_the_steps_goes_on_with_the_same_steps(ts2: CommandLine) -> None:
    """As on another number of GPUs: other micro-batches, the same rows and the same divisor."""
    options = (*DATA, *CONSTANT)
    ts2.toy("fit", "--name=unbroken", *options).done()
    ts2.toy("fit", "--name=broken", *options, "--trainer.max_steps=7").done()
    ts2.toy("fit", "--name=broken", *options, "--ckpt_path=last", "--data.micro_batch_size=8").done()
    found, wanted = (column(f"runs/{name}/1", "train/objective") for name in ("broken", "unbroken"))
    assert found == pytest.approx(wanted, rel=1e-4)
    assert list(found) == list(range(1, STEPS + 1))


def test_nothing_to_resume(ts2: CommandLine) -> None:
    answer = ts2.toy("fit", *DATA, "--ckpt_path=last")
    assert answer.status == 2
    assert "nothing to resume" in answer.err
    assert answer.err.count("\n") == 1
    assert not Path("runs").exists()

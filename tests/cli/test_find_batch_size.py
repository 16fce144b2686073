"""`fit --find-batch-size`: what it prints, takes and refuses."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tests.cli.conftest import Run
from tests.e2e.command_line import QUICKSTART, Answer, make_blank
from ts2_lightning.callbacks import EMA, NEFTune
from ts2_lightning.cli import find_batch_size
from ts2_lightning.hardware import Machine, find_gpu
from ts2_lightning.modules import SFTModule
from ts2_lightning.planning import StepCost
from ts2_lightning.program import program
from ts2_lightning.types import Batch

GIB = 2**30


@pytest.fixture
def find(real: Run) -> Run:
    """Looks for the micro-batch of the quickstart with random weights, in a directory without any run."""
    blank = make_blank(Path("blank"))
    toy = ("-c", str(QUICKSTART), "--model.lm.path", str(blank), "--model.lm.init", "random")
    return lambda *options: real("fit", *toy, "--find-batch-size", *options)


def table(answer: Answer) -> list[list[str]]:
    """The lines of what was tried, without the two titles and the last line."""
    return [re.split("  +", line.strip()) for line in answer.done().out.splitlines()[2:-1]]


class Costs:
    """Stands for real steps: one of more rows than fit has no memory, and every row takes so much.

    Args:
        most: rows that fit.
        row: bytes of a row.
    """

    def __init__(self, most: int = 1000, row: float = 0.0) -> None:
        self.most, self.row = most, row
        self.callbacks: list[list[Callback]] = []

    def __call__(self, make_trainer: Any, module: Any, batch: Batch, accumulation: int) -> StepCost | None:
        trainer = make_trainer(accumulation, Callback())
        self.callbacks.append(trainer.callbacks)
        self.loggers = trainer.loggers
        rows = len(batch["row_index"])
        return None if rows > self.most else StepCost(rows * self.row, 0.5, 10 * rows * accumulation)


def test_real_steps_until_the_memory_is_used_up(find: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On three rows of eight: the fourth has no memory, in the middle of a step of Lightning's."""
    real_step, sizes = SFTModule.training_step, []

    def step(self: SFTModule, batch: Batch, batch_idx: int) -> Any:
        sizes.append(len(batch["row_index"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real_step(self, batch, batch_idx)

    monkeypatch.setattr(SFTModule, "training_step", step)
    before = sorted(here.rglob("*"))
    answer = find()
    assert [line[:2] for line in table(answer)] == [["8", "1"], ["4", "2"], ["2", "4"], ["3", "3"]]
    assert [line[4] == "out of memory" for line in table(answer)] == [True, True, False, False]
    assert re.fullmatch(
        r"Take --data\.micro_batch_size 3: 3 micro-batches, \d+\.\d\d of \d+\.\d GiB at the peak, [\d,]+ tokens/s with "
        r"the longest rows\.",
        answer.out.splitlines()[-1],
    )
    assert sizes == [8, 4, 2, 2, 2, 2, 3, 3, 3, 3]
    assert sorted(here.rglob("*")) == before, "nothing is written"


def test_a_cpu_is_not_asked_for_more_than_the_plan_says(find: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that takes more is killed, so that a size is too large if the plan or its own peak says so."""
    monkeypatch.setattr(find_batch_size, "measure_step", costs := Costs(row=0.3 * GIB))
    monkeypatch.setattr(find_batch_size, "device_at_hand", lambda device: Machine("a CPU", 1.3 * GIB))
    row = 0.2 * GIB / 16  # by its tokens, not by those that a row may have
    monkeypatch.setattr(find_batch_size, "needed_bytes", lambda job: job.micro_batch * job.max_length * row)
    answer = find("--data.batch_size", "16", "--trainer.callbacks+=EMA", "--trainer.callbacks+=NEFTune",
                  "--trainer.callbacks+=Throughput", "--ckpt_path", "last")  # fmt: skip
    assert [line[:1] + line[3:5] for line in table(answer)] == [*(["6", "1.20", "1.80"], ["4", "0.80", "1.20"])]
    assert answer.out.splitlines()[0] == "a CPU, 1.3 GiB; 16 rows a step, of at most 16 tokens"
    assert answer.out.splitlines()[-1].startswith("Take --data.micro_batch_size 4: 4 micro-batches, 1.20 of 1.3 GiB")
    assert [{type(one) for one in callbacks} for callbacks in costs.callbacks] == [{EMA, NEFTune, Callback}] * 2
    assert not {*map(id, costs.callbacks[0])} & {*map(id, costs.callbacks[1])}, "each size has an average of its own"
    assert costs.loggers == []


def test_a_gpu_is_asked_whatever_the_plan_says_and_keeps_room_for_gaps(
    find: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight rows take less than it has, and with 5 % for gaps more."""
    monkeypatch.setattr(find_batch_size, "measure_step", Costs(row=0.25 * GIB))
    monkeypatch.setattr(find_batch_size, "device_at_hand", lambda _: replace(find_gpu("h200"), memory=2.05 * GIB))
    monkeypatch.setattr(find_batch_size, "needed_bytes", lambda job: 9 * GIB)
    answer = find()
    measured = {line[0]: line[4] for line in table(answer)}
    assert measured == {"1": "0.25", "2": "0.50", "4": "1.00", "8": "2.00"}
    assert answer.out.splitlines()[-1].startswith("Take --data.micro_batch_size 4: 2 micro-batches, 1.00 of 2.0 GiB")


def test_sizes_that_the_plan_forbids_are_not_run_on_a_cpu(find: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_batch_size, "measure_step", Costs())
    monkeypatch.setattr(find_batch_size, "device_at_hand", lambda device: Machine("a CPU", 1.3 * GIB))
    monkeypatch.setattr(find_batch_size, "needed_bytes", lambda job: job.micro_batch * 0.5 * GIB)
    answer = find()
    assert [[line[0], line[4]] for line in table(answer)] == [["2", "0.00"], ["3", "not tried"]]
    monkeypatch.setattr(find_batch_size, "needed_bytes", lambda job: job.micro_batch * 2 * GIB)
    assert find().complaint == (
        f"--find-batch-size: not even one row of 16 tokens fits into 1.3 GiB; {program()} plan says what would, such "
        "as model.lm.gradient_checkpointing, or set data.max_length"
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--trainer.devices", "2"], "--find-batch-size: it measures one device by itself, and these settings make 2 "
         "processes of DDPStrategy; add --trainer.devices 1 --trainer.num_nodes 1 --trainer.strategy auto, or see "
         f"{program()} plan"),
        (["--trainer.strategy", "ddp"], "--find-batch-size: it measures one device by itself, and these settings make "
         "1 process of DDPStrategy; add --trainer.devices 1 --trainer.num_nodes 1 --trainer.strategy auto, or see "
         f"{program()} plan"),
        (["--data.batch_sise", "2"], "--data.batch_sise: no such option; did you mean --data.batch_size?"),
    ],
)  # fmt: skip
def test_what_it_refuses(find: Run, options: list[str], line: str) -> None:
    assert find(*options).refusal == line
    assert not Path("runs").exists()


def test_the_option_is_one_of_fit_alone_and_no_setting(ts2: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    near = "did you mean --find-batch-size?"
    assert near in ts2("fit", "--find-batch-sise").refusal
    assert "find-batch-size" in ts2("fit", "--find-batch-size=true").refusal
    assert ts2("plan", "--find-batch-size").refusal.startswith("--find-batch-size: no such option")
    Path("own.yaml").write_text("find_batch_size: true\n")
    assert "find_batch_size: no such setting" in ts2("fit", "-c", "own.yaml").refusal
    assert "--find-batch-size" in ts2("fit", "--help").out


def test_a_module_without_a_model_is_refused(ts2: Run) -> None:
    assert ts2("fit", "--model.lm.path=base", "--trainer.accelerator=cpu", "--find-batch-size").complaint == (
        "model.class_path: --find-batch-size needs a module that has lm, loss and engine, as SFTModule has, not "
        "StandInModule"
    )

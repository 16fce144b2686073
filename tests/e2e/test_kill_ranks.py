"""Two ranks: signalled, killed, in disagreement, hanging, without room for a checkpoint; resumed on another number.

Checkpoints are written at once, and by threads.
"""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.command_line import CONFIGS, column, empty_working_directory, play
from tests.e2e.test_kill import ASYNCHRONOUS, MEASURED, command, dropping  # noqa: F401

STEPS = 10
HANGS = ("--trainer.callbacks+=Watchdog", "--trainer.callbacks.timeout=15")
IMPATIENT = ("--trainer.callbacks+=Watchdog", "--trainer.callbacks.timeout=4")
SEEDS = ("--data.seed=${oc.env:TS2_TEST_SEED}",)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, cache: Path, dropping: Path) -> Any:  # noqa: F811
    """All starts, in one launch: name -> exit statuses, name -> what was printed, and where it was."""
    here = tmp_path_factory.mktemp("played")

    def start(run: str, *options: str, ranks: int = 2, **trouble: Any) -> dict[str, Any]:
        strategy = run.partition("-")[0]
        fragment = ("-c", str(CONFIGS / "strategy" / "rehearsal" / f"{strategy}.yaml"))
        argv = command(dropping, run, *fragment, "--trainer.max_epochs=1", f"--trainer.devices={ranks}", *options)
        return {"argv": argv, "ranks": ranks, "trouble": trouble}

    last = "--ckpt_path=last"
    starts = {
        "ddp": start("ddp"),
        "signalled": start("ddp-broken", at="step", number=3, signal="SIGTERM", rank=1),
        "no space": start("ddp-broken", last, at="full", number=2),
        "disagreeing": start("ddp-seeds", *SEEDS, at="start", environment={"TS2_TEST_SEED": "5"}, rank=1),
        "hanging": start("ddp-hangs", *HANGS, at="step", number=2, rank=1),
        "absent": start("ddp-absent", *IMPATIENT, at="join", rank=1, alone=True),
        "lost": start("ddp-lost", *IMPATIENT, at="load", rank=1, alone=True),
        "diverging": start("ddp-diverging", "--model.loss.alpha=1e30"),
        "fsdp2": start("fsdp2"),
        "fsdp2 killed": start("fsdp2-broken", at="event", number=60),
        "fsdp2 killed again": start("fsdp2-broken", last, at="event", number=20),
        "fsdp2 resumed": start("fsdp2-broken", last),
        "fsdp2 stopped": start("fsdp2-other", at="step", number=4, signal="SIGTERM"),
        "fsdp2 on one rank": start("fsdp2-other", last, ranks=1),
        "zero2": start("zero2"),
        "zero2 killed": start("zero2-broken", at="write", number=4, rank=1),
        "zero2 on one rank": start("zero2-broken", last, ranks=1),
        "zero2 resumed": start("zero2-broken", last, at="full", number=3, rank=1),
        "fsdp2 killed in a thread": start("fsdp2-thread", *ASYNCHRONOUS, at="write", number=2),
        "fsdp2 resumed in a thread": start("fsdp2-thread", last, *ASYNCHRONOUS),
        "zero2 killed in a thread": start("zero2-thread", *ASYNCHRONOUS, at="write", number=4, rank=1),
        "zero2 resumed in a thread": start("zero2-thread", last, *ASYNCHRONOUS, at="full", number=3, rank=1),
        "zero2 under ddp": start("ddp-other", f"--ckpt_path={here}/runs/zero2/1/checkpoints/last.ckpt"),
    }
    with empty_working_directory(here, cache), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TS2_TEST_SEED", "4")
        statuses = play(list(starts.values()), timeout=590)
        texts = Path("printed.txt").read_text().split("@@@@\n")
        yield dict(zip(starts, statuses, strict=True)), dict(zip(starts, texts, strict=False)), here


pytestmark = pytest.mark.slow


def assert_same(played: Any, run: str, wanted: str) -> None:
    """The metrics of every step, and the weights."""
    one, other = (played[2] / "runs" / name / "1" for name in (run, wanted))
    header = (other / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    for metric in set(header) - MEASURED - {"step"}:
        assert column(one, metric) == column(other, metric), metric
    assert list(column(one, "train/objective")) == list(range(1, STEPS + 1))
    found, expected = (load_file(run / "export" / "model.safetensors") for run in (one, other))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def line_of(played: Any, start: str, words: str) -> str:
    lines = [line for line in played[1][start].splitlines() if words in line]
    assert lines, played[1][start]
    return str(lines[0])


def test_a_signal_at_one_rank_ends_all_with_a_checkpoint(played: Any) -> None:
    assert played[0]["signalled"] == [128 + signal.SIGTERM] * 2
    line = line_of(played, "signalled", "stopped by SIGTERM")
    assert "newest checkpoint runs/ddp-broken/1/checkpoints/last.ckpt; resume with: " in line
    assert "Traceback" not in played[1]["signalled"]


def test_a_full_disk_at_one_rank(played: Any) -> None:
    for start, run in (("no space", "ddp"), ("zero2 resumed", "zero2")):
        assert played[0][start] == [0, 0], played[1][start]
        rank = 0 if run == "ddp" else 1
        line = line_of(played, start, "no checkpoint was written")
        assert f"No space left on device (rank {rank}); the newest one is still step-" in line
        assert_same(played, f"{run}-broken", run)


def test_ranks_that_disagree(played: Any) -> None:
    assert played[0]["disagreeing"] == [2, 2]
    told = "data.seed is 4 on rank 0 and 5 on rank 1; start all ranks with the same command and the same files"
    assert line_of(played, "disagreeing", f"error: {told}")
    assert line_of(played, "disagreeing", f"[rank 1] error: {told}")


def test_a_step_that_all_ranks_refuse_is_told_once(played: Any) -> None:
    assert played[0]["diverging"] == [2, 2], played[1]["diverging"]
    assert played[1]["diverging"].count("stopped before the update") == 1
    assert line_of(played, "diverging", "stopped before the update").startswith("error: step ")
    assert "Traceback" not in played[1]["diverging"]


def test_a_hang_is_named_by_every_rank(played: Any) -> None:
    assert played[0]["hanging"] == [124, 124], played[1]["hanging"]
    line = line_of(played, "hanging", "[rank 1] error: no progress in step 3 (training): stands at ")
    assert "hang-rank-1.txt" in line
    assert "torch/" in line_of(played, "hanging", "[rank 0] error: no progress in step 3")
    stacks = (played[2] / "runs/ddp-hangs/1/hang-rank-1.txt").read_text()
    assert "warm_starts.py" in stacks, "which waits there"


def test_a_rank_that_dies_before_the_training(played: Any) -> None:
    """Before there is a group nobody sees it; then its connections close."""
    assert played[0]["absent"] == [124, -signal.SIGKILL], played[1]["absent"]
    line = line_of(played, "absent", "[rank 0] error: no progress while the ranks find each other: stands at torch/")
    assert "called from ts2_lightning/" in line
    assert played[0]["lost"][1] == -signal.SIGKILL
    assert played[0]["lost"][0] not in (0, -signal.SIGKILL), played[1]["lost"]
    assert line_of(played, "lost", "by peer"), "it was closed, or reset"


def test_sharded_checkpoints_survive_kills(played: Any) -> None:
    for start in ("fsdp2 killed", "fsdp2 killed again", "zero2 killed"):
        statuses = played[0][start]  # the connections of the first may close before the other's turn to be killed
        assert -signal.SIGKILL in statuses, played[1][start]
        assert all(status == -signal.SIGKILL or status == 1 for status in statuses), played[1][start]
        assert statuses == [-signal.SIGKILL] * 2 or "onnection" in played[1][start], played[1][start]
    assert played[0]["fsdp2 resumed"] == [0, 0], played[1]["fsdp2 resumed"]
    assert_same(played, "fsdp2-broken", "fsdp2")


@pytest.mark.parametrize("strategy", ["fsdp2", "zero2"])
def test_a_kill_costs_the_checkpoint_that_a_thread_writes(played: Any, strategy: str) -> None:
    killed, resumed = (f"{strategy} {what} in a thread" for what in ("killed", "resumed"))
    assert -signal.SIGKILL in played[0][killed], played[1][killed]
    assert played[0][resumed] == [0, 0], played[1][resumed]
    assert_same(played, f"{strategy}-thread", strategy)


def test_all_ranks_hear_that_a_thread_has_no_room(played: Any) -> None:
    line = line_of(played, "zero2 resumed in a thread", "no checkpoint was written")
    assert "No space left on device (rank 1); the newest one is still step-" in line
    assert played[1]["zero2 resumed in a thread"].count("no checkpoint was written") == 1


def test_fsdp2_goes_on_with_another_number_of_ranks(played: Any) -> None:
    assert played[0]["fsdp2 stopped"] == [128 + signal.SIGTERM] * 2, played[1]["fsdp2 stopped"]
    assert played[0]["fsdp2 on one rank"] == [0], played[1]["fsdp2 on one rank"]
    found, wanted = (column(played[2] / f"runs/{name}/1", "train/objective") for name in ("fsdp2-other", "fsdp2"))
    assert list(found) == list(wanted)
    assert [found[step] for step in range(1, 6)] == [wanted[step] for step in range(1, 6)]
    assert found[10] == pytest.approx(wanted[10], rel=0.1), "other numbers are drawn for the dropout"


def test_deepspeed_does_not(played: Any) -> None:
    assert played[0]["zero2 on one rank"] == [2]
    line = line_of(played, "zero2 on one rank", "error: ")
    assert "DeepSpeed wrote it on 2 ranks and cannot go on with 1; go on as it was written, or start anew" in line
    assert played[0]["zero2 under ddp"] == [2, 2]
    assert "it was written by DeepSpeed, and DDP cannot read it" in line_of(played, "zero2 under ddp", "error: ")

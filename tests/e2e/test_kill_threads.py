"""Two ranks whose checkpoints are written by threads: killed within a write, and without room for one."""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command_line import CONFIGS, empty_working_directory
from tests.e2e.test_kill import ASYNCHRONOUS, command, dropping, play  # noqa: F401
from tests.e2e.test_kill_ranks import assert_same, line_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, cache: Path, dropping: Path) -> Any:  # noqa: F811
    """All starts, in one launch: name -> exit statuses, name -> what was printed, and where it was."""
    here = tmp_path_factory.mktemp("played")

    def start(run: str, *options: str, **trouble: Any) -> dict[str, Any]:
        strategy = run.partition("-")[0]
        fragment = ("-c", str(CONFIGS / "strategy" / "rehearsal" / f"{strategy}.yaml"))
        argv = command(dropping, run, *fragment, "--trainer.max_epochs=1", "--trainer.devices=2", *options)
        return {"argv": argv, "ranks": 2, "trouble": trouble}

    last = (*ASYNCHRONOUS, "--ckpt_path=last")
    starts = {
        "fsdp2": start("fsdp2"),
        "fsdp2 killed": start("fsdp2-thread", *ASYNCHRONOUS, at="write", number=2),
        "fsdp2 resumed": start("fsdp2-thread", *last),
        "zero2": start("zero2"),
        "zero2 killed": start("zero2-thread", *ASYNCHRONOUS, at="write", number=4, rank=1),
        "zero2 resumed": start("zero2-thread", *last, at="full", number=3, rank=1),
    }
    with empty_working_directory(here, cache):
        statuses = play(list(starts.values()), timeout=590)
        texts = Path("printed.txt").read_text().split("@@@@\n")
        yield dict(zip(starts, statuses, strict=True)), dict(zip(starts, texts, strict=False)), here


@pytest.mark.parametrize("strategy", ["fsdp2", "zero2"])
def test_a_kill_costs_the_checkpoint_that_is_written(played: Any, strategy: str) -> None:
    statuses = played[0][f"{strategy} killed"]  # the connections of the first may close before the other's turn
    assert -signal.SIGKILL in statuses, played[1][f"{strategy} killed"]
    assert played[0][f"{strategy} resumed"] == [0, 0], played[1][f"{strategy} resumed"]
    assert_same(played, f"{strategy}-thread", strategy)


def test_all_ranks_hear_that_one_has_no_room(played: Any) -> None:
    line = line_of(played, "zero2 resumed", "no checkpoint was written")
    assert "No space left on device (rank 1); the newest one is still step-" in line
    assert played[1]["zero2 resumed"].count("no checkpoint was written") == 1

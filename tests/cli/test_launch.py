"""All processes of a launch agree on one destination, and a requeued job finds its own again."""

import os
import threading
import time
from pathlib import Path

import pytest

from ts2_lightning.cli import launch
from ts2_lightning.cli.launch import Destination, agree, claim_file, is_rank_zero, release
from ts2_lightning.types import UserError

COMMAND = ["fit", "-c", "a.yaml"]
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "2",
}
SLURM = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "ts2"}


def choose(name: str) -> "Chooser":
    return Chooser(name)


class Chooser:
    """Remembers what it was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.before: list[Destination | None] = []

    def __call__(self, before: Destination | None) -> Destination:
        self.before.append(before)
        return before or Destination(self.name)


def never(before: Destination | None) -> Destination:
    raise AssertionError("only rank 0 chooses")


@pytest.fixture(autouse=True)
def outside(here: Path) -> None:
    """No cluster but the one a test sets up."""


def be(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "zero"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
        ({"RANK": "4", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({**SLURM, "SLURM_PROCID": "0"}, True),
        ({**SLURM, "SLURM_PROCID": "1"}, False),
        ({**SLURM, "SLURM_PROCID": "1", "SLURM_JOB_NAME": "interactive"}, True),
    ],
)
def test_rank_zero(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], zero: bool) -> None:
    be(monkeypatch, **variables)
    assert is_rank_zero() is zero


def test_a_single_process_leaves_nothing_behind(here: Path) -> None:
    assert agree(here / "runs", COMMAND, choose("a")) == Destination("a")
    release(here / "runs", COMMAND, finished=True)
    assert not (here / "runs").exists()
    assert launch.VARIABLE not in os.environ


def test_ranks_that_lightning_starts_inherit(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    agree(here / "runs", COMMAND, choose("a"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert agree(here / "runs", COMMAND, never) == Destination("a")
    monkeypatch.setenv("LOCAL_RANK", "0")
    release(here / "runs", COMMAND, finished=True)


def test_a_fit_started_from_inside_a_run_takes_its_own(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    agree(here / "runs", COMMAND, choose("a"))
    assert agree(here / "runs", COMMAND, choose("b")) == Destination("b")
    release(here / "runs", COMMAND, finished=True)


@pytest.mark.parametrize(("cluster", "rank"), [(TORCHRUN, "RANK"), (SLURM, "SLURM_PROCID")], ids=["torchrun", "slurm"])
def test_ranks_wait_for_the_claim_of_rank_zero(
    monkeypatch: pytest.MonkeyPatch, here: Path, cluster: dict[str, str], rank: str
) -> None:
    be(monkeypatch, **cluster, **{rank: "1"})
    found: list[Destination] = []
    waiting = threading.Thread(target=lambda: found.append(agree(here / "runs", COMMAND, never)))
    waiting.start()
    time.sleep(0.3)
    assert not found
    claim = claim_file(here / "runs", COMMAND)
    assert claim is not None
    launch._write(claim, Destination("a", "a/checkpoints/last.ckpt", fresh=False))
    waiting.join(timeout=5)
    assert found == [Destination("a", "a/checkpoints/last.ckpt", fresh=False)]


def test_claims_of_different_launches_differ(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    assert claim_file(here, COMMAND) is None
    be(monkeypatch, **TORCHRUN)
    claims = {claim_file(here, COMMAND), claim_file(here, [*COMMAND, "--seed_everything", "1"])}
    for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID"):
        with monkeypatch.context() as changed:
            changed.setenv(name, "7")
            claims.add(claim_file(here, COMMAND))
    assert len(claims) == 6


def test_a_rank_that_waits_in_vain_says_so(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    be(monkeypatch, **TORCHRUN, RANK="1", TS2_RENDEZVOUS_TIMEOUT="0.3")
    with pytest.raises(UserError, match=r"waited 0\.3 s for rank 0"):
        agree(here / "runs", COMMAND, never)


def test_the_claim_of_an_earlier_launch_does_not_count(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    be(monkeypatch, **TORCHRUN, RANK="1", TS2_RENDEZVOUS_TIMEOUT="0.3")
    claim = claim_file(here / "runs", COMMAND)
    assert claim is not None
    launch._write(claim, Destination("old"))
    monkeypatch.setattr(launch, "_STARTED", time.time() + 1000)
    with pytest.raises(UserError, match="waited"):
        agree(here / "runs", COMMAND, never)


def test_a_requeued_job_finds_its_directory(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    be(monkeypatch, **SLURM, SLURM_PROCID="0")
    assert agree(here / "runs", COMMAND, choose("a")).directory == "a"
    release(here / "runs", COMMAND, finished=False)  # preempted
    be(monkeypatch, SLURM_RESTART_COUNT="1", SLURM_PROCID="1", TS2_RENDEZVOUS_TIMEOUT="0.3")
    with pytest.raises(UserError, match="waited"):
        agree(here / "runs", COMMAND, never)  # the claim of the first attempt is not this attempt's
    be(monkeypatch, SLURM_PROCID="0")
    chooser = choose("b")
    assert agree(here / "runs", COMMAND, chooser).directory == "a"
    assert chooser.before == [Destination("a")]
    be(monkeypatch, SLURM_PROCID="1")
    assert agree(here / "runs", COMMAND, never).directory == "a"


def test_ranks_that_torchrun_starts_again_find_their_directory(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    be(monkeypatch, **TORCHRUN, TORCHELASTIC_MAX_RESTARTS="3", RANK="0")
    assert agree(here / "runs", COMMAND, choose("a")).directory == "a"
    release(here / "runs", COMMAND, finished=False)
    be(monkeypatch, TORCHELASTIC_RESTART_COUNT="1")
    chooser = choose("b")
    assert agree(here / "runs", COMMAND, chooser).directory == "a"
    release(here / "runs", COMMAND, finished=True)
    assert not (here / "runs" / ".claims").exists()


def test_a_rank_with_another_command_says_so_at_once(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    be(monkeypatch, **TORCHRUN, RANK="0")
    agree(here / "runs", COMMAND, choose("a"))
    be(monkeypatch, RANK="1")
    monkeypatch.delenv(launch.VARIABLE)
    for command, had, has in ((["fit", "-c", "b.yaml"], "a.yaml", "b.yaml"), (["fit", "-c"], "a.yaml", None)):
        with pytest.raises(UserError, match=rf"it has {has!r} where rank 0 has {had!r}"):
            agree(here / "runs", command, never)


def test_a_second_fit_of_the_same_job_takes_its_own(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    be(monkeypatch, **SLURM, SLURM_PROCID="0")
    agree(here / "runs", COMMAND, choose("a"))
    release(here / "runs", COMMAND, finished=True)
    be(monkeypatch, SLURM_RESTART_COUNT="1")
    assert agree(here / "runs", COMMAND, choose("b")).directory == "b", "the first had come to its end"

"""How all processes of one run come to agree on its directory before they can talk to each other.

The process of rank 0 chooses. Ranks that Lightning starts inherit its choice in an environment variable. Ranks that
torchrun or SLURM start find it in a small file, the claim, whose name all of them can compute. A SLURM job that was
requeued keeps its job id, so it finds its claim, and with it its directory, again.
"""

import atexit
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ts2_lightning.runs.checkpoints import newest_first, run_of
from ts2_lightning.runs.directory import claim_next
from ts2_lightning.types import UserError

VARIABLE = "TS2_RUN_DESTINATION"
TIMEOUT_VARIABLE = "TS2_RENDEZVOUS_TIMEOUT"
_TIMEOUT = 300.0
_STALE = 300.0  # a claim that is older than this process by more than this many seconds is another launch's
_STARTED = time.time()
_ATTEMPTS = 1000


@dataclass(frozen=True)
class Destination:
    """Where a run writes.

    Attributes:
        directory: the run's directory.
        checkpoint: the checkpoint that it starts from, or None.
        fresh: the directory was made for this run; False where an older run goes on in its own.
        older: checkpoints of the same run that may take the place of a damaged one, newest first.
    """

    directory: str
    checkpoint: str | None = None
    fresh: bool = True
    older: list[str] = field(default_factory=list)


def is_rank_zero() -> bool:
    """Whether this process has global rank 0, as far as the environment says (before any process group exists)."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    if _slurm_starts_ranks():
        return os.environ.get("SLURM_PROCID", "0") == "0"
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return node == "0" and os.environ.get("LOCAL_RANK", "0") == "0"


def is_started_by_lightning() -> bool:
    """Whether the process of rank 0 has started this one."""
    return not is_rank_zero() and VARIABLE in os.environ


def is_restarted() -> bool:
    """Whether SLURM started this job before, or torchrun these ranks."""
    return any(count not in ("", "0") for count in _attempt())


def claim_file(runs: Path, command: Sequence[str]) -> Path | None:
    """The claim of this launch: the same path in all its processes; None where no other process would look for it.

    Args:
        runs: the directory of all runs.
        command: the command and its options; two commands of one job have two claims.
    """
    environment = os.environ
    if "SLURM_JOB_ID" in environment:
        key = ["slurm", environment["SLURM_JOB_ID"], environment.get("SLURM_STEP_ID", "batch")]
    elif "TORCHELASTIC_RUN_ID" in environment or "RANK" in environment:
        names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
        key = ["torch", *(environment.get(name, "") for name in names)]
        if environment.get("GROUP_WORLD_SIZE") == "1":
            key.append(str(os.getppid()))  # one agent started all ranks: nothing tells launches apart better
    elif environment.get("NODE_RANK", "0") != "0" or "MASTER_ADDR" in environment:
        key = ["nodes", environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")]
    else:
        return None
    return runs / ".claims" / f"{key[0]}-{_digest([*key, os.getcwd()])}-{_digest(command)}.json"


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]


def agree(runs: Path, command: Sequence[str], choose: Callable[[Destination | None], Destination]) -> Destination:
    """The destination that all processes of this launch use.

    Args:
        runs: the directory of all runs, on a file system that every process sees.
        command: the command and its options.
        choose: called in rank 0 alone, with the destination that this job had before SLURM requeued it, or None.

    Raises:
        UserError: if rank 0 does not choose in time.
    """
    if not is_rank_zero():
        inherited = os.environ.get(VARIABLE)
        return Destination(**json.loads(inherited)) if inherited else _await(claim_file(runs, command), command)
    claim = claim_file(runs, command)
    destination = choose(_previous(claim))
    os.environ[VARIABLE] = json.dumps(asdict(destination))
    if claim is not None:
        _write(claim, destination, command)
    return destination


def release(runs: Path, command: Sequence[str], finished: bool) -> None:
    """Forgets the claim of this launch, so that the next one in this process or job does not find it.

    Args:
        runs: Directory of all runs, see `agree`.
        command: Command and its options, see `agree`.
        finished: Whether the run came to its end. If not, a job that can be started again keeps its claim.
    """
    if not is_rank_zero():
        return
    os.environ.pop(VARIABLE, None)
    claim = claim_file(runs, command)
    again = "SLURM_JOB_ID" in os.environ or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if claim is not None and (finished or not again):
        claim.unlink(missing_ok=True)
        with suppress(OSError):  # other launches' claims may be in it
            claim.parent.rmdir()


def choose_destination(
    command: str, runs: Path, name: str, checkpoints: Sequence[Path] = (), before: Destination | None = None
) -> Destination:
    """The destination of a run, whose directory is made if no older run goes on; for rank 0 alone.

    Args:
        command: `fit`, `validate`, `test` or `predict`; all but `fit` write below the run of their checkpoint.
        runs: Directory of all runs.
        name: Name of the run.
        checkpoints: The checkpoint to start from, and those that may take its place; none for a new run.
        before: Destination that this job had before it was requeued, see `agree`.
    """
    if before is not None and Path(before.directory).is_dir():  # a requeued job goes on where it was
        whole = [*map(str, newest_first(Path(before.directory)))] if command == "fit" else []
        newest = whole[0] if whole else before.checkpoint
        return Destination(before.directory, newest, fresh=False, older=whole[1:])
    if not checkpoints:
        return Destination(str(claim_next(runs / name)))
    checkpoint, *older = map(str, checkpoints)
    run = run_of(Path(checkpoint))
    if run is None:
        return Destination(str(claim_next(runs / name)), checkpoint)
    if command == "fit":
        return Destination(str(run), checkpoint, fresh=False, older=older)
    return Destination(str(claim_next(run / command)), checkpoint, older=older)


def leave_group_at_exit(finished: bool) -> None:
    """Has this process leave the process group when the interpreter ends.

    Without it the threads of gloo outlive the interpreter, and one that then lets go of a tensor aborts the process
    ("terminate called without an active exception"), whose launcher takes a finished run for a failed one. It is left
    no earlier, since a later command of the same process needs it.

    Args:
        finished: whether the command came to its end. If not, another rank may still wait in a collective; to leave
            would wait for it, so the group is not left.
    """
    atexit.unregister(_leave_group)
    if finished:
        atexit.register(_leave_group)


def _leave_group() -> None:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _slurm_starts_ranks() -> bool:
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_NTASKS" in os.environ and not interactive


def _attempt() -> list[str]:
    return [os.environ.get("SLURM_RESTART_COUNT", "0") or "0", os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")]


def _previous(claim: Path | None) -> Destination | None:
    if claim is None or not is_restarted() or not claim.is_file():
        return None
    return Destination(**json.loads(claim.read_text(encoding="utf-8"))["destination"])


def _write(claim: Path, destination: Destination, command: Sequence[str] = ()) -> None:
    record = {"destination": asdict(destination), "attempt": _attempt(), "time": time.time(), "command": [*command]}
    beside = claim.with_name(f"{claim.name}.{os.getpid()}")
    for _ in range(_ATTEMPTS):
        try:
            claim.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(record), encoding="utf-8")
            os.replace(beside, claim)
        except FileNotFoundError:  # another launch ended just now and removed the empty directory
            continue
        except OSError as error:
            raise UserError(f"{claim.parent}: cannot be written ({error.strerror}), so no run can begin") from error
        return
    raise UserError(f"{claim.parent}: other processes removed it {_ATTEMPTS} times while it was written")


def _await(claim: Path | None, command: Sequence[str]) -> Destination:
    """Waits for rank 0's claim; one of an earlier launch (another attempt, or too old) does not count."""
    timeout = float(os.environ.get(TIMEOUT_VARIABLE, _TIMEOUT))
    deadline = time.monotonic() + timeout
    while claim is not None and time.monotonic() < deadline:
        record = _read(claim, since=_STARTED - _STALE)
        if record:
            return Destination(**record["destination"])
        _refuse_another_command(claim, command, since=_STARTED)
        time.sleep(0.1)
    if claim is not None:
        _refuse_another_command(claim, command, since=_STARTED - _STALE)
    raise UserError(
        f"this rank waited {timeout:g} s for rank 0 to choose the run's directory, looking for {claim}: did rank 0 "
        f"fail, or does it see another file system? ({TIMEOUT_VARIABLE} sets the seconds)"
    )


def _read(claim: Path, since: float) -> dict[str, Any] | None:
    """The claim of this launch, if it is there."""
    try:
        record: dict[str, Any] = json.loads(claim.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return record if record["attempt"] == _attempt() and record["time"] > since else None


def _refuse_another_command(claim: Path, command: Sequence[str], since: float) -> None:
    """Rank 0 may have claimed for this launch, but with other options."""
    launch = claim.name.rpartition("-")[0]
    for record in filter(None, (_read(other, since) for other in claim.parent.glob(f"{launch}-*.json"))):
        pairs = zip_longest(record["command"], command)
        theirs, ours = next(((theirs, ours) for theirs, ours in pairs if theirs != ours), (None, None))
        if theirs != ours:
            raise UserError(
                f"this rank was started with another command than rank 0: it has {ours!r} where rank 0 has {theirs!r}; "
                "start all ranks with the same command"
            )

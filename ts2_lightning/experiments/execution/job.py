"""What each process of a job of SLURM does with a task.

Signals: submitit would have SLURM send SIGUSR2 before the time is over, and would put the job back into the queue
itself. Our jobs ask for SIGUSR1 instead, as `configs/cluster/fit.slurm` does, and submitit's handler never runs. What
submitit has started hands SIGUSR1 and SIGTERM on to `fit`, where `Preemption` saves and requeues the job. Should SLURM
send them to all processes of a job, `fit` hears them twice, which is the same to it.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ts2_lightning.callbacks.requeue import requeue
from ts2_lightning.experiments.execution.processes import Processes
from ts2_lightning.experiments.execution.task import Failure, Task, forget_failure, is_trained
from ts2_lightning.experiments.execution.work import measure, train
from ts2_lightning.runs.process_lock import ProcessLock

SECONDS = 2.0
"""Between two looks at a lock."""

_PATIENCE = 180.0


def run_task(task: Task, options: Sequence[str]) -> str:
    """What each process of a job does.

    Args:
        task: to be done.
        options: of `fit`.

    Returns:
        `done` or `stopped`.

    Raises:
        RuntimeError: if it has failed; SLURM then ends the job's other processes.
    """
    rank = int(os.environ.get("SLURM_PROCID", "0"))
    processes = Processes()
    environment = {"OMP_NUM_THREADS": os.environ.get("SLURM_CPUS_PER_TASK", "1"), **os.environ}
    task.directory.mkdir(parents=True, exist_ok=True)
    log = task.directory / (f"fit-rank-{rank}.log" if rank else "fit.log")
    with handing_on(processes), _locked(task.directory, rank) as keep:
        outcome = "done" if is_trained(task) else train(task, options, processes, log, environment, keep)
        if outcome == "done" and rank == 0:
            alone = {name: value for name, value in environment.items() if not name.startswith("SLURM_")}
            outcome = measure(task, processes, alone, keep, print)
            if outcome == "done":
                forget_failure(task)  # of an earlier start of this job
            elif outcome == "stopped" and processes.stopped_by is not None:
                requeue(processes.stopped_by)  # a training would have done it by itself
    if isinstance(outcome, Failure):
        raise RuntimeError(f"{outcome.stage} failed: {outcome.message} ({outcome.log})")
    return outcome


@contextmanager
def _locked(directory: Path, rank: int) -> Iterator[list[int]]:
    """The descriptor of the run's lock, which rank 0 takes."""
    if rank:
        yield []
        return
    lock = _patiently(directory)
    try:
        yield [lock.descriptor]
    finally:
        lock.release()


def _patiently(directory: Path) -> ProcessLock:
    """The lock of a run; a file system may keep that of a node that has died a while."""
    deadline = time.monotonic() + _PATIENCE
    while (lock := ProcessLock.take(directory)) is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{directory}: another process is at it")
        time.sleep(SECONDS)
    return lock


@contextmanager
def handing_on(processes: Processes) -> Iterator[None]:
    """SLURM's signals go on to the processes."""

    def hear(number: int, frame: FrameType | None) -> None:
        processes.stop(number)

    before = {number: signal.signal(number, hear) for number in (signal.SIGUSR1, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

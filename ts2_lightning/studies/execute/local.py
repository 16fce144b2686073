"""Tasks on this machine, some of them at a time, each in processes of its own."""

import os
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from ts2_lightning.callbacks import Stopped
from ts2_lightning.runs.process_lock import ProcessLock, is_orphaned
from ts2_lightning.studies.execute.board import Board
from ts2_lightning.studies.execute.processes import (
    Outcome,
    Processes,
    finished_tasks,
    forward_signals,
    train_and_measure,
)
from ts2_lightning.studies.execute.task import Failure, Stage, Task, read_failure
from ts2_lightning.types import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS = 0.5
"""Between two looks at the runs."""

_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")
"""Where the processes of a run find one another: each run finds a place of its own."""


def run_locally(tasks: Sequence[Task], parallel: int, board: Board) -> list[Failure]:
    """Does all tasks. What another process is at is waited for, while there is something else to do, behind that.

    Args:
        tasks: all tasks, in the order in which they begin.
        parallel: how many at a time; those that an `ablate` that is gone has left running on this machine count.
        board: is told of each change.

    Returns:
        The tasks that failed.

    Raises:
        Stopped: after Ctrl-C or SIGTERM, once all processes have saved and ended. A second Ctrl-C kills them.
        UserError: before anything starts, if the runs need more GPUs than so many at a time can have.
    """
    dealt, processes = environments(tasks, parallel), Processes()
    with forward_signals(processes, SIGNALS), ThreadPoolExecutor(parallel) as pool:
        try:
            failures = _Locally(dealt, board, processes, pool).do(tasks)
        except BaseException:
            processes.kill()
            raise
    if processes.stopped_by is not None:
        raise Stopped(processes.stopped_by)
    return failures


class _Locally:
    """The loop of `run_locally`."""

    def __init__(
        self, dealt: list[Mapping[str, str]], board: Board, processes: Processes, pool: ThreadPoolExecutor
    ) -> None:
        self.board = board
        self.processes = processes
        self.pool = pool
        self.environments = dealt
        self.free = deque(range(len(dealt)))
        self.running: dict[Future[Outcome], tuple[Task, ProcessLock, int]] = {}
        self.elsewhere: set[Task] = set()
        self.failures: list[Failure] = []

    def do(self, tasks: Sequence[Task]) -> list[Failure]:
        """Until all have ended."""
        over = finished_tasks(tasks, self.processes, self.environments[0])
        for task in tasks:
            if task in over:
                self.board.tell(task, "done")
        waiting, told = [task for task in tasks if task not in over], False
        while self.running or (waiting and self.processes.stopped_by is None):
            if self.processes.stopped_by is None:
                waiting = self._begin(waiting)
            elif not told:
                self.board.say("stopping: the runs save where they are and end; Ctrl-C kills them")
                told = True
            self._wait()
            self.board.draw()
        return self.failures

    def _begin(self, waiting: list[Task]) -> list[Task]:
        """Starts as many as there is place for; the others are returned."""
        left, orphans = [], 0
        for task in waiting:
            lock = ProcessLock.take(task.directory) if len(self.free) > orphans else None
            if lock is not None:
                self._start_or_take(task, lock)
                continue
            left.append(task)
            if len(self.free) > orphans:
                orphans += is_orphaned(task.directory)
                self.elsewhere.add(task)
                self.board.tell(task, "running elsewhere")
        return left

    def _start_or_take(self, task: Task, lock: ProcessLock) -> None:
        """What another has just failed at is not tried again now."""
        failure = read_failure(task) if task in self.elsewhere else None
        if failure is None:
            self._start(task, lock)
        else:
            lock.release()
            self._failed(task, failure)

    def _wait(self) -> None:
        """For a while, or for the first that ends."""
        if not self.running:  # others are at all that is left
            time.sleep(SECONDS)
        for future in wait(self.running, timeout=SECONDS, return_when=FIRST_COMPLETED).done:
            self._end(future)

    def _start(self, task: Task, lock: ProcessLock) -> None:
        place = self.free.popleft()

        def tell(state: str) -> None:
            self.board.tell(task, state)

        future = self.pool.submit(
            train_and_measure, task, self.processes, lock.descriptor, self.environments[place], tell
        )
        self.running[future] = (task, lock, place)

    def _end(self, future: "Future[Outcome]") -> None:
        task, lock, place = self.running.pop(future)
        lock.release()
        self.free.append(place)
        outcome = _outcome(task, future)
        if isinstance(outcome, Failure):
            self._failed(task, outcome)
        else:
            self.board.tell(task, outcome)

    def _failed(self, task: Task, failure: Failure) -> None:
        self.failures.append(failure)
        self.board.tell(task, "failed", f"{failure.message} ({failure.log})")


def _outcome(task: Task, future: "Future[Outcome]") -> Outcome:
    """How a task has ended. That a file of it cannot be read or written, as on a full disk, is its own failure."""
    try:
        return future.result()
    except OSError as error:
        stage: Stage = "fit" if task.options else "measure"  # to ask the disk how far it is might fail as well
        return Failure(stage, 1, f"{type(error).__name__}: {error}", str(task.directory / f"{stage}.log"), task.title)


def environments(tasks: Sequence[Task], parallel: int) -> list[Mapping[str, str]]:
    """The environment of each of so many runs at a time, among which cores and GPUs are dealt equally.

    All have the same number of threads, as a sum's last digits depend on it.

    Raises:
        UserError: if a run's share has fewer GPUs than it needs.
    """
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    gpus = [gpu for gpu in gpus if gpu != "-1"]  # which hides all
    dealt = shares(gpus, parallel)
    _check_share(tasks, parallel, len(gpus), len(dealt[0]))
    alone = max((_count(task, len(dealt[0])) for task in tasks), default=1)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // (parallel * alone)))
    inherited = {name: value for name, value in os.environ.items() if name not in _RENDEZVOUS}
    return [
        {**inherited, "OMP_NUM_THREADS": threads, **({"CUDA_VISIBLE_DEVICES": ",".join(share)} if share else {})}
        for share in dealt
    ]


def _check_share(tasks: Sequence[Task], parallel: int, gpus: int, share: int) -> None:
    """Makes sure that every run has as many GPUs as processes, where there are GPUs at all."""
    needed = max((task.processes[1] for task in tasks if task.on_gpu and task.processes), default=0)
    if share and needed > share:
        fit = f"--parallel {gpus // needed}" if needed <= gpus else "set trainer.devices, or use --slurm"
        raise UserError(f"--parallel {parallel}: these runs need {needed} GPUs each and there are {gpus}; {fit}")


def _count(task: Task, share: int) -> int:
    """The processes of a run; as many as it has GPUs where the configuration leaves it to the machine."""
    return task.processes[1] if task.processes else max(1, share * task.on_gpu)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shares(gpus: Sequence[str], parallel: int) -> list[Sequence[str]]:
    """Each run's own GPUs, as many for all; where there are fewer of them than runs, they share.

    Example:
        >>> shares(["0", "1", "2", "3", "4"], 2), shares(["0", "1"], 4)
        ([['0', '1'], ['2', '3']], [['0'], ['1'], ['0'], ['1']])
    """
    size = len(gpus) // parallel
    if size == 0:
        return [[gpus[place % len(gpus)]] if gpus else [] for place in range(parallel)]
    return [gpus[size * place : size * (place + 1)] for place in range(parallel)]

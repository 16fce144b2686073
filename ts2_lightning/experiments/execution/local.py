"""Tasks on this machine, some of them at a time, each in processes of its own."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import FrameType

from ts2_lightning.callbacks import Stopped
from ts2_lightning.experiments.execution.board import Board
from ts2_lightning.experiments.execution.locks import Lock, is_orphaned
from ts2_lightning.experiments.execution.processes import Processes
from ts2_lightning.experiments.execution.task import Failure, Task, read_failure
from ts2_lightning.experiments.execution.work import Outcome, settled, work

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS = 0.5
"""Between two looks at the runs."""


def run_locally(tasks: Sequence[Task], parallel: int, board: Board) -> list[Failure]:
    """Does all tasks. What another process is at is waited for, while there is something else to do, behind that.

    Args:
        tasks: in the order in which they begin.
        parallel: how many at a time; those that an `ablate` that is gone has left running on this machine count.
        board: is told of each change.

    Returns:
        The tasks that failed.

    Raises:
        Stopped: after Ctrl-C or SIGTERM, once all processes have saved and ended. A second Ctrl-C kills them.
    """
    processes = Processes()
    with hearing(processes), ThreadPoolExecutor(parallel) as pool:
        try:
            failures = _Locally(parallel, board, processes, pool).do(tasks)
        except BaseException:
            processes.kill()
            raise
    if processes.stopped_by is not None:
        raise Stopped(processes.stopped_by)
    return failures


class _Locally:
    """The loop of `run_locally`."""

    def __init__(self, parallel: int, board: Board, processes: Processes, pool: ThreadPoolExecutor) -> None:
        self.board = board
        self.processes = processes
        self.pool = pool
        self.environments = environments(parallel)
        self.free = deque(range(parallel))
        self.running: dict[Future[Outcome], tuple[Task, Lock, int]] = {}
        self.elsewhere: set[Task] = set()
        self.failures: list[Failure] = []

    def do(self, tasks: Sequence[Task]) -> list[Failure]:
        """Until all have ended."""
        over = settled(tasks, self.processes, self.environments[0])
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
            lock = Lock.take(task.directory) if len(self.free) > orphans else None
            if lock is not None:
                self._start_or_take(task, lock)
                continue
            left.append(task)
            if len(self.free) > orphans:
                orphans += is_orphaned(task.directory)
                self.elsewhere.add(task)
                self.board.tell(task, "running elsewhere")
        return left

    def _start_or_take(self, task: Task, lock: Lock) -> None:
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

    def _start(self, task: Task, lock: Lock) -> None:
        place = self.free.popleft()

        def tell(state: str) -> None:
            self.board.tell(task, state)

        future = self.pool.submit(work, task, self.processes, lock.descriptor, self.environments[place], tell)
        self.running[future] = (task, lock, place)

    def _end(self, future: "Future[Outcome]") -> None:
        task, lock, place = self.running.pop(future)
        lock.release()
        self.free.append(place)
        outcome = future.result()
        if isinstance(outcome, Failure):
            self._failed(task, outcome)
        else:
            self.board.tell(task, outcome)

    def _failed(self, task: Task, failure: Failure) -> None:
        self.failures.append(failure)
        self.board.tell(task, "failed", f"{failure.message} ({failure.log})")


@contextmanager
def hearing(processes: Processes) -> Iterator[None]:
    """Hands Ctrl-C and SIGTERM on to the processes; a Ctrl-C after that kills them."""

    def hear(number: int, frame: FrameType | None) -> None:
        if processes.stopped_by is None:
            processes.stop(number)
        elif number == signal.SIGINT:
            processes.kill()

    if threading.current_thread() is not threading.main_thread():  # only there signals can be heard
        yield
        return
    before = {number: signal.signal(number, hear) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environments(parallel: int) -> list[Mapping[str, str]]:
    """The environment of each of so many processes, among which cores and GPUs are dealt."""
    import torch

    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // parallel))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    return [
        {**os.environ, "OMP_NUM_THREADS": threads, **({"CUDA_VISIBLE_DEVICES": ",".join(share)} if share else {})}
        for share in shares(gpus, parallel)
    ]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shares(gpus: Sequence[str], parallel: int) -> list[Sequence[str]]:
    """Each process's own GPUs; where there are fewer of them than processes, they share.

    Example:
        >>> shares(["0", "1", "2", "3"], 2), shares(["0", "1"], 4)
        ([['0', '1'], ['2', '3']], [['0'], ['1'], ['0'], ['1']])
    """
    count = len(gpus)
    if count < parallel:
        return [gpus[place % count : place % count + 1] if count else [] for place in range(parallel)]
    return [gpus[count * place // parallel : count * (place + 1) // parallel] for place in range(parallel)]

"""Tasks as jobs of SLURM, through submitit: one array for all that need the same resources.

Each process of a job runs `fit`, which finds its rank in SLURM's variables; the first one then measures. All of them
have the same command, settled when the job is submitted: a job that SLURM starts again finds its run's directory and
newest checkpoint by itself, see `ts2_lightning.cli.launch`.

Signals: submitit would have SLURM send SIGUSR2 before the time is over, and would put the job back into the queue
itself. Our jobs ask for SIGUSR1 instead, as `configs/cluster/fit.slurm` does, and submitit's handler never runs. What
submitit has started hands SIGUSR1 and SIGTERM on to `fit`, where `Preemption` saves and requeues the job. Should SLURM
send them to all processes of a job, `fit` hears them twice, which is the same to it.
"""

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ts2_lightning.callbacks.requeue import requeue
from ts2_lightning.ranges import COUNT, check_number
from ts2_lightning.runs.process_lock import ProcessLock, is_taken
from ts2_lightning.runs.writing import write_whole
from ts2_lightning.studies.execute.board import Board
from ts2_lightning.studies.execute.processes import Processes, forward_signals, measure, train
from ts2_lightning.studies.execute.task import (
    Failure,
    Task,
    fit_options,
    forget_failure,
    has_measures,
    is_trained,
    progress,
    read_failure,
    write_failure,
)
from ts2_lightning.studies.grid import Grid
from ts2_lightning.types import UserError

JOB = "job.json"
SECONDS = 2.0
"""Between two looks at the runs, or at a lock; submitit asks SLURM less often."""

_PATIENCE = 180.0  # seconds until a lock is believed to be another's

WARNING = {"signal": "USR1@300", "requeue": True}
"""Five minutes to save before the time is over, and another turn."""

KINDS: Mapping[str, type] = {
    "setup": list, "teardown": list, "srun_args": list, "additional_parameters": dict, "array_parallelism": int,
    "nodes": int, "ntasks_per_node": int,
}  # fmt: skip
"""Types of the parameters that submitit would take to pieces; the others it writes down as they are."""

_QUEUED = ("PENDING", "UNKNOWN", "REQUEUED", "READY", "PREEMPTED")


# From outside ---------------------------------------------------------------------------------------------------------


def run_on_slurm(tasks: Sequence[Task], grid: Grid, board: Board) -> list[Failure]:
    """Submits what is not done and has no job yet, and watches all until they have ended.

    To stop watching stops no job: the next call finds the jobs by the `job.json` of their runs, and watches them again.

    Args:
        tasks: tasks to be done.
        grid: the grid, with the parameters of its jobs.
        board: is told of each change.

    Returns:
        The tasks that failed.

    Raises:
        UserError: if the jobs cannot be submitted.
    """
    queue = Queue(grid)
    left, watched, failures = list(tasks), set[Task](), []
    while left:
        todo = []
        for task in left.copy():
            if is_done(task):
                board.tell(task, "done")
                left.remove(task)
            elif failure := _failure(task, queue) if task in watched else None:
                failures.append(failure)
                board.tell(task, "failed", f"{failure.message} ({failure.log})")
                left.remove(task)
            elif state := queue.state(task):
                if read_failure(task) is None:  # else an earlier job is about to end, after which it is tried again
                    watched.add(task)
                board.tell(task, _shown(task, state))
            elif is_taken(task.directory):
                board.tell(task, "running elsewhere")
            else:
                todo.append(task)
        if todo:
            queue.submit(todo)
        board.draw()
        if left and not todo:
            time.sleep(SECONDS)
    return failures


def is_done(task: Task) -> bool:
    """Whether nothing is left to do."""
    return is_trained(task) and has_measures(task)


def _shown(task: Task, state: str) -> str:
    submitted = (task.directory / JOB).stat().st_mtime
    knows_better = state == "UNKNOWN" and progress(task).get("updated", 0.0) > submitted  # SLURM keeps no accounts
    if state in _QUEUED and not knows_better:
        return "queued"
    return "measuring" if is_trained(task) else "running"


def _failure(task: Task, queue: "Queue") -> Failure | None:
    """Why a task whose job is, or was, there has failed: what the job noted, or that it ended without a word."""
    failure = read_failure(task)
    if failure is None and queue.state(task) is None and not is_done(task):
        job = remembered(task)
        message = f"SLURM's job {job} has ended before the run was done ({queue.last_state(task)})"
        failure = Failure("measure" if is_trained(task) else "fit", 1, message, str(queue.folder), task.title)
        write_failure(task, failure)
    return failure


def remembered(task: Task) -> str | None:
    """The id of the job that was submitted for it last."""
    try:
        job: str = json.loads((task.directory / JOB).read_text(encoding="utf-8"))["id"]
    except FileNotFoundError:
        return None
    return job


class Queue:
    """SLURM's queue, as far as it is about the jobs of a grid.

    Args:
        grid: the grid whose jobs they are.

    Raises:
        UserError: if there is no SLURM here, or no submitit.
    """

    def __init__(self, grid: Grid) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError("--slurm needs submitit: pip install 'ts2-lightning[slurm]'") from error
        self.grid = grid
        self.folder = grid.directory / "slurm"
        self._submitit = submitit
        self._jobs: dict[str, Any] = {}

    def state(self, task: Task) -> str | None:
        """What SLURM says of a task's job; None if it has none that may still run."""
        job = remembered(task)
        if job is None or self._job(job).watcher.is_done(job):
            return None
        return self.last_state(task)

    def last_state(self, task: Task) -> str:
        """What SLURM has said of a task's job last."""
        job = str(remembered(task))
        return str(self._job(job).watcher.get_state(job, mode="cache")).split(" ")[0].upper()

    def _job(self, job: str) -> Any:
        if job not in self._jobs:
            self._jobs[job] = self._submitit.SlurmJob(self.folder, job)
        return self._jobs[job]

    def submit(self, tasks: Sequence[Task]) -> None:
        """Submits an array for each kind of resources, unless another process has just done it."""
        with _alone(self.folder):
            waiting = [task for task in tasks if self.state(task) is None]
            kinds = dict.fromkeys((task.processes, task.on_gpu) for task in waiting)
            for kind in kinds:
                same = [task for task in waiting if (task.processes, task.on_gpu) == kind]
                executor = self._executor(parameters(same[0], self.grid))
                for task, job in zip(same, self._array(executor, same), strict=True):
                    _remember(task, job.job_id)

    def _executor(self, settings: Mapping[str, Any]) -> Any:
        try:
            executor = self._submitit.SlurmExecutor(self.folder)
        except RuntimeError as error:
            raise UserError("--slurm: there is no srun here; call it where jobs of SLURM can be submitted") from error
        with _explained(self.grid):
            executor.update_parameters(**settings)
        return executor

    def _array(self, executor: Any, tasks: Sequence[Task]) -> list[Any]:
        """Submits some tasks; their jobs."""
        calls = [(run_task, task, tuple(fit_options(task))) for task in tasks]
        with _tried_again(tasks), _explained(self.grid), executor.batch():
            return [executor.submit(*call) for call in calls]


@contextmanager
def _explained(grid: Grid) -> Iterator[None]:
    """Tells in one line what submitit and sbatch object to."""
    try:
        yield
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{grid.file}: slurm: submitit cannot use these parameters: {error}") from error
    except (RuntimeError, OSError) as error:
        said = "; ".join(str(error).splitlines()) or type(error).__name__
        raise UserError(f"{grid.file}: slurm: sbatch has not taken the jobs: {said}") from error


@contextmanager
def _tried_again(tasks: Sequence[Task]) -> Iterator[None]:
    """They stand failed no more, unless they could not be submitted.

    What a job notes as soon as it has begun must not be forgotten, so that this comes before its submission.
    """
    failures = {task: failure for task in tasks if (failure := read_failure(task)) is not None}
    for task in failures:
        forget_failure(task)
    try:
        yield
    except BaseException:
        for task, failure in failures.items():
            write_failure(task, failure)
        raise


def _remember(task: Task, job: str) -> None:
    text = json.dumps({"id": job}) + "\n"
    write_whole(task.directory / JOB, lambda path: path.write_text(text, encoding="utf-8"))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process submits at a time; the others then see its jobs."""
    while (lock := ProcessLock.take(folder)) is None:
        time.sleep(SECONDS)
    try:
        yield
    finally:
        lock.release()


def parameters(task: Task, grid: Grid) -> dict[str, Any]:
    """What submitit is told of a job: what follows from the configuration, and what the grid file says.

    Args:
        task: one of those that need the same.
        grid: the grid, whose `slurm:` comes last.

    Raises:
        UserError: if the configuration leaves the number of processes open, or a parameter is not what submitit needs.
    """
    if task.processes is None:
        raise UserError(
            f"{grid.file}: {task.title}: for SLURM trainer.devices must be a number, the GPUs of each node; add a "
            "configuration such as configs/cluster/1x4.yaml to its base"
        )
    nodes, devices = task.processes
    own = {name: value for name, value in (grid.slurm or {}).items() if value is not None}
    for name, kind in KINDS.items():
        if name in own and kind is int:
            check_number(f"{grid.file}: slurm.{name}", own[name], COUNT)
        elif name in own and not isinstance(own[name], kind):
            what = "a mapping" if kind is dict else "a list, such as [...]"
            raise UserError(f"{grid.file}: slurm.{name}: expected {what}, got {own[name]!r}")
    more = {**WARNING, **own.pop("additional_parameters", {})}
    if isinstance(own.get("time"), str):
        more["time"] = own.pop("time")  # submitit calculates with its own, which is in minutes
    settings = {
        "job_name": grid.name,
        "time": None,  # the cluster's own; submitit's would be five minutes
        "nodes": nodes,
        "ntasks_per_node": devices,
        "cpus_per_task": 8,
        **({"gpus_per_node": devices} if task.on_gpu else {}),
        **own,
        "additional_parameters": more,
    }
    cores = f"--cpus-per-task={settings['cpus_per_task']}"  # of sbatch's, srun knows nothing since SLURM 22.05
    return {**settings, "srun_args": ["--kill-on-bad-exit=1", cores, *own.get("srun_args", [])]}


# In a job -------------------------------------------------------------------------------------------------------------


def run_task(task: Task, options: Sequence[str]) -> str:
    """What each process of a job does.

    Args:
        task: the task to be done.
        options: command line of `fit`.

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
    with forward_signals(processes, (signal.SIGUSR1, signal.SIGTERM)), _locked(task.directory, rank) as keep:
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

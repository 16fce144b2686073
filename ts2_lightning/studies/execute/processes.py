"""One task from its beginning, or from where it was left, to its end: train, then measure.

Each is a process of its own; they are told to end together, and none is left behind.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Literal

import ts2_lightning
from ts2_lightning.studies.execute.task import (
    Failure,
    Stage,
    Task,
    fit_options,
    forget_failure,
    has_measures,
    is_trained,
    measured,
    read_failure,
    write_failure,
)

_SAID = re.compile(r"^(\[rank ?\d+\]:? ?)?")
_ERROR = "error: "
_TRACEBACK = "Traceback (most recent call last):"

Outcome = Failure | Literal["done", "stopped"]
"""How a task, or a part of it, ended; `stopped`: it was told to, and is to be gone on with."""

_COMMAND = (sys.executable, str(Path(ts2_lightning.__file__).with_name("cli") / "__main__.py"))
# By its path: with `-m`, the files of the working directory would come before the libraries of the same names.

# Processes ------------------------------------------------------------------------------------------------------------


class Processes:
    """The processes that this one has started, each in a session of its own, so that Ctrl-C reaches this one alone."""

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        """The signal after which nothing more is started."""
        self._lock = threading.RLock()  # a signal's handler may interrupt who holds it
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], keep: Sequence[int] = ()
    ) -> int | None:
        """Starts a process and waits for its end.

        Args:
            command: program and arguments.
            log: where all that it says is added.
            environment: environment of the process.
            keep: descriptors that it inherits.

        Returns:
            Its exit status, the negative number of the signal that killed it, or None if it was told to end, or was
            not started because of that.
        """
        with log.open("ab") as out, self._lock:
            if self.stopped_by is not None:
                return None
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=keep,
                start_new_session=True,
            )
            self._running.add(process)
            if self.stopped_by is not None:  # heard in the meantime
                process.send_signal(self.stopped_by)
        try:
            status = process.wait()
        finally:
            with self._lock:
                self._running.discard(process)
                _kill(process)  # what it has started itself and not ended
        return None if self.stopped_by is not None and status else status

    def stop(self, number: int) -> None:
        """Hands a signal on to the processes, and starts no more."""
        with self._lock:
            self.stopped_by = self.stopped_by or number
            for process in self._running:
                process.send_signal(number)

    def kill(self) -> None:
        """Ends them at once, with all that they have started."""
        with self._lock:
            self.stopped_by = self.stopped_by or signal.SIGKILL
            for process in self._running:
                _kill(process)


@contextmanager
def forward_signals(processes: Processes, signals: Sequence[int]) -> Iterator[None]:
    """Hands signals on to the processes, after which no more of them start; a second Ctrl-C kills them."""

    def forward(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and processes.stopped_by is not None:
            processes.kill()
        else:
            processes.stop(number)

    if threading.current_thread() is not threading.main_thread():  # only there signals can be heard
        yield
        return
    before = {number: signal.signal(number, forward) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill(leader: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)


def last_words(log: Path, offset: int, status: int) -> str:
    """What a process that failed said in the end: its `error: ` line, else what its traceback ends with.

    Args:
        log: where it wrote.
        offset: bytes that were there before it.
        status: its exit status, or the negative number of a signal.
    """
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (", as a machine that is out of memory does" if name == "SIGKILL" else "")
    with log.open("rb") as stream:
        stream.seek(offset)
        text = stream.read().decode(errors="replace")
    lines = [_SAID.sub("", line.rstrip()) for line in re.split(r"[\r\n]+", text)]
    lines = [line for line in lines if line]
    for line in reversed(lines):
        if line.startswith(_ERROR):
            return line.removeprefix(_ERROR)
    if _TRACEBACK in lines:
        newest = len(lines) - lines[::-1].index(_TRACEBACK)
        raised = [line for line in lines[newest:] if not line.startswith(" ")]
        if raised:
            return raised[0]
    return lines[-1] if lines else f"exit status {status}, and it said nothing"


# Tasks ----------------------------------------------------------------------------------------------------------------


def train_and_measure(
    task: Task, processes: Processes, descriptor: int, environment: Mapping[str, str], tell: Callable[[str], None]
) -> Outcome:
    """Does what is left of a task. Who calls has its lock.

    Args:
        task: what to do.
        processes: what starts the commands.
        descriptor: descriptor of the lock.
        environment: environment of the commands.
        tell: hears which part begins: `running` or `measuring`.
    """
    forget_failure(task)
    if not is_trained(task):
        tell("running")
        outcome = train(task, fit_options(task), processes, task.directory / "fit.log", environment, [descriptor])
        if outcome != "done":
            return outcome
    return measure(task, processes, environment, [descriptor], tell)


def finished_tasks(tasks: Sequence[Task], processes: Processes, environment: Mapping[str, str]) -> set[Task]:
    """Those of some tasks with which nothing is left to do.

    Whether values are of the present prompts and files, only `measure` knows. It is asked once for all tasks with the
    same specification, which takes hardly longer than for one; where it fails, each is asked by itself in its turn.
    """
    alike: dict[tuple[str, str], list[Task]] = {}
    for task in tasks:
        if task.options and is_trained(task) and has_measures(task) and read_failure(task) is None:
            alike.setdefault((task.device, json.dumps(task.specs)), []).append(task)
    return {task for same in alike.values() if _are_measured(same, processes, environment) for task in same}


def _are_measured(tasks: Sequence[Task], processes: Processes, environment: Mapping[str, str]) -> bool:
    log = tasks[0].directory.parent / "measure.log"
    where = [str(measured(task)) for task in tasks]
    return processes.run(_logged(_measure_words(tasks[0], where), log), log, environment) == 0


def train(
    task: Task,
    options: Sequence[str],
    processes: Processes,
    log: Path,
    environment: Mapping[str, str],
    keep: Sequence[int] = (),
) -> Outcome:
    """Runs `fit`, or this process's rank of it. Of several ranks the first is the last to end: it exports."""
    return _run(task, "fit", ["fit", *options], processes, log, environment, keep)


def measure(
    task: Task,
    processes: Processes,
    environment: Mapping[str, str],
    keep: Sequence[int],
    tell: Callable[[str], None],
) -> Outcome:
    """Runs `measure` with all specifications, of which it makes what is missing, once the training is finished."""
    if not is_trained(task):
        message = f"fit has ended without an error, but {measured(task) / 'state.json'} does not call the run finished"
        return _failed(task, Failure("fit", 0, message, str(task.directory / "fit.log"), task.title))
    tell("measuring")
    what = [str(measured(task))] if task.options else _base_model(task)
    log = task.directory / "measure.log"
    return _run(task, "measure", _measure_words(task, what), processes, log, environment, keep)


def _base_model(task: Task) -> list[str]:
    """Options that name the base model, which is no run."""
    return [task.model, "--out", str(task.directory), *(["--config", task.config] if task.config else [])]


def _measure_words(task: Task, what: Sequence[str]) -> list[str]:
    """A command for all specifications together: to start and to load the model takes longer than many a measure."""
    specs = [word for spec in task.specs for word in ("--spec", json.dumps(spec))]
    own = ["--runs_dir", str(task.directory.parent)]
    return ["measure", *what, *specs, *own, *(["--device", task.device] if task.device else [])]


def _logged(words: Sequence[str], log: Path) -> list[str]:
    """A command, after the log has been told of it."""
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"\n== {now}: cd {shlex.quote(os.getcwd())} && python -m ts2_lightning.cli {shlex.join(words)}\n")
    return [*_COMMAND, *words]


def _run(
    task: Task,
    stage: Stage,
    words: Sequence[str],
    processes: Processes,
    log: Path,
    environment: Mapping[str, str],
    keep: Sequence[int],
) -> Outcome:
    command = _logged(words, log)
    offset = log.stat().st_size
    status = processes.run(command, log, environment, keep)
    if status is None:
        return "stopped"
    if status == 0:
        return "done"
    return _failed(task, Failure(stage, status, last_words(log, offset, status), str(log), task.title))


def _failed(task: Task, failure: Failure) -> Failure:
    write_failure(task, failure)
    return failure

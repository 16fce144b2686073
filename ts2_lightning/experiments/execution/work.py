"""One task from its beginning, or from where it was left, to its end: train, then measure."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

import ts2_lightning
from ts2_lightning.experiments.execution.processes import Processes, last_words
from ts2_lightning.experiments.execution.task import (
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

Outcome = Failure | Literal["done", "stopped"]
"""How a task, or a part of it, ended; `stopped`: it was told to, and is to be gone on with."""

_COMMAND = (sys.executable, str(Path(ts2_lightning.__file__).with_name("cli") / "__main__.py"))
# By its path: with `-m`, the files of the working directory would come before the libraries of the same names.


def work(
    task: Task, processes: Processes, descriptor: int, environment: Mapping[str, str], tell: Callable[[str], None]
) -> Outcome:
    """Does what is left of a task. Who calls has its lock.

    Args:
        task: what to do.
        processes: which start the commands.
        descriptor: of the lock.
        environment: of the commands.
        tell: hears which part begins: `running` or `measuring`.
    """
    forget_failure(task)
    if not is_trained(task):
        tell("running")
        outcome = train(task, fit_options(task), processes, task.directory / "fit.log", environment, [descriptor])
        if outcome != "done":
            return outcome
    return measure(task, processes, environment, [descriptor], tell)


def settled(tasks: Sequence[Task], processes: Processes, environment: Mapping[str, str]) -> set[Task]:
    """Those of some tasks with which nothing is left to do.

    Whether values are of the present prompts and files, only `measure` knows. It is asked once for all tasks with the
    same specification, which takes hardly longer than for one; where it fails, each is asked by itself in its turn.
    """
    alike: dict[tuple[str, ...], list[Task]] = {}
    for task in tasks:
        if task.options and is_trained(task) and has_measures(task) and read_failure(task) is None:
            alike.setdefault((task.device, *task.specs), []).append(task)
    return {task for same in alike.values() if _are_measured(same, processes, environment) for task in same}


def _are_measured(tasks: Sequence[Task], processes: Processes, environment: Mapping[str, str]) -> bool:
    log = tasks[0].directory.parent / "measure.log"
    where = [str(measured(task)) for task in tasks]
    return all(
        processes.run(_logged(_measure_words(tasks[0], where, spec), log), log, environment) == 0
        for spec in tasks[0].specs
    )


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
    """Runs `measure` for each specification of which a measure is missing, once the training is finished."""
    if not is_trained(task):
        message = f"fit has ended without an error, but {measured(task) / 'state.json'} does not call the run finished"
        return _failed(task, Failure("fit", 0, message, str(task.directory / "fit.log"), task.title))
    for spec in task.specs:
        tell("measuring")
        what = [str(measured(task))] if task.options else _base_model(task)
        log = task.directory / "measure.log"
        outcome = _run(task, "measure", _measure_words(task, what, spec), processes, log, environment, keep)
        if outcome != "done":
            return outcome
    return "done"


def _base_model(task: Task) -> list[str]:
    """The base model, which is no run, and what is known of one."""
    return [task.model, "--out", str(task.directory), *(["--config", task.config] if task.config else [])]


def _measure_words(task: Task, what: Sequence[str], spec: str) -> list[str]:
    own = ["--runs_dir", str(task.directory.parent)]
    return ["measure", *what, "--spec", spec, *own, *(["--device", task.device] if task.device else [])]


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

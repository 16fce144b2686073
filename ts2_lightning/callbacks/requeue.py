"""The job of SLURM that this process belongs to, and its way back into the queue.

A signal does not say why it comes. A preempted job gets SIGCONT and SIGTERM at once, runs on for the GraceTime of its
partition (0 by default), and then gets them again and, KillWait (30 s by default) later, SIGKILL. `scancel` begins with
SIGCONT and SIGTERM as well, and so does the end of the time limit. So the job's state in SLURM decides, which is read
after the checkpoint is written:

- A job in its grace time is RUNNING and has a PreemptTime. If it ends by itself, versions before 24.05 take it for one
  that is done and never start it again, and later ones hold it after the fifth time; so it requeues itself.
- With PreemptMode=REQUEUE SLURM requeues it at the end of the grace time, and counts that in Restarts.
- With PreemptMode=CANCEL its state is PREEMPTED then, and it can still be requeued.
- A job whose state is CANCELLED could be requeued too, which would undo the `scancel`: it is left alone. `scontrol
  requeue Incomplete` touches no job that has ended, so that a `scancel` that comes in between is heeded too.

While processes of a job are left, `scontrol show job` has COMPLETING in place of its state; the state itself is in its
JSON, which not every SLURM can write. There a job that has ended is left alone.
"""

import json
import os
import re
import signal
import subprocess
from typing import NamedTuple

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that announce the end of the job's time, after which it is requeued: `sbatch --signal=USR1@300`."""

_SECONDS = 30.0  # for an answer of SLURM
_MAY_GO_ON = {"PREEMPTED", "TIMEOUT"}  # states of a job that has ended, but that nobody has cancelled


class JobState(NamedTuple):
    """The state of a job in SLURM.

    Attributes:
        name: name of the state, or COMPLETING.
        restarts: number of times that the job has been requeued.
        preempted: whether it has been chosen to make room for another job.
    """

    name: str
    restarts: int
    preempted: bool


def requeue(number: int) -> bool:
    """Puts this SLURM job into the queue again, if that is what its signal means.

    Args:
        number: number of the signal that ends the job. After one of `WARNINGS` it goes back, unless it was cancelled;
            after SIGTERM only if it is preempted; after others never.

    Returns:
        Whether it will run again; False outside of a job.
    """
    job = job_id()
    if job is None or number not in (*WARNINGS, signal.SIGTERM):
        return False
    state = ask(job)
    if state is None:
        return False
    if _is_queued_again(state):
        return True
    if number == signal.SIGTERM and not state.preempted:
        return False
    limits = [] if state.name == "COMPLETING" and _states_in_json(job) & _MAY_GO_ON else ["Incomplete"]
    _scontrol("requeue", *limits, job)
    state = ask(job)
    return state is not None and _is_queued_again(state)


def job_id() -> str | None:
    """This process's job, or task of an array, as `scontrol` calls it; None outside of one."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    return job if re.fullmatch(r"\d+(_\d+)?", job) else None


def ask(job: str) -> JobState | None:
    """The state of a job in SLURM; None if SLURM does not answer."""
    return parse_state(_scontrol("show", "job", job) or "")


def parse_state(text: str) -> JobState | None:
    """The state in the output of `scontrol show job`; None if it is no such output.

    Example:
        >>> parse_state('''JobId=4711 JobName=ts2
        ...    JobState=RUNNING Reason=None Dependency=(null)
        ...    Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0
        ...    PreemptEligibleTime=2026-01-01T08:00:00 PreemptTime=2026-01-01T09:30:00''')
        JobState(name='RUNNING', restarts=2, preempted=True)
    """
    state = re.search(r"^ +JobState=(\w+)", text, re.MULTILINE)
    restarts = re.search(r"^ +Requeue=\d+ Restarts=(\d+)", text, re.MULTILINE)
    if state is None or restarts is None:
        return None
    preempted = re.search(r"^ +PreemptEligibleTime=\S+ PreemptTime=\d", text, re.MULTILINE)
    return JobState(state[1], int(restarts[1]), preempted is not None)


def _is_queued_again(state: JobState) -> bool:
    return state.restarts > int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _states_in_json(job: str) -> set[str]:
    """The state of a job and what is added to it, such as COMPLETING; nothing if this SLURM does not write JSON."""
    try:
        states = json.loads(_scontrol("--json", "show", "job", job) or "")["jobs"][0]["job_state"]
    except (ValueError, LookupError, TypeError):
        return set()
    return set(states) if isinstance(states, list) else {states}


def _scontrol(*words: str) -> str | None:
    """The output of the command; None if it is not installed, or fails, and then stderr has the reason."""
    try:
        done = subprocess.run(
            ["scontrol", *words],
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            start_new_session=True,  # what is sent to all of this process's group is not for it
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

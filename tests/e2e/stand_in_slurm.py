"""SLURM on one machine, as far as submitit and a run ask for it: `stand_in_slurm.py PROGRAM ARGUMENTS`.

`sbatch FILE` starts the tasks of an array one after the other, each again if it was requeued. `srun ... COMMAND` starts
the processes of a task; it ends them all when one fails. `scontrol show job`, also as JSON, and `scontrol requeue` know
the rules of SLURM's controller (`_job_requeue_op` of 26.05), and `scancel` cancels. `sacct` tells the states. `warn`
and `preempt`, which a test calls, are what SLURM does by itself. All of it is noted in the working directory, or in
that of the variable STAND_IN_SLURM.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROGRAMS = ("sbatch", "srun", "scontrol", "scancel", "sacct")
JOB = 4711
WITHOUT_JSON = "STAND_IN_SLURM_WITHOUT_JSON"
"""A variable: this SLURM is an old one."""

Job = dict[str, Any]


def install(directory: Path) -> None:
    """Puts the programs into a directory."""
    directory.mkdir()
    for program in PROGRAMS:
        file = directory / program
        file.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {program} "$@"\n')
        file.chmod(0o755)


def here() -> Path:
    """Where everything is noted."""
    return Path(os.environ.get("STAND_IN_SLURM", "."))


# --- the controller's jobs ------------------------------------------------------------------------------------------


def read_job(name: str) -> Job:
    """What the controller knows of a job; one that it has not heard of runs."""
    try:
        job: Job = json.loads((here() / f"job-{name}.json").read_text())
    except FileNotFoundError:
        return {"state": ["RUNNING"], "restarts": 0, "requeue": 1, "preempted": False}
    return job


def write_job(name: str, **changes: Any) -> None:
    """Changes what the controller knows of a job."""
    beside = here() / f"job-{name}.{os.getpid()}"
    beside.write_text(json.dumps(read_job(name) | changes))
    os.replace(beside, here() / f"job-{name}.json")


def send(*names: str) -> None:
    """Has `srun` send signals to all processes of the running job."""
    (here() / "signal.new").write_text(" ".join(names))
    os.replace(here() / "signal.new", here() / "signal")


def warn() -> None:
    """The time limit of the running job is near."""
    send("SIGUSR1")


def preempt(name: str, mode: str, grace: bool) -> None:
    """Another job needs the room: its end, or the beginning of its grace time."""
    write_job(name, preempted=True)
    if not grace and mode == "REQUEUE":
        write_job(name, state=["PENDING", "COMPLETING"], restarts=read_job(name)["restarts"] + 1)
    elif not grace:
        write_job(name, state=["PREEMPTED", "COMPLETING"])
    send("SIGCONT", "SIGTERM")


def scancel(name: str) -> None:
    """Ends a job for good."""
    write_job(name, state=["CANCELLED", "COMPLETING"])
    send("SIGCONT", "SIGTERM")


def scontrol(*words: str) -> None:
    """`show job NAME`, with `--json` before or without, and `requeue [Incomplete] NAME`."""
    name = words[-1]
    if words[:-1] == ("--json", "show", "job"):
        if WITHOUT_JSON in os.environ:
            sys.exit("scontrol: unrecognized option '--json'")
        print(json.dumps({"jobs": [{"job_id": name, "job_state": read_job(name)["state"]}]}))
    elif words[:-1] == ("show", "job"):
        print(_shown(name, read_job(name)))
    elif words[:-1] in (("requeue",), ("requeue", "Incomplete")):
        _requeue(name, incomplete=len(words) == 3)
    else:
        sys.exit(f"scontrol: {words}")


def _shown(name: str, job: Job) -> str:
    state = "COMPLETING" if "COMPLETING" in job["state"] else job["state"][0]
    preempted = "2026-01-01T09:00:00" if job["preempted"] else "None"
    return (
        f"JobId={name} JobName=ts2\n"
        "   UserId=me(1000) GroupId=me(1000) MCS_label=N/A\n"
        f"   JobState={state} Reason=None Dependency=(null)\n"
        f"   Requeue={job['requeue']} Restarts={job['restarts']} BatchFlag=1 Reboot=0 ExitCode=0:0\n"
        f"   PreemptEligibleTime=2026-01-01T08:00:00 PreemptTime={preempted}\n"
    )


def _requeue(name: str, incomplete: bool) -> None:
    job = read_job(name)
    state = job["state"][0]
    if incomplete and state not in ("RUNNING", "SUSPENDED"):
        return
    if not job["requeue"]:
        sys.exit(f"Requested operation is presently disabled for job {name}")
    if state == "PENDING":
        sys.exit(f"Job is pending execution for job {name}")
    write_job(name, state=["PENDING", "COMPLETING"], restarts=job["restarts"] + 1)
    with (here() / "requeued.txt").open("a") as notes:
        notes.write(f"{name}\n")


# --- jobs -------------------------------------------------------------------------------------------------------------


def sbatch(file: str) -> None:
    """Leaves the work to a process of its own."""
    copies = len(list(Path().glob("submitted-*.sh")))
    Path(f"submitted-{copies}.sh").write_text(Path(file).read_text())
    with open("controller.log", "a") as log:
        command = [sys.executable, __file__, "control", file, str(JOB + copies)]
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    print(f"Submitted batch job {JOB + copies}")


def control(file: str, job: str) -> None:
    """Runs the tasks."""
    script = Path(file).read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, flags=re.MULTILINE))
    count = int(options["array"].split("%")[0].split("-")[1]) + 1 if "array" in options else 1
    names = [f"{job}_{task}" for task in range(count)] if "array" in options else [job]
    states = dict.fromkeys(names, "PENDING")

    def tell(name: str, state: str) -> None:
        states[name] = state
        lines = [f"{name}|{state}|node" for name, state in states.items()]
        Path("states.new").write_text("\n".join(["JobID|State|NodeList", *lines, ""]))
        os.replace("states.new", "states.txt")

    processes = int(options["nodes"]) * int(options["ntasks-per-node"])
    for number, name in enumerate(names):
        while True:
            tell(name, "RUNNING")
            write_job(name, state=["RUNNING"], preempted=False)
            place = {
                "SLURM_JOB_ID": int(job) + 1000 + number, "SLURM_JOB_NAME": options["job-name"],
                "SLURM_NNODES": options["nodes"], "SLURM_JOB_NUM_NODES": options["nodes"],
                "SLURM_NTASKS": processes, "SLURM_NTASKS_PER_NODE": options["ntasks-per-node"],
                "SLURM_NODELIST": "127.0.0.1", "SLURM_CPUS_PER_TASK": 1,
                "SLURM_RESTART_COUNT": read_job(name)["restarts"],
                "SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": number,
            }  # fmt: skip
            if "array" not in options:
                place = {key: value for key, value in place.items() if "ARRAY" not in key} | {"SLURM_JOB_ID": job}
            done = subprocess.run(["bash", file], env=os.environ | {key: str(value) for key, value in place.items()})
            if read_job(name)["state"][0] != "PENDING":
                break
        tell(name, "COMPLETED" if done.returncode == 0 else "FAILED")


def srun(*words: str) -> None:
    """Runs a command in every process of the task, and hands on what the controller sends."""
    first = next(place for place, word in enumerate(words) if Path(word).name.startswith("python"))
    command = list(words[first:])
    (here() / "srun.txt").write_text(" ".join(words[:first]))
    tasks = int(os.environ["SLURM_NTASKS_PER_NODE"])
    running = []
    for rank in range(int(os.environ["SLURM_NTASKS"])):
        place = {"SLURM_PROCID": rank, "SLURM_NODEID": rank // tasks, "SLURM_LOCALID": rank % tasks, "SLURM_STEP_ID": 0}
        surroundings = os.environ | {name: str(value) for name, value in place.items()}
        running.append(subprocess.Popen(command, env=surroundings))
    sent = here() / "signal"
    while None in (statuses := [process.poll() for process in running]):
        if any(statuses):
            for process in running:
                process.terminate()
        if sent.exists():
            numbers = [signal.Signals[name] for name in sent.read_text().split()]
            sent.unlink()
            for process, number in ((process, number) for process in running for number in numbers):
                process.send_signal(number)
        time.sleep(0.05)
    sys.exit(max(abs(status) for status in statuses if status is not None))


def sacct(*words: str) -> None:
    """The states, or nothing if there are no jobs yet."""
    print(Path("states.txt").read_text() if Path("states.txt").exists() else "JobID|State|NodeList")


if __name__ == "__main__":
    programs = {"sbatch": sbatch, "control": control, "srun": srun, "scontrol": scontrol, "sacct": sacct}
    (programs | {"scancel": scancel})[sys.argv[1]](*sys.argv[2:])

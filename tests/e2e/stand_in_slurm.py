"""SLURM on one machine, as far as submitit and a run ask for it: `stand_in_slurm.py PROGRAM ARGUMENTS`.

`sbatch FILE` starts the tasks of an array one after the other, each again if it was requeued. `srun ... COMMAND` starts
the processes of a task; it ends them all when one fails, and sends them SIGUSR1 when there is a file `warn`, which it
removes. `scontrol requeue JOB_TASK`, and `sacct`, which tells the states. All of it is noted in the working directory.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "scontrol", "sacct")
JOB = 4711


def install(directory: Path) -> None:
    """Puts the programs into a directory."""
    directory.mkdir()
    for program in PROGRAMS:
        file = directory / program
        file.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {program} "$@"\n')
        file.chmod(0o755)


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
        again = 0
        while True:
            tell(name, "RUNNING")
            place = {
                "SLURM_JOB_ID": int(job) + 1000 + number, "SLURM_JOB_NAME": options["job-name"],
                "SLURM_NNODES": options["nodes"], "SLURM_JOB_NUM_NODES": options["nodes"],
                "SLURM_NTASKS": processes, "SLURM_NTASKS_PER_NODE": options["ntasks-per-node"],
                "SLURM_NODELIST": "127.0.0.1", "SLURM_CPUS_PER_TASK": 1, "SLURM_RESTART_COUNT": again,
                "SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": number,
            }  # fmt: skip
            if "array" not in options:
                place = {key: value for key, value in place.items() if "ARRAY" not in key} | {"SLURM_JOB_ID": job}
            done = subprocess.run(["bash", file], env=os.environ | {key: str(value) for key, value in place.items()})
            if not Path(f"requeue-{name}").exists():
                break
            Path(f"requeue-{name}").unlink()
            again += 1
        tell(name, "COMPLETED" if done.returncode == 0 else "FAILED")


def srun(*words: str) -> None:
    """Runs a command in every process of the task."""
    command = list(words[next(place for place, word in enumerate(words) if Path(word).name.startswith("python")) :])
    tasks = int(os.environ["SLURM_NTASKS_PER_NODE"])
    running = []
    for rank in range(int(os.environ["SLURM_NTASKS"])):
        place = {"SLURM_PROCID": rank, "SLURM_NODEID": rank // tasks, "SLURM_LOCALID": rank % tasks, "SLURM_STEP_ID": 0}
        surroundings = os.environ | {name: str(value) for name, value in place.items()}
        running.append(subprocess.Popen(command, env=surroundings))
    while None in (statuses := [process.poll() for process in running]):
        if any(statuses):
            for process in running:
                process.terminate()
        if Path("warn").exists():
            Path("warn").unlink()
            for process in running:
                process.send_signal(signal.SIGUSR1)
        time.sleep(0.05)
    sys.exit(max(abs(status) for status in statuses if status is not None))


def scontrol(what: str, name: str) -> None:
    """Notes that a job shall run again."""
    Path(f"{what}-{name}").touch()
    with open("requeued.txt", "a") as notes:
        notes.write(f"{name}\n")


def sacct(*words: str) -> None:
    """The states, or nothing if there are no jobs yet."""
    print(Path("states.txt").read_text() if Path("states.txt").exists() else "JobID|State|NodeList")


if __name__ == "__main__":
    {"sbatch": sbatch, "control": control, "srun": srun, "scontrol": scontrol, "sacct": sacct}[sys.argv[1]](
        *sys.argv[2:]
    )

"""How many programs the sandbox runs in a second, beside what starting an interpreter for each of them would cost.

    python -m benchmarks.sandbox --data ../shared/data/eval/humaneval_000_081.jsonl.gz --out FILE

The programs are HumanEval's own solutions with their tests. `per_second` is by the clock, over all workers;
`per_processor_second` is over the processor time of servers and programs, and hardly changes on a busy machine.
"""

import argparse
import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ts2_lightning.sandbox import Program, Sandbox, SandboxSettings
from ts2_lightning.sandbox.ways import ENVIRONMENT

SECONDS = 30.0  # nothing here is wrong, and a busy machine is slow


def read_programs(file: Path) -> list[Program]:
    """The solutions of a file of HumanEval, each with its test.

    Args:
        file: JSON lines, packed with gzip, of `task_id`, `prompt`, `canonical_solution`, `test`, `entry_point`.
    """
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Program(
            row["task_id"],
            f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\ncheck({row['entry_point']})",
            SECONDS,
        )
        for row in rows
    ]


def rates(run: Callable[[], int], count: int, rounds: int) -> dict[str, float]:
    """Programs in a second of some rounds, median, after one that fills the caches.

    Args:
        run: runs all programs, and returns how many have passed.
        count: number of programs, all of which have to pass.
        rounds: number of rounds.
    """
    clock = []
    for number in range(rounds + 1):
        begun = time.perf_counter()
        passed = run()
        if passed != count:
            raise RuntimeError(f"{count - passed} of {count} right programs have not passed")
        if number:
            clock.append(count / (time.perf_counter() - begun))
    return {"per_second": round(statistics.median(clock), 1), "least": round(min(clock), 1)}


def children_seconds() -> float:
    """Processor time of the children that have ended and been waited for."""
    times = os.times()
    return times.children_user + times.children_system


def measure(programs: list[Program], settings: SandboxSettings, rounds: int) -> dict[str, Any]:
    """Programs that the sandbox runs in a second by the clock, and in a second of processor time.

    Args:
        programs: programs.
        settings: settings of the sandbox.
        rounds: number of rounds.
    """
    before = children_seconds()
    with Sandbox(settings) as sandbox:
        layers = sandbox.layers
        speed = rates(lambda: sum(one.passed for one in sandbox.run(programs)), len(programs), rounds)
    return {**speed, "per_processor_second": _per_processor_second(programs, rounds, before), "layers": list(layers)}


def measure_interpreters(programs: list[Program], rounds: int) -> dict[str, float]:
    """The same for an interpreter that is started for each program.

    Args:
        programs: programs.
        rounds: number of rounds.
    """
    before = children_seconds()
    speed = rates(lambda: sum(fresh_interpreters(programs)), len(programs), rounds)
    return {**speed, "per_processor_second": _per_processor_second(programs, rounds, before)}


def _per_processor_second(programs: list[Program], rounds: int, before: float) -> float:
    return round(len(programs) * (rounds + 1) / (children_seconds() - before), 1)


def fresh_interpreters(programs: list[Program]) -> Iterator[bool]:
    """Runs each program in an interpreter of its own, without any layer: the plain way.

    Args:
        programs: programs.
    """
    for program in programs:
        command = [sys.executable, "-S", "-c", program.code]
        yield subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    programs = read_programs(options.data)
    results: dict[str, Any] = {}
    for workers in sorted({1, len(os.sched_getaffinity(0))}):
        settings = SandboxSettings(run_code=True, workers=workers)
        results[f"sandbox, workers: {workers}"] = measure(programs, settings, options.rounds)
    results["an interpreter for each, unconfined"] = measure_interpreters(programs, 1)
    record = {
        "command": f"python -m benchmarks.sandbox --data {options.data} --out {options.out}",
        "machine": {
            "processor": platform.machine(), "cores": len(os.sched_getaffinity(0)),
            "kernel": platform.release().split("-")[0], "python": platform.python_version(),
            "load": round(os.getloadavg()[0], 1),
        },
        "programs": len(programs),
        "rounds": options.rounds,
        "results": results,
    }  # fmt: skip
    text = json.dumps(record, indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""How many programs the sandbox runs in a second, beside what starting an interpreter for each of them would cost.

    python -m benchmarks.sandbox --data ../shared/data/eval/humaneval_000_081.jsonl.gz --out FILE

The programs are HumanEval's own solutions with their tests. Subjects take turns, each from the start of its processes
to their end; processor seconds of all of them, and ratios to an interpreter for each program in the same round: median
and quartiles. `per_second` is by the clock, over all workers.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

from benchmarks import record
from ts2_lightning.sandbox import Program, Sandbox, SandboxSettings
from ts2_lightning.sandbox.ways import ENVIRONMENT

INTERPRETERS = "an interpreter for each, unconfined"
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


def turn(run: Callable[[], int], count: int) -> tuple[float, float]:
    """Processor seconds of a turn, those of all processes that it starts and ends included, and seconds that passed.

    Args:
        run: function that runs all programs, and returns how many have passed.
        count: number of programs, all of which have to pass.

    Raises:
        RuntimeError: one has not.
    """
    processor, begun = record.processor_seconds(), time.perf_counter()
    passed = run()
    if passed != count:
        raise RuntimeError(f"{count - passed} of {count} right programs have not passed")
    return record.processor_seconds() - processor, time.perf_counter() - begun


def confined(programs: list[Program], workers: int) -> int:
    """How many programs pass in the sandbox, from its start to its end.

    Args:
        programs: programs.
        workers: number of workers.
    """
    with Sandbox(SandboxSettings(run_code=True, workers=workers)) as sandbox:
        return sum(one.passed for one in sandbox.run(programs))


def layers_here() -> list[str]:
    """The layers of the sandbox on this machine."""
    with Sandbox(SandboxSettings(run_code=True, workers=1)) as sandbox:
        return list(sandbox.layers)


def measure(programs: list[Program], workers: Collection[int], rounds: int) -> dict[str, dict[str, float]]:
    """What every subject takes in its turns, and its ratios to an interpreter for each program.

    Args:
        programs: programs, all of them right.
        workers: numbers of workers of the sandbox; each is a subject.
        rounds: number of rounds, after one that fills the caches.
    """
    subjects: dict[str, Callable[[], int]] = {INTERPRETERS: lambda: sum(fresh_interpreters(programs))}
    subjects |= {f"sandbox, workers: {number}": partial(confined, programs, number) for number in workers}
    processor: dict[str, list[float]] = {name: [] for name in subjects}
    passed: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, run in subjects.items():
            of_turn = turn(run, len(programs))
            if number:
                processor[name].append(of_turn[0])
                passed[name].append(of_turn[1])
    rows = record.side_by_side(processor, INTERPRETERS, "to_interpreters")
    for name, row in rows.items():
        row["per_processor_second"] = round(len(programs) / statistics.median(processor[name]), 1)
        row["per_second"] = round(len(programs) / statistics.median(passed[name]), 1)
    return rows


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
    results = measure(programs, sorted({1, len(os.sched_getaffinity(0))}), options.rounds)
    record.show(results)
    figures = {"programs": len(programs), "layers": layers_here(), "rounds": options.rounds, "results": results}
    record.write(options.out, figures)


if __name__ == "__main__":
    main()

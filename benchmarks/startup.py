"""What a command costs before it does anything, beside importing torch, which any of them that trains must.

    python -m benchmarks.startup --out benchmarks/results/startup_cpu.json

Processor seconds (user and system) of whole processes with one thread. Subjects take turns; each has its median, and
its ratios to `import torch` in the same rounds: median and quartiles. They hardly change on another machine.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import record
from benchmarks.record import ROOT

UNIT = "import torch"
_COMMAND = [sys.executable, str(ROOT / "cli.py")]
SUBJECTS: dict[str, list[str]] = {
    UNIT: [sys.executable, "-c", "import torch"],
    "import lightning.pytorch": [sys.executable, "-c", "import lightning.pytorch"],
    "--help": [*_COMMAND, "--help"],
    "losses": [*_COMMAND, "losses"],
    "fit --help": [*_COMMAND, "fit", "--help"],
    "fit --print_config": [*_COMMAND, "fit", "--model.lm.path", "x", "--print_config"],
}
"""Name -> command line."""


def processor_seconds(command: list[str]) -> float:
    """User and system seconds of a process and all that it starts.

    Args:
        command: Command line.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    before = record.processor_seconds()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return record.processor_seconds() - before


def measure(subjects: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of every subject in every round, after one round that fills the caches of disk and bytecode."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, command in subjects.items():
            spent = processor_seconds(command)
            if number:
                seconds[name].append(spent)
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median of every subject, and its ratios to `import torch`."""
    return record.side_by_side(seconds, UNIT, "to_import_torch")


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = summary(measure(SUBJECTS, options.rounds))
    record.show(results)
    record.write(options.out, {"rounds": options.rounds, "results": results})


if __name__ == "__main__":
    main()

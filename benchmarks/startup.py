"""What a command costs before it does anything, beside importing torch, which any of them that trains must.

    python -m benchmarks.startup --out benchmarks/results/startup_cpu.json

Processor seconds (user and system) of whole processes with one thread. Rounds take turns; each subject has its median
and its ratio to `import torch` in the same rounds, which hardly changes on another machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
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
    before = os.times()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def measure(subjects: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of every subject in every round, after one round that fills the caches of disk and bytecode."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, command in subjects.items():
            spent = processor_seconds(command)
            if number:
                seconds[name].append(spent)
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Median of every subject, and its ratio to that of `import torch`."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: {"processor_seconds": round(median, 3), "ratio_to_import_torch": round(median / medians[UNIT], 2)}
        for name, median in medians.items()
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = summary(measure(SUBJECTS, options.rounds))
    record = {"cpu": platform.processor(), "python": platform.python_version(), "rounds": options.rounds, **results}
    text = json.dumps(record, indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

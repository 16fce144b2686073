"""Lists the benchmarks, or runs them one after the other.

    python -m benchmarks                          # the list
    python -m benchmarks --run                    # all that need no file, with their own settings; hours
    python -m benchmarks --run startup training_step

Each is a module of its own with options of its own: `python -m benchmarks.NAME --help`. What it finds is written to
`benchmarks/results/NAME_cpu.json`; on a machine with a GPU to `NAME_gpu.json`.
"""

import argparse
import ast
import subprocess
import sys
from pathlib import Path

from ts2_lightning.suggestions import did_you_mean

ROOT = Path(__file__).resolve().parents[1]
NO_BENCHMARKS = ("__main__", "record")
NEEDS_DATA = {
    "data_pipeline": "../shared/data/sft/ultrafeedback_binarized_train_1000.jsonl.gz",
    "sandbox": "../shared/data/eval/humaneval_000_081.jsonl.gz",
}
"""Benchmarks that take a file of rows, and where it lies beside a checkout; they are left out where it is absent."""

NEEDS_GPU = ("gpu_check",)
"""Benchmarks of a GPU alone, which are left out on a CPU."""


def titles() -> dict[str, str]:
    """Name of each benchmark -> the first paragraph of its text; nothing is imported."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    texts = {file.stem: ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "" for file in files}
    return {name: " ".join(text.split("\n\n")[0].split()) for name, text in texts.items() if name not in NO_BENCHMARKS}


def command(name: str, device: str) -> list[str] | None:
    """The command of a benchmark, or None if it needs a file that is absent."""
    out = Path(__file__).parent / "results" / f"{name}_{device}.json"
    options = ["--out", str(out)]
    if name in NEEDS_DATA:
        file = ROOT / NEEDS_DATA[name]
        if not file.is_file():
            return None
        options += ["--data", str(file)]
    return [sys.executable, "-m", f"benchmarks.{name}", *options]


def run(names: list[str], device: str) -> int:
    """Runs benchmarks, goes on after one that fails, and returns how many did."""
    failed = 0
    for name in names:
        if device == "cpu" and name in NEEDS_GPU:
            print(f"{name}: left out, as there is no GPU", flush=True)
            continue
        words = command(name, device)
        if words is None:
            print(f"{name}: left out, as {NEEDS_DATA[name]} is absent", flush=True)
            continue
        print(f"{name} ...", flush=True)
        failed += subprocess.run(words, cwd=ROOT, check=False).returncode != 0
    return failed


def main() -> int:
    """Lists or runs; the exit status is 1 if a benchmark failed, 2 if there is none of a name."""
    benchmarks = titles()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="*", metavar="NAME", help="run these; all by default")
    options = parser.parse_args()
    if unknown := sorted(set(options.run or ()) - set(benchmarks)):
        near = did_you_mean(unknown[0], benchmarks) or f"; there are: {', '.join(benchmarks)}"
        print(f"error: unknown benchmark {unknown[0]!r}{near}", file=sys.stderr)
        return 2
    if options.run is None:
        for name, title in benchmarks.items():
            print(f"{name:18} {title}")
        return 0
    import torch  # the list needs none

    return min(1, run(options.run or list(benchmarks), "gpu" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    sys.exit(main())

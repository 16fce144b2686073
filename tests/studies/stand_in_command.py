"""In place of the command line: `fit` and `measure` that take milliseconds, and do on disk what the real ones do.

`fit --name NAME --runs_dir DIR --steps N [--raises STEP] [--gate FILE] [--deaf true] [--ckpt_path FILE]`; at a gate it
waits, before its last step, until there is such a file. Every start adds a line to `starts.txt` where it was made.
"""

import json
import os
import signal
import sys
import time
import zipfile
from itertools import pairwise
from pathlib import Path
from types import FrameType


def option(name: str, default: str = "") -> str:
    """What follows an option."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def fit() -> int:
    """Counts steps, with a checkpoint of each."""
    parent = Path(option("--runs_dir")) / option("--name")
    checkpoint = option("--ckpt_path")
    step, run = 0, parent / str(1 + sum(entry.name.isdigit() for entry in parent.iterdir()))
    if checkpoint:
        run, step = Path(checkpoint).parent.parent, int(Path(checkpoint).stem.removeprefix("step-"))
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").touch()

    def tell(state: str) -> None:
        content = {"state": state, "step": step, "steps": steps, "seconds": 0.5 * step, "updated": time.time()}
        beside = run / ".state.json.new"
        beside.write_text(json.dumps({**content, "objective": 1.0, "val_cross_entropy": None}))
        os.replace(beside, run / "state.json")

    def stop(number: int, frame: FrameType | None) -> None:
        tell("stopped")
        sys.exit(128 + number)

    steps = int(option("--steps", "3"))
    if not option("--deaf"):
        signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN if option("--deaf") else stop)
    while step < steps:
        tell("running")
        if step == int(option("--raises", "-1")):
            tell("failed")
            raise ValueError("a broken setting")
        while step == steps - 1 and option("--gate") and not Path(option("--gate")).exists():
            time.sleep(0.01)
        step += 1
        with zipfile.ZipFile(run / "checkpoints" / f"step-{step:06d}.ckpt", "w") as file:
            file.writestr("content", "")
    tell("finished")
    return 0


def measure() -> int:
    """Notes that it was measured."""
    specs = [word for before, word in pairwise(sys.argv) if before == "--spec"]
    if '{"validation": {"limit": 1}}' in specs:
        print("error: no such rows", file=sys.stderr)
        return 2
    with (Path(option("--out") or sys.argv[2]) / "measured.txt").open("a") as stream:
        stream.writelines(f"{spec}\n" for spec in specs)
    return 0


if __name__ == "__main__":
    with Path("starts.txt").open("a") as starts:
        starts.write(f"{sys.argv[1]} {option('--name') or sys.argv[2]} {'again' if option('--ckpt_path') else ''}\n")
    sys.exit({"fit": fit, "measure": measure}[sys.argv[1]]())

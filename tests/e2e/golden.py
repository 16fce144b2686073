"""The golden losses: `python -m tests.e2e.golden` writes them anew into tests/golden.

Twenty steps of the quickstart's experiment from random weights. A refactor reproduces them to 1e-4; whoever changes
what is computed writes them anew, and says so. The sixth digit depends on the CPU.
"""

import contextlib
import io
import json
import tempfile
from pathlib import Path

from tests.e2e.command_line import QUICKSTART, ROOT, column, empty_working_directory, make_blank
from ts2_lightning.cli import main

GOLDEN = ROOT / "tests" / "golden"
COMMAND = "python -m tests.e2e.golden"
METRICS = ("train/objective", "train/cross_entropy", "train/gradient_norm", "train/entropy")
RUNS = {
    "quickstart_ts2": ["--model.loss", "TS2Loss", "--model.loss.alpha", "0.25"],
    "quickstart_cross_entropy": ["--model.loss", "CrossEntropyLoss"],
}
OPTIONS = [
    "--model.lm.init=random", "--data.limit_train=320", "--data.limit_validation=20", "--data.micro_batch_size=4",
    "--trainer.max_steps=20", "--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false",
    "--seed_everything=0",
]  # fmt: skip


def run(blank: Path, loss: list[str], name: str) -> dict[str, list[float]]:
    """Trains in the working directory and returns what was logged at each step."""
    status = main(["fit", "-c", str(QUICKSTART), "--model.lm.path", str(blank), "--name", name, *OPTIONS, *loss])
    assert status == 0
    return {metric: list(column(f"runs/{name}/1", metric).values()) for metric in METRICS}


def write() -> None:
    """Writes all golden files."""
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        with empty_working_directory(here, here / "cache"), contextlib.redirect_stdout(io.StringIO()):
            blank = make_blank(here / "blank")
            for name, loss in RUNS.items():
                content = {"made by": COMMAND, "options": [*OPTIONS, *loss], "steps": run(blank, loss, name)}
                (GOLDEN / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()

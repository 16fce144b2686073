"""The last words of a command: where things are, and how to go on."""

import json
import shlex
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ts2_lightning.cli import program
from ts2_lightning.cli.predictions import PredictionFile
from ts2_lightning.runs.checkpoints import best_checkpoint, can_go_on, newest_checkpoint
from ts2_lightning.runs.directory import latest_config
from ts2_lightning.yaml_files import load_yaml

RESULTS = "metrics.json"


def write_results(run: Path, logged: Mapping[str, Any]) -> None:
    """Writes what `validate` or `test` has measured into the run's directory."""
    metrics = {name: float(value) for name, value in logged.items() if name != "step"}
    (run / RESULTS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def closing_lines(command: str, run: Path) -> list[str]:
    """The lines that are printed when a command has come to its end."""
    if command == "predict":
        return [f"Predictions: {run / PredictionFile.NAME}"]
    if command != "fit":
        return [*_metrics(run / RESULTS), f"Results:     {run / RESULTS}"]
    newest, best = newest_checkpoint(run), best_checkpoint(run)
    lines = [f"Run:         {run}"]
    if best or newest:
        lines.append(f"Checkpoint:  {best or newest}" + (" (best)" if best else ""))
    if (run / "export" / "config.json").is_file():
        lines.append(f"Export:      {run / 'export'} (a transformers directory)")
    if newest and can_go_on(newest):
        lines.append(f"Go on:       {resume_command(run, newest)} --trainer.{_limit(run)} N")
    if newest:
        lines.append(f"Test:        {_command('test', run, best or newest)} --data.test FILE")
    return lines


def _limit(run: Path) -> str:
    """Which setting of the trainer has ended the run and would have to be larger."""
    file = latest_config(run)
    trainer = load_yaml(file.read_text(encoding="utf-8"), str(file)).get("trainer") or {}
    return "max_epochs" if trainer.get("max_steps") in (None, -1) else "max_steps"


def _metrics(file: Path) -> list[str]:
    """The metrics of an evaluation, one on a line."""
    metrics: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
    width = max(map(len, metrics), default=0)
    return [f"{name:<{width}}  {value:.5g}" for name, value in metrics.items()]


def interruption_line(run: Path | None, number: int = signal.SIGINT, requeued: bool = False) -> str:
    """The line that is printed after Ctrl-C, or another signal.

    Args:
        run: Directory of the run; None if there is none yet.
        number: Number of the signal.
        requeued: Whether SLURM has put the job into its queue again.
    """
    what = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    if requeued:
        goes_on = "begin anew" if run is None else f"go on by itself in {run}"
        return f"{what}: SLURM has queued the job again, and it will {goes_on}"
    if run is None:
        return f"{what} before the run began"
    newest = newest_checkpoint(run)
    if newest is None:
        return f"{what}: no checkpoint yet in {run}"
    if not can_go_on(newest):
        return f"{what}: newest checkpoint {newest}, of the weights alone (save_weights_only): nothing goes on from it"
    return f"{what}: newest checkpoint {newest}; resume with: {resume_command(run, newest)}"


def resume_command(run: Path, checkpoint: Path) -> str:
    """The command that goes on with a run."""
    return _command("fit", run, checkpoint)


def _command(command: str, run: Path, checkpoint: Path) -> str:
    return f"{program()} {shlex.join([command, '-c', str(latest_config(run)), '--ckpt_path', str(checkpoint)])}"

"""What there is to do of a grid, and how far each part of it is."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ts2_lightning.evaluation import check_spec, files_of
from ts2_lightning.runs.checkpoints import can_go_on, newest_checkpoint
from ts2_lightning.runs.directory import numbers
from ts2_lightning.runs.state import read_state
from ts2_lightning.studies.grid import Grid, Point
from ts2_lightning.studies.grid.rows import title_of

FAILED = "failed.json"

Stage = Literal["fit", "measure"]


@dataclass(frozen=True, eq=False)
class Task:
    """A training with all that is measured of it, or the base model, which is measured only.

    Attributes:
        title: name on the screen, such as `objective=TS2 alpha=0.25, seed 0`.
        directory: directory of all its attempts, `RUNS_DIR/GRID/RUN`; of the base model `RUNS_DIR/GRID/base-DIGITS`.
        options: command line of `fit`; none for the base model.
        model: the base model; empty for a training.
        specs: specifications of what is measured, each once.
        device: where it is measured; empty: where `measure` likes.
        processes: nodes, and processes of each, that its training needs; None where the configuration does not say.
        on_gpu: whether it is not meant for the CPU.
        config: configuration whose `data.*` says how the base model is measured; empty for a training.
    """

    title: str
    directory: Path
    options: tuple[str, ...]
    model: str
    specs: tuple[Mapping[str, Any], ...]
    device: str = ""
    processes: tuple[int, int] | None = (1, 1)
    on_gpu: bool = False
    config: str = ""


@dataclass(frozen=True)
class Failure:
    """What `failed.json` says of a run, while it stands failed.

    Attributes:
        stage: what failed, `fit` or `measure`.
        status: exit status of the process; below zero the number of the signal that killed it.
        message: what it said last.
        log: path of all that it said.
        title: title of the task.
    """

    stage: Stage
    status: int
    message: str
    log: str
    title: str = ""


def tasks_of(grid: Grid, points: Sequence[Point], device: str | None = None) -> list[Task]:
    """The base model, then every training once, in the order of the points.

    Args:
        grid: the grid to which the points belong.
        points: points to be done.
        device: where models are measured; None: where `measure` likes.
    """
    tasks = []
    if grid.base_model is not None:
        base = grid.base_model
        on_gpu = any(_on_gpu(point.training.config) for point in points)
        place, config = grid.directory / base.directory, str(grid.directory / base.config)
        tasks.append(Task(base.label, place, (), base.path, (base.measure,), device or "", (1, 1), on_gpu, config))
    sharing: dict[str, list[Point]] = {}
    for point in points:
        sharing.setdefault(point.training.digest, []).append(point)
    return [*tasks, *(_task(grid.runs_dir, same, device or "") for same in sharing.values())]


def _task(runs_dir: Path, points: list[Point], device: str) -> Task:
    training = points[0].training
    titles = _titles(points)
    specs = [point.measure for point in points]
    return Task(
        ", ".join(filter(None, [titles, f"seed {points[0].seed}"])),
        runs_dir / training.name,
        training.options,
        "",
        tuple(spec for place, spec in enumerate(specs) if spec not in specs[:place]),
        device,
        _processes(training.config),
        _on_gpu(training.config),
    )


def _titles(points: Sequence[Point]) -> str:
    """The rows of some points; of those that differ in one axis alone the choices of that."""
    rows = list({point.title: point.labels for point in points}.values())
    choices = {axis: list(dict.fromkeys(row[axis] for row in rows if axis in row)) for axis in rows[0]}
    differing = [axis for axis, several in choices.items() if len(several) > 1]
    if len(differing) == 1 and len(choices) > 1 and all(row.keys() == rows[0].keys() for row in rows):
        return title_of({axis: "/".join(several) for axis, several in choices.items()})
    return " / ".join(map(title_of, rows))


def _processes(config: Any) -> tuple[int, int] | None:
    trainer = config.get("trainer") or {}
    devices = trainer.get("devices", "auto")
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else None
    return None if count is None else (int(trainer.get("num_nodes") or 1), count)


def _on_gpu(config: Any) -> bool:
    return (config.get("trainer") or {}).get("accelerator") != "cpu"


# --- on disk ----------------------------------------------------------------------------------------------------------


def newest_attempt(task: Task) -> Path | None:
    """The directory of the newest attempt; None before the first one."""
    attempts = numbers(task.directory)
    return task.directory / str(attempts[-1]) if attempts else None


def progress(task: Task) -> dict[str, Any]:
    """`state.json` of the newest attempt; empty where there is none."""
    attempt = newest_attempt(task)
    return (read_state(attempt) if attempt else None) or {}


def is_trained(task: Task) -> bool:
    """Whether nothing is left of the training; there is none of the base model."""
    return not task.options or progress(task).get("state") == "finished"


def fit_options(task: Task) -> list[str]:
    """What `fit` is given: the run's own options, and the checkpoint from which an attempt that was cut short goes on.

    An attempt that failed by an error is not gone on with: what is mended since may be code that decided its first
    steps, and a result must not come half from one code and half from another. Nor is one whose checkpoint has the
    weights alone.
    """
    attempt = newest_attempt(task)
    if attempt is None or progress(task).get("state") == "failed":
        return list(task.options)
    checkpoint = newest_checkpoint(attempt)
    return [*task.options, *(["--ckpt_path", str(checkpoint)] if checkpoint and can_go_on(checkpoint) else [])]


def measured(task: Task) -> Path:
    """The directory whose measures the report reads."""
    return (newest_attempt(task) if task.options else None) or task.directory


def read_failure(task: Task) -> Failure | None:
    """Why it stands failed; None if it does not. A file that cannot be understood is a failure too: one was noted."""
    file = task.directory / FAILED
    try:
        return Failure(**json.loads(file.read_text(encoding="utf-8")), title=task.title)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return Failure("fit", 1, f"{FAILED} is damaged", str(file), task.title)


def write_failure(task: Task, failure: Failure) -> None:
    """Notes that it failed, unless another rank has noted it before: what failed first is what is to be told."""
    content = {name: value for name, value in asdict(failure).items() if name != "title"}
    beside = task.directory / f".{FAILED}.{socket.gethostname()}.{os.getpid()}"  # ranks of several nodes write
    try:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.link(beside, task.directory / FAILED)  # whole, and unlike a renaming only where there is none
    except FileExistsError:
        return
    finally:
        beside.unlink(missing_ok=True)


def forget_failure(task: Task) -> None:
    """It is tried again."""
    (task.directory / FAILED).unlink(missing_ok=True)


def has_measures(task: Task) -> bool:
    """Whether all of its measures are there. Whether they are of the present prompts and files, `measure` knows."""
    wanted = [files_of(measured(task), check_spec(spec)) for spec in task.specs]
    return all(file.is_file() for files in wanted for file in files.values())

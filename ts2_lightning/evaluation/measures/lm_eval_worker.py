"""Runs lm-eval in a process of its own, which keeps its seeds, its logging and its imports to itself.

It is run as a script, and imports nothing of this package: `python -P lm_eval_worker.py ANSWER`. A line of JSON on
standard input says what is wanted, and ANSWER gets what came of it. When standard input ends, the process does too.
"""

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NO_METRICS = ("alias", "name", "sample_len", "sample_count")
"""What lm-eval keeps among the metrics of a task."""

_OF_THE_HUB = {"ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "DatasetNotFoundError"}
"""Errors of tasks whose data are on the hub, by their names: their modules differ between versions."""


class RefusedError(Exception):
    """What the user can mend: the answer that says so."""

    def __init__(self, error: str, **details: Any) -> None:
        super().__init__(error)
        self.answer = {"error": error, **details}


def find_tasks(names: list[str], folder: str | None) -> Any:
    """The manager of tasks that has all of some names; with lm-eval's own, which take long to list, only if need be."""
    from lm_eval.tasks import TaskManager

    for with_own in (False, True) if folder else (True,):
        manager = TaskManager(include_path=folder, include_defaults=with_own)
        unknown = [name for name in names if name not in manager.all_tasks and not Path(name).is_file()]
        if not unknown:
            return manager
    raise RefusedError("unknown", task=unknown[0], names=manager.all_tasks)


@contextmanager
def explained(task: str) -> Iterator[None]:
    """Raises `RefusedError` for whatever a task raises."""
    try:
        yield
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        reason = f"{type(error).__name__}: {said}".rstrip(": ")
        unsafe = "marked as unsafe" in said
        kind = "unsafe" if unsafe else "hub" if kinds & _OF_THE_HUB else "task"
        raise RefusedError(kind, task=task, reason=reason) from error


def check(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Loads the tasks with their rows, one after the other."""
    manager = find_tasks(wanted["tasks"], wanted["include_path"])
    for task in wanted["tasks"]:
        with explained(task):
            loaded = manager.load([task])["tasks"]
            if unsafe := [name for name, one in loaded.items() if getattr(one, "UNSAFE_CODE", False)]:
                raise ValueError(f"{unsafe[0]} is marked as unsafe")
    return {}


def measure(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluates a model."""
    from lm_eval import simple_evaluate

    manager = find_tasks(wanted["tasks"], wanted["include_path"])
    with explained(", ".join(wanted["tasks"])):
        results = simple_evaluate(
            model="hf",
            model_args=wanted["model"],
            device=wanted["device"],
            batch_size=wanted["batch_size"],
            tasks=wanted["tasks"],
            task_manager=manager,
            num_fewshot=wanted["num_fewshot"],
            limit=wanted["limit"],
            apply_chat_template=wanted["apply_chat_template"],
        )
    whole = {**results["results"], **results.get("groups", {})}
    return {
        "lm_eval": results["lm_eval_version"],
        "tasks": {name: _of_task(name, metrics, results) for name, metrics in whole.items()},
        "per_item": _per_item(results["samples"]),
        "asked": _asked(results["samples"]),
    }


def _of_task(name: str, metrics: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a task: its version, how it was asked, its metrics."""
    counts = results["n-samples"].get(name, {})
    return {
        "version": results["versions"].get(name),
        "num_fewshot": results["n-shot"].get(name),
        "rows": counts.get("effective"),
        "of_rows": counts.get("original"),
        "higher_is_better": results["higher_is_better"].get(name, {}),
        "metrics": {
            metric.removesuffix(",none"): float(value)
            for metric, value in metrics.items()
            if metric not in _NO_METRICS and _is_number(value)
        },
    }


def _per_item(samples: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Number of each row by its place, for each task and metric whose numbers of single rows are there."""
    numbers: dict[str, dict[str, float]] = {}
    for task, rows in samples.items():
        for row in rows:
            for metric in row["metrics"]:
                if _is_number(row[metric]):
                    name = f"{metric},{row['filter']}".removesuffix(",none")
                    numbers.setdefault(f"{task}|{name}", {})[str(row["doc_id"])] = float(row[metric])
    return numbers


def _asked(samples: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, dict[str, str]]:
    """What tells the rows of each task apart, by their places: a digest of the row as it was asked, with its answer."""
    return {
        task: {str(row["doc_id"]): f"{row['prompt_hash'][:12]}-{row['target_hash'][:12]}" for row in rows}
        for task, rows in samples.items()
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (getattr(value, "shape", None) == () and hasattr(value, "item"))


def _end_with_caller() -> None:
    """Ends the process when whoever started it is gone, or has closed its end."""
    while sys.stdin.readline():
        pass
    os._exit(1)


def main() -> None:
    """Does what the first line of standard input says."""
    wanted = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_caller, daemon=True).start()
    try:
        answer = (check if wanted["what"] == "check" else measure)(wanted)
    except RefusedError as refused:
        answer = refused.answer
    Path(sys.argv[1]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()

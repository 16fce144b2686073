"""How far every run of a grid is: a table in a terminal, a line for each change in a file or a pipe."""

import threading
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from ts2_lightning.studies.execute.task import Task, progress

ACTIVE = ("running", "measuring", "running elsewhere")
STYLES = {"running": "bold", "measuring": "bold", "done": "green", "failed": "red", "waiting": "dim"}
_ORDER = ("failed", "running", "measuring", "running elsewhere", "queued", "stopped", "waiting", "done")
_FRAME = 7  # lines of the table that are no runs, and the prompt


class Board:
    """Shows the states of tasks while they are done; a context manager.

    Args:
        tasks: all tasks, in the order of the grid.
        parallel: how many are done at a time.
        console: where a table is drawn; the terminal by default.
    """

    def __init__(self, tasks: Sequence[Task], parallel: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.parallel = parallel
        self.notice = ""
        """A line below the table."""
        self._lock = threading.Lock()
        self._tasks = list(tasks)
        self._states = {task.directory: "waiting" for task in tasks}
        self._since: dict[Any, float] = {}
        self._took: list[float] = []
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> "Board":
        if self._live is not None:
            self._live.start()
        self.draw()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.draw()
        if self._live is not None:
            self._live.stop()

    def tell(self, task: Task, state: str, about: str = "") -> None:
        """A task has come to a state; what there is to say about it is shown in a log."""
        with self._lock:
            before, self._states[task.directory] = self._states[task.directory], state
            now = time.monotonic()
            if state == "running":
                self._since[task.directory] = now
            if state == "done" and before != "running elsewhere" and task.directory in self._since:
                self._took.append(now - self._since[task.directory])
            if self._live is None and state != before:
                count = f"{self.counts().get('done', 0)}/{len(self._tasks)}"
                self._say(f"[{count}] {task.title}: {state}{about and f': {about}'}")

    def say(self, line: str) -> None:
        """Something of the whole: below the table, or a line of its own."""
        self.notice = line
        if self._live is None:
            self._say(line)

    def _say(self, line: str) -> None:
        self.console.file.write(f"{line}\n")  # as it is: a console would wrap it
        self.console.file.flush()

    def counts(self) -> dict[str, int]:
        """State -> number of tasks in it."""
        states = list(self._states.values())
        return {state: states.count(state) for state in _ORDER if state in states}

    def draw(self) -> None:
        """Draws the table anew, in a terminal."""
        if self._live is not None:
            self._live.update(self.table(), refresh=True)

    def table(self) -> Group:
        """As many runs as have place: what has failed or is under way comes before what waits, and that before what is
        done; and a line about all."""
        states = {task.directory: self._progress(task) for task in self._tasks}
        shown = sorted(self._tasks, key=lambda task: _ORDER.index(self._states[task.directory]))
        shown = shown[: max(1, self.console.height - _FRAME)]
        table = Table("run", "state", box=None, pad_edge=False)
        for name in ("step", "objective", "val CE", "left"):
            table.add_column(name, justify="right")
        for task in self._tasks:
            if task in shown:
                state = self._states[task.directory]
                row = _cells(states[task.directory])
                table.add_row(Text(task.title), Text(state, STYLES.get(state, "")), *row)
        return Group(table, Text(self._summary(states)), Text(self.notice))

    def _progress(self, task: Task) -> dict[str, Any]:
        """State of the attempt that is under way; what an earlier one has left is not its own."""
        state = self._states[task.directory]
        state_file = progress(task) if state in ("running", "running elsewhere") else {}
        return state_file if state_file.get("state") == "running" else {}

    def _summary(self, states: dict[Any, dict[str, Any]]) -> str:
        counts = ", ".join(f"{number} {state}" for state, number in self.counts().items())
        left = self._left(states)
        return f"{counts} of {len(self._tasks)}" + ("" if left is None else f"; {tqdm.format_interval(left)} left")

    def _left(self, states: dict[Any, dict[str, Any]]) -> float | None:
        """Seconds until all is done: waiting tasks take what the others have taken, or will."""
        now = time.monotonic()
        lefts = {place: left for place in states if (left := seconds_left(states[place])) is not None}
        totals = self._took or [
            now - self._since[place] + left for place, left in lefts.items() if place in self._since
        ]
        waiting = sum(state == "waiting" for state in self._states.values())
        if (not lefts and not waiting) or (waiting and not totals):
            return None
        whole = sum(lefts.values()) + (waiting * sum(totals) / len(totals) if waiting else 0.0)
        return max([whole / self.parallel, *lefts.values()])


def seconds_left(state: dict[str, Any]) -> float | None:
    """Time left of a run, as its steps have taken so far; None where it has not told its steps.

    Args:
        state: content of its `state.json`.

    Example:
        >>> seconds_left({"step": 30, "steps": 120, "seconds": 15.0})
        45.0
    """
    step, steps = state.get("step"), state.get("steps")
    return state["seconds"] / step * (steps - step) if step and steps else None


def _cells(state: dict[str, Any]) -> list[str]:
    """Step, objective, validation's cross-entropy and time left."""
    if not state:
        return ["", "", "", ""]
    numbers = [state["objective"], state["val_cross_entropy"]]
    left = seconds_left(state)
    return [
        f"{state['step']}/{state['steps'] or '?'}",
        *("" if number is None else f"{number:.4g}" for number in numbers),
        "" if left is None else tqdm.format_interval(left),
    ]

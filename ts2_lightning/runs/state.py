"""The state of a run: `state.json` in its directory, which `callbacks.RunState` keeps up to date."""

import json
import os
from pathlib import Path
from typing import Any, Literal

STATE = "state.json"

State = Literal["running", "finished", "stopped", "failed"]


def read_state(run: Path) -> dict[str, Any] | None:
    """The state that a run's directory holds; None where there is none, or none that is whole.

    Args:
        run: directory of the run.

    Returns:
        The values that `callbacks.RunState` has last written.
    """
    try:
        state: dict[str, Any] = json.loads((run / STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return state


def write_state(run: Path, state: dict[str, Any]) -> None:
    """Replaces the state in a run's directory; whoever reads it meanwhile gets the old one or the new one, whole.

    Args:
        run: directory of the run.
        state: JSON values to write.
    """
    beside = run / f".{STATE}.new"
    beside.write_text(json.dumps(state) + "\n", encoding="utf-8")
    os.replace(beside, run / STATE)

"""Records of a callback that are no numbers: lines of JSON in the run's directory, each with its step."""

import json
import os
from pathlib import Path
from typing import Any


class StepLines:
    """A JSONL file whose lines state the optimizer step at which they were written. For one rank.

    Args:
        path: path of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Drops the lines after a step, to which a run has gone back, and a last one that was cut short."""
        if not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        beside = self.path.with_name(f".{self.path.name}.new")
        beside.write_text("".join(kept), encoding="utf-8")
        os.replace(beside, self.path)

    def add(self, step: int, **record: Any) -> None:
        """Writes a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **record}, ensure_ascii=False) + "\n")

"""What pytest leaves out: examples of modules that import Triton where that is not installed, tests in its interpreter
elsewhere, and files without slow tests where nothing else is asked for.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

collect_ignore_glob: list[str] = []
if find_spec("triton") is None:
    collect_ignore_glob += ["ts2_lightning/ops/row_kernels.py", "ts2_lightning/ops/row_programs.py"]
if os.environ.get("TRITON_INTERPRET") != "1":  # tests/kernels/test_interpreter.py runs them
    collect_ignore_glob += ["tests/kernels/interpreted_*.py"]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m slow` or `-m long` alone, files that never name the mark are not imported: four of five need not be."""
    mark = config.getoption("markexpr")
    if mark not in ("slow", "long") or collection_path.suffix != ".py":
        return None
    return True if f"mark.{mark}" not in collection_path.read_text(encoding="utf-8") else None

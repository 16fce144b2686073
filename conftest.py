"""What pytest leaves out: examples of modules that import Triton where that is not installed, and tests in its
interpreter elsewhere.
"""

import os
from importlib.util import find_spec

collect_ignore_glob: list[str] = []
if find_spec("triton") is None:
    collect_ignore_glob += ["ts2_lightning/ops/row_kernels.py", "ts2_lightning/ops/row_programs.py"]
if os.environ.get("TRITON_INTERPRET") != "1":  # tests/kernels/test_interpreter.py runs them
    collect_ignore_glob += ["tests/kernels/interpreted_*.py"]

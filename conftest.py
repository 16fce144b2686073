"""What pytest leaves out where Triton is not installed: modules that import it have examples, which are tests."""

from importlib.util import find_spec

collect_ignore_glob = (
    [] if find_spec("triton") else ["ts2_lightning/ops/row_kernels.py", "ts2_lightning/ops/row_programs.py"]
)

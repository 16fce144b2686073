"""One job of the GPU check in a process of its own: `benchmarks.gpu_check` starts them."""

import argparse
import importlib
import os
import sys
import threading
import time

from benchmarks.gpu.device import Device, one_line, tell
from benchmarks.gpu_check import TOLD

GRACE = 10
"""Seconds that a job is left to be ended by whoever started it."""


def main() -> int:
    """Runs a job; its results are lines of JSON, and what ends it is one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", help="module of `benchmarks.gpu`")
    parser.add_argument("function", help="function of it, which gets the device")
    parser.add_argument("--part", required=True)
    parser.add_argument("--until", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--names", nargs="*", default=[])
    options = parser.parse_args()
    # Should whoever started it be gone, nobody else ends it.
    end = threading.Timer(max(0.0, options.until - time.time()) + GRACE, os._exit, [TOLD])
    end.daemon = True
    end.start()
    values = {"vocabulary": options.vocabulary, "names": options.names}
    try:
        function = getattr(importlib.import_module(f"benchmarks.gpu.{options.module}"), options.function)
        function(Device(options.tiny, options.until), **{key: v for key, v in values.items() if v})
    except Exception as error:
        tell(part=options.part, job=f"{options.module}.{options.function}", ok=False, failed=one_line(error))
        return TOLD
    return 0


if __name__ == "__main__":
    sys.exit(main())

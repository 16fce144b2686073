"""The process in which math-verify compares answers: a pair a line comes in, a verdict a line goes out.

It is run as a file and imports nothing of the package, so that it starts fast. Usage: worker.py SECONDS
"""

import json
import math
import resource
import sys
from contextlib import suppress

_MEMORY = 4 * 2**30  # bytes; an answer such as 9^{9^9} must not take the machine's
_OUT = sys.stdout


def main(seconds: float) -> None:
    """Answers until the input ends. It kills itself soon after the time limit, should nobody be left to do so."""
    from math_verify import parse, verify  # here: the import takes a second, and is the worker's alone

    soft = max(1, int(seconds / 3))
    with suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    sys.set_int_max_str_digits(10_000)
    _put("ready")
    for line in sys.stdin:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        last_second = math.ceil(usage.ru_utime + usage.ru_stime + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (last_second, resource.RLIM_INFINITY))
        gold, answer = (f"\\boxed{{{text}}}" for text in json.loads(line))
        try:
            expected, read = parse(gold, parsing_timeout=soft), parse(answer, parsing_timeout=soft)
            note = "" if read else "cannot be read as mathematics"
            _put([bool(verify(expected, read, timeout_seconds=soft)), note])
        except (Exception, RecursionError, MemoryError) as error:
            _put([False, type(error).__name__])


def _put(value: object) -> None:
    _OUT.write(json.dumps(value) + "\n")
    _OUT.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]))

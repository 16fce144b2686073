"""An interpreter that has imported what is large, and runs modules of the tests, each in a fork of its own.

Every line of its standard input is one of them: `{"module": ..., "arguments": [...], "environment": {...}, "out": ...,
"err": ..., "timeout": ...}`. What the module prints goes to the two files, and the answer is a line with its exit
status, null where it had not ended in time. It ends with its standard input. See `tests.support.ranks.launch`.
"""

import importlib
import json
import os
import runpy
import select
import signal
import sys
import traceback
from typing import Any

# Imported before any fork, so that no module and none of its ranks has to.
import deepspeed  # noqa: F401
import peft  # noqa: F401
import torch.distributed.checkpoint
import torch.utils.tensorboard  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import ts2_lightning.callbacks
import ts2_lightning.modules
import ts2_lightning.strategies  # noqa: F401


def serve() -> dict[str, Any] | None:
    """Answers until the input ends; in a fork, what it has to run."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in iter(sys.stdin.readline, ""):
        asked: dict[str, Any] = json.loads(line)
        importlib.import_module(asked["module"])  # once: the next fork has what it needs, too
        child = os.fork()
        if not child:
            answers.close()
            return asked
        print(json.dumps(ended(child, asked["timeout"])), file=answers, flush=True)
    return None


def ended(child: int, timeout: float) -> int | None:
    """The exit status of a fork, negative if it was killed; None where all of it had to be killed."""
    end = os.pidfd_open(child)
    in_time = select.select([end], [], [], timeout)[0]
    os.close(end)
    if not in_time:
        os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if in_time else None


def become(asked: dict[str, Any]) -> None:
    """Makes this fork what an interpreter with the module as its script would be."""
    os.setsid()
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, asked["out"], os.O_WRONLY | os.O_APPEND),
        (2, asked["err"], os.O_WRONLY | os.O_APPEND),
    ):
        file = os.open(name, flags)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = [asked["module"], *asked["arguments"]]
    del sys.modules[asked["module"]]


def run(asked: dict[str, Any]) -> int:
    """The exit status of the module as a script."""
    become(asked)
    try:
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__" and (mine := serve()) is not None:
    status = run(mine)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # to take apart all that has been imported takes as long as a small training

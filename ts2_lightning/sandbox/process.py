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
from ts2_lightning.sandbox.ways import ENVIRONMENT, command_line, first_line

_START = 60.0  # seconds until a server has to answer
_PULL = 900.0  # and one in a container whose image may have to be fetched
_GRACE = 10.0  # seconds beyond a program's limit after which its server counts as lost
_PATIENCE = 2.0  # seconds in which a server has to end by itself
_LINE = 1 << 16


class LostServerError(Exception):
    """A server that has ended, or does not answer as it should; its text says why."""


class Server:
    """A server, running.

    Args:
        settings: settings of the sandbox.

    Attributes:
        settings: settings of the sandbox.
        layers: what is around its programs.
        program: program that it runs at the moment.
        deadline: time by the monotonic clock at which it counts as lost.
    """

    def __init__(self, settings: SandboxSettings) -> None:
        self.settings = settings
        self.program: Program | None = None
        self.deadline = 0.0
        self._buffer = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        try:
            self._process = subprocess.Popen(
                command_line(settings), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                env=ENVIRONMENT if settings.way in ("auto", "none") else {**os.environ, **ENVIRONMENT}, cwd="/",
                bufsize=0, start_new_session=True,  # the terminal's Ctrl-C is for this process, which ends the servers
            )  # fmt: skip
        except OSError as error:
            raise LostServerError(f"it cannot be started: {error}") from error
        try:
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
            self._write(first_line(settings))
            answer = self._wait(_PULL if settings.way == "docker" else _START)
        except BaseException:
            self.close()
            raise
        if "refused" in answer:
            self.close()
            raise LostServerError(str(answer["refused"]))
        outer = {"bwrap": ["bwrap"], "docker": [f"docker {settings.image}"]}.get(settings.way, [])
        self.layers: tuple[str, ...] = (*outer, *map(str, answer.get("layers", [])))

    def fileno(self) -> int:
        """The descriptor of its answers."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def start(self, program: Program) -> None:
        """Has it run a program.

        Raises:
            LostServerError: it is gone.
        """
        self.program, self.deadline = program, time.monotonic() + program.seconds + _GRACE
        self._write(json.dumps({"key": program.key, "code": program.code, "seconds": program.seconds}).encode() + b"\n")

    def answer(self) -> dict[str, Any] | None:
        """What it has answered; None if a whole line is not there yet.

        Raises:
            LostServerError: it is gone, or what it says is no answer.
        """
        some = os.read(self.fileno(), _LINE)
        self._buffer += some
        if not some or len(self._buffer) > _LINE:
            raise LostServerError(self._last_words())
        if not self._buffer.endswith(b"\n"):
            return None
        line, self._buffer = self._buffer, b""
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise LostServerError(f"it says {line[:80]!r}")
        return answer

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
        view, end = memoryview(line), time.monotonic() + _GRACE
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._process.stdin, selectors.EVENT_WRITE)
                while view:
                    if not selector.select(max(end - time.monotonic(), 0)):
                        raise LostServerError("it takes nothing in")
                    view = view[self._process.stdin.write(view) or 0 :]
        except OSError as error:
            raise LostServerError(self._last_words()) from error

    def _wait(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            while (left := end - time.monotonic()) > 0:
                if selector.select(left) and (answer := self.answer()) is not None:
                    return answer
        raise LostServerError(f"it did not answer within {seconds:.0f} s")

    def _last_words(self) -> str:
        """The last line of what it wrote as errors, or how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else f"it ended with status {self._process.returncode}"

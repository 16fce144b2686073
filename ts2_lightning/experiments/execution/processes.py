"""Child processes that are told to end together, and of which none is left behind."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_SAID = re.compile(r"^(\[rank ?\d+\]:? ?)?")
_ERROR = "error: "
_TRACEBACK = "Traceback (most recent call last):"


class Processes:
    """The processes that this one has started, each in a session of its own, so that Ctrl-C reaches this one alone."""

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        """The signal after which nothing more is started."""
        self._lock = threading.RLock()  # a signal's handler may interrupt who holds it
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], keep: Sequence[int] = ()
    ) -> int | None:
        """Starts a process and waits for its end.

        Args:
            command: program and arguments.
            log: where all that it says is added.
            environment: of the process.
            keep: descriptors that it inherits.

        Returns:
            Its exit status, the negative number of the signal that killed it, or None if it was told to end, or was
            not started because of that.
        """
        with log.open("ab") as out, self._lock:
            if self.stopped_by is not None:
                return None
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=keep,
                start_new_session=True,
            )
            self._running.add(process)
            if self.stopped_by is not None:  # heard in the meantime
                process.send_signal(self.stopped_by)
        try:
            status = process.wait()
        finally:
            with self._lock:
                self._running.discard(process)
                _kill(process)  # what it has started itself and not ended
        return None if self.stopped_by is not None and status else status

    def stop(self, number: int) -> None:
        """Hands a signal on to the processes, and starts no more."""
        with self._lock:
            self.stopped_by = self.stopped_by or number
            for process in self._running:
                process.send_signal(number)

    def kill(self) -> None:
        """Ends them at once, with all that they have started."""
        with self._lock:
            self.stopped_by = self.stopped_by or signal.SIGKILL
            for process in self._running:
                _kill(process)


def _kill(leader: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)


def last_words(log: Path, offset: int, status: int) -> str:
    """What a process that failed said in the end: its `error: ` line, else what its traceback ends with.

    Args:
        log: where it wrote.
        offset: bytes that were there before it.
        status: its exit status, or the negative number of a signal.
    """
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (", as a machine that is out of memory does" if name == "SIGKILL" else "")
    with log.open("rb") as stream:
        stream.seek(offset)
        text = stream.read().decode(errors="replace")
    lines = [_SAID.sub("", line.rstrip()) for line in re.split(r"[\r\n]+", text)]
    lines = [line for line in lines if line]
    for line in reversed(lines):
        if line.startswith(_ERROR):
            return line.removeprefix(_ERROR)
    if _TRACEBACK in lines:
        newest = len(lines) - lines[::-1].index(_TRACEBACK)
        raised = [line for line in lines[newest:] if not line.startswith(" ")]
        if raised:
            return raised[0]
    return lines[-1] if lines else f"exit status {status}, and it said nothing"

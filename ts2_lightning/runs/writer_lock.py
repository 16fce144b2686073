"""One writer for each run: a file names it, and a pulse in the file tells whether it lives.

Not every file system that a cluster shares has locks of the operating system, nor do these name their holder.
So the file has the writer's host and process, and a number that goes up every ten seconds. Whoever finds it knows at
once about a process of its own machine; of another machine it watches the pulse for a minute, by its own clock.
"""

import json
import os
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ts2_lightning.types import UserError

FILE = ".writer.json"
BEAT = 10.0
"""Seconds between two pulses."""

PATIENCE = 60.0
"""Seconds without a pulse after which a writer on another machine is taken for dead."""


@dataclass(frozen=True)
class Writer:
    """The process that writes a run.

    Attributes:
        host: name of the machine.
        process: number of the process.
        machine: identity of the machine, its boot and the container, within which the process number is unique.
        started: start time of the process, in the machine's own count, since process numbers are reused.
        job: job of SLURM, with the number of its start; empty outside of one.
        token: random name of this lock.
        pulse: counter that goes up as long as the process lives.
    """

    host: str
    process: int
    machine: str
    started: str
    job: str
    token: str
    pulse: int = 0

    @classmethod
    def this(cls) -> "Writer":
        """This process."""
        process = os.getpid()
        return cls(socket.gethostname(), process, _machine(), _started(process), _job(), uuid.uuid4().hex)

    @property
    def is_dead(self) -> bool | None:
        """Whether it has ended; None if this machine cannot know."""
        if self.machine == _machine():
            return _started(self.process) != self.started
        job, _, start = self.job.partition(" start ")
        mine, _, now = _job().partition(" start ")
        return True if job and job == mine and start != now else None  # SLURM has started the job again


class WriterLock:
    """The right to write a run, held until `release`.

    Args:
        run: directory of the run.
        writer: description of this process.

    Attributes:
        is_lost: whether another process has taken this one for dead, and writes the run now.
    """

    def __init__(self, run: Path, writer: Writer) -> None:
        self.run = run
        self.is_lost = False
        self._writer = writer
        self._over = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="writer", daemon=True)

    @classmethod
    def take(cls, run: Path) -> "WriterLock":
        """The lock of a run, whose last writer may have died.

        Raises:
            UserError: naming the writer, if it lives; if the file cannot be written.
        """
        writer = Writer.this()
        _acquire(run / FILE, writer)
        lock = cls(run, writer)
        lock._pulse.start()
        return lock

    def release(self) -> None:
        """Lets another process write the run."""
        self._over.set()
        self._pulse.join()
        if not self.is_lost:
            (self.run / FILE).unlink(missing_ok=True)

    def check(self) -> None:
        """Whether this process may still write.

        Raises:
            UserError: if another process does.
        """
        if self.is_lost:
            raise UserError(
                f"{self.run}: this process stood still for so long that another one took the run over; it writes "
                "nothing more"
            )

    def _beat(self) -> None:
        file = self.run / FILE
        while not self._over.wait(BEAT):
            with suppress(OSError):  # a full or slow disk: the next pulse may come through
                held = _read(file)
                self.is_lost = held is not None and held.token != self._writer.token
                if self.is_lost:
                    return
                self._writer = replace(self._writer, pulse=self._writer.pulse + 1)
                _write(file, self._writer)


def _acquire(file: Path, writer: Writer) -> None:
    """Writes a lock's file, if it is not there or its writer has ended.

    Between looking at a dead writer's file and replacing it, nobody else may do either. So whoever replaces it holds a
    second lock meanwhile, whose name is the dead writer's token.

    Raises:
        UserError: naming the writer, if it lives; if the file cannot be written.
    """
    for _ in range(100):
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            if _replace_if_dead(file, writer):
                return
            continue
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror}), so the run cannot be either") from error
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(asdict(writer), stream)
        return
    raise UserError(f"{file.parent}: other processes took it 100 times before this one")


def _replace_if_dead(file: Path, writer: Writer) -> bool:
    """Puts this writer in the place of one that has ended; False if another process has done something meanwhile.

    Raises:
        UserError: if it lives.
    """
    stamp, before = _stamp(file), _read(file)
    if stamp is None:
        return False
    dead = None if before is None else before.is_dead
    if dead is None:
        dead = not _has_pulse(file, before)
        if before is None and _stamp(file) != stamp:  # it was being written
            return False
    if not dead:
        who = "another process" if before is None else f"process {before.process} on {before.host}"
        raise UserError(
            f"{file.parent}: {who} is writing this run; wait until it has ended, or stop it, or start a run of its own "
            "without --ckpt_path"
        )
    guard = file.with_name(f"{file.name}.{'unreadable' if before is None else before.token}")
    _acquire(guard, writer)
    try:
        if _stamp(file) != stamp:
            return False
        _write(file, writer)
        return True
    finally:
        guard.unlink()


def _has_pulse(file: Path, before: Writer | None) -> bool:
    """Whether a writer elsewhere gives a sign of life within a minute."""
    who = "another process" if before is None else f"process {before.process} on {before.host}"
    print(f"{file.parent}: {who} may be writing this run; looking for a sign of life ...", file=sys.stderr, flush=True)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(min(1.0, PATIENCE / 10))
        if not file.exists():
            return False
        now = _read(file)
        if now is not None and now != before:
            if before is not None or now.is_dead is False:
                return True
            before = now
    return False


def _read(file: Path) -> Writer | None:
    """The writer that a lock names; None where there is none, or its file is being written."""
    try:
        writer = Writer(**json.loads(file.read_text(encoding="utf-8")))
        return writer if writer.token.isalnum() else None  # it becomes a part of a file's name
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """A stamp that changes whenever a file is written or replaced; None if there is no file."""
    try:
        with file.open("rb") as stream:  # opened, since NFS answers for a name alone from its memory
            status = os.fstat(stream.fileno())
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _write(file: Path, writer: Writer) -> None:
    """Replaces a lock's file by one that names the writer; whoever reads it reads the one or the other."""
    beside = file.with_name(f"{file.name}.{writer.token}.part")
    beside.write_text(json.dumps(asdict(writer)), encoding="utf-8")
    os.replace(beside, file)


def _machine() -> str:
    """This boot of this machine, and the container in it; its name alone where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(process: int) -> str:
    """When a process started; empty if there is none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]  # what has ended and is not waited for writes no more
    except OSError:
        pass
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:  # another user's
        pass
    return "unknown" if not Path("/proc/self/stat").exists() else ""


def _job() -> str:
    job = os.environ.get("SLURM_JOB_ID", "")
    return f"{job} start {os.environ.get('SLURM_RESTART_COUNT') or 0}" if job else ""

"""The lock of the processes of a run: it lives as long as the process that trains, whoever has started it.

It is a lock of the operating system, unlike that of the writer (`writer_lock`), and neither can do what the other does.
`ablate` takes it before a run has a number, hands it to the processes that it starts, and may be killed: the lock stays
with them, which the writer's pulse, a thread of one process, cannot. The writer's lock needs no file system that knows
locks, names its holder to people and tells of a machine elsewhere whether it lives, which this one cannot; so a `fit`
that nobody's grid has started holds that one alone.
"""

import fcntl
import os
import socket
from pathlib import Path

from ts2_lightning.types import UserError

FILE = ".lock"


class ProcessLock:
    """A run's lock, held. Processes that inherit its descriptor hold it too, until the last of them has ended.

    The file names host and process of the `ablate` that took it.

    Args:
        descriptor: descriptor of the locked file.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def take(cls, directory: Path) -> "ProcessLock | None":
        """The lock of a run's directory, which is made if need be; None if someone has it.

        Raises:
            UserError: if the file system knows no locks.
        """
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(directory, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        if descriptor is None:
            return None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Lets go of it; a child process that is still there keeps it."""
        os.close(self.descriptor)


def is_taken(directory: Path) -> bool:
    """Whether someone has the lock of a run's directory. To look needs no right to write there."""
    try:
        descriptor = _locked(directory, os.O_RDONLY, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def is_orphaned(directory: Path) -> bool:
    """Whether a lock that is taken is held by a process of this machine whose `ablate` is gone."""
    words = (directory / FILE).read_text(encoding="utf-8").split()
    if len(words) != 2 or words[0] != socket.gethostname():
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return False


def lock_file(file: Path, flags: int, operation: int, hint: str) -> int | None:
    """Opens and locks a file; the system takes the lock from a process that dies.

    Args:
        file: the file.
        flags: how it is opened, as `os.open` has them.
        operation: `fcntl.LOCK_EX` or `fcntl.LOCK_SH`.
        hint: end of the message to who has a file system without locks: what for they are, and what to do.

    Returns:
        The descriptor; None if someone else has locked it.

    Raises:
        UserError: if the file system knows no locks.
        OSError: if the file cannot be opened.
    """
    descriptor = os.open(file, flags, 0o644)
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise UserError(f"{file}: the file system cannot lock it ({error.strerror}), so {hint}") from error
    return descriptor


def _locked(directory: Path, flags: int, operation: int) -> int | None:
    """The descriptor of a run's lock; None if someone else has it."""
    hint = "nothing would keep two processes from the same run; choose another --runs_dir"
    return lock_file(directory / FILE, flags, operation, hint)

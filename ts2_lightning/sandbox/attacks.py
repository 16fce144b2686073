"""The self-test: programs that attack the sandbox, which must not get through, and one that must run."""

import os
from collections.abc import Iterable
from typing import NamedTuple

from ts2_lightning.sandbox.programs import Outcome, Program, Verdict

_SECONDS = 10.0

ORDINARY = Program("ordinary", "import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()", _SECONDS)
"""A program that has to pass."""


class Attack(NamedTuple):
    """A program that passes if, and only if, it gets through.

    Attributes:
        deed: what it does, to be read after "programs can".
        code: source.
        seconds: limit of its time.
        layer: beginning of the name of a layer without which it may get through; empty if it never may.
        outcome: how it has to end, if not in any way but passing.
    """

    deed: str
    code: str
    seconds: float = _SECONDS
    layer: str = ""
    outcome: Outcome | None = None

    @property
    def program(self) -> Program:
        """The attack as a program."""
        return Program(self.deed, self.code, self.seconds)

    def got_through(self, verdict: Verdict, layers: Iterable[str]) -> bool:
        """Whether the sandbox let it through and should not have.

        Args:
            verdict: verdict of the program.
            layers: layers of the sandbox.
        """
        if not any(layer.startswith(self.layer) for layer in layers):
            return False
        return verdict.passed if self.outcome is None else verdict.outcome != self.outcome


_SOCKET = """
import socket
try:
    socket.socket({kind}).{deed}
except PermissionError:
    raise
except OSError:
    pass  # an answer of the network
"""
_WRITE = """
import os
for path in {paths!r}:
    try:
        open(path, "x").close()
    except OSError:
        continue
    try:
        os.unlink(path)
    except OSError:
        pass
    break
else:
    raise PermissionError
"""
_EXPECTING = """
import os
try:
    {deed}
except PermissionError:
    raise
except OSError:
    pass  # it was tried
"""
_NAMESPACE = """
import ctypes
if ctypes.CDLL(None).unshare(0x10000000):
    raise PermissionError
"""


def written(secret: str) -> list[str]:
    """The files that an attack tries to make, beside the secret and elsewhere.

    Args:
        secret: path of a file that programs must not read, whose name no other file has.
    """
    directories = (os.path.dirname(secret), "/tmp", "/var/tmp", "/dev/shm", "/")
    return [os.path.join(directory, f"{os.path.basename(secret)}-written") for directory in directories]


def make_attacks(secret: str, memory: int) -> list[Attack]:
    """The attacks of the self-test.

    Args:
        secret: path of a file that programs must not read.
        memory: bytes that a program may take.
    """
    tcp, udp, unix = "socket.AF_INET, socket.SOCK_STREAM", "socket.AF_INET, socket.SOCK_DGRAM", "socket.AF_UNIX"
    return [
        Attack("connect to the network", _SOCKET.format(kind=tcp, deed="connect(('127.0.0.1', 9))")),
        Attack("send to the network", _SOCKET.format(kind=udp, deed="sendto(b'', ('127.0.0.1', 9))")),
        Attack("reach other programs' sockets", _SOCKET.format(kind=unix, deed="connect('/dev/log')")),
        Attack(
            "write files",
            _WRITE.format(paths=written(secret)),
        ),
        Attack("delete files", _EXPECTING.format(deed="os.unlink('/ts2-sandbox-attack')")),
        Attack("read your files", f"open({secret!r}).close()", layer="landlock"),
        Attack("start processes", "import os\nif os.fork() == 0: os._exit(0)"),
        Attack("run other programs", _EXPECTING.format(deed="os.execv('/ts2-sandbox-attack', ['attack'])")),
        Attack("signal other processes", _EXPECTING.format(deed="os.kill(os.getppid(), 0)")),
        Attack("make namespaces", _NAMESPACE),
        Attack("take more memory than their limit", f"bytearray({memory})"),
        Attack("run on after their time", "while True: pass", 0.2, outcome="timeout"),
        Attack("pass by ending early", "import os; os._exit(0)"),
    ]

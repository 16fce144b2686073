"""The self-test: programs that attack the sandbox, which must not get through, and one that must run."""

import tempfile
from typing import NamedTuple

from ts2_lightning.sandbox.programs import Program

_SECONDS = 10.0


class Attack(NamedTuple):
    """A program that passes if, and only if, it gets through.

    Attributes:
        deed: what it does, to be read after "programs can".
        code: source.
        seconds: limit of its time.
        layer: beginning of the name of a layer without which it may get through; empty if it never may.
    """

    deed: str
    code: str
    seconds: float = _SECONDS
    layer: str = ""


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
for directory in ({directory!r}, "/tmp", "/dev/shm", "/var/tmp", "."):
    path = os.path.join(directory, "ts2-sandbox-attack")
    try:
        open(path, "w").close()
    except OSError:
        continue
    os.unlink(path)
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
        Attack("write files", _WRITE.format(directory=tempfile.gettempdir())),
        Attack("delete files", _EXPECTING.format(deed="os.unlink('/ts2-sandbox-attack')")),
        Attack("read your files", f"open({secret!r}).close()", layer="landlock"),
        Attack("start processes", "import os\nif os.fork() == 0: os._exit(0)"),
        Attack("run other programs", _EXPECTING.format(deed="os.execv('/ts2-sandbox-attack', ['attack'])")),
        Attack("signal other processes", _EXPECTING.format(deed="os.kill(os.getppid(), 0)")),
        Attack("make namespaces", _NAMESPACE),
        Attack("take more memory than their limit", f"bytearray({memory})"),
        Attack("run on after their time", "while True: pass", 0.2),
        Attack("pass by ending early", "import os; os._exit(0)"),
    ]


def attack_programs(attacks: list[Attack]) -> list[Program]:
    """The attacks as programs, and before them one that has to pass.

    Args:
        attacks: attacks of the self-test.
    """
    ordinary = Program("ordinary", "import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()", _SECONDS)
    return [ordinary, *(Program(attack.deed, attack.code, attack.seconds) for attack in attacks)]

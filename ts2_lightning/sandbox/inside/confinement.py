"""The layers around a program: what the server takes away from itself once, and from each program before it runs."""

import contextlib
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from typing import NamedTuple

from ts2_lightning.sandbox.inside import landlock, seccomp
from ts2_lightning.sandbox.inside.system_calls import call, machine

_USER, _PID, _NETWORK, _IPC, _NAME = 0x10000000, 0x20000000, 0x40000000, 0x08000000, 0x04000000
_NAMESPACES = (
    (_USER | _PID | _NETWORK | _IPC | _NAME, "namespaces user, pid, net, ipc, uts"),
    (_PID | _NETWORK | _IPC | _NAME, "namespaces pid, net, ipc, uts"),  # root where users may make none
    (_USER | _NETWORK, "namespaces user, net"),
)
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache")
_DATA = ("/usr/share/zoneinfo", "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


class Confinement(NamedTuple):
    """What each program is confined by, made once.

    Attributes:
        memory: bytes of address space.
        filter: packed filter of system calls; empty for none.
        ruleset: descriptor of Landlock's ruleset; None for none.
    """

    memory: int
    filter: bytes
    ruleset: int | None


def leave_namespaces() -> str:
    """Moves the process to namespaces of its own, where that is allowed: no network, no other processes.

    The process that goes on is the first of its namespace, so that all others end with it; the one that called waits
    for it and ends as it does.

    Returns:
        The layer's name; empty where the machine allows none.
    """
    for flags, layer in _NAMESPACES:
        with contextlib.suppress(OSError):
            call("unshare", flags)
            if flags & _PID:
                _become_first()
            return layer
    return ""


def _become_first() -> None:
    process = os.fork()
    if process == 0:
        call("prctl", 1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        return
    os.closerange(0, 64)  # who waits for the end of the server's answers must not wait for this process
    _, status = os.waitpid(process, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def drop_capabilities() -> str:
    """Gives up root's rights over the machine, for good.

    Returns:
        The layer's name; empty if there was nothing to give up.
    """
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    held: list[str] = []
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        held = [line.split()[1] for line in file if line.startswith(("CapEff:", "CapPrm:"))]
    call("capset", struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", *[0] * 6))
    return "capabilities" if any(int(word, 16) for word in held) else ""


def be_first_to_go() -> None:
    """Has the kernel end this process before others when the machine's memory runs out."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def readable_places(directories: Iterable[str]) -> list[str]:
    """Files and directories that programs may read: Python's own, the machine's libraries, a few devices.

    Args:
        directories: further ones.
    """
    own = [path for path in sys.path if path] + [os.path.join(sys.base_prefix, "lib")]
    own += [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path.startswith("/")]
    return [*own, *_LIBRARIES, *_DATA, *directories]


def make_confinement(memory: int, directories: Iterable[str]) -> tuple[Confinement, list[str]]:
    """What programs are confined by on this machine, and the names of these layers.

    Args:
        memory: bytes of address space.
        directories: directories that programs may read beside Python's own.

    Raises:
        OSError: the machine has no filters of system calls, which are the layer that nothing replaces.
    """
    code = seccomp.packed(seccomp.make_filter(machine()))
    ruleset = landlock.make_ruleset(readable_places(directories))
    layers = ["limits", "seccomp"]
    if ruleset is not None:
        layers.append(f"landlock {landlock.version()}")
    return Confinement(memory, code, ruleset), layers


def confine(confinement: Confinement, seconds: float) -> None:
    """Confines this process, for good.

    Args:
        confinement: layers.
        seconds: limit of the time that the program may take.

    Raises:
        OSError: the kernel refuses a layer.
    """
    if confinement.ruleset is not None:
        landlock.restrict(confinement.ruleset)
        os.close(confinement.ruleset)
    set_limits(confinement.memory, seconds)
    if confinement.filter:
        seccomp.install(confinement.filter)


def set_limits(memory: int, seconds: float) -> None:
    """Limits memory, processor time, files and so on of this process; none can be raised again.

    Args:
        memory: bytes of address space.
        seconds: limit of the time that the program may take; processor time is a little more.
    """
    limits = {
        "AS": memory, "CPU": int(seconds) + 2, "FSIZE": 0, "CORE": 0, "NOFILE": 64, "MEMLOCK": 0, "MSGQUEUE": 0,
        "NICE": 0, "RTPRIO": 0, "STACK": 8 << 20,
    }  # fmt: skip
    for name, limit in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None:  # not on this system
            continue
        _, hard = resource.getrlimit(kind)
        lowest = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS takes no limit of the address space
            resource.setrlimit(kind, (lowest, lowest))
